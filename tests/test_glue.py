"""GLUE: what each of its tasks reads and reports, and that fine-tuning on it is a plain PyTorch loop."""

import math
import warnings

import numpy as np
import pytest
import torch
from plain_loop import same_state
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import nn

from envs import EnvConfig, LearningRateEnv, TrainingRun, get_task
from envs.data_order import group_by_length
from envs.passes import evaluate_split
from envs.tasks import glue
from envs.tasks.base import Split
from envs.tasks.hub import load_hub_dataset
from envs.tasks.pretrained import load_tokenizer, locate
from envs.tasks.report import load_test_split
from gns import DecisionConfig, GuardConfig, UnknownNameError

# Sentences, classes (1: scores) and metrics of the benchmark, as published.
PUBLISHED = {
    "cola": (("sentence",), 2, ("matthews", "accuracy")),
    "sst2": (("sentence",), 2, ("accuracy",)),
    "mrpc": (("sentence1", "sentence2"), 2, ("accuracy", "f1")),
    "stsb": (("sentence1", "sentence2"), 1, ("pearson", "spearman")),
    "qqp": (("question1", "question2"), 2, ("accuracy", "f1")),
    "mnli": (("premise", "hypothesis"), 3, ("accuracy_matched", "accuracy_mismatched")),
    "qnli": (("question", "sentence"), 2, ("accuracy",)),
    "rte": (("sentence1", "sentence2"), 2, ("accuracy",)),
    "wnli": (("sentence1", "sentence2"), 2, ("accuracy",)),
}
REPORT = {"mnli": ("validation_matched", "validation_mismatched")}
every_task = pytest.mark.parametrize("name", PUBLISHED)


def small(name, **settings):
    return get_task(f"glue_{name}", **{"batch_size": 8, **settings, "model": {"max_length": 64}})


def split_of(targets, references=None):
    return Split(torch.zeros(len(targets), 2, 1), targets, torch.ones(len(targets)), references)


# ---------------------------------------------------------------------- what is read


def test_there_are_nine_tasks():
    assert {task.name for task in glue.GLUE_TASKS} == set(PUBLISHED) and len(glue.GLUE_TASKS) == 9


@every_task
def test_a_task_is_the_published_one(name):
    keys, classes, metrics = PUBLISHED[name]
    (described,) = [task for task in glue.GLUE_TASKS if task.name == name]
    task = small(name)
    assert described.keys == keys and described.report == REPORT.get(name, ("validation",))
    assert task.model["classes"] == described.classes == classes
    assert tuple(task.metrics) == metrics and task.metric_name == metrics[0] and task.higher_is_better
    torch.manual_seed(0)
    outputs = task.new_model()(task.training_data().reward.inputs[:5])
    assert outputs.shape == ((5,) if classes == 1 else (5, classes))


@every_task
def test_sentences_are_read_in_their_order(name):
    keys = PUBLISHED[name][0]
    data = load_hub_dataset(glue.HUB_ID, name)["train"][:20]
    tokenizer = load_tokenizer(locate(glue.ENCODER))
    split = glue.read(glue._BY_NAME[name], "train", glue.ENCODER, 64)
    for row in range(20):
        text = tokenizer.decode(split.inputs[row, 0, : split.lengths[row]])
        assert text == "<s>" + "</s></s>".join(data[key][row] for key in keys) + "</s>"
        assert split.targets[row] == pytest.approx(data["label"][row])


@every_task
def test_the_reward_split_is_a_tenth_of_the_training_split_and_apart_from_it(name):
    task = small(name)
    data, whole = task.training_data(), glue.read(glue._BY_NAME[name], "train", glue.ENCODER, 64)
    assert (len(data.train), len(data.reward), len(whole)) == (990, 110, 1100)
    rows = [
        (inputs.numpy().tobytes(), float(target), int(length))
        for split in (data.train, data.reward)
        for inputs, target, length in zip(split.inputs, split.targets, split.lengths, strict=True)
    ]
    assert len(set(rows)) == 1100
    assert set(rows) == {
        (inputs.numpy().tobytes(), float(target), int(length))
        for inputs, target, length in zip(whole.inputs, whole.targets, whole.lengths, strict=True)
    }


def test_rows_are_the_same_at_every_call_and_for_every_encoder():
    before = small("mrpc").training_data()
    glue._training_data.cache_clear()
    again = small("mrpc").training_data()
    other = get_task("glue_mrpc", model={"encoder": "google-bert/bert-base-uncased", "max_length": 32}).training_data()
    for one, two, three in zip(*((data.train, data.reward) for data in (before, again, other)), strict=True):
        assert one is not two and torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets) and torch.equal(one.targets, three.targets)


