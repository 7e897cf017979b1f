"""Environments are stopped in the middle of episodes and gone on with elsewhere: nothing differs, to the last bit."""

import io
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plain_loop import same_state, small_task
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecEnv
from torch import nn

from agents.training.ppo import TaskReturnScaling, make_vec_env
from envs import EnvConfig, LearningRateEnv, PadGraph, Task
from envs.batched.composite import CompositeVecEnv, make_vector
from envs.batched.env import BatchedEnv
from envs.batched.runs import BatchedRuns
from envs.vector_state import load_state_of, state_of
from gns import DecisionConfig, GuardConfig
from gns.errors import OutOfOrderError, StateError

# Rates so high, and actions so strong, that runs are taken back and lost.
CONFIG = EnvConfig(
    budgets=(20, 30),
    learning_rates={"adam": (1e-3, 10.0), "sgdm": (1e-2, 10.0), "adamw": (1e-3, 10.0), "sgd": (1e-1, 10.0)},
    decision=DecisionConfig(mode="recursive", base=6.0, num_decisions=5, max_lr=100.0),
    guard=GuardConfig(loss_multiple=0.8, max_rollbacks=2),  # a loss that hardly falls counts as diverged
    reward_probability=0.5,
)
# Rates so high that figures become infinite, with no guard.
WILD = replace(
    CONFIG,
    learning_rates={name: (1e-2, 1e6) for name in CONFIG.learning_rates},
    decision=replace(CONFIG.decision, max_lr=1e7),
    guard=GuardConfig(enabled=False),
)
BEFORE, AFTER = 7, 13  # steps: the second more than two episodes


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_equal(one: Any, other: Any) -> None:
    """Equal to the last bit, whatever is nested."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.stride() == other.stride()
        assert torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif isinstance(one, float):
        assert type(one) is type(other) and np.array_equal(one, other, equal_nan=True)
    else:
        assert type(one) is type(other) and one == other


def assert_plain(state: Any) -> None:
    """Made of what any safe loader reads."""
    if type(state) is dict:
        assert all(type(key) in (str, int) for key in state)
    else:
        assert type(state) in (list, tuple, str, bool, int, float, type(None), torch.Tensor)
    if type(state) in (dict, list, tuple):
        for item in state.values() if type(state) is dict else state:
            assert_plain(item)
    elif isinstance(state, torch.Tensor):
        assert not state.requires_grad and state.device.type == "cpu"


# ---------------------------------------------------------------------- one environment


def normalized_with_dropout() -> nn.Module:
    layers = (nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 10))
    return nn.Sequential(nn.Flatten(), *layers)


def both(**changes: Any) -> Task:
    """A task with batch norm and dropout, two batches a pass, clipped gradients in two parts."""
    settings = {"build_model": normalized_with_dropout, "batch_size": 400, "clip_norm": 1.0, "accumulation": 2}
    return small_task("plain", **{"name": "test_both", **settings, **changes})


SINGLE = {
    "adam": ([both()], replace(CONFIG, optimizers=("adam",))),
    "sgdm": ([both()], replace(CONFIG, optimizers=("sgdm",))),
    "no guard": ([small_task("dropout")], replace(WILD, optimizers=("adamw",))),
    "the paper's": ([both()], replace(CONFIG, reward="gns-paper", decision=replace(CONFIG.decision, mode="gns-paper"))),
    "rates of layers": ([both()], replace(CONFIG, decision=replace(CONFIG.decision, mode="per-layer"))),
    "two tasks": ([small_task("dropout"), small_task("batch_norm")], CONFIG),
    "validation": ([both()], replace(CONFIG, decision=replace(CONFIG.decision, features="srls"))),
    "float16": ([small_task("batch_norm", precision="float16")], CONFIG),
}


class Player:
    """Plays episode after episode with the actions of a seed, each a function of the number of the step."""

    def __init__(self, env: Any, actions: np.ndarray) -> None:
        self.env, self.actions = env, actions

    def play(self, first: int, last: int) -> list:
        seen = []
        for action in self.actions[first:last]:
            observation, reward, terminated, truncated, info = self.env.step(action)
            seen.append([tuple(observation), reward, terminated, truncated, info])
            if terminated:
                observation, info = self.env.reset()
                seen[-1] += [tuple(observation), info]
        return seen


@pytest.mark.parametrize("name", SINGLE)
def test_one_environment_goes_on_from_any_decision(name, tmp_path):
    tasks, config = SINGLE[name]
    if name == "sgdm":
        config = replace(config, guard=replace(config.guard, folder=tmp_path))
    width = LearningRateEnv(tasks, config).action_space.shape[0]
    actions = np.random.default_rng(1).uniform(-1, 1, (24, width)).astype(np.float32)
    whole, stopped = (Player(LearningRateEnv(tasks, config), actions) for _ in range(2))
    for player in (whole, stopped):
        player.env.reset(seed=3)
    expected = whole.play(0, 24)
    ends = [step[4] for step in expected if step[2]]
    assert len(ends) >= 4
    if config.guard.enabled:
        assert any(step[4]["rollbacks"] for step in expected)
    assert {True, False} == {end["diverged"] for end in ends}
    for step in range(12):
        state = stopped.env.state_dict()
        assert_plain(state)
        resumed = Player(LearningRateEnv(tasks, config), actions)
        resumed.env.load_state_dict(through_a_file(state))
        assert_equal(vars(resumed.env.observation), vars(stopped.env.observation))
        assert_equal(resumed.env.state_dict(), state)
        assert_equal(
            resumed.play(step, 24 if step in (2, 5, 8) else step + 2), expected[step:][: 24 if step in (2, 5, 8) else 2]
        )
        assert_equal(stopped.play(step, step + 1), expected[step : step + 1])  # saving changed nothing
    assert_equal(stopped.play(12, 24), expected[12:])
    assert same_state(stopped.env.run.model, whole.env.run.model) and stopped.env.rates == whole.env.rates


def test_a_state_does_not_move_with_what_goes_on():
    env, actions = LearningRateEnv(*SINGLE["adam"]), np.ones((4, 1), dtype=np.float32)
    env.reset(seed=3)
    env.step(actions[0])
    state = env.state_dict()
    kept = through_a_file(state)
    for action in actions:
        if env.step(action)[2]:
            env.reset()
    assert_equal(state, kept)
    other = LearningRateEnv(*SINGLE["adam"])
    other.load_state_dict(state)
    other.step(actions[0])
    assert_equal(state, kept)


def test_an_ended_episode_is_kept_and_a_new_one_begins():
    envs = [PadGraph(LearningRateEnv(*SINGLE["sgdm"])) for _ in range(2)]
    envs[0].reset(seed=1)
    while not envs[0].step(np.zeros(1))[2]:
        pass
    envs[1].load_state_dict(through_a_file(envs[0].state_dict()))
    assert envs[1].unwrapped.core.finished == envs[0].unwrapped.core.finished
    assert_equal(envs[1].unwrapped.rates, envs[0].unwrapped.rates)
    assert_equal(envs[1].reset(), envs[0].reset())


# ---------------------------------------------------------------------- many


def together(kind: str, optimizer: str, config: EnvConfig = CONFIG) -> BatchedEnv:
    task = both() if kind == "both" else small_task(kind)
    return BatchedEnv(task, config, optimizer, 5)


def mixed(workers: int) -> TaskReturnScaling:
    """Two groups of runs trained together, and places of their own for runs that cannot be."""
    tasks = [small_task("dropout"), small_task("batch_norm", precision="bfloat16")]
    return make_vec_env(tasks, replace(CONFIG, optimizers=("adam", "sgdm")), 9, workers, seed=4)


def one_by_one() -> DummyVecEnv:
    return DummyVecEnv([lambda: PadGraph(LearningRateEnv([small_task("dropout"), both()], CONFIG))] * 3)


VECTORS = {
    "dropout, adam": lambda: together("dropout", "adam", replace(CONFIG, guard=GuardConfig(max_rollbacks=1))),
    "batch norm, adamw": lambda: together("batch_norm", "adamw"),
    "both, sgdm": lambda: together("both", "sgdm"),
    "no guard": lambda: together("dropout", "sgd", WILD),
    "one by one": lambda: CompositeVecEnv([one_by_one()]),
    "mixed": lambda: mixed(0),
    "1 worker": lambda: mixed(1),
    "2 workers": lambda: mixed(2),
}
ELSEWHERE = {
    "mixed": "1 worker",
    "1 worker": "mixed",
    "2 workers": "mixed",
}  # what a vector is gone on with, if not another like it


def begin(venv: VecEnv) -> Any:
    venv.seed(4)
    return deepcopy((venv.reset(), venv.reset_infos))


def roll(venv: VecEnv, first: int, last: int) -> list:
    inner = venv.venv if isinstance(venv, TaskReturnScaling) else venv
    actions = np.random.default_rng(5).uniform(-1, 1, (last, venv.num_envs, 1)).astype(np.float32)
    return [deepcopy((*venv.step(action), inner.reset_infos)) for action in actions[first:]]


@pytest.fixture(scope="module")
def expected() -> dict[str, list]:
    """What is seen of each vector that is never stopped; processes change none of it."""
    found = {}
    for name, make in VECTORS.items():
        if "worker" not in name:
            venv = make()
            begin(venv)
            found[name] = roll(venv, 0, BEFORE + AFTER)
    return {**found, "1 worker": found["mixed"], "2 workers": found["mixed"]}


def infos(steps: list) -> list[dict]:
    return [info for step in steps for info in step[3]]


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_goes_on_exactly(name, expected):
    for part in (expected[name][:BEFORE], expected[name][BEFORE:]):
        assert "no guard" in name or any(info["rollbacks"] for info in infos(part))
    assert {info["diverged"] for info in infos(expected[name]) if "diverged" in info} == {True, False}
    venv = VECTORS[name]()
    begin(venv)
    assert_equal(roll(venv, 0, BEFORE), expected[name][:BEFORE])
    state = venv.state_dict()
    assert_plain(state)
    kept = through_a_file(state)
    assert_equal(roll(venv, BEFORE, BEFORE + AFTER), expected[name][BEFORE:])  # saving changed nothing
    assert_equal(state, kept)
    venv.close()
    resumed = VECTORS[ELSEWHERE.get(name, name)]()
    resumed.load_state_dict(kept)
    assert_equal(resumed.state_dict(), state)
    assert_equal(roll(resumed, BEFORE, BEFORE + AFTER), expected[name][BEFORE:])
    resumed.close()


# ---------------------------------------------------------------------- refused


def changed(state: dict, **entries: Any) -> dict:
    return {**deepcopy(state), **entries}


def wide(name: str) -> Task:
    """Of a name that another model has."""
    return small_task("plain", name=name, build_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


def test_an_environment_refuses_what_is_not_its_own_and_stays_as_it_is():
    env = LearningRateEnv([both()], CONFIG)
    with pytest.raises(OutOfOrderError, match="reset"):
        env.state_dict()
    env.reset(seed=3)
    env.step(np.ones(1))
    state, other = env.state_dict(), LearningRateEnv([small_task("dropout")], CONFIG)
    other.reset(seed=1)
    refused = {
        r"tasks \['test_dropout'\]; expected \['test_both'\]": other.state_dict(),
        "format 7; expected 1": changed(state, format=7),
        "without a kind": [1, 2],
        "kind 'runs'": changed(state, kind="runs"),
        "KeyError: 'core'": {key: value for key, value in state.items() if key != "core"},
        "optimizer 'lion'": changed(state, episode={**state["episode"], "optimizer": "lion"}),
        "number of": changed(state, episode={**state["episode"], "number": 3}),
        "guard": changed(state, guard=None),
    }
    for message, wrong in refused.items():
        with pytest.raises(StateError, match="expected") as problem:
            env.load_state_dict(wrong)
        assert message in ("number of", "guard") or problem.match(message)
    with pytest.raises(StateError, match="does not fit"):
        LearningRateEnv([wide("test_both")], CONFIG).load_state_dict(state)
    assert_equal(env.state_dict(), state)


def test_environments_together_refuse_what_is_not_their_own():
    venv = together("dropout", "adam")
    with pytest.raises(OutOfOrderError, match="reset"):
        venv.state_dict()
    with pytest.raises(OutOfOrderError, match="begun"):
        venv.runs.state_dict()
    begin(venv)
    state = venv.state_dict()
    others = {
        "task 'test_dropout'; expected 'test_plain'": together("plain", "adam"),
        "optimizer 'adam'; expected 'adamw'": together("dropout", "adamw"),
        "num_envs 5; expected 4": BatchedEnv(small_task("dropout"), CONFIG, "adam", 4),
        "shapes": BatchedEnv(wide("test_dropout"), CONFIG, "adam", 5),
        "kind 'environments together'; expected 'environments one by one'": None,
    }
    for message, other in others.items():
        with pytest.raises(StateError, match=message):
            load_state_of(other or one_by_one(), state)
    with pytest.raises(StateError, match="size 5; expected 2"):
        BatchedRuns(small_task("dropout"), "adam", 2).load_state_dict(state["runs"])
    with pytest.raises(StateError, match="KeyError: 'episodes'"):
        venv.load_state_dict({key: value for key, value in state.items() if key != "episodes"})
    with pytest.raises(StateError, match="VecCheckNan has no state"):
        state_of(VecCheckNan(one_by_one()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vector_refuses_other_groups(workers):
    config = replace(CONFIG, optimizers=("adam",))

    def make(count: int, optimizer: str = "adam", here: int = workers, kind: str = "dropout") -> VecEnv:
        return make_vector([small_task(kind)], replace(config, optimizers=(optimizer,)), count, here)

    venv = make(4)
    begin(venv)
    state = venv.state_dict()
    for message, other in {
        "num_envs 6; expected 4": make(6, here=0),
        "task 'test_plain'": make(4, here=0, kind="plain"),
        "optimizer 'sgd'": make(4, "sgd", here=0),
        "4 environments|in one group": CompositeVecEnv([BatchedEnv(small_task("dropout"), config, "adam", 4)]),
    }.items():
        begin(other)
        with pytest.raises(StateError, match=message):
            venv.load_state_dict(other.state_dict())
    apart = changed(state, groups=[{"places": [0, 3], "state": {}}, {"places": [1, 2], "state": {}}])
    with pytest.raises(StateError, match=r"\[0, 3\] in one group"):
        venv.load_state_dict(apart)
    venv.load_state_dict(state)  # still good
    venv.close()
