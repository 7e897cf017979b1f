"""What a task may say: budget, optimizer, ranges, accumulation, clipping, precision, groups, padding and metrics."""

import json
import math
import re
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pytest
import torch
from plain_loop import MODELS, make_optimizer, plain_run, same_state, small_task
from torch import nn

from agents.controllers import ScheduleController
from agents.evaluation.protocol import EvaluationConfig, evaluate
from agents.training.train import TrainConfig, train
from envs import EnvConfig, LearningRateEnv, Task, TrainingRun, get_task, known_tasks
from envs.data_order import group_by_length
from envs.learning_rate_env import Episode
from envs.passes import evaluate_split
from envs.tasks import Split, TrainingData, base
from envs.tasks.base import FROM_SCRATCH, PRECISIONS
from envs.tasks.report import load_test_split
from envs.training_run import OPTIMIZERS
from gns import DecisionConfig, InvalidSettingError, UnknownNameError
from gns.graph.layer_graph import layer_graph

DECISIONS = DecisionConfig(num_decisions=5)
OWN = EnvConfig(optimizers=None, budgets=None, decision=DECISIONS, reward_probability=1.0)
STILL = np.zeros(1, dtype=np.float32)
CHANGES = {  # of every setting a value that no task has
    "batch_size": 9,
    "accumulation": 2,
    "budget": 77,
    "epochs": 1.25,
    "optimizer": "sgdm",
    "clip_norm": 0.125,
    "precision": "bfloat16",
    "evaluation_batch_size": 33,
    "learning_rates": {"adam": (0.002, 0.003)},
}
every_optimizer = pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))


# ---------------------------------------------------------------------- tasks made for these tests


@lru_cache
def points() -> TrainingData:
    """A linear relation with six inputs; 90 examples to train on, 50 for the reward."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(140, 6, generator=generator)
    targets = inputs @ torch.linspace(-1.0, 1.5, 6)[:, None] + 0.1 * torch.randn(140, 1, generator=generator)
    return TrainingData(Split(inputs[:90], targets[:90]), Split(inputs[90:], targets[90:]))


def mean_squared_error(outputs, targets):
    return (outputs.float() - targets).square().mean()


def on_split(loss, outputs, split: Split) -> float:
    return float(loss(outputs, split.targets))


def mean_absolute_error(outputs, split: Split) -> float:
    return float((outputs - split.targets).abs().mean())


def regression(**changes) -> Task:
    settings = {
        "name": "regression",
        "load_training_data": points,
        "build_model": partial(nn.Linear, 6, 1),
        "batch_size": 16,
        "budget": 40,
        "learning_rates": {"adam": (1e-3, 1e-1)},
        "loss": mean_squared_error,
        "metrics": {"squared": partial(on_split, mean_squared_error), "absolute": mean_absolute_error},
        "higher_is_better": False,
    }
    return Task(**{**settings, **changes})


class Gaussian(nn.Module):
    """Mean and log variance of a prediction, as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_variance = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        return self.mean(x), self.log_variance(x)


def likelihood_loss(outputs, targets):
    """Half the squared error over the variance and half the log variance: below 0 where a model is sure and right."""
    mean, log_variance = outputs
    return 0.5 * ((mean - targets).square() * (-log_variance).exp() + log_variance).mean()


def joined_likelihood_loss(joined, split: Split) -> float:
    return float(likelihood_loss(joined.chunk(2, dim=1), split.targets))


def mean_error(joined, split: Split) -> float:
    return float((joined[:, :1] - split.targets).abs().mean())


def gaussian(**changes) -> Task:
    metrics = {"likelihood": joined_likelihood_loss, "absolute": mean_error}
    settings = {
        "build_model": Gaussian,
        "loss": likelihood_loss,
        "metrics": metrics,
        "collect": partial(torch.cat, dim=1),
    }
    return regression(name="gaussian", **{**settings, **changes})


@lru_cache
def sentences(train: int = 530) -> TrainingData:
    """Rows of 1 to 12 numbers in 1..9, padded with 0; the target is their sum modulo 3."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 13, (train + 60,), generator=generator)
    words = torch.randint(1, 10, (len(lengths), 2, 12), generator=generator)
    words = words * (torch.arange(12) < lengths[:, None, None])
    targets = words[:, 0].sum(dim=1) % 3
    splits = [Split(words[rows], targets[rows], lengths[rows]) for rows in (slice(train), slice(train, None))]
    return TrainingData(*splits)


class Bag(nn.Module):
    """Sums embeddings of what is no padding; keeps the shapes it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8, padding_idx=0), nn.Linear(8, 3)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, words):
        self.shapes.append(tuple(words.shape))
        return self.head(self.embedding(words[:, 0]).sum(dim=1))


def padded(**changes) -> Task:
    settings = {"name": "padded", "load_training_data": sentences, "build_model": Bag, "batch_size": 4, "budget": 40}
    return Task(**{**settings, **changes})


class Watched(nn.Module):
    """One of the small networks; keeps the inputs of every pass, and the type of its first layer's outputs."""

    def __init__(self, kind: str = "plain", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = MODELS[kind]().to(dtype)
        self.passes: list[torch.Tensor] = []
        self.types: list[tuple[bool, torch.dtype]] = []
        self.inner[1].register_forward_hook(lambda *call: self.types.append((self.training, call[-1].dtype)))

    def forward(self, x):
        if self.training:
            self.passes.append(x)
        return self.inner(x)


def doubled(inputs, training: bool):
    return inputs.double()


def in_double(**changes) -> Task:
    return small_task(build_model=partial(Watched, dtype=torch.float64), prepare=doubled, **changes)


def gradients(run: TrainingRun) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in run.model.parameters()]


