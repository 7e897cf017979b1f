"""Rewards: each is one row of a table, which single and batched environments ask."""

import ast
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs import EnvConfig, LearningRateEnv, get_task
from envs.batched.env import BatchedEnv
from envs.rewards import REWARDS, Evaluation, Reward, get_reward
from gns import DecisionConfig, UnknownNameError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = EnvConfig(
    optimizers=("adam",), budgets=(10, 10), decision=DecisionConfig(num_decisions=5), reward_probability=0.4
)


def test_the_older_name_of_a_reward_means_the_same():
    assert get_reward("gns-paper") is REWARDS["squared-metric"]
    assert EnvConfig(reward="gns-paper").reward == "gns-paper"  # as a checkpoint or a table has it


def test_an_unknown_reward_is_named():
    with pytest.raises(UnknownNameError, match=r"Unknown reward 'log_loss'; expected one of: log-loss, squared-metric"):
        EnvConfig(reward="log_loss")


def test_a_reward_that_asks_for_a_metric_gets_it_and_one_that_does_not_does_without():
    task = get_task("digits_mlp")
    before, now = Evaluation(2.0, math.nan), Evaluation(1.0, 0.5)
    assert REWARDS["log-loss"].between(before, now, task, CONFIG) == pytest.approx(math.log(2.0))
    assert REWARDS["squared-metric"].between(before, now, task, CONFIG) == 0.0
    assert [REWARDS[name].needs_metric for name in ("log-loss", "squared-metric")] == [False, True]


def test_no_other_module_compares_names_of_rewards():
    names = {*REWARDS, "gns-paper"}
    for room in ("envs", "agents"):
        for path in (ROOT / room).rglob("*.py"):
            if path != ROOT / "envs" / "rewards.py":
                compares = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Compare)]
                leaves = [leaf for one in compares for leaf in ast.walk(one) if isinstance(leaf, ast.Constant)]
                assert not [leaf.value for leaf in leaves if leaf.value in names], path


def episodes_rewards(config: EnvConfig) -> tuple[list[float], list[float], list[dict]]:
    """Rewards of one episode in a single and in a batched environment of the same seed, and the last infos."""
    single = LearningRateEnv(["digits_mlp"], config)
    single.reset(seed=3)
    rewards, ended = [], False
    while not ended:
        _, reward, ended, _, info = single.step(np.array([0.2], dtype=np.float32))
        rewards.append(reward)
    batched = BatchedEnv(get_task("digits_mlp"), config, "adam", 2)
    batched.seed(3)
    batched.reset()
    steps = [batched.step(np.full((2, 1), 0.2, dtype=np.float32)) for _ in rewards]
    return rewards, [float(step[1][0]) for step in steps], [info, steps[-1][3][0]]


@pytest.mark.parametrize("needs_metric", [True, False])
def test_a_row_is_all_that_a_new_reward_needs(monkeypatch, needs_metric):
    seen: list[tuple[Evaluation, Evaluation]] = []

    def between(before: Evaluation, now: Evaluation, task, config) -> float:
        seen.append((before, now))
        return config.paper_threshold * (before.loss - now.loss) + (now.metric - before.metric if needs_metric else 0.0)

    monkeypatch.setitem(REWARDS, "fall", Reward("fall", needs_metric, between))
    alone, together, infos = episodes_rewards(replace(CONFIG, reward="fall"))
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)
    assert 0.0 in alone and sum(alone) > 0.0  # decisions that were not drawn, and those that were
    first, last = seen[0][0], seen[sum(reward != 0.0 for reward in alone) - 1][1]
    gain = last.metric - first.metric if needs_metric else 0.0
    assert sum(alone) == pytest.approx(0.9 * (first.loss - last.loss) + gain)
    assert all(info["reward_metric"] == pytest.approx(last.metric, abs=0.02) for info in infos)