@every_task
def test_the_test_split_is_the_published_development_split(name):
    test, parts = load_test_split(small(name)), REPORT.get(name, ("validation",))
    data = load_hub_dataset(glue.HUB_ID, name)
    labels = np.concatenate([np.asarray(data[part]["label"]) for part in parts])
    np.testing.assert_allclose(test.targets.numpy(), labels)
    inputs = torch.cat([glue.read(glue._BY_NAME[name], part, glue.ENCODER, 64).inputs for part in parts])
    assert torch.equal(test.inputs, inputs) and len(test) == len(test.lengths) == 110 * len(parts)
    assert torch.equal(test.lengths, (inputs[:, 1] >= 0).sum(dim=1))


def test_labels_are_classes_but_for_similarity_scores():
    for name in PUBLISHED:
        data = small(name).training_data()
        for split in (data.train, data.reward):
            if name == "stsb":
                assert split.targets.dtype == torch.float32
                assert split.targets.min() >= 0.0 and split.targets.max() <= 5.0
                assert split.targets.unique().numel() > 50
            else:
                assert split.targets.dtype == torch.int64
                assert split.targets.unique().tolist() == list(range(PUBLISHED[name][1]))


def test_misspelt_settings_are_named():
    with pytest.raises(UnknownNameError, match=r"'enocder'.*Did you mean 'encoder'"):
        get_task("glue_mrpc", model={"enocder": "x"})
    with pytest.raises(UnknownNameError, match=r"glue_mprc.*Did you mean 'glue_mrpc'"):
        get_task("glue_mprc")


# ---------------------------------------------------------------------- metrics


REFERENCE = {
    "accuracy": lambda outputs, targets: accuracy_score(targets, outputs.argmax(1)),
    "f1": lambda outputs, targets: f1_score(targets, outputs.argmax(1), zero_division=0.0),
    "matthews": lambda outputs, targets: matthews_corrcoef(targets, outputs.argmax(1)),
    "pearson": lambda outputs, targets: pearsonr(outputs.astype(float), targets.astype(float))[0],
    "spearman": lambda outputs, targets: spearmanr(outputs.astype(float), targets.astype(float))[0],
}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "mnli"])
def test_metrics_are_those_of_scikit_learn_and_scipy(name, seed):
    generator = torch.Generator().manual_seed(seed)
    if name == "stsb":
        targets = (torch.rand(60, generator=generator) * 5).round(decimals=1)
        outputs = (targets + 3 * torch.randn(60, generator=generator)).round()  # ties
    else:
        targets = torch.randint(0, 2, (60,), generator=generator)
        outputs = torch.randn(60, 2, generator=generator) + nn.functional.one_hot(targets, 2)
    for metric, compute in get_task(f"glue_{name}").metrics.items():
        expected = REFERENCE[metric](outputs.numpy(), targets.numpy())
        assert compute(outputs, split_of(targets)) == pytest.approx(expected, abs=1e-6)
        assert 0.0 < expected < 1.0


def test_f1_and_matthews_by_counts():
    targets = torch.tensor([1] * 6 + [0] * 4)
    predicted = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0, 0, 0])
    tp, fn, fp, tn = 4, 2, 1, 3
    outputs = nn.functional.one_hot(predicted, 2).float()
    assert glue.f1(outputs, split_of(targets)) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert glue.matthews(outputs, split_of(targets)) == pytest.approx(expected)


