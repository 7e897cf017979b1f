"""Tasks drawn for training: broad, sound, the same in every process, and trained together as alone."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch
from plain_loop import small_task
from test_env_state import assert_equal, through_a_file

import train_agent
from agents.training import train as training
from agents.training.ppo import PPOConfig
from agents.training.schedule_reference import BaselineConfig
from envs import EnvConfig, Task, get_task
from envs.batched.composite import Group, forward_operations, make_vector, pays
from envs.batched.runs import BatchedRuns
from envs.pool import PoolConfig, draw_pool
from envs.pool import data as pool_data
from envs.pool.common import with_settings
from envs.pool.config import SOURCES
from envs.pool.data import VOCABULARY, DataSpec, Images, Mixture, Teacher, load
from envs.pool.models import NetworkSpec, Pretraining, fine_tuned
from envs.tasks import glue, images
from envs.tasks.hub import DATA_ROOT, DataNotFoundError
from envs.training_run import OPTIMIZERS, TrainingRun
from gns import DecisionConfig, GNSPolicy, NetworkConfig
from gns.errors import InvalidSettingError, UnknownNameError
from gns.graph.layer_graph import layer_graph

CONFIG = PoolConfig(size=32, seed=5)
DIGITS = Images("digits_mlp", (1, 8, 8))
ENV = EnvConfig(optimizers=None, budgets=(20, 30), decision=DecisionConfig(num_decisions=5))


@pytest.fixture(scope="module")
def pool() -> list[Task]:
    return draw_pool(CONFIG)


def train(task: Task, updates: int, rate: float | None = None, seed: int = 0) -> TrainingRun:
    """Train at the middle of the task's range, falling linearly, or at a rate."""
    low, high = task.range_of(task.optimizer)
    run = TrainingRun(task, task.optimizer, 1e-3, seed)
    for update in range(updates):
        run.compute_gradient()
        for group in run.optimizer.param_groups:
            group["lr"] = rate or (low * high) ** 0.5 * (1.0 - update / updates)
        run.apply_update()
    return run


# ---------------------------------------------------------------------- what is drawn


def test_every_source_family_and_optimizer_appears(pool):
    assert len({task.name for task in pool}) == len(pool)
    words = {word for task in pool for word in task.name.split("_")}
    assert words >= {*CONFIG.sources, *CONFIG.families, *CONFIG.optimizers}
    tuned = [task for task in pool if task.name.endswith("_fine_tuned")]
    assert 0.1 < len(tuned) / len(pool) < 0.45
    assert len({(*task.budgets, task.batch_size) for task in pool}) > 28
    assert min(task.budgets[0] for task in pool) == 20 and max(task.budgets[1] for task in pool) > 1000
    assert all(task.budgets[1] <= 200 for task in tuned)
    groups = [group for task in pool for group in task.parameter_groups(task.new_model())]
    for name in ("momentum", "betas", "weight_decay"):
        assert len({group[name] for group in groups if name in group}) > 5
    assert {type(task.loss) for task in pool} >= {partial} and {task.clip_norm for task in pool} == {None, 1.0}


def test_tasks_are_within_the_bounds_that_were_asked_for(pool):
    for task in pool:
        low, high = task.budgets
        assert 20 <= low <= high <= 2000 and high / low <= 4.1 and 8 <= task.batch_size <= 256
        if "fine_tuned" not in task.name:
            assert 3.0 * forward_operations(task) * high <= CONFIG.operations
        replace(ENV, budgets=None).check(task)
        assert replace(ENV, budgets=None).budgets_of(task) == task.budgets and ENV.budgets_of(task) == (20, 30)
        assert len(task.training_data().reward) <= 400
        data = task.training_data()
        assert data.train.inputs.isfinite().all() and not data.train.inputs.requires_grad
        run = TrainingRun(task, task.optimizer, 1e-3, seed=0)
        assert layer_graph(run.model, run.compute_gradient()).num_nodes <= 24


