"""Environments in worker processes do what they do in this one; returns are scaled per task and optimizer."""

import multiprocessing
import os
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.training.ppo import TaskReturnScaling
from envs import EnvConfig, LearningRateEnv, PadGraph
from envs.engine import EngineConfig
from envs.workers import WorkersVecEnv
from gns import DecisionConfig, GNSError
from gns.errors import WorkerError

COUNT = 3
KINDS = {"in this process": 0, "1 worker": 1, "2 workers": 2}


def factories() -> list[Callable[[], gym.Env]]:
    config = EnvConfig(budgets=(10, 20), decision=DecisionConfig(num_decisions=5), reward_probability=0.5)

    def make() -> gym.Env:
        return PadGraph(LearningRateEnv(["digits_mlp", "digits_cnn"], config))

    return [make] * COUNT


def in_workers(made_by: list[Callable[[], gym.Env]], workers: int, **settings) -> WorkersVecEnv:
    """As many environments in each process as in any other, or one more."""
    places = [part.tolist() for part in np.array_split(np.arange(len(made_by)), min(workers, len(made_by)))]
    return WorkersVecEnv(
        [partial(DummyVecEnv, [made_by[i] for i in portion]) for portion in places], places, EngineConfig(**settings)
    )


@pytest.fixture(scope="module")
def venvs():
    """The same environments in this process, in one worker and in two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    made = {
        name: in_workers(factories(), workers) if workers else DummyVecEnv(factories())
        for name, workers in KINDS.items()
    }
    yield made
    for venv in made.values():
        venv.close()
    torch.set_num_threads(threads)


each_in_workers = pytest.mark.parametrize("kind", [name for name, workers in KINDS.items() if workers])


def roll(venv: VecEnv, seed: int, steps: int = 13) -> list:
    """Everything an agent gets over more than two episodes of each environment."""
    venv.seed(seed)
    actions = np.random.default_rng(seed)
    seen: list = [deepcopy((venv.reset(), venv.reset_infos))]
    for _ in range(steps):
        step = venv.step(actions.uniform(-1, 1, (COUNT, 1)).astype(np.float32))
        seen.append(deepcopy(step))  # SB3's environments in one process hand out their buffers
    return seen


def assert_equal(one, other) -> None:
    """Equal to the last bit, whatever is nested."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.array_equal(one, other)
    else:
        assert type(one) is type(other) and one == other


# ---------------------------------------------------------------------- as in one process


@each_in_workers
def test_workers_give_what_one_process_gives(venvs, kind):
    expected = roll(venvs["in this process"], seed=3)
    dones = np.array([dones for _, _, dones, _ in expected[1:]])
    assert (dones.sum(axis=0) >= 2).all()  # each began a second episode, and a third, by itself
    assert_equal(roll(venvs[kind], seed=3), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(venvs, kind):
    first, other, again = (roll(venvs[kind], seed, steps=3) for seed in (5, 6, 5))
    assert_equal(again, first)
    nodes = first[0][0]["nodes"]
    assert not np.array_equal(nodes, other[0][0]["nodes"])
    assert not np.array_equal(nodes[0], nodes[1]) and not np.array_equal(nodes[1], nodes[2])  # each its own


@pytest.mark.parametrize("kind", KINDS)
def test_what_reset_said_is_known_of_every_episode(venvs, kind):
    venv = venvs[kind]
    venv.seed(9)
    venv.reset()
    for _ in range(12):
        venv.step(np.zeros((COUNT, 1), dtype=np.float32))
        episodes = [info["budget"] for info in venv.reset_infos]
        assert episodes == [episode.budget for episode in venv.get_attr("episode")]
    assert [info["update"] for info in venv.reset_infos] == [0] * COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_options_reach_the_environments_once(venvs, kind):
    venv = venvs[kind]
    budgets = [11, 13, 17]
    venv.set_options([{"budget": budget, "task": "digits_cnn"} for budget in budgets])
    venv.seed(1)
    venv.reset()
    assert [info["budget"] for info in venv.reset_infos] == budgets
    assert {info["task"] for info in venv.reset_infos} == {"digits_cnn"}
    venv.seed(1)
    venv.reset()
    assert [info["budget"] for info in venv.reset_infos] != budgets


@each_in_workers
def test_spaces_are_the_environments(venvs, kind):
    assert venvs[kind].observation_space == venvs["in this process"].observation_space
    assert venvs[kind].action_space == venvs["in this process"].action_space
    assert venvs[kind].num_envs == COUNT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indices", [None, 0, 1, 2, -1, [0, 2], [2, 0], [1]], ids=str)
def test_attributes_are_read_and_set_by_index(venvs, kind, indices):
    venv = venvs[kind]
    venv.set_attr("mark", "old")
    venv.set_attr("mark", "new", indices=indices)
    chosen = range(COUNT) if indices is None else [indices] if isinstance(indices, int) else indices
    expected = ["new" if i in [c % COUNT for c in chosen] else "old" for i in range(COUNT)]
    assert venv.get_attr("mark") == expected
    assert venv.get_attr("mark", indices=indices) == ["new"] * len(chosen)
    assert venv.get_attr("render_mode", indices=indices) == [None] * len(chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_methods_are_called_in_the_environments(venvs, kind):
    venv = venvs[kind]
    assert venv.env_method("graph_limits") == [(3, 2)] * COUNT
    assert venv.env_method("graph_limits", indices=[1]) == [(3, 2)]
    venv.reset()
    seen = venv.env_method("reset", indices=[2, 0], seed=4, options={"budget": 12})
    assert [info["budget"] for _, info in seen] == [12, 12]
    assert_equal(seen[0], seen[1])


@pytest.mark.parametrize("kind", KINDS)
def test_wrappers_are_seen(venvs, kind):
    assert venvs[kind].env_is_wrapped(PadGraph) == [True] * COUNT
    assert venvs[kind].env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 2]) == [False, False]