def test_correlations_by_ranks_and_signs():
    targets = torch.tensor([0.0, 1.0, 2.0, 3.0, 5.0])
    bent = targets**3
    assert glue.spearman(bent, split_of(targets)) == pytest.approx(1.0)
    expected = float(np.corrcoef(bent.double().numpy(), targets.double().numpy())[0, 1])
    assert glue.pearson(bent, split_of(targets)) == pytest.approx(expected) and expected < 0.99
    assert glue.pearson(-targets, split_of(targets)) == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", ["zeros", "ones", "nan", "some_nan", "inf", "huge"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_metrics_of_useless_predictions_are_finite_and_warn_of_nothing(name, kind):
    classes, generator = PUBLISHED[name][1], torch.Generator().manual_seed(0)
    shape = (30,) if classes == 1 else (30, classes)
    outputs = {
        "zeros": torch.zeros(shape),
        "ones": torch.zeros(shape).index_fill_(-1, torch.tensor([0 if classes == 1 else 1]), 1.0),
        "nan": torch.full(shape, torch.nan),
        "some_nan": torch.where(torch.rand(shape, generator=generator) < 0.3, torch.nan, 1.0),
        "inf": torch.full(shape, torch.inf),
        "huge": torch.randn(shape, generator=generator) * 1e38,
    }[kind]
    if classes == 1 and kind == "ones":
        outputs = torch.ones(shape)
    targets = torch.arange(30) % max(classes, 2)
    references = np.array(["matched", "mismatched"]).repeat(15) if name == "mnli" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric, compute in get_task(f"glue_{name}").metrics.items():
            found = compute(outputs, split_of(targets.float() if classes == 1 else targets, references))
            assert isinstance(found, float) and -1.0 <= found <= 1.0
            if metric in ("pearson", "spearman", "matthews") and kind in ("zeros", "ones", "nan", "inf"):
                assert found == 0.0
            if metric == "f1" and kind in ("zeros", "ones"):
                assert found == pytest.approx({"zeros": 0.0, "ones": 2 / 3}[kind])


def test_mnli_reports_each_part_by_itself():
    task = small("mnli")
    test = load_test_split(task)
    data = load_hub_dataset(glue.HUB_ID, "mnli")
    tokenizer = load_tokenizer(locate(glue.ENCODER))
    premises = {part: set(data[f"validation_{part}"]["premise"]) for part in ("matched", "mismatched")}
    for row in (0, 50, 109, 110, 150, 219):
        premise = tokenizer.decode(test.inputs[row, 0, : test.lengths[row]]).split("</s>")[0].removeprefix("<s>")
        assert premise in premises[test.references[row]]
    right = nn.functional.one_hot(test.targets, 3).float()
    wrong = nn.functional.one_hot((test.targets + 1) % 3, 3).float()
    matched = torch.tensor([part == "matched" for part in test.references])
    assert matched.sum() == 110
    for outputs, expected in (
        (torch.where(matched[:, None], right, wrong), (1.0, 0.0)),
        (torch.where(matched[:, None], wrong, right), (0.0, 1.0)),
    ):
        assert tuple(metric(outputs, test) for metric in task.metrics.values()) == expected
    outputs = torch.randn(220, 3, generator=torch.Generator().manual_seed(3))
    hits = [int(outputs[row].argmax()) == int(test.targets[row]) for row in range(220)]
    by_hand = (
        sum(hit for hit, part in zip(hits, test.references, strict=True) if part == "matched") / 110,
        sum(hit for hit, part in zip(hits, test.references, strict=True) if part == "mismatched") / 110,
    )
    found = tuple(metric(outputs, test) for metric in task.metrics.values())
    assert found == pytest.approx(by_hand) and by_hand[0] != by_hand[1]


def test_mnlis_reward_split_is_all_matched():
    task = small("mnli")
    reward = task.training_data().reward
    outputs = torch.randn(110, 3, generator=torch.Generator().manual_seed(3))
    expected = float((outputs.argmax(1) == reward.targets).float().mean())
    assert task.metrics["accuracy_matched"](outputs, reward) == pytest.approx(expected)
    assert math.isnan(task.metrics["accuracy_mismatched"](outputs, reward))  # there is nothing to report on


def test_the_loss_of_scores_is_the_mean_squared_error():
    task = small("stsb")
    outputs, targets = torch.tensor([0.5, 2.0, 7.0]), torch.tensor([1.0, 2.0, 5.0])
    assert float(task.loss(outputs, targets)) == pytest.approx((0.25 + 0.0 + 4.0) / 3)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = np.mean([math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))])
    assert float(small("mrpc").loss(logits, torch.tensor([0, 0]))) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["mrpc", "stsb", "mnli", "cola"])
def test_evaluation_in_order_of_length_is_evaluation_one_by_one(name):
    task = small(name)
    torch.manual_seed(1)
    model = task.new_model().eval()
    with torch.no_grad():  # predictions differ, and no class always wins
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(20)
        mean = model(task.training_data().reward.inputs).mean(dim=0)
        model.model.classifier.out_proj.bias.sub_(mean)
    for split in (task.training_data().reward, load_test_split(task)):
        with torch.no_grad():
            outputs = torch.cat([model(split.inputs[row : row + 1]) for row in range(len(split))])
            loss = float(task.loss(outputs, split.targets))
        expected = {metric: compute(outputs, split) for metric, compute in task.metrics.items()}
        assert not torch.equal(split.lengths, split.lengths.sort().values)
        for chunk in (None, 7):
            figures = evaluate_split(model, task, split, chunk)
            assert figures.loss == pytest.approx(loss, rel=1e-5)
            assert figures.metrics == pytest.approx(expected, abs=1e-5, nan_ok=True)
            assert figures.metric == figures.metrics[task.metric_name]
        if name != "stsb":
            assert outputs.argmax(1).unique().numel() > 1