def test_a_larger_pool_begins_with_a_smaller_one_and_seeds_differ(pool):
    assert [task.name for task in draw_pool(replace(CONFIG, size=6))] == [task.name for task in pool[:6]]
    other = draw_pool(replace(CONFIG, size=6, seed=6))
    assert [(task.batch_size, task.budgets) for task in other] != [(task.batch_size, task.budgets) for task in pool[:6]]


FINGERPRINTS = """
import hashlib, torch
from envs.pool import PoolConfig, draw_pool
torch.set_num_threads({threads})
torch.manual_seed({seed})
print(*({fingerprint})(draw_pool(PoolConfig(**{settings}))))
"""
FINGERPRINT = """lambda pool: [hashlib.sha256(b"".join(
    tensor.detach().numpy().tobytes() for tensor in (
        task.training_data().train.inputs, task.training_data().reward.targets,
        *(torch.manual_seed(1), task.new_model())[1].state_dict().values()))).hexdigest() for task in pool]"""


def test_tasks_are_the_same_in_every_process_whatever_its_threads_and_random_numbers():
    settings = {"size": 4, "seed": 5, "fine_tuning": 0.5, "sources": ("digits", "teacher", "mixture")}
    code = FINGERPRINTS.format(threads=2, seed=9, settings=settings, fingerprint=" ".join(FINGERPRINT.split()))
    torch.set_flush_denormal(True)
    here = eval(FINGERPRINT, {"hashlib": hashlib, "torch": torch})
    pool = draw_pool(PoolConfig(**settings))
    assert any(task.name.endswith("_fine_tuned") for task in pool)
    before = torch.get_rng_state()
    for task in pool:
        task.training_data()
    assert torch.equal(torch.get_rng_state(), before)
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert here(pool) == elsewhere and len(set(elsewhere)) == 4
    assert here(cloudpickle.loads(cloudpickle.dumps(pool))) == elsewhere


def test_settings_that_cannot_be_are_refused():
    for settings in ({"size": -1}, {"noisy": 1.5}, {"budgets": (30, 20)}, {"batch_sizes": (0, 4)}, {"sources": ()}):
        with pytest.raises(InvalidSettingError, match="expected"):
            PoolConfig(**settings)
    with pytest.raises(UnknownNameError, match="imagenet"):
        PoolConfig(sources=("imagenet",))
    with pytest.raises(InvalidSettingError, match=r"teacher.*fit"):
        PoolConfig(sources=("teacher",), families=("cnn",))
    with pytest.raises(InvalidSettingError, match=r"pool\.operations"):
        draw_pool(PoolConfig(size=1, operations=10.0))


# ---------------------------------------------------------------------- data


def test_the_share_of_noisy_labels_is_what_it_says_and_all_else_stays():
    clean = DataSpec(DIGITS, 3, 10_000, 400, classes=(7, 2, 5))
    noisy = load(replace(clean, noise=0.25))
    for one, other in ((load(clean).train, noisy.train), (load(clean).reward, noisy.reward)):
        assert torch.equal(one.inputs, other.inputs)
        wrong = (one.targets != other.targets).float().mean()
        assert abs(wrong - 0.25) < 4 * (0.25 * 0.75 / len(one)) ** 0.5
        assert set(one.targets.tolist()) == set(other.targets.tolist()) == {0, 1, 2}


def test_examples_are_those_of_the_training_and_reward_split_that_were_asked_for():
    whole, part = DIGITS.training_data(), DataSpec(DIGITS, 3, 100, 50, classes=(7, 2))
    total = int(((whole.train.targets == 7) | (whole.train.targets == 2)).sum())
    first, rest = load(part), load(replace(part, skip=100, examples=total - 100))
    assert (len(first.train), len(first.reward)) == (100, 50)
    taken = torch.cat([first.train.inputs, rest.train.inputs]).flatten(1)
    assert len(taken.unique(dim=0)) == len(taken)
    stored = {
        tuple(image.flatten().tolist()): int(label)
        for image, label in zip(whole.train.inputs, whole.train.targets, strict=True)
    }
    assert all(
        stored[tuple(image.flatten().tolist())] == (7, 2)[label]
        for image, label in zip(first.train.inputs, first.train.targets.tolist(), strict=True)
    )


