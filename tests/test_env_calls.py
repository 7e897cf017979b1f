"""What no environment can be given is refused by name, as Gymnasium's users know it; copies go on exactly."""

import copy
import math
import os
import pickle
import threading
from dataclasses import replace
from fractions import Fraction
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain_loop import small_task
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from envs import EnvConfig, LearningRateEnv, PadGraph
from envs.batched.composite import CompositeVecEnv
from envs.batched.env import BatchedEnv
from envs.calls import InvalidActionError, InvalidOptionsError, InvalidSeedError, NotCopyableError, ResetNeededError
from envs.engine import EngineConfig
from envs.workers import WorkersVecEnv
from gns import DecisionConfig, GuardConfig
from gns.errors import GNSError, InvalidSettingError, OutOfOrderError, UnknownNameError

LONG = "GNS_FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("GNS_FUZZ_EXAMPLES", "60"))
CONFIG = EnvConfig(
    optimizers=("adam",),
    budgets=(10, 10),
    decision=DecisionConfig(num_decisions=5),
    guard=GuardConfig(loss_multiple=0.8, max_rollbacks=2),  # a loss that hardly falls counts as diverged
    reward_probability=0.5,
)
LAYERS = replace(CONFIG, decision=DecisionConfig("per-layer", num_decisions=5))
RAGGED = [[0.1], [0.2, 0.3]]
NO_ACTIONS = {
    "text": "up",
    "bytes": b"0.5",
    "ragged": RAGGED,
    "dictionary": {"action": 0.5},
    "nothing": None,
    "complex": 0.5 + 0.1j,
    "truth": True,
    "huge": 10**400,
    "not finite": math.nan,
    "infinite": [math.inf],
    "gradient": torch.zeros(1, requires_grad=True),
    "two": [0.1, 0.2],
    "empty": [],
    "text in a list": ["0.5"],
}
NO_SEEDS = ["3", "None", -1, 0.5, 3.0, math.nan, 2**64, 2**70, True, [3], np.array([3]), Fraction(1, 2)]


def single() -> LearningRateEnv:
    return LearningRateEnv([small_task()], CONFIG)


def by_layer() -> LearningRateEnv:
    return LearningRateEnv([small_task()], LAYERS)


def padded() -> PadGraph:
    return PadGraph(single(), 7, 9)


def padded_by_layer() -> PadGraph:
    return PadGraph(by_layer(), 7, 9)


def together() -> BatchedEnv:
    return BatchedEnv(small_task(), CONFIG, "adam", 2)


def composite() -> CompositeVecEnv:
    return CompositeVecEnv([together(), DummyVecEnv([lambda: PadGraph(single())])])


ALONE = {made.__name__: made for made in (single, by_layer, padded, padded_by_layer)}
VECTORS = {made.__name__: made for made in (together, composite)}


def start(env: Any) -> Any:
    if isinstance(env, VecEnv):
        env.seed(3)
        env.reset()
    else:
        env.reset(seed=3)
    return env


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, whatever is nested."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other, equal_nan=np.asarray(one).dtype.kind == "f")


def play(env: Any, steps: int, seed: int = 0) -> list[Any]:
    """What an environment or a vector says to random actions; single ones are reset at their ends."""
    rng, said = np.random.default_rng(seed), []
    for _ in range(steps):
        if isinstance(env, VecEnv):
            said.append(env.step(rng.uniform(-1, 1, (env.num_envs, *env.action_space.shape)).astype(np.float32)))
            continue
        said.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)))
        if said[-1][2]:
            said.append(env.reset())
    return said


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("made", ALONE)
@pytest.mark.parametrize("name", NO_ACTIONS)
def test_what_is_no_action_is_refused_and_the_episode_goes_on(made, name):
    env, untouched = start(ALONE[made]()), start(ALONE[made]())
    for error in (InvalidActionError, InvalidSettingError, gym.error.InvalidAction):
        with pytest.raises(error, match=r"The action .*expected 1 "):
            env.step(NO_ACTIONS[name])
    assert same(play(env, 3), play(untouched, 3))


