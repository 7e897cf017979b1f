"""Runs side by side are, for an agent, the environments that they would be one by one."""

import math

import numpy as np
import pytest
import torch
from plain_loop import small_task
from stable_baselines3.common.vec_env import DummyVecEnv

from envs import EnvConfig, LearningRateEnv, PadGraph, get_task
from envs.batched.env import BatchedEnv
from envs.batched.model import NotBatchableError
from gns import DecisionConfig, GuardConfig

PLACES = 5


def config_of(optimizer: str, **changes) -> EnvConfig:
    settings = {"optimizers": (optimizer,), "budgets": (12, 40), "decision": DecisionConfig(num_decisions=6, base=3.0)}
    return EnvConfig(**{**settings, **changes})


def one_by_one(task, config: EnvConfig) -> DummyVecEnv:
    return DummyVecEnv([lambda: PadGraph(LearningRateEnv([task], config))] * PLACES)


def close(one, other, tolerance: float) -> bool:
    return np.allclose(one, other, rtol=tolerance, atol=tolerance)


def assert_alike(task, config: EnvConfig, optimizer: str, actions, steps: int = 14, tolerance: float = 5e-3) -> dict:
    """Both ways from the same seeds and actions; return what happened."""
    alone, together = one_by_one(task, config), BatchedEnv(task, config, optimizer, PLACES)
    assert together.observation_space == alone.observation_space and together.action_space == alone.action_space
    alone.seed(7)
    together.seed(7)
    observations = alone.reset(), together.reset()
    happened = {"dones": 0, "rollbacks": 0, "lost": 0}
    for t in range(steps):
        one, other = observations
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].dtype == other[key].dtype and close(one[key], other[key], tolerance), (t, key)
            assert all(space.contains(row) for space, row in [(alone.observation_space[key], r) for r in other[key]])
        for mine, theirs in zip(together.reset_infos, alone.reset_infos, strict=True):
            assert mine | {"TimeLimit.truncated": False} == pytest.approx(theirs | {"TimeLimit.truncated": False})
        chosen = actions(t)
        one, rewards, dones, infos = alone.step(chosen)
        other, own_rewards, own_dones, own_infos = together.step(chosen)
        observations = one, other
        assert np.array_equal(dones, own_dones)
        assert own_rewards.dtype == rewards.dtype and close(own_rewards, rewards, tolerance)
        for i in range(PLACES):
            mine, theirs = dict(own_infos[i]), dict(infos[i])
            last = mine.pop("terminal_observation", {}), theirs.pop("terminal_observation", {})
            assert last[0].keys() == last[1].keys() and all(close(last[0][k], last[1][k], tolerance) for k in last[0])
            assert mine.keys() == theirs.keys()
            for key, value in theirs.items():
                if isinstance(value, str | bool):
                    assert mine[key] == value
                else:
                    assert mine[key] == pytest.approx(value, rel=tolerance, abs=0.02)
            happened["lost"] += int(theirs.get("diverged", False))
            happened["rollbacks"] += theirs["rollbacks"] if dones[i] else 0
        happened["dones"] += int(dones.sum())
    return happened


def random_actions(size: float):
    return lambda t: np.random.default_rng(t).uniform(-size, size, (PLACES, 1)).astype(np.float32)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw"])
@pytest.mark.parametrize("kind", ["digits_mlp", "digits_cnn", "dropout", "batch_norm"])
def test_observations_rewards_ends_and_infos_are_those_of_single_environments(kind, optimizer):
    task = get_task(kind) if kind.startswith("digits") else small_task(kind)
    rates = {name: (1e-4, 1e-3) for name in ("adam", "adamw")} | {"sgdm": (1e-3, 1e-2), "sgd": (1e-3, 1e-2)}
    config = config_of(optimizer, reward_probability=0.4, learning_rates=rates)
    happened = assert_alike(task, config, optimizer, random_actions(0.3))
    assert happened["dones"] == 2 * PLACES and happened["lost"] == 0


