"""Conformance of every registered task, and of the registry."""

import random
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from conformance import answers, conformance_task, rows_of
from text_hub import TEXT_TASKS

from envs.tasks import Split, Task, TrainingData, base, get_task, known_tasks, register_task
from envs.tasks.report import load_test_split
from gns import InvalidSettingError, UnknownNameError

every_task = pytest.mark.parametrize("name", known_tasks())
every_classification = pytest.mark.parametrize(
    "name", [name for name in known_tasks() if get_task(name).loss is base.cross_entropy]
)
_EXAMPLES_OF_A_CLASS = 20  # fewer say nothing about its share


@lru_cache
def splits(name: str) -> dict[str, Split]:
    task = conformance_task(name)
    data = task.training_data()
    return {"train": data.train, "reward": data.reward, "test": load_test_split(task)}


def contents(split: Split) -> list[bytes]:
    return [example.numpy().tobytes() for example in split.inputs]


def untouched_digits(**changes: object) -> Task:
    digits = get_task("digits_mlp")
    fields = {
        "name": "test_task",
        "load_training_data": digits.load_training_data,
        "build_model": digits.build_model,
        "model": digits.model,
        "budget": 300,
    }
    return Task(**{**fields, **changes})


# ---------------------------------------------------------------------- data


@every_task
@pytest.mark.parametrize("part", ["train", "reward", "test"])
def test_every_split_is_well_formed(name, part):
    split = splits(name)[part]
    assert len(split) == len(split.inputs) == len(split.targets) >= 100
    assert split.inputs.shape[1:] == splits(name)["train"].inputs.shape[1:]
    assert split.targets.shape[1:] == splits(name)["train"].targets.shape[1:]
    assert split.inputs.dtype in (torch.float32, torch.int32, torch.uint8)
    assert split.lengths is None or (len(split.lengths) == len(split) and split.lengths.max() <= split.inputs.shape[-1])
    assert split.targets.dtype in (torch.float32, torch.int64, torch.uint8)
    assert torch.isfinite(split.inputs).all() and torch.isfinite(split.targets).all()


@every_task
def test_splits_share_no_example(name):
    train, reward, test = (set(contents(splits(name)[part])) for part in ("train", "reward", "test"))
    assert not train & reward
    assert not train & test
    assert not reward & test


@every_task
def test_no_split_repeats_an_example(name):
    for split in splits(name).values():
        examples = contents(split)
        assert len(set(examples)) == len(examples)


@every_task
def test_data_are_the_same_at_every_call(name):
    task = conformance_task(name)
    before, test = task.training_data(), load_test_split(task)
    if hasattr(task.load_training_data, "cache_clear"):
        task.load_training_data.cache_clear()  # made anew, not merely remembered
    again = task.training_data()
    for old, new in ((before.train, again.train), (before.reward, again.reward), (test, splits(name)["test"])):
        assert torch.equal(old.inputs, new.inputs)
        assert torch.equal(old.targets, new.targets)


@every_classification
def test_every_class_has_its_share_in_every_split(name):
    classes = int(splits(name)["train"].targets.max()) + 1
    for split in splits(name).values():
        if split.targets.numel() < _EXAMPLES_OF_A_CLASS * classes:
            continue
        shares = torch.bincount(split.targets.flatten(), minlength=classes) / split.targets.numel()
        assert len(shares) == classes
        assert shares.min() >= 0.5 / classes
        assert shares.max() <= 2.0 / classes


@pytest.mark.parametrize(
    "name", [name for name in known_tasks() if not name.startswith((*TEXT_TASKS, "python_reference"))]
)
def test_inputs_are_of_order_one(name):
    inputs = conformance_task(name).prepare(splits(name)["train"].inputs, False)
    assert abs(float(inputs.mean())) < 1.0
    assert 0.1 < float(inputs.std()) < 3.0


@pytest.mark.parametrize("load", ["training", "test"])
def test_generating_mnist1d_leaves_global_random_numbers_alone(load):
    task = get_task("mnist1d_mlp")
    task.load_training_data.cache_clear()
    python, legacy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    if load == "training":
        task.load_training_data()
    else:
        load_test_split("mnist1d_mlp")
    assert random.getstate() == python
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), legacy, strict=True))
    assert torch.equal(torch.get_rng_state(), of_torch)


# ---------------------------------------------------------------------- model, loss, metric


@every_task
def test_a_small_step_down_the_gradient_lowers_the_loss(name):
    task = conformance_task(name)
    torch.manual_seed(0)
    model = task.new_model()
    train = splits(name)["train"]
    inputs, targets = task.prepare(train.inputs[: task.batch_size], False), train.targets[: task.batch_size]

    def batch_loss() -> torch.Tensor:
        torch.manual_seed(1)
        return task.loss(model(inputs), targets)

    loss = batch_loss()
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    assert batch_loss() < loss


@every_task
def test_model_is_a_function_of_torchs_random_numbers(name):
    task = conformance_task(name)

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in task.new_model().parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@every_task
def test_metric_tells_a_perfect_answer_from_a_wrong_one(name):
    task, reward = conformance_task(name), splits(name)["reward"]
    perfect, wrong = answers(task, reward)
    metric = task.metrics[task.metric_name]
    assert (metric(task.collect(perfect), reward) > metric(task.collect(wrong), reward)) == task.higher_is_better
    assert task.loss(perfect, reward.targets) < task.loss(wrong, reward.targets)
    assert task.metric_name