@pytest.mark.parametrize("mixing", ["permutation", "rotation", "projection"])
def test_mixed_inputs_keep_what_the_mixing_keeps(mixing):
    plain = DataSpec(DIGITS, 3, 500, 50, classes=tuple(range(10)))
    mixed = replace(plain, mixing=mixing, width=40 if mixing == "projection" else 0)
    before, after = load(plain).train.inputs.flatten(1), load(mixed).train.inputs
    assert mixed.shape == after.shape[1:] and not torch.equal(before[:, : after.shape[1]], after)
    if mixing == "permutation":
        assert torch.equal(before.sort(dim=1).values, after.sort(dim=1).values)
    else:
        assert torch.allclose(before.norm(dim=1), after.norm(dim=1), rtol=1e-4 if mixing == "rotation" else 0.8)
    moved = load(replace(mixed, scale=4.0, shift=1.0)).train.inputs
    assert torch.allclose(moved, 4.0 * after + 1.0)


def test_made_up_problems_are_as_hard_as_they_say():
    source = Teacher(8, 16, 2, 3, 0.3, 1, 2)
    data = load(DataSpec(source, 0, 4000, 400))
    assert data.train.targets.shape == (4000, 3)
    assert float(data.train.targets.var(0).mean()) == pytest.approx(1.09, abs=0.1)
    mixture = load(DataSpec(Mixture(12, 4, 3, 2, 0.2, 1), 0, 4000, 400, classes=(0, 1, 2)))
    assert float(mixture.train.inputs.std()) == pytest.approx(1.0, abs=0.1)
    assert mixture.train.targets.bincount().min() > 1000


def test_sets_from_the_data_root_are_drawn_where_they_are_named(hub):
    config = PoolConfig(size=7, seed=1, sources=("fashion_mnist", "sst2", "cola"))
    pool = draw_pool(config)
    assert {task.name.split("_")[2] for task in pool} == {"fashion", "sst2", "cola"}
    for task in pool:
        inputs = task.training_data().train.inputs
        if "transformer" in task.name and "fashion" not in task.name:
            assert inputs.dtype == torch.int64 and int(inputs.min()) >= 0 and 1 < int(inputs.max()) < VOCABULARY
        assert train(task, 3).loss.isfinite()


@pytest.mark.parametrize("source", ["fashion_mnist", "sst2"])
def test_a_set_that_is_not_to_be_had_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    for cached in (images.load_training_data, glue._training_data, pool_data._numbered):
        cached.cache_clear()
    with pytest.raises(DataNotFoundError, match=r"no folder .GNS_DATA_ROOT/"):
        draw_pool(PoolConfig(size=1, sources=(source,)))
    assert source not in PoolConfig().sources and source in SOURCES


# ---------------------------------------------------------------------- training


def test_nearly_every_task_learns_at_a_middle_rate(pool):
    fell = []
    for task in pool[::2]:
        low, high = task.budgets
        start = TrainingRun(task, task.optimizer, 1e-3, seed=0).evaluate_reward_split()
        fell.append(train(task, min(round((low * high) ** 0.5), 100)).evaluate_reward_split().loss < start.loss)
    assert np.mean(fell) >= 0.9