# ---------------------------------------------------------------------- training


def test_an_episode_of_random_actions_runs_to_its_end():
    config = EnvConfig(
        optimizers=None, budgets=(20, 20), decision=DecisionConfig(num_decisions=5), reward_probability=1.0
    )
    env = LearningRateEnv([small("mrpc")], config)
    rng, rewards, terminated = np.random.default_rng(0), [], False
    instance, info = env.reset(seed=3)
    before = env._evaluated[0]
    assert info["optimizer"] == "adamw" and 1e-6 <= info["initial_lr"] <= 1e-2
    while not terminated:
        assert env.observation_space.contains(instance)
        instance, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 1))
        rewards.append(reward)
        assert not truncated
    assert len(rewards) == 5 and info["update"] == 20 and not info["diverged"] and len(env.rates) == 20
    assert sum(rewards) == pytest.approx(math.log(before) - math.log(info["reward_loss"]), abs=1e-6)
    assert 0.0 <= info["reward_metric"] <= 1.0 and info["evaluations"] == 6


def plain_loop(task, learning_rate, seed, updates):
    """Fine-tuning written out: losses and model."""
    outside = torch.get_rng_state()
    torch.manual_seed(seed)
    model = task.new_model().train()
    decaying = [p for name, p in model.named_parameters() if "bias" not in name and "LayerNorm" not in name]
    fixed = [p for name, p in model.named_parameters() if "bias" in name or "LayerNorm" in name]
    groups = [{"params": decaying, "weight_decay": 0.01}, {"params": fixed, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    train, generator = task.training_data().train, torch.Generator().manual_seed(seed)
    rows, losses, norms = torch.empty(0), [], []
    for _ in range(updates):
        if len(rows) < task.batch_size:
            order = torch.randperm(len(train), generator=generator)
            rows = group_by_length(order, train.lengths, task.batch_size, generator)
        batch, rows = rows[: task.batch_size], rows[task.batch_size :]
        packed = train.inputs[batch][:, :, : train.lengths[batch].max()]
        loss = task.loss(model(packed), train.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        losses.append(loss.item())
    torch.set_rng_state(outside)
    return losses, model, norms


@pytest.mark.parametrize(("name", "batch_size"), [("mrpc", 8), ("mrpc", 90), ("stsb", 90)])
def test_fine_tuning_at_a_constant_rate_equals_a_plain_loop(name, batch_size):
    task = small(name, batch_size=batch_size)  # 90: a second pass begins at update 11
    losses, model, norms = plain_loop(task, 1e-3, seed=7, updates=20)
    run = TrainingRun(task, "adamw", 1e-3, seed=7)
    found = []
    for _ in range(20):
        found.append(run.compute_gradient().item())
        run.apply_update()
    assert found == losses and same_state(run.model, model)
    if name == "stsb":
        assert max(norms) > 1.0  # clipping does something


@pytest.mark.parametrize("guard", [True, False])
def test_an_episode_without_actions_equals_a_plain_loop(guard):
    task = small("mrpc", batch_size=90)
    losses, model, _ = plain_loop(task, 1e-3, seed=7, updates=20)
    config = EnvConfig(
        optimizers=None,
        budgets=(20, 20),
        decision=DecisionConfig(mode="recursive", num_decisions=4),
        guard=GuardConfig(enabled=guard),
        reward_probability=0.5,
    )
    env = LearningRateEnv([task], config)
    env.reset(seed=0, options={"seed": 7, "learning_rate": 1e-3})
    found = []
    env.run.optimizer.register_step_post_hook(lambda *_: found.append(env.run.loss.item()))
    terminated = False
    while not terminated:
        *_, terminated, _, _ = env.step(np.zeros(1, dtype=np.float32))
    assert found == losses and set(env.rates) == {1e-3} and same_state(env.run.model, model)


def test_accumulated_parts_of_a_batch_have_the_gradient_of_the_whole(monkeypatch):
    gradients = []
    for parts in (1, 3):
        run = TrainingRun(small("mrpc", accumulation=parts), "adamw", 1e-3, seed=2)
        for module in run.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *_: None)
        loss = run.compute_gradient()
        gradients.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in run.model.parameters())]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