@every_task
def test_loss_is_a_mean_over_examples(name):
    task, reward = conformance_task(name), splits(name)["reward"]
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = task.new_model()(task.prepare(reward.inputs[:10], False))
    each = [float(task.loss(rows_of(outputs, slice(i, i + 1)), reward.targets[i : i + 1])) for i in range(10)]
    assert float(task.loss(outputs, reward.targets[:10])) == pytest.approx(np.mean(each), rel=1e-5)


# ---------------------------------------------------------------------- settings


@every_task
def test_settings_may_be_overridden_and_the_registered_task_stays(name):
    registered = get_task(name)
    changed = get_task(name, batch_size=7, budget=11)
    assert (changed.batch_size, changed.budget) == (7, 11)
    assert changed.settings() == {**registered.settings(), "batch_size": 7, "budget": 11, "epochs": None}
    assert get_task(name).settings() == registered.settings()


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("digits_mlp", {"hidden": [8]}),
        ("digits_cnn", {"channels": [4]}),
        ("mnist1d_mlp", {"hidden": []}),
        ("mnist1d_cnn", {"channels": 5}),
    ],
)
def test_model_settings_are_merged_into_the_tasks_own(name, model):
    registered, changed = get_task(name), get_task(name, model=model)
    assert changed.model == {**registered.model, **model}
    outputs = changed.build_model(**changed.model)(splits(name)["train"].inputs[:3])
    assert outputs.shape == (3, registered.model["classes"])
    assert get_task(name).model == registered.model != changed.model


def test_changing_returned_settings_changes_no_task():
    get_task("digits_mlp").settings()["model"]["hidden"] = [1]
    get_task("digits_mlp", model={"hidden": [5]}).model["classes"] = 3
    assert get_task("digits_mlp").model == {"inputs": 64, "hidden": [64, 32], "classes": 10}


def test_unknown_task_is_named_with_the_known_ones_and_a_close_match():
    with pytest.raises(UnknownNameError, match=r"Unknown task 'digits_mpl'.*Did you mean 'digits_mlp'") as caught:
        get_task("digits_mpl")
    assert all(name in str(caught.value) for name in known_tasks())
    with pytest.raises(UnknownNameError, match="Unknown task 'digits_mpl'"):
        load_test_split("digits_mpl")


@every_task
def test_unknown_setting_is_named_with_the_known_ones_and_a_close_match(name):
    with pytest.raises(UnknownNameError, match=f"setting of task {name}.*'batchsize'.*Did you mean 'batch_size'") as e:
        get_task(name, batchsize=3)
    assert all(known in str(e.value) for known in ("batch_size", "budget", "model"))


@every_task
def test_unknown_model_setting_is_named_with_the_known_ones_and_a_close_match(name):
    known = next(iter(get_task(name).model))
    expected = rf"model setting of task {name}.*'{known}x'.*Did you mean '{known}'"
    with pytest.raises(UnknownNameError, match=expected) as e:
        get_task(name, model={f"{known}x": 3})
    assert all(known in str(e.value) for known in get_task(name).model)


@pytest.mark.parametrize("setting", ["batch_size", "budget"])
@pytest.mark.parametrize("value", [0, -3, float("nan"), float("inf"), 2.5, "8"])
def test_batch_size_and_budget_must_be_positive_whole_numbers(setting, value):
    with pytest.raises(InvalidSettingError, match=f"{setting}.*{re.escape(repr(value))}"):
        get_task("digits_mlp", **{setting: value})
    with pytest.raises(InvalidSettingError, match=setting):
        untouched_digits(**{setting: value})


# ---------------------------------------------------------------------- registry


@pytest.fixture
def scratch_registry(monkeypatch):
    """The registry, to be put back afterwards."""
    for registered in (base._TASKS, base._TEST_SPLITS):
        monkeypatch.setitem(registered, "test_task", None)
        del registered["test_task"]


def test_a_registered_task_is_found_by_name(scratch_registry):
    examples = Split(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    task = register_task(untouched_digits(), lambda: examples)
    assert get_task("test_task").settings() == task.settings()
    assert "test_task" in known_tasks() and known_tasks() == sorted(known_tasks())
    assert load_test_split("test_task") is examples


def test_a_name_is_registered_once(scratch_registry):
    registered, test = get_task("digits_mlp"), load_test_split("digits_mlp")
    with pytest.raises(InvalidSettingError, match="'digits_mlp' exists already"):
        register_task(untouched_digits(name="digits_mlp", batch_size=1), lambda: Split(torch.zeros(1), torch.zeros(1)))
    assert get_task("digits_mlp").batch_size == registered.batch_size
    assert torch.equal(load_test_split("digits_mlp").inputs, test.inputs)


def test_training_data_names_no_test_split():
    fields = set(TrainingData.__dataclass_fields__) | set(Task.__dataclass_fields__)
    assert not {name for name in fields if "test" in name}


def test_a_split_moves_whole():
    split = splits("digits_mlp")["reward"].to("cpu")
    assert torch.equal(split.inputs, splits("digits_mlp")["reward"].inputs)
    assert torch.equal(split.targets, splits("digits_mlp")["reward"].targets)