def test_fine_tuning_is_ahead_of_training_from_scratch():
    data = DataSpec(DIGITS, 3, 300, 400, classes=(7, 2, 5, 0))
    network = NetworkSpec("cnn", (1, 8, 8), 4, (8, 16), norm="batch", flat=True)
    before = Pretraining(replace(network, outputs=6), replace(data, classes=(1, 3, 4, 6, 8, 9)), small_task().loss)
    scratch = Task("scratch", partial(load, data), network.build, budget=20)
    tuned = replace(scratch, name="tuned", build_model=partial(fine_tuned, network, before))
    losses = {
        task.name: [train(task, 15, 1e-3, seed).evaluate_reward_split().loss for seed in range(3)]
        for task in (scratch, tuned)
    }
    assert max(losses["tuned"]) < 0.7 * min(losses["scratch"])
    one, other = (TrainingRun(tuned, "adam", 1e-3, seed).model for seed in (0, 1))
    assert torch.equal(one.body[0][0].weight, other.body[0][0].weight)
    assert not torch.equal(one.head.weight, other.head.weight)


# ---------------------------------------------------------------------- together


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("matrices", [False, True])
def test_settings_of_parameter_groups_hold_for_runs_trained_together(optimizer, matrices):
    settings = (("momentum", 0.95 if optimizer == "sgdm" else 0.0), ("betas", (0.8, 0.97)), ("weight_decay", 0.05))
    task = small_task(parameter_groups=partial(with_settings, settings, matrices), optimizer=optimizer)
    rates = {"sgd": 0.05, "sgdm": 0.005, "adam": 2e-3, "adamw": 2e-2, "nadamw": 2e-3}
    runs = BatchedRuns(task, optimizer, 2)
    runs.begin(range(2), [3, 4])
    for _ in range(40):
        runs.compute_gradients(torch.ones(2, dtype=torch.bool))
        runs.apply_updates(torch.full((2,), rates[optimizer], dtype=torch.float64), torch.ones(2, dtype=torch.bool))
    for number, seed in enumerate((3, 4)):
        alone = train(task, 40, rates[optimizer], seed)
        expected = torch.nn.utils.parameters_to_vector(alone.model.parameters())
        assert torch.allclose(runs.weights[runs.rows[number]], expected, atol=5e-3)
        plain = train(replace(task, parameter_groups=small_task().parameter_groups), 40, rates[optimizer], seed)
        assert not torch.allclose(torch.nn.utils.parameters_to_vector(plain.model.parameters()), expected, atol=5e-3)


def test_environments_of_drawn_tasks_show_the_same_together_as_alone(pool):
    chosen = [next(t for t in pool if f"_{name}" in t.name) for name in ("sgd", "sgdm", "adam", "adamw")]
    chosen += [next(t for t in pool if name in t.name) for name in ("fine_tuned", "cnn", "transformer", "teacher")]
    for task in {task.name: task for task in chosen}.values():
        assert pays(task, ENV) or forward_operations(task) > 4e7
        low, high = task.range_of(task.optimizer)
        config = replace(ENV, learning_rates={task.optimizer: (low * 10.0, high / 100.0)})
        vectors = [
            Group((0, 1), (task,), task.optimizer, together).make(config, (24, 48)) for together in (True, False)
        ]
        for vector in vectors:
            vector.seed(3)
        seen = [[vector.reset()] for vector in vectors]
        for _ in range(3):
            for vector, observed in zip(vectors, seen, strict=True):
                observed.append(vector.step(np.full((2, 1), 0.1, dtype=np.float32))[0])
        for one, other in zip(*seen, strict=True):
            for key in one:
                assert np.allclose(one[key], other[key], rtol=0.02, atol=0.05), (task.name, key)


def test_a_vector_of_drawn_tasks_goes_on_from_its_state(pool):
    config = replace(ENV, budgets=None, decision=DecisionConfig(num_decisions=20))
    tasks = [task for task in pool if task.budgets[1] <= 110][:4]
    vectors = [make_vector(tasks, config, 8, workers=0) for _ in range(2)]
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 8, 1)).astype(np.float32)
    vectors[0].seed(1)
    vectors[0].reset()
    for action in actions[:5]:
        vectors[0].step(action)
    vectors[1].load_state_dict(through_a_file(vectors[0].state_dict()))
    for action in actions[5:]:
        one, other = (vector.step(action) for vector in vectors)
        assert_equal(list(one), list(other))