def norm(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def text_task(name: str, **changes) -> Task:
    return get_task(name, batch_size=8, model={"max_length": 32}, **changes)


def episode(env: LearningRateEnv, **options) -> tuple[list[float], dict]:
    """Play one episode of zero actions; return its rewards and the last info."""
    observation, info = env.reset(seed=0, options=options)
    rewards, terminated = [], False
    while not terminated:
        assert observation in env.observation_space
        observation, reward, terminated, _, info = env.step(STILL)
        rewards.append(reward)
    return rewards, info


# ---------------------------------------------------------------------- budget and epochs


def test_epochs_take_the_place_of_the_budget_and_the_reverse():
    assert (get_task("digits_mlp").budget, get_task("digits_mlp").epochs) == (300, None)
    passes = get_task("digits_mlp", epochs=3)
    assert (passes.budget, passes.epochs, passes.updates()) == (None, 3, 99)  # 1077 examples in batches of 32
    assert (get_task("glue_mrpc").budget, get_task("glue_mrpc").epochs) == (None, 3)
    updates = get_task("glue_mrpc", budget=7)
    assert (updates.budget, updates.epochs, updates.updates()) == (7, None, 7)
    assert get_task("digits_mlp", budget=11, epochs=None).updates() == 11
    assert get_task("digits_mlp", budget=None, epochs=1).updates() == 33


@pytest.mark.parametrize(
    ("batch_size", "epochs", "updates"),
    [
        (32, 1, 33),
        (32, 0.25, 8),
        (32, 0.75, 25),
        (32, 1.1, 36),
        (32, 0.01, 1),
        (400, 1.5, 3),
        (1077, 2, 2),
        (5000, 3, 3),
        (5000, 0.2, 1),
    ],
)
def test_updates_are_the_epochs_times_the_batches_of_a_pass(batch_size, epochs, updates):
    task = get_task("digits_mlp", batch_size=batch_size, epochs=epochs)
    assert task.updates() == updates and type(task.updates()) is int


def test_a_run_of_whole_epochs_meets_every_example_once_a_pass():
    task = small_task(build_model=Watched, batch_size=359, budget=None, epochs=2)  # 3 x 359 = 1077 examples
    run = TrainingRun(task, "adam", 1e-3, seed=0)
    for _ in range(task.updates()):
        run.compute_gradient()
    for part in (run.model.passes[:3], run.model.passes[3:]):
        met, stored = (torch.cat(list(inputs)).flatten(1) for inputs in (part, [task.training_data().train.inputs]))
        assert sorted(map(tuple, met.tolist())) == sorted(map(tuple, stored.tolist()))


def test_a_budget_in_updates_loads_no_data():
    def refuse():
        raise AssertionError("the data were loaded")

    assert small_task(load_training_data=refuse, budget=12).updates() == 12


@pytest.mark.parametrize("given", [{"budget": 300, "epochs": 2.0}, {"budget": None, "epochs": None}], ids=str)
def test_a_task_has_a_budget_or_epochs_and_says_so(given):
    message = f"Task test_plain has budget {given['budget']} and epochs {given['epochs']}; expected one of the two"
    with pytest.raises(InvalidSettingError, match=message):
        small_task(**given)


def test_both_given_are_refused_and_neither_leaves_the_task_as_it_is():
    with pytest.raises(InvalidSettingError, match="budget 5 and epochs 2; expected one of the two, and null"):
        get_task("digits_mlp", budget=5, epochs=2)
    assert get_task("digits_mlp", budget=None, epochs=None).settings() == get_task("digits_mlp").settings()


# ---------------------------------------------------------------------- values a setting cannot have


@pytest.mark.parametrize("value", [0, -3, math.nan, math.inf, 2.5, "8", True], ids=repr)
@pytest.mark.parametrize("setting", ["batch_size", "accumulation", "budget", "evaluation_batch_size"])
def test_counts_are_whole_numbers_above_zero(setting, value):
    with pytest.raises(InvalidSettingError, match=f"{setting} of task test_plain is {re.escape(repr(value))}"):
        small_task(**{setting: value})
    if setting in get_task("digits_mlp").settings():
        with pytest.raises(InvalidSettingError, match=f"{setting} of task digits_mlp is {re.escape(repr(value))}"):
            get_task("digits_mlp", **{setting: value})


@pytest.mark.parametrize("value", [0, -1.5, math.nan, math.inf, "1", True], ids=repr)
@pytest.mark.parametrize("setting", ["epochs", "clip_norm"])
def test_epochs_and_clip_norm_are_above_zero(setting, value):
    message = f"{setting} of task .* is {re.escape(repr(value))}; expected a finite number above 0"
    with pytest.raises(InvalidSettingError, match=message):
        small_task(**{"epochs": None, "budget": None if setting == "epochs" else 3, setting: value})
    with pytest.raises(InvalidSettingError, match=message):
        get_task("digits_mlp", **{setting: value})


def test_a_batch_has_at_most_as_many_parts_as_examples():
    assert get_task("digits_mlp", batch_size=4, accumulation=4).accumulation == 4
    with pytest.raises(
        InvalidSettingError, match="accumulation of task digits_mlp is 5; expected at most batch_size = 4"
    ):
        get_task("digits_mlp", batch_size=4, accumulation=5)


@pytest.mark.parametrize("value", ["bf16", "float64", None, True, 32], ids=repr)
def test_an_unknown_precision_is_named_with_the_known_ones(value):
    for make in (partial(get_task, "digits_mlp"), small_task):
        with pytest.raises(
            UnknownNameError, match=f"precision of task .*{value!r}; expected one of: bfloat16, float16, float32"
        ):
            make(precision=value)


def test_an_unknown_precision_comes_with_a_close_match():
    with pytest.raises(UnknownNameError, match=r"'bfloat'.*Did you mean 'bfloat16'"):
        get_task("digits_mlp", precision="bfloat")
    assert [get_task("digits_mlp", precision=precision).precision for precision in PRECISIONS] == list(PRECISIONS)


def test_an_unknown_default_optimizer_is_named_where_it_is_used():
    task = get_task("digits_mlp", optimizer="adma")
    with pytest.raises(UnknownNameError, match=r"'adma'.*Did you mean 'adam'"):
        LearningRateEnv([task], OWN)
    with pytest.raises(UnknownNameError, match=r"'adma'.*Did you mean 'adam'"):
        TrainingRun(task, task.optimizer, 1e-3, seed=0)
    for tuned in (True, False):
        controller = type("Any", (), {"tuned": tuned, "own_rate": False})
        with pytest.raises(UnknownNameError, match=r"'adma'.*Did you mean 'adam'"):
            EvaluationConfig(optimizers=None).rates_of(controller, task, task.optimizer)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((0.0, 0.1), "lowest learning rate of adam on task .* is 0.0"),
        ((-1e-3, 0.1), "lowest learning rate of adam on task .* is -0.001"),
        ((math.nan, 0.1), "lowest learning rate of adam on task .* is nan"),
        ((1e-3, math.nan), "highest learning rate of adam on task .* is nan"),
        ((1e-3, math.inf), "highest learning rate of adam on task .* is inf"),
        (("1e-3", 0.1), "lowest learning rate of adam on task .* is '1e-3'"),
        ((1e-3, True), "highest learning rate of adam on task .* is True"),
        ((0.1, 0.01), r"learning_rates of adam on task .* are \(0.1, 0.01\); expected \(lowest, highest\)"),
    ],
    ids=str,
)
def test_a_range_of_rates_is_positive_and_ascending(bounds, message):
    with pytest.raises(InvalidSettingError, match=message):
        get_task("digits_mlp", learning_rates={"adam": bounds})
    with pytest.raises(InvalidSettingError, match=message):
        small_task(learning_rates={"adam": bounds})