@pytest.mark.parametrize("made", VECTORS)
@pytest.mark.parametrize("name", NO_ACTIONS)
def test_what_are_no_actions_are_refused_and_the_episodes_go_on(made, name):
    env, untouched = start(VECTORS[made]()), start(VECTORS[made]())
    each = [NO_ACTIONS[name]] * env.num_envs if name not in ("gradient", "ragged") else NO_ACTIONS[name]
    wrong = [each] if name != "two" else [each, [[0.1, 0.2]] * env.num_envs, [[0.1]] * (env.num_envs + 1)]
    for actions in wrong:
        with pytest.raises(InvalidActionError, match=r"The action.*expected 1 "):
            env.step(actions)
    assert same(play(env, 3), play(untouched, 3))


def test_actions_of_layers_are_the_shared_one_or_one_for_each_layer_or_place():
    for made, sizes in ((by_layer, {1, 3}), (padded_by_layer, {1, 3, 8})):
        for size in range(1, 10):
            env = start(made())
            if size in sizes:
                env.step(np.full(size, 0.5))
            else:
                with pytest.raises(InvalidActionError, match=f"has {size} numbers; expected 1 or 3"):
                    env.step(np.full(size, 0.5))


@pytest.mark.parametrize("made", [*ALONE, *VECTORS])
def test_a_step_needs_a_reset(made):
    env = {**ALONE, **VECTORS}[made]()
    action = np.zeros((env.num_envs, 1) if isinstance(env, VecEnv) else 1)
    for error in (ResetNeededError, OutOfOrderError, gym.error.ResetNeeded):
        with pytest.raises(error, match=r"came before reset\(\)"):
            env.step(action)


@pytest.mark.parametrize("made", ALONE)
def test_a_step_after_the_end_needs_a_reset(made):
    env, ended, untouched = start(ALONE[made]()), False, start(ALONE[made]())
    while not ended:
        _, _, ended, _, _ = env.step(np.ones(1))
    with pytest.raises(ResetNeededError, match="after the end of the episode"):
        env.step(np.ones(1))
    assert same(start(env).step(np.ones(1)), untouched.step(np.ones(1)))


def test_a_step_after_a_run_was_lost_needs_a_reset():
    guard = GuardConfig(loss_multiple=0.01, max_rollbacks=0)
    env = start(LearningRateEnv([small_task()], replace(CONFIG, guard=guard)))
    info = env.step(np.ones(1))[4]
    assert info["diverged"] and info["update"] < info["budget"]
    for stopped in (env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        with pytest.raises(ResetNeededError, match="after the end of the episode"):
            stopped.step(np.ones(1))


# ---------------------------------------------------------------------- resets


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
def test_what_is_no_seed_is_refused_everywhere(seed):
    env, untouched = start(padded()), start(padded())
    for error in (InvalidSeedError, InvalidSettingError, gym.error.Error):
        with pytest.raises(error, match=r"seed is .*; expected a whole number from 0 to 2\^64 - 1"):
            env.reset(seed=seed)
    with pytest.raises(InvalidSeedError, match="Option seed is"):
        env.reset(options={"seed": seed})
    assert same(play(env, 3), play(untouched, 3))
    for made in VECTORS.values():
        with pytest.raises(InvalidSeedError):
            made().seed(seed)


def test_a_seed_of_numpy_is_one_of_pythons():
    assert same(single().reset(seed=np.int64(5)), single().reset(seed=5))
    assert same(
        single().reset(options={"seed": 2**64 - 1}, seed=1), single().reset(options={"seed": 2**64 - 1}, seed=1)
    )
    with pytest.raises(InvalidSeedError, match="Option seed is None"):
        single().reset(options={"seed": None})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["adam"], InvalidOptionsError, "expected a dictionary with any of task, optimizer"),
        ("adam", InvalidOptionsError, "expected a dictionary with"),
        ({3: 1}, UnknownNameError, "reset option '3'"),
        ({"optimizer": ["adam"]}, InvalidOptionsError, r"optimizer is \['adam'\]; expected a name"),
        ({"optimizer": None}, InvalidOptionsError, "optimizer is None; expected a name"),
        ({"optimizer": "adma"}, UnknownNameError, "Did you mean 'adam'"),
        ({"task": 3}, InvalidOptionsError, "task is 3; expected a name"),
        ({"task": np.zeros(2)}, InvalidOptionsError, "task is array"),
        ({"budget": "20"}, InvalidSettingError, "budget is '20'"),
        ({"budget": math.nan}, InvalidSettingError, "budget is nan"),
        ({"budget": 10**400}, InvalidSettingError, "budget is 1000"),
        ({"budget": 10**12}, InvalidSettingError, r"at most 10\^9 updates"),
        ({"learning_rate": "high"}, InvalidSettingError, "learning rate is 'high'"),
        ({"learning_rate": torch.ones(2)}, InvalidSettingError, "learning_rate is tensor"),
        ({"learning_rate": 10**400}, InvalidSettingError, "learning rate is 1000"),
        ({"learning_rate": None}, InvalidSettingError, "learning rate is None"),
    ],
    ids=str,
)
def test_options_of_another_kind_are_refused_and_the_episode_goes_on(options, error, message):
    env, untouched = start(single()), start(single())
    with pytest.raises(error, match=message):
        env.reset(seed=8, options=options)
    assert same(play(env, 3), play(untouched, 3))
    for made in VECTORS.values():
        vector, alike = start(made()), start(made())
        with pytest.raises(error if isinstance(options, dict) else InvalidOptionsError):
            vector.set_options(options)
            vector.reset()
        if isinstance(vector, BatchedEnv):
            assert same(play(vector, 3), play(alike, 3))