# ---------------------------------------------------------------------- ends, good and bad


def fragile(make: str | None = None, step: str | None = None) -> Callable[[], gym.Env]:
    """A factory of a small environment that raises, or ends its process, when made or at its second step."""

    def fail(how: str | None) -> None:
        if how == "raise":
            raise ValueError("the cause of it all")
        if how == "die":
            import os

            os._exit(3)

    class Fragile(gym.Env):
        observation_space = spaces.Box(0.0, 1.0, (1,))
        action_space = spaces.Box(-1.0, 1.0, (1,))

        def __init__(self):
            fail(make)
            self.steps = 0

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            self.steps += 1
            if self.steps == 2:
                fail(step)
            return np.zeros(1, dtype=np.float32), 0.0, False, False, {}

    return Fragile


def gone(processes: set) -> bool:
    deadline = time.monotonic() + 20.0
    while processes & set(multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not processes & set(multiprocessing.active_children())


@pytest.mark.parametrize(("how", "message"), [("raise", "ValueError: the cause of it all"), ("die", "died")])
@pytest.mark.parametrize("broken", [0, 1])
def test_a_worker_that_fails_is_reported_with_the_cause(how, message, broken):
    before = set(multiprocessing.active_children())
    venv = in_workers([fragile(step=how if i == broken else None) for i in range(2)], workers=2, max_restarts=0)
    mine = set(multiprocessing.active_children()) - before
    assert len(mine) == 2
    venv.reset()
    venv.step(np.zeros((2, 1), dtype=np.float32))
    with pytest.raises(WorkerError, match=f"Worker {broken} .*{message}") as caught:
        venv.step(np.zeros((2, 1), dtype=np.float32))
    assert isinstance(caught.value, GNSError)
    venv.close()
    assert gone(mine)


@pytest.mark.parametrize(("how", "message"), [("raise", "ValueError: the cause of it all"), ("die", "died")])
def test_a_worker_that_cannot_begin_is_reported_and_leaves_no_process(how, message):
    before = set(multiprocessing.active_children())
    with pytest.raises(WorkerError, match=message):
        in_workers([fragile(), fragile(make=how)], workers=2)
    assert gone(set(multiprocessing.active_children()) - before)


def test_a_call_that_fails_names_the_cause():
    venv = in_workers([fragile()], workers=1)
    with pytest.raises(WorkerError, match=r"AttributeError.*no_such_thing"):
        venv.get_attr("no_such_thing")
    venv.close()


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_close_leaves_no_process_and_may_be_repeated(workers):
    before = set(multiprocessing.active_children())
    venv = in_workers([fragile()] * 3, workers=workers)
    mine = set(multiprocessing.active_children()) - before
    assert len(mine) == min(workers, 3)  # at most one an environment
    venv.reset()
    venv.close()
    venv.close()
    assert not mine & set(multiprocessing.active_children())
    for process in mine:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


# ---------------------------------------------------------------------- return scaling


class Scripted(gym.Env):
    """Episodes of given rewards, over and over: a list of (task, optimizer, rewards of the steps)."""

    observation_space = spaces.Box(0.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, episodes: list[tuple[str, str, list[float]]]) -> None:
        self.episodes, self.number = episodes, -1

    def reset(self, *, seed=None, options=None):
        self.number, self.at = self.number + 1, 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        task, optimizer, rewards = self.episodes[self.number % len(self.episodes)]
        reward, self.at = rewards[self.at], self.at + 1
        info = {"task": task, "optimizer": optimizer}
        return np.zeros(1, dtype=np.float32), reward, self.at == len(rewards), False, info


def scaled(*scripts: list[tuple[str, str, list[float]]], steps: int) -> tuple[np.ndarray, list[list[dict]]]:
    venv = TaskReturnScaling(DummyVecEnv([lambda script=script: Scripted(script) for script in scripts]))
    venv.reset()
    outputs = [venv.step(np.zeros((len(scripts), 1), dtype=np.float32)) for _ in range(steps)]
    return np.stack([out[1] for out in outputs]), [out[3] for out in outputs]


def test_rewards_are_divided_by_the_deviation_of_the_returns_so_far():
    returns = [1.0, 3.0, 2.5, 7.0, -4.0]
    script = [("a", "adam", [0.25 * total, 0.75 * total]) for total in returns]
    rewards, infos = scaled(script, steps=10)
    for episode, total in enumerate(returns):
        # The return of an episode counts from its last step on.
        before = np.std(returns[:episode], ddof=1) if episode >= 2 else 1.0
        with_it = np.std(returns[: episode + 1], ddof=1) if episode >= 1 else 1.0
        assert rewards[2 * episode, 0] == pytest.approx(0.25 * total / before, rel=1e-6)
        assert rewards[2 * episode + 1, 0] == pytest.approx(0.75 * total / with_it, rel=1e-6)
        assert "episode_return" not in infos[2 * episode][0]
        assert infos[2 * episode + 1][0]["episode_return"] == pytest.approx(total, rel=1e-6)


def test_each_task_and_optimizer_has_its_own_scale():
    small, large = [1.0, 2.0, 4.0], [100.0, 900.0, 300.0]
    pairs = {("a", "adam"): small, ("a", "sgdm"): large, ("b", "adam"): [x + 50.0 for x in large]}
    script = [(*pair, [totals[i]]) for i in range(3) for pair, totals in pairs.items()]
    rewards, _ = scaled(script, steps=9)
    for number, totals in enumerate(pairs.values()):
        mine = rewards[number::3, 0]
        assert mine[0] == pytest.approx(totals[0], rel=1e-6)
        for i in (1, 2):
            assert mine[i] == pytest.approx(totals[i] / np.std(totals[: i + 1], ddof=1), rel=1e-6)


def test_environments_side_by_side_share_the_scale_of_a_pair():
    rewards, infos = scaled([("a", "adam", [1.0])], [("a", "adam", [5.0])], steps=2)
    deviation = np.std([1.0, 5.0], ddof=1)
    assert rewards[0] == pytest.approx([1.0 / deviation, 5.0 / deviation], rel=1e-6)
    assert [info["episode_return"] for info in infos[1]] == [1.0, 5.0]


def test_returns_begin_anew_at_a_reset():
    venv = TaskReturnScaling(DummyVecEnv([lambda: Scripted([("a", "adam", [1.0, 1.0, 1.0])])]))
    still = np.zeros((1, 1), dtype=np.float32)
    venv.reset()
    venv.step(still)
    venv.reset()  # in the middle of an episode
    infos = [venv.step(still)[3][0] for _ in range(3)]
    assert infos[-1]["episode_return"] == 3.0


@pytest.mark.parametrize("total", [0.0, 2.0])
def test_returns_that_do_not_differ_give_finite_rewards(total):
    rewards, _ = scaled([("a", "adam", [total])], steps=4)
    assert np.isfinite(rewards).all()
    assert np.sign(rewards).tolist() == np.full((4, 1), np.sign(total)).tolist()