def test_ranges_of_rates_are_merged_into_the_tasks_own():
    changed = get_task("digits_mlp", learning_rates={"adam": [1e-3, 1e-3]})
    assert changed.learning_rates == {**FROM_SCRATCH, "adam": (1e-3, 1e-3)}
    assert get_task("digits_mlp").learning_rates == FROM_SCRATCH
    assert get_task("digits_mlp", learning_rates=None).learning_rates == FROM_SCRATCH
    with pytest.raises(UnknownNameError, match=r"learning rate setting of task digits_mlp 'adamv'.*Did you mean 'adam"):
        get_task("digits_mlp", learning_rates={"adamv": (1e-3, 1e-2)})


def test_a_task_has_a_metric_and_the_first_is_its_own():
    with pytest.raises(InvalidSettingError, match="Task test_plain has no metrics; expected at least one"):
        small_task(metrics={})
    metrics = {"b": mean_absolute_error, "a": mean_absolute_error}
    assert small_task(metrics=metrics).metric_name == "b"


# ---------------------------------------------------------------------- settings and what data and model get


def test_loaders_get_the_data_settings_and_the_model_all(monkeypatch):
    asked = []
    task = small_task(
        model={"encoder": "tiny", "max_length": 7, "width": 3},
        data_settings=("max_length", "encoder"),
        load_training_data=lambda **given: asked.append(given) or points(),
        build_model=lambda **given: asked.append(given) or nn.Linear(1, 1),
    )
    assert task.for_loaders() == {"encoder": "tiny", "max_length": 7}
    assert task.training_data() is points()
    task.new_model()
    monkeypatch.setitem(base._TEST_SPLITS, task.name, lambda **given: asked.append(given) or points().reward)
    assert load_test_split(task) is points().reward
    for_data = {"encoder": "tiny", "max_length": 7}
    assert asked == [for_data, {**for_data, "width": 3}, for_data]


def test_data_follow_the_settings_they_depend_on():
    for length in (16, 24):
        task = get_task("glue_mrpc", model={"max_length": length})
        assert task.training_data().reward.inputs.shape[-1] == load_test_split(task).inputs.shape[-1] == length
    assert get_task("digits_mlp", model={"hidden": [3]}).for_loaders() == {}


@pytest.mark.parametrize("name", known_tasks())
def test_settings_are_what_a_configuration_may_change(name):
    settings = get_task(name).settings()
    assert set(settings) == {*CHANGES, "model"}
    assert get_task(name, **settings) == get_task(name)
    for key, value in CHANGES.items():
        assert settings[key] != value
        expected = {**settings, key: {**settings[key], **value} if key == "learning_rates" else value}
        if key in ("budget", "epochs"):
            expected["epochs" if key == "budget" else "budget"] = None
        assert get_task(name, **{key: value}).settings() == expected
    assert get_task(name).settings() == settings


def test_changes_to_returned_settings_reach_no_task():
    before = get_task("digits_mlp").settings()
    settings = get_task("digits_mlp").settings()
    settings["model"]["classes"] = 3
    settings["learning_rates"]["adam"] = (1.0, 2.0)
    settings["learning_rates"]["lion"] = (1.0, 2.0)
    settings["budget"] = 1
    get_task("digits_mlp", learning_rates={"adam": (1.0, 2.0)}).learning_rates["sgdm"] = (3.0, 4.0)
    assert get_task("digits_mlp").settings() == before


# ---------------------------------------------------------------------- splits


def test_a_batch_without_lengths_is_the_rows_asked_for():
    split, rows = points().train, torch.tensor([5, 0, 5, 89])
    inputs, targets = split.batch(rows)
    assert torch.equal(inputs, split.inputs[rows]) and torch.equal(targets, split.targets[rows])


@pytest.mark.parametrize("longest", [1, 4, 12])
def test_a_batch_with_lengths_has_no_more_padding_than_its_longest_row_needs(longest):
    split = sentences().train
    fitting = (split.lengths <= longest).nonzero().flatten()
    rows = fitting[torch.randperm(len(fitting), generator=torch.Generator().manual_seed(longest))][:20]
    assert int(split.lengths[rows].max()) == longest
    inputs, targets = split.batch(rows)
    assert inputs.shape == (len(rows), 2, longest)
    assert torch.equal(inputs, split.inputs[rows, :, :longest]) and torch.equal(targets, split.targets[rows])
    assert not split.inputs[rows, :, longest:].any()


def test_a_split_moves_with_its_targets_and_keeps_lengths_on_the_host():
    split = Split(torch.zeros(3, 4), torch.zeros(3), torch.tensor([1, 2, 4]), references=("a", "b", "c"))
    moved = split.to("meta")
    assert moved.inputs.device.type == moved.targets.device.type == "meta"
    assert moved.lengths is split.lengths and moved.references is split.references and len(moved) == 3


def test_targets_that_are_the_inputs_stay_one_tensor():
    inputs = torch.arange(6.0).reshape(3, 2)
    moved = Split(inputs, inputs).to("meta")
    assert moved.targets is moved.inputs
    one, other = Split(inputs, inputs).batch(torch.tensor([2, 0]))
    assert torch.equal(one, other) and torch.equal(one, inputs[[2, 0]])
    apart = Split(inputs, inputs.clone()).to("meta")
    assert apart.targets is not apart.inputs


# ---------------------------------------------------------------------- accumulation