# ---------------------------------------------------------------------- copies

COPIES = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda env: pickle.loads(pickle.dumps(env))}
everywhere = pytest.mark.parametrize("made", [*ALONE, *VECTORS])
by_any_way = pytest.mark.parametrize("way", COPIES)


def local_task() -> Any:
    """One whose functions are of no module, as in a notebook."""
    return small_task("plain", loss=lambda outputs, targets: torch.nn.functional.cross_entropy(outputs, targets))


@everywhere
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [0, 2, 7])
def test_a_copy_goes_on_exactly_and_by_itself(made, way, steps):
    env, untouched = (start({**ALONE, **VECTORS}[made]()) for _ in range(2))
    play(env, steps), play(untouched, steps)
    copied = COPIES[way](env)
    assert same(play(copied, 4, seed=1), expected := play(untouched, 4, seed=1))
    assert same(play(env, 4, seed=1), expected)  # what the copy did did not touch it
    assert same(play(copied, 7, seed=2), play(untouched, 7, seed=2))  # over the ends of episodes


@by_any_way
def test_an_environment_is_copied_before_its_first_reset(way):
    env = LearningRateEnv([local_task(), "digits_mlp"], CONFIG)
    env.reset(seed=4)
    expected = play(env, 3)
    fresh = COPIES[way](COPIES[way](LearningRateEnv([local_task(), "digits_mlp"], CONFIG)))
    fresh.reset(seed=4)
    assert same(play(fresh, 3), expected)


@by_any_way
def test_a_copy_of_what_gymnasium_made_goes_on_with_what_was_set(way):
    env = gym.make("gns/LearningRate-v0", tasks=[local_task()], config=CONFIG)
    env.reset(seed=2)
    env.step(np.zeros(1, dtype=np.float32))
    env.unwrapped.note = [1, 2]
    copied = (COPIES["deepcopy"] if way == "copy" else COPIES[way])(env)  # copy.copy has the same environment within
    assert copied.unwrapped.note == [1, 2] and copied.unwrapped.note is not env.unwrapped.note
    assert copied.spec.id == env.spec.id
    assert same(play(copied, 7), play(env, 7))


def test_deep_copies_have_the_same_tasks_and_their_own_everything_else():
    env = start(single())
    copied = copy.deepcopy({"environments": [env, env]})["environments"]
    assert copied[0] is copied[1] and copied[0].tasks[0] is env.tasks[0]
    shared = {id(value) for value in vars(env).values()} & {id(value) for value in vars(copied[0]).values()}
    names = {name for name, value in vars(env).items() if id(value) in shared}
    assert not names & {"run", "guarded", "observation", "_np_random", "graphs", "rates"}
    own = {id(p) for p in env.run.model.parameters()}
    assert own.isdisjoint(id(p) for p in copied[0].run.model.parameters())