@pytest.mark.parametrize("mode", ["recursive", "anchored", "gns-paper"])
def test_every_action_mode_and_the_papers_features_and_rewards(mode):
    features = "gns-paper" if mode == "gns-paper" else "gns-1"
    decision = DecisionConfig(mode=mode, features=features, num_decisions=6)
    config = config_of("adam", decision=decision, reward="gns-paper", learning_rates={"adam": (1e-4, 1e-3)})
    assert assert_alike(get_task("digits_mlp"), config, "adam", random_actions(0.3))["dones"] == 2 * PLACES


@pytest.mark.parametrize(
    ("kind", "guard"),
    [
        ("plain", GuardConfig(max_rollbacks=1)),
        ("plain", GuardConfig(max_rollbacks=5)),
        ("plain", GuardConfig(enabled=False)),
        ("batch_norm", GuardConfig(max_rollbacks=1)),
        ("batch_norm", GuardConfig(max_rollbacks=5)),
    ],
)
def test_diverging_runs_are_taken_back_and_lost_as_they_are_alone(kind, guard):
    """From rates so high that rounding decides little: weights overflow, or losses do with batch norm."""
    decision = DecisionConfig(num_decisions=6, base=1e8 if kind == "plain" else 1e3, max_lr=1e20)
    config = config_of("sgdm", guard=guard, decision=decision, learning_rates={"sgdm": (1e-3, 1e-2)})
    high = np.zeros((14, PLACES, 1), dtype=np.float32)
    high[1, 0] = high[3, 1] = high[4, 1] = high[8, 2] = high[9, 2] = high[2, 4] = 1.0
    happened = assert_alike(small_task(kind), config, "sgdm", lambda t: high[t])
    assert happened["dones"] > PLACES
    assert (happened["rollbacks"] > 0) is guard.enabled
    if guard.max_rollbacks == 1 or not guard.enabled:
        assert happened["lost"] > 0


def test_options_of_a_reset_are_those_of_single_environments():
    env = BatchedEnv(get_task("digits_mlp"), config_of("adam"), "adam", 2)
    env.set_options([{"budget": 30, "learning_rate": 0.01, "seed": 5}, {"budget": 13}])
    env.reset()
    assert [info["budget"] for info in env.reset_infos] == [30, 13] and env.reset_infos[0]["initial_lr"] == 0.01
    env.reset()
    assert [info["budget"] for info in env.reset_infos] != [30, 13]


def test_one_seed_gives_the_same_bits_twice():
    seen = []
    for _ in range(2):
        env = BatchedEnv(small_task("dropout"), config_of("adam"), "adam", 4)
        env.seed(3)
        env.reset()
        seen.append([env.step(np.full((4, 1), 0.1, np.float32))[0]["globals"] for _ in range(9)])
    assert all(np.array_equal(a, b) for a, b in zip(*seen, strict=True))


def test_runs_of_any_state_give_finite_observations_within_bounds():
    decision = DecisionConfig(num_decisions=6, base=1e6, max_lr=1e12)
    env = BatchedEnv(get_task("digits_mlp"), config_of("sgdm", decision=decision), "sgdm", 8)
    env.seed(0)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(30):
        observation, rewards, _, infos = env.step(rng.uniform(-1, 1, (8, 1)).astype(np.float32))
        assert all(np.isfinite(value).all() for value in observation.values()) and np.isfinite(rewards).all()
        assert np.abs(observation["globals"]).max() <= 5.0
        assert all(math.isfinite(info["learning_rate"]) for info in infos)


def test_features_that_need_validation_are_refused():
    config = config_of("adam", decision=DecisionConfig(num_decisions=6, features="srls"))
    with pytest.raises(NotBatchableError, match="'srls' need a pass over held-out data"):
        BatchedEnv(get_task("digits_mlp"), config, "adam", 2)


def test_the_random_numbers_outside_stay_as_they_are():
    env = BatchedEnv(small_task("dropout"), config_of("adam"), "adam", 3)
    before = torch.get_rng_state()
    env.reset()
    env.step(np.zeros((3, 1), np.float32))
    assert torch.equal(torch.get_rng_state(), before)