@pytest.mark.parametrize(
    ("batch_size", "parts"), [(10, 1), (10, 2), (10, 4), (10, 10), (32, 5), (7, 3), (5000, 4), (5000, 1077)]
)
def test_accumulated_gradients_are_those_of_the_whole_batch(batch_size, parts):
    whole, cut = (
        TrainingRun(in_double(batch_size=batch_size, accumulation=count), "sgdm", 0.05, seed=3) for count in (1, parts)
    )
    for _ in range(3):
        loss = whole.compute_gradient()
        assert cut.compute_gradient().item() == cut.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        for one, other in zip(gradients(whole), gradients(cut), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
        whole.apply_update()
        cut.apply_update()


def test_accumulation_in_float32_is_as_good_as_float32():
    whole, cut = (TrainingRun(small_task(accumulation=count), "adam", 1e-3, seed=3) for count in (1, 5))
    assert cut.compute_gradient().item() == pytest.approx(whole.compute_gradient().item(), rel=1e-6)
    for one, other in zip(gradients(whole), gradients(cut), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("batch_size", "parts", "sizes"), [(10, 4, [3, 3, 2, 2]), (8, 2, [4, 4]), (3, 3, [1, 1, 1])])
def test_the_parts_of_a_batch_are_its_examples_each_once(batch_size, parts, sizes):
    whole, cut = (
        TrainingRun(small_task(build_model=Watched, batch_size=batch_size, accumulation=count), "adam", 1e-3, seed=1)
        for count in (1, parts)
    )
    whole.compute_gradient()
    cut.compute_gradient()
    assert [len(inputs) for inputs in cut.model.passes] == sizes
    assert torch.equal(torch.cat(cut.model.passes), whole.model.passes[0])


def test_parts_of_padded_batches_are_padded_each_for_itself():
    run = TrainingRun(padded(batch_size=12, accumulation=3), "adam", 1e-3, seed=1)
    widths = []
    for _ in range(10):
        run.compute_gradient()
        widths.append([shape[-1] for shape in run.model.shapes])
        run.model.shapes.clear()
    assert all(row == sorted(row, reverse=True) for row in widths)
    assert any(len(set(row)) > 1 for row in widths)


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "glue_mrpc", "glue_stsb"])
@pytest.mark.parametrize("parts", [3, 8])
def test_the_layer_graph_is_the_same_from_an_accumulated_loss(name, parts):
    make = partial(text_task, name) if name.startswith("glue") else partial(get_task, name, batch_size=8)
    runs = [TrainingRun(make(accumulation=count), "adamw", 1e-3, seed=0) for count in (1, parts)]
    assert layer_graph(runs[1].model, runs[1].compute_gradient()) == layer_graph(
        runs[0].model, runs[0].compute_gradient()
    )