def test_what_belongs_to_this_process_is_refused_by_name():
    env = start(single())
    env.lock = threading.Lock()
    with pytest.raises(NotCopyableError, match=r"cannot be pickled .*state_dict"):
        pickle.dumps(env)
    workers = WorkersVecEnv([lambda: DummyVecEnv([padded])], [[0]], EngineConfig())
    try:
        for way in COPIES.values():
            with pytest.raises(NotCopyableError, match="holds workers of this process"):
                way(workers)
        with pytest.raises(ResetNeededError, match=r"came before reset\(\)"):
            workers.step(np.zeros((1, 1)))
        start(workers)
        with pytest.raises(InvalidActionError, match="has 2 numbers"):
            workers.step([[0.1, 0.2]])
        assert len(play(workers, 2)) == 2
    finally:
        workers.close()


# ---------------------------------------------------------------------- whatever is called

NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**63, 2**64, -(2**63), 10**400, 1e308, 5e-324, 0.5, math.nan, math.inf, -math.inf]),
    st.integers(-3, 40),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6), st.binary(max_size=4), st.complex_numbers())
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
)
ARRAYS = st.one_of(
    st.lists(st.floats(-2, 2), max_size=9).map(np.array),
    st.lists(st.floats(-2, 2), min_size=1, max_size=9).map(lambda values: torch.tensor(values, requires_grad=True)),
    st.lists(st.floats(-2, 2), min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.integers(0, 255), max_size=2).map(lambda values: np.array(values, dtype=np.uint8)),
    st.sampled_from([np.array(["0.5"]), np.array([None]), np.datetime64("2020-01-01"), np.float16(0.5), object()]),
)


def within_time(options: dict[str, Any]) -> dict[str, Any]:
    """The same without a budget that would be taken, and take longer than a test may."""
    budget = options.get("budget")
    too_long = isinstance(budget, int | float) and 100 < budget <= 10**9
    return {name: value for name, value in options.items() if name != "budget" or not too_long}


ACTIONS = st.floats(-1, 1) | ANYTHING | ARRAYS
NAMES = st.sampled_from(["task", "optimizer", "budget", "learning_rate", "seed"])
VALUES = ANYTHING | st.sampled_from(["adam", "sgdm", "test_plain", "digits_mlp", 10, 20, 1e-3, 0.1, 7, torch.ones(2)])
OPTIONS = st.none() | st.dictionaries(NAMES, VALUES, max_size=2).map(within_time) | ANYTHING
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), ACTIONS),
        st.tuples(st.just("step"), st.floats(-1, 1)),
        st.tuples(st.just("reset"), st.tuples(st.none() | st.integers(0, 2**64) | ANYTHING, OPTIONS)),
        st.tuples(st.just("copy"), st.sampled_from(sorted(COPIES))),
    ),
    min_size=1,
    max_size=6,
)


def called(env: Any, name: str, given: Any) -> Any:
    if name == "copy":
        return COPIES["deepcopy" if given == "copy" else given](env)
    if name == "step":
        if isinstance(env, VecEnv):
            env.step([given] * env.num_envs if not isinstance(given, torch.Tensor) else given)
        else:
            env.step(given)
    elif isinstance(env, VecEnv):
        try:
            env.seed(given[0])
            env.set_options(given[1])
            env.reset()
        finally:
            env._reset_seeds(), env._reset_options()  # what was refused is not to be tried again
    else:
        env.reset(seed=given[0], options=given[1])
    return env


COUNTS = {"refused": 0, "accepted": 0}


@pytest.mark.parametrize("made", ["padded", "padded_by_layer", "together"])
def test_whatever_is_called_a_named_error_or_a_finite_observation_comes(made):
    env = {**ALONE, **VECTORS}[made]()

    @settings(
        max_examples=max(1, EXAMPLES // 3),
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=not LONG,
        database=None,
    )
    @given(CALLS)
    def check(calls: list[tuple[str, Any]]) -> None:
        nonlocal env
        for name, what in calls:
            try:
                env = called(env, name, what)
                COUNTS["accepted"] += 1
            except GNSError:
                COUNTS["refused"] += 1
        base = env if isinstance(env, VecEnv) else env.unwrapped
        if made != "together" and base.running:
            assert np.isfinite(env.step(np.zeros(1))[1])

    check()
    assert COUNTS["refused"] and COUNTS["accepted"]
    print(f"{made}: {COUNTS}")