SMALL = ["env.decision.num_decisions=20", "agent.num_envs=4", "agent.episodes_per_rollout=4", "agent.batch_size=20"]
SMALL += ["agent.n_epochs=1", "agent.network.hidden=16", "baseline.controllers=[]", "tracker=none", "workers=0"]


def test_tasks_to_score_on_are_of_another_seed(compose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "pool=broad", "task=[]", "pool.size=2", "pool.budgets=[20,40]", "episodes=4", "validation.every=4"]
    drawn = ["validation.num_envs=2", "validation_tasks={names: [digits_mlp], drawn: 1}"]
    train_agent.run(compose("train_agent", "name=x", *small, *drawn))
    card = GNSPolicy.from_pretrained(tmp_path / "outputs" / "x" / "policy").config.training
    assert card["chosen on validation tasks after"].endswith(" episodes")
    others = train_agent.ValidationTasks(("digits_mlp",), 1).tasks(PoolConfig(size=2))
    assert others[0].name == "digits_mlp" and others[1].drawn
    assert others[1].name not in {task.name for task in draw_pool(PoolConfig(size=2))}
    with pytest.raises(InvalidSettingError, match=r"validation_tasks.seed and pool.seed are both 0"):
        train_agent.run(compose("train_agent", "name=y", *small, *drawn, "validation_tasks.seed=0"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "four decades each"),
        ({"sgdm": (1e-3, 1.0), "adam": None}, {"sgdm": [1e-3, 1.0], "others": "four decades each"}),
        ({"sgdm": (1e-3, 1.0), "adam": (1e-4, 0.1)}, {"sgdm": [1e-3, 1.0], "adam": [1e-4, 0.1]}),
    ],
)
def test_the_card_tells_the_initial_rates_of_drawn_tasks(given, told):
    tasks = [replace(get_task("digits_mlp"), name="pool_0", drawn=True)]
    env = EnvConfig(
        optimizers=("adam", "sgdm"), budgets=(5, 5), learning_rates=given, decision=DecisionConfig(num_decisions=5)
    )
    agent = PPOConfig(
        num_envs=2, episodes_per_rollout=2, batch_size=5, n_epochs=1, network=NetworkConfig(hidden=8, head=8)
    )
    config = training.TrainConfig(episodes=2, workers=0, env=env, agent=agent, baseline=BaselineConfig(controllers=()))
    card = training.train(tasks, config).config.training
    assert json.loads(card["initial rates"]) == {"drawn tasks": told}


def test_a_policy_is_trained_on_drawn_tasks_alone_or_after_named_ones(compose, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "pool=broad", "pool.size=3", "pool.budgets=[20,40]", "episodes=4", "validation.every=0"]
    train_agent.run(compose("train_agent", "name=x", "task=[]", *small))
    card = GNSPolicy.from_pretrained(tmp_path / "outputs" / "x" / "policy").config.training
    pool = draw_pool(PoolConfig(size=3, budgets=(20, 40)))
    low, high = min(task.budgets[0] for task in pool), max(task.budgets[1] for task in pool)
    assert card["tasks"] == "3 drawn"
    assert card["budgets"] == f"{low} to {high} updates"
    assert card["drawn tasks"].startswith("3, seed 0, on digits, mnist1d, teacher, mixture; networks: mlp, cnn, transf")
    named = compose("train_agent", "name=y", "task=[digits_mlp]", *small)
    assert named.env.optimizers is None and named.env.budgets is None
    one, other = (train_agent.part_of_the_result(compose("train_agent", *extra)) for extra in ([], ["pool=broad"]))
    assert one["pool"] == {"size": 0} != other["pool"]
    with pytest.raises(InvalidSettingError, match="no task"):
        train_agent.run(compose("train_agent", "name=z", "task=[]", *SMALL))
    with pytest.raises(UnknownNameError, match=r"pool\.sizes"):
        train_agent.run(compose("train_agent", "name=z", "+pool.sizes=3"))