def test_an_episode_with_accumulation_is_the_episode_without():
    seen = []
    for parts in (1, 4):
        env = LearningRateEnv([in_double(batch_size=10, accumulation=parts, budget=20)], OWN)
        rewards, info = episode(env, learning_rate=3e-3, seed=4)
        seen.append((rewards, info["reward_loss"], env.observation.nodes, env.observation.globals))
    for one, other in zip(*seen, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_going_back_repeats_accumulated_and_padded_batches():
    run = TrainingRun(padded(load_training_data=partial(sentences, 30), batch_size=8, accumulation=3), "adam", 0.01, 2)

    def shapes_and_losses() -> tuple[list, list]:
        run.model.shapes.clear()
        losses = [run.compute_gradient().item() for _ in range(8)]  # 3 batches a pass
        return list(run.model.shapes), losses

    run.compute_gradient()
    go_back = run.position()
    first = shapes_and_losses()
    assert len(set(first[1])) > 4
    go_back()
    assert shapes_and_losses() == first


# ---------------------------------------------------------------------- clipping


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("limit", [1e-3, 0.1, 0.5])
def test_clipping_is_torchs_on_the_gradient_of_the_batch(limit, parts):
    free, clipped = (
        TrainingRun(small_task(accumulation=parts, clip_norm=bound), "adam", 1e-3, seed=2) for bound in (None, limit)
    )
    assert torch.equal(free.compute_gradient(), clipped.compute_gradient())
    assert norm(gradients(free)) > limit
    nn.utils.clip_grad_norm_(free.model.parameters(), limit)
    assert all(torch.equal(one, other) for one, other in zip(gradients(free), gradients(clipped), strict=True))
    assert norm(gradients(clipped)) == pytest.approx(limit, rel=1e-3)


def test_small_gradients_are_left_alone_to_the_last_bit():
    free, clipped = (TrainingRun(small_task(clip_norm=bound), "adam", 1e-3, seed=2) for bound in (None, 50.0))
    for _ in range(4):
        free.compute_gradient()
        clipped.compute_gradient()
        assert 0.0 < norm(gradients(free)) < 50.0
        assert all(torch.equal(one, other) for one, other in zip(gradients(free), gradients(clipped), strict=True))
        free.apply_update()
        clipped.apply_update()


@every_optimizer
def test_a_clipped_run_is_a_plain_loop_that_clips(optimizer):
    task, rate = small_task(), {"sgd": 0.1, "sgdm": 0.05}.get(optimizer, 1e-3)
    run = TrainingRun(replace(task, clip_norm=0.3), optimizer, rate, seed=6)
    for _ in range(20):
        run.compute_gradient()
        run.apply_update()
    torch.manual_seed(6)
    model = task.new_model()
    chosen = make_optimizer(optimizer, model.parameters(), rate)
    train, order = task.training_data().train, torch.randperm(1077, generator=torch.Generator().manual_seed(6))
    for rows in order[: 20 * 32].split(32):
        chosen.zero_grad()
        task.loss(model(train.inputs[rows]), train.targets[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        chosen.step()
    assert same_state(run.model, model)
    assert not same_state(run.model, plain_run(task, optimizer, rate, seed=6, updates=20).model)


class Explosive(nn.Module):
    """A small network whose last weight gets one gradient that is not finite, while every loss is."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.inner, self.backwards = MODELS["plain"](), 0

        def explode(gradient):
            self.backwards += 1
            return gradient.clone().fill_diagonal_(value) if self.backwards == at else gradient

        self.inner[-1].weight.register_hook(explode)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [6, 9])  # inside an interval of 4 updates; at a decision
def test_clipping_hides_no_gradient_that_is_not_finite_from_the_guard(at, value):
    task = small_task(build_model=partial(Explosive, at, value), clip_norm=1.0, budget=20)
    env = LearningRateEnv([task], OWN)
    env.reset(seed=0, options={"learning_rate": 1e-3, "seed": 1})
    rollbacks = []
    while not env.core.finished:
        _, reward, _, _, info = env.step(STILL)
        assert math.isfinite(reward)
        rollbacks.append(info["rollbacks"])
    assert rollbacks == [0, 1, 1, 1, 1]
    assert all(torch.isfinite(parameter).all() for parameter in env.run.model.parameters())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(env.run))
    assert not info["diverged"]


# ---------------------------------------------------------------------- parameter groups


def two_groups(model):
    """Biases without decay and at a tenth of the rate of 0.02."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return [{"params": weights}, {"params": biases, "weight_decay": 0.5, "lr": 2e-3}]


@every_optimizer
def test_groups_and_their_settings_reach_the_optimizer(optimizer):
    run = TrainingRun(small_task(parameter_groups=two_groups), optimizer, 0.02, seed=0)
    first, second = run.optimizer.param_groups
    assert (first["lr"], second["lr"]) == (0.02, 2e-3)
    assert (
        first["weight_decay"] == (0.01 if optimizer in ("adamw", "nadamw") else 0.0) and second["weight_decay"] == 0.5
    )
    assert [parameter.ndim for parameter in first["params"]] == [2, 2]
    assert [parameter.ndim for parameter in second["params"]] == [1, 1]


@every_optimizer
def test_a_run_with_groups_is_a_plain_loop_with_groups(optimizer):
    task = small_task()
    run = TrainingRun(replace(task, parameter_groups=two_groups), optimizer, 0.02, seed=6)
    for _ in range(15):
        run.compute_gradient()
        run.apply_update()
    torch.manual_seed(6)
    model = task.new_model()
    chosen = make_optimizer(optimizer, two_groups(model), 0.02)
    train, order = task.training_data().train, torch.randperm(1077, generator=torch.Generator().manual_seed(6))
    for rows in order[: 15 * 32].split(32):
        chosen.zero_grad()
        task.loss(model(train.inputs[rows]), train.targets[rows]).backward()
        chosen.step()
    assert same_state(run.model, model)


@every_optimizer
@pytest.mark.parametrize("mode", ["profile", "recursive"])
def test_an_episode_keeps_the_ratios_of_the_groups_rates(optimizer, mode):
    config = replace(OWN, decision=replace(DECISIONS, mode=mode))
    env = LearningRateEnv([small_task(parameter_groups=two_groups, optimizer=optimizer, budget=20)], config)
    env.reset(seed=0, options={"learning_rate": 0.02})
    rates = []
    env.run.optimizer.register_step_pre_hook(lambda stepped, *_: rates.append([g["lr"] for g in stepped.param_groups]))
    for action in (0.4, -0.6, 0.2, -0.1, 0.3):
        env.step(np.array([action], dtype=np.float32))
    assert len(rates) == 20 and len({first for first, _ in rates}) >= 5
    assert [first / second for first, second in rates] == pytest.approx([10.0] * 20)
    assert [first for first, _ in rates] == env.rates


# ---------------------------------------------------------------------- precision


@every_optimizer
def test_bfloat16_is_for_forward_passes_and_all_that_is_kept_is_float32(optimizer):
    task = small_task(build_model=Watched, precision="bfloat16")
    run = TrainingRun(task, optimizer, 1e-3, seed=5)
    losses = []
    for _ in range(3):
        losses.append(run.compute_gradient())
        run.apply_update()
    run.evaluate_reward_split()
    assert run.model.types == [(True, torch.bfloat16)] * 3 + [(False, torch.bfloat16)]
    state = [value for kept in run.optimizer.state.values() for value in kept.values()]
    kept = [*run.model.parameters(), *gradients(run), *losses, *(v for v in state if torch.is_tensor(v))]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_float32_computes_nothing_in_bfloat16():
    run = TrainingRun(small_task(build_model=Watched), "adam", 1e-3, seed=5)
    run.compute_gradient()
    run.evaluate_reward_split()
    assert run.model.types == [(True, torch.float32), (False, torch.float32)]


def test_losses_in_bfloat16_are_close_to_those_in_float32():
    exact, rough = (TrainingRun(small_task(precision=name), "adam", 1e-3, seed=5) for name in ("float32", "bfloat16"))
    pairs = []
    for _ in range(30):
        pairs.append((exact.compute_gradient().item(), rough.compute_gradient().item()))
        exact.apply_update()
        rough.apply_update()
    assert all(other == pytest.approx(one, rel=0.02) for one, other in pairs)
    assert any(one != other for one, other in pairs)
    assert rough.evaluate_reward_split().loss == pytest.approx(exact.evaluate_reward_split().loss, rel=0.02)


def test_metrics_get_float32_from_evaluations_in_bfloat16():
    given = []

    def note(outputs, split):
        given.append(outputs)
        return 0.0

    for precision in ("float32", "bfloat16"):
        run = TrainingRun(small_task(precision=precision, metrics={"none": note}), "adam", 1e-3, seed=5)
        run.evaluate_reward_split()
    assert [outputs.dtype for outputs in given] == [torch.float32] * 2
    assert torch.equal(given[1], given[1].bfloat16().float())  # what came out of the model in bfloat16
    assert not torch.equal(given[0], given[1])


@pytest.mark.parametrize("name", ["digits_mlp", "digits_cnn", "glue_mrpc"])
def test_the_layer_graph_is_the_same_in_bfloat16(name):
    make = partial(text_task, name) if name.startswith("glue") else partial(get_task, name, batch_size=8)
    runs = [TrainingRun(make(precision=precision), "adamw", 1e-3, seed=0) for precision in ("float32", "bfloat16")]
    one, other = (layer_graph(run.model, run.compute_gradient()) for run in runs)
    assert one == other


def test_an_episode_runs_in_bfloat16():
    task = small_task(build_model=Watched, precision="bfloat16", clip_norm=1.0, accumulation=2, budget=40)
    env = LearningRateEnv([task], OWN)
    rewards, info = episode(env, learning_rate=3e-3)
    assert set(env.run.model.types) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert sum(rewards) > 0.3 and not info["diverged"]


# ---------------------------------------------------------------------- padded data


def grouped(count: int = 1043, size: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lengths, a random order of the rows, and the order in groups."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 100, (count,), generator=torch.Generator().manual_seed(7))
    order = torch.randperm(count, generator=generator)
    return lengths, order, group_by_length(order, lengths, size, generator)


@pytest.mark.parametrize(("count", "size"), [(1043, 4), (1000, 5), (12, 4), (13, 12), (7, 7), (450, 1)])
def test_groups_hold_every_row_at_most_once_in_whole_batches(count, size):
    _, order, result = grouped(count, size)
    assert len(result) == count // size * size == len(set(result.tolist()))
    assert sorted(result.tolist()) == sorted(order[: len(result)].tolist())  # what is left out is random


def test_batches_of_a_group_are_of_similar_length():
    lengths, order, result = grouped()
    batches = lengths[result].reshape(-1, 4)
    assert (batches.diff(dim=1) <= 0).all()
    at_random = lengths[order[: len(result)]].reshape(-1, 4)
    assert (batches.amax(1) - batches.amin(1)).float().mean() < 0.1 * (
        at_random.amax(1) - at_random.amin(1)
    ).float().mean()


def test_stretches_of_fifty_batches_stay_together_and_their_batches_are_shuffled():
    lengths, order, result = grouped()
    for start in range(0, len(result), 200):
        ours, drawn = result[start : start + 200], order[: len(result)][start : start + 200]
        assert sorted(ours.tolist()) == sorted(drawn.tolist())
        longest = lengths[ours].reshape(-1, 4)[:, 0].double()
        places = torch.arange(len(longest), dtype=torch.float64)
        assert abs(float(torch.corrcoef(torch.stack([places, longest]))[0, 1])) < 0.5  # sorted batches have -1
        steps = longest.diff()
        assert 0.25 < float((steps > 0).double().mean()) < 0.75


def test_groups_are_a_function_of_the_generator():
    assert torch.equal(grouped(seed=3)[2], grouped(seed=3)[2])
    assert not torch.equal(grouped(seed=3)[2], grouped(seed=4)[2])


def test_a_pass_over_padded_data_meets_every_example_at_most_once_with_little_padding():
    class Keeping(Bag):
        def forward(self, words):
            self.batches = [*getattr(self, "batches", []), words]
            return super().forward(words)

    run = TrainingRun(padded(build_model=Keeping, load_training_data=partial(sentences, 531)), "adam", 1e-3, seed=0)
    wide = [nn.functional.pad(x, (0, 12 - x.shape[-1])) for x in padded_batches(run, 264)]
    stored = run.task.training_data().train
    for part in (wide[:132], wide[132:]):  # 531 examples in batches of 4
        assert rest(stored.inputs, torch.cat(part)) == 3
    assert not all(torch.equal(a, b) for a, b in zip(wide[:132], wide[132:], strict=True))
    cells, words = sum(shape[0] * shape[2] for shape in run.model.shapes), sum(int((x[:, 0] > 0).sum()) for x in wide)
    assert cells < 1.1 * words  # batches in random order have 1.5


def padded_batches(run: TrainingRun, updates: int) -> list[torch.Tensor]:
    for _ in range(updates):
        run.compute_gradient()
    return run.model.batches


def rest(stored: torch.Tensor, met: torch.Tensor) -> int:
    """How many stored examples were not met; fails if one was met more often than it is stored."""
    left = stored.flatten(1).tolist()
    for row in met.flatten(1).tolist():
        left.remove(row)
    return len(left)


def test_metrics_of_padded_data_get_outputs_in_the_order_of_the_split():
    given = []

    def note(outputs, split):
        given.append(outputs)
        return float((outputs.argmax(1) == split.targets).float().mean())

    run = TrainingRun(padded(metrics={"accuracy": note}), "adam", 1e-2, seed=0)
    for _ in range(5):
        run.compute_gradient()
        run.apply_update()
    reward = run.task.training_data().reward
    with torch.no_grad():
        expected = run.model.eval()(reward.inputs)
    for chunk in (None, 1, 7, 60):
        run.model.shapes.clear()
        figures = evaluate_split(run.model, run.task, reward, chunk)
        torch.testing.assert_close(given[-1], expected)
        assert figures.loss == pytest.approx(float(nn.functional.cross_entropy(expected, reward.targets)), rel=1e-6)
        widths = [shape[-1] for shape in run.model.shapes]
        assert widths == sorted(widths) and sum(shape[0] for shape in run.model.shapes) == len(reward)
        assert chunk != 7 or widths[0] < widths[-1] == 12
    assert len(set(reward.lengths.tolist())) > 5 and not torch.equal(reward.lengths, reward.lengths.sort().values)


# ---------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("chunk", [1, 7, 49, 50, 51])
def test_the_loss_of_a_split_is_the_mean_over_examples_whatever_the_chunks(chunk):
    task = regression()
    torch.manual_seed(0)
    model, split = task.new_model(), task.training_data().reward
    squares = (model(split.inputs) - split.targets).detach().double().square()
    figures = evaluate_split(model, task, split, chunk)
    assert figures.loss == pytest.approx(float(squares.mean()), rel=1e-6)
    assert evaluate_split(model, replace(task, evaluation_batch_size=chunk), split) == figures
    # A mean over chunks would be another number.
    assert float(squares.mean()) != pytest.approx(
        float(torch.stack([s.mean() for s in squares.split(49)]).mean()), 1e-2
    )


def test_the_evaluation_batch_size_is_the_largest_forward_pass():
    run = TrainingRun(padded(evaluation_batch_size=25), "adam", 1e-3, seed=0)
    run.evaluate_reward_split()
    assert [shape[0] for shape in run.model.shapes] == [25, 25, 10]


def test_figures_hold_every_metric_in_order_and_the_first_is_the_tasks():
    task = regression()
    torch.manual_seed(0)
    model, split = task.new_model(), task.training_data().reward
    figures = evaluate_split(model, task, split)
    assert list(figures.metrics) == ["squared", "absolute"] and task.metric_name == "squared"
    assert figures.metric == figures.metrics["squared"] == pytest.approx(figures.loss)
    assert figures.metrics["absolute"] == pytest.approx(
        float((model(split.inputs) - split.targets).abs().mean().detach())
    )
    swapped = replace(task, metrics=dict(reversed(task.metrics.items())))
    assert evaluate_split(model, swapped, split).metric == figures.metrics["absolute"]


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_outputs_that_are_tuples_are_collected(chunk):
    run = TrainingRun(gaussian(), "adam", 0.01, seed=0)
    split = run.task.training_data().reward
    with torch.no_grad():
        outputs = run.model(split.inputs)
    figures = evaluate_split(run.model, run.task, split, chunk)
    assert figures.loss == pytest.approx(float(likelihood_loss(outputs, split.targets)), rel=1e-5)
    assert figures.metrics["likelihood"] == pytest.approx(figures.loss, rel=1e-5)
    assert figures.metrics["absolute"] == pytest.approx(float((outputs[0] - split.targets).abs().mean()), rel=1e-5)


# ---------------------------------------------------------------------- episodes on other tasks than classification


def test_an_episode_on_a_regression_lowers_its_metric():
    env = LearningRateEnv([regression()], OWN)
    env.reset(seed=0, options={"learning_rate": 0.05})
    before = env.run.evaluate_reward_split()
    rewards, info = episode(env, learning_rate=0.05)
    assert info["reward_metric"] == pytest.approx(info["reward_loss"]) and info["reward_metric"] < 0.7 * before.metric
    assert sum(rewards) == pytest.approx(math.log(before.loss / info["reward_loss"]), abs=1e-6)


def test_an_episode_passes_zero_loss():
    env = LearningRateEnv([gaussian(budget=300)], OWN)
    env.reset(seed=0, options={"learning_rate": 0.1})
    assert env.run.evaluate_reward_split().loss > 0.0
    rewards, info = episode(env, learning_rate=0.1)
    assert info["reward_loss"] < 0.0 and not info["diverged"] and info["rollbacks"] == 0
    assert all(math.isfinite(reward) for reward in rewards) and sum(rewards) > 0.0


def shifted_loss(shift, outputs, targets):
    return mean_squared_error(outputs, targets) - shift


def below_zero(outputs, targets):
    return mean_squared_error(outputs, targets) - 1e3


def test_losses_below_zero_give_finite_rewards_and_no_rollback():
    env = LearningRateEnv([regression(loss=below_zero)], OWN)
    rewards, info = episode(env, learning_rate=0.05)
    assert all(math.isfinite(reward) for reward in rewards)
    assert info["rollbacks"] == 0 and not info["diverged"]
    assert -1e3 < info["reward_loss"] < -999.0 and env.run.loss.item() < 0.0


def nothing_to_learn() -> TrainingData:
    return TrainingData(
        *(Split(split.inputs, torch.zeros(len(split), 1)) for split in (points().train, points().reward))
    )


def perfect_from_the_start() -> nn.Module:
    model = nn.Linear(6, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def test_a_loss_of_zero_throughout_gives_rewards_of_zero_and_no_rollback():
    env = LearningRateEnv([regression(load_training_data=nothing_to_learn, build_model=perfect_from_the_start)], OWN)
    rewards, info = episode(env, learning_rate=0.01)
    assert rewards == [0.0] * 5 and info["reward_loss"] == info["reward_metric"] == 0.0
    assert info["rollbacks"] == 0 and not info["diverged"]


# ---------------------------------------------------------------------- what an environment takes from its tasks


def test_an_environment_takes_optimizer_budget_and_range_from_each_task():
    tasks = [
        get_task("digits_mlp", optimizer="sgdm", epochs=1, learning_rates={"sgdm": (0.01, 0.02)}),
        get_task("mnist1d_mlp", budget=44, learning_rates={"adam": (0.003, 0.004)}),
    ]
    env = LearningRateEnv(tasks, OWN)
    drawn = []
    for seed in range(12):
        _, info = env.reset(seed=seed)
        drawn.append(info)
        low, high = {"digits_mlp": (0.01, 0.02), "mnist1d_mlp": (0.003, 0.004)}[info["task"]]
        assert low <= info["initial_lr"] == info["learning_rate"] <= high
    assert {(info["task"], info["optimizer"], info["budget"]) for info in drawn} == {
        ("digits_mlp", "sgdm", 33),
        ("mnist1d_mlp", "adam", 44),
    }
    assert len({info["initial_lr"] for info in drawn}) == 12


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_what_a_configuration_says_wins_over_the_task(optimizer):
    config = replace(OWN, optimizers=("adamw", "adam"), budgets=(10, 12), learning_rates={"adamw": (0.05, 0.06)})
    task = get_task("digits_mlp", optimizer="sgdm", learning_rates={"adam": (0.3, 0.4), "adamw": (1e-4, 1e-3)})
    env, met = LearningRateEnv([task], config), set()
    for seed in range(10):
        _, info = env.reset(seed=seed)
        met.add(info["optimizer"])
        assert 10 <= info["budget"] <= 12
        low, high = {"adamw": (0.05, 0.06), "adam": (0.3, 0.4)}[info["optimizer"]]
        assert low <= info["initial_lr"] <= high
    assert met == {"adam", "adamw"}
    assert config.learning_rates_of(task, optimizer) == {"adamw": (0.05, 0.06), "adam": (0.3, 0.4)}[optimizer]
    assert replace(config, learning_rates={"adamw": None}).learning_rates_of(task, "adamw") == (1e-4, 1e-3)


def test_reset_options_win_over_the_task():
    env = LearningRateEnv([get_task("digits_mlp", budget=30, learning_rates={"adam": (0.01, 0.01)})], OWN)
    assert env.reset(seed=0)[1]["initial_lr"] == pytest.approx(0.01)
    options = {"optimizer": "sgdm", "budget": 9, "learning_rate": 0.5, "seed": 4}
    _, info = env.reset(seed=0, options=options)
    assert (info["optimizer"], info["budget"], info["initial_lr"], env.episode.seed) == ("sgdm", 9, 0.5, 4)
    low, high = FROM_SCRATCH["sgdm"]
    assert low <= env.reset(seed=0, options={"optimizer": "sgdm"})[1]["initial_lr"] <= high


def test_a_task_without_a_range_for_the_optimizer_is_named_at_construction():
    task = regression()
    for config in (replace(OWN, optimizers=("adam", "sgdm")), EnvConfig(decision=DECISIONS)):
        with pytest.raises(UnknownNameError, match="learning_rates on task regression 'sgdm'; expected one of: adam"):
            LearningRateEnv(["digits_mlp", task], config)
    given = replace(OWN, optimizers=("adam", "sgdm"), learning_rates={"sgdm": (0.01, 0.02)})
    env = LearningRateEnv([task], given)
    assert {env.reset(seed=seed)[1]["optimizer"] for seed in range(8)} == {"adam", "sgdm"}


@pytest.mark.parametrize("bounds", [(1e-9, 1e-3), (1.0, 11.0)])
def test_ranges_outside_the_bounds_of_decisions_are_refused_at_construction(bounds):
    message = re.escape(f"learning_rates of adam are {bounds}; expected (lowest, highest) within [min_lr, max_lr]")
    with pytest.raises(InvalidSettingError, match=message):
        LearningRateEnv(["digits_mlp", regression(learning_rates={"adam": bounds})], OWN)
    with pytest.raises(InvalidSettingError, match=message):
        replace(OWN, learning_rates={"adam": bounds})


def test_ranges_up_to_the_bounds_of_decisions_are_drawn_from():
    bounds = (DECISIONS.min_lr, DECISIONS.max_lr)
    env = LearningRateEnv([regression(learning_rates={"adam": bounds})], OWN)
    rates = [env.reset(seed=seed)[1]["initial_lr"] for seed in range(20)]
    assert bounds[0] <= min(rates) < 1e-5 and 1e-2 < max(rates) <= bounds[1]


def test_ranges_of_optimizers_that_are_never_drawn_may_be_anything():
    task = get_task("digits_mlp", learning_rates={"sgdm": (1.0, 1e6)})
    assert LearningRateEnv([task], OWN).reset(seed=0)[1]["optimizer"] == "adam"
    with pytest.raises(InvalidSettingError, match="learning_rates of sgdm"):
        LearningRateEnv([task], OWN).reset(seed=0, options={"optimizer": "sgdm"})


# ---------------------------------------------------------------------- what a run keeps apart


def two_rates(model):
    return [{"params": model[1].parameters(), "lr": 1e-9}, {"params": model[-1].parameters(), "lr": 0.1}]


def test_schedules_keep_the_ratios_between_groups():
    task = small_task(parameter_groups=two_rates)
    start = TrainingRun(task, "sgdm", 0.1, seed=0).model
    for profile in ("constant", "linear"):
        end = ScheduleController(profile, profile).train(Episode(task, "sgdm", 5, 1e-9, 0)).model
        slow, fast = (float((start[k].weight - end[k].weight).abs().max()) for k in (1, -1))
        assert slow < 1e-6 < 1e-3 < fast


def test_what_the_optimizer_does_not_hold_collects_no_gradients():
    run = TrainingRun(
        small_task(parameter_groups=lambda model: model[-1].parameters(), clip_norm=1e-3), "sgdm", 1e-9, 0
    )
    norms = []
    for _ in range(20):
        run.compute_gradient()
        run.apply_update()
        norms.append(float(run.model[1].weight.grad.norm()))
    assert max(norms) < 3 * norms[0]
    held = torch.cat([parameter.grad.flatten() for parameter in run.model[-1].parameters()])
    assert float(held.norm()) == pytest.approx(1e-3, rel=1e-3)  # clipped for what is held alone


class Restless(nn.Module):
    """Draws at every call, in evaluation too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1) + 0.1 * torch.randn(()))


def test_evaluations_repeat_themselves_and_leave_random_numbers_alone():
    run, other = (TrainingRun(small_task(build_model=Restless), "adam", 1e-3, seed=0) for _ in range(2))
    outside = torch.get_rng_state()
    assert run.evaluate_reward_split() == run.evaluate_reward_split()
    assert torch.equal(torch.get_rng_state(), outside)
    assert run.compute_gradient() == other.compute_gradient()


def test_a_failed_evaluation_puts_the_modes_back():
    def fail(outputs):
        raise RuntimeError("nothing to collect")

    run = TrainingRun(small_task(collect=fail), "adam", 1e-3, seed=0)
    with pytest.raises(RuntimeError, match="nothing to collect"):
        run.evaluate_reward_split()
    assert run.model.training


def test_metrics_may_be_numbers_of_any_kind():
    kinds = {"tensor": lambda outputs, split: outputs.sum() * 0 + 2, "numpy": lambda outputs, split: np.float32(3.0)}
    figures = TrainingRun(small_task(metrics=kinds), "adam", 1e-3, seed=0).evaluate_reward_split()
    assert json.dumps(figures.metrics) == '{"tensor": 2.0, "numpy": 3.0}'


@pytest.mark.parametrize("value", [0.1, [0.1], [1e-3, 1e-2, 1e-1], "1e-3"])
def test_a_range_is_a_pair(value):
    with pytest.raises(InvalidSettingError, match=r"learning_rates of adam on task digits_mlp"):
        get_task("digits_mlp", learning_rates={"adam": value})


def test_a_range_left_empty_stays():
    assert get_task("digits_mlp", learning_rates={"adam": None}) == get_task("digits_mlp")


@pytest.mark.parametrize("name", ["model", "learning_rates"])
def test_settings_by_name_are_a_mapping(name):
    with pytest.raises(InvalidSettingError, match=f"{name} of task digits_mlp is .*; expected settings by name"):
        get_task("digits_mlp", **{name: [1]})


def test_no_list_is_shared_with_the_registered_task():
    get_task("digits_mlp").settings()["model"]["hidden"].append(7)
    get_task("digits_mlp").model["hidden"].append(7)
    assert get_task("digits_mlp").model["hidden"] == [64, 32]


@pytest.mark.parametrize("changes", [{"budget": 4}, {"optimizer": "adma"}])
def test_a_task_that_no_episode_fits_is_refused_before_any_work(changes):
    task = get_task("digits_mlp", **changes)
    with pytest.raises((InvalidSettingError, UnknownNameError), match=r"num_decisions|Did you mean 'adam'"):
        LearningRateEnv([task], OWN)
    with pytest.raises((InvalidSettingError, UnknownNameError), match=r"num_decisions|Did you mean 'adam'"):
        train([task], TrainConfig(env=OWN))


def test_tasks_of_one_name_are_refused_where_results_could_not_tell_them_apart():
    tasks = [get_task("digits_mlp"), get_task("digits_mlp", model={"hidden": [8]})]
    for refuse in (lambda: train(tasks, TrainConfig()), lambda: evaluate([], tasks, EvaluationConfig())):
        with pytest.raises(InvalidSettingError, match="several tasks named digits_mlp"):
            refuse()


def test_the_papers_reward_rises_as_a_metric_that_is_better_when_lower_falls():
    config = replace(OWN, reward="gns-paper")
    env = LearningRateEnv([small_task(metrics={"error": falling}, higher_is_better=False, budget=20)], config)
    env.reset(seed=0, options={"learning_rate": 0.003})
    rewards = [env.step(STILL)[1] for _ in range(4)]
    assert sum(rewards) > 0 and all(math.isfinite(reward) for reward in rewards)


def falling(outputs, split):
    return 1.0 - base.accuracy(outputs, split)
