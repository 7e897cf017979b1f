"""Seconds of training until a policy is good, and the look into training that measures it."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from agents.evaluation.results import Evaluation, tune
from agents.training.ppo import PPOConfig
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from benchmarks.time_to_quality import _json, keep_policies, loss_ratios, measure, parse, times_to_quality
from envs import EnvConfig, get_task
from gns import DecisionConfig, NetworkConfig
from gns.errors import InvalidSettingError

SMALL = TrainConfig(
    episodes=24,
    seed=3,
    workers=0,
    env=EnvConfig(budgets=(20, 30), decision=DecisionConfig(num_decisions=5)),
    agent=PPOConfig(
        num_envs=4, episodes_per_rollout=8, batch_size=20, n_epochs=2, network=NetworkConfig(hidden=16, head=16)
    ),
    baseline=BaselineConfig(controllers=()),
)
TRAINING = [
    "env.budgets=[20,30]",
    "env.decision.num_decisions=5",
    "agent.num_envs=4",
    "agent.episodes_per_rollout=8",
    "agent.batch_size=20",
    "agent.network.hidden=16",
    "episodes=16",
    "workers=0",
    "baseline.rates=1",
    "baseline.seeds=1",
]
EVALUATION = ["controller=[rex,cosine,policy]", "budgets=[30]", "grids.adam={lowest: 1e-3, count: 2}", "widen=0"]


@pytest.fixture
def tasks():
    return [get_task("digits_mlp")]


def weights(policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# ---------------------------------------------------------------------- the look into training


def test_looking_at_policies_on_the_way_changes_no_bit_of_the_result(tasks):
    def look(policy, episodes):
        torch.rand(3)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()

    alone, watched = train(tasks, SMALL), train(tasks, SMALL, on_policy=look)
    assert same(weights(alone), weights(watched)) and alone.config == watched.config


def test_every_update_hands_over_the_policy_it_gave_and_the_last_is_the_result(tasks):
    seen = []
    result = train(tasks, SMALL, on_policy=lambda policy, episodes: seen.append((episodes, policy, weights(policy))))
    episodes = [row[0] for row in seen]
    assert len(seen) == 3 and episodes == sorted(set(episodes)) and episodes[-1] >= 24
    assert [policy.config.training["episodes"] for _, policy, _ in seen] == episodes
    assert all(same(weights(policy), then) for _, policy, then in seen)  # copies: training moves them no more
    assert not same(seen[0][2], seen[1][2]) and not same(seen[1][2], seen[2][2])
    assert same(seen[-1][2], weights(result))


# ---------------------------------------------------------------------- which policies are kept


@pytest.fixture
def scripted(monkeypatch):
    """A training whose updates end at given seconds."""

    def make(seconds):
        clock = [100.0]

        def fake(tasks, config, tracker, on_policy):
            for number, when in enumerate(seconds, start=1):
                clock[0] = 100.0 + when
                on_policy(f"policy {number}", 64 * number)

        monkeypatch.setattr("benchmarks.time_to_quality.train", fake)
        monkeypatch.setattr("benchmarks.time_to_quality.time.perf_counter", lambda: clock[0])
        return [(item.seconds, item.episodes) for item in keep_policies([], SMALL, 5.0, None)]

    return make


def test_the_first_policy_after_every_interval_and_the_last_are_kept(scripted):
    assert scripted([2.0, 4.0, 6.0, 8.0, 11.0, 22.0, 24.0, 24.5]) == [(6, 192), (11, 320), (22, 384), (24.5, 512)]


def test_a_last_policy_that_is_kept_anyway_is_kept_once(scripted):
    assert scripted([4.0, 6.0]) == [(6, 128)] and scripted([4.0]) == [(4, 64)]


# ---------------------------------------------------------------------- when it is good


@pytest.mark.parametrize(
    ("ratios", "first", "for_good"),
    [
        ([1.5, 1.04, 1.2, 1.03, 1.0], 10.0, 20.0),
        ([1.05, 1.0, 0.9, 0.9, 1.05], 5.0, 5.0),
        ([1.5, 1.04, 1.0, 1.0, 1.06], 10.0, math.inf),
        ([1.5, 1.4, 1.3, 1.2, 1.04], 25.0, 25.0),
        ([1.5, math.inf, 1.3, 1.2, 1.06], math.inf, math.inf),
        ([1.0, math.nan, 1.0, 1.0, 1.0], 5.0, 15.0),
    ],
)
def test_first_and_for_good(ratios, first, for_good):
    assert times_to_quality([5.0, 10.0, 15.0, 20.0, 25.0], ratios, 1.05) == (first, for_good)


def test_no_policy_is_never_good():
    assert times_to_quality([], [], 1.05) == (math.inf, math.inf)


def evaluation(test_losses: dict[str, float]) -> Evaluation:
    """Two schedules at two rates and a policy at two; a is best on the reward split at 0.1, b at 0.01."""
    reward = {"a": {0.1: 0.4, 0.01: 0.8}, "b": {0.1: 0.9, 0.01: 0.5}, "p": {0.1: 0.3, 0.01: 0.7}}
    rows = [
        {"task": "t", "optimizer": "adam", "budget": 30, "controller": name, "initial_lr": rate, "seed": seed}
        | {"reward_loss": loss + 0.1 * (2 * seed - 1), "test_loss": test_losses[f"{name} {rate}"]}
        for name, own in reward.items()
        for rate, loss in own.items()
        for seed in (0, 1)
    ]
    runs = pd.DataFrame(rows)
    return Evaluation(runs, tune(runs[runs.controller != "p"]), [], references=frozenset("ab"))


def test_a_policys_mean_is_over_all_rates_and_a_schedules_at_the_rate_tuned_on_the_reward_split():
    test_losses = {"a 0.1": 0.6, "a 0.01": 0.1, "b 0.1": 0.2, "b 0.01": 0.5, "p 0.1": 0.4, "p 0.01": 0.8}
    found = loss_ratios(evaluation(test_losses))
    assert list(found.index) == ["p"]
    assert found.reward_loss["p"] == pytest.approx(0.5 / 0.4) and found.test_loss["p"] == pytest.approx(0.6 / 0.5)


def test_a_policy_with_a_run_that_diverged_is_not_good():
    test_losses = dict.fromkeys(["a 0.1", "a 0.01", "b 0.1", "b 0.01", "p 0.1"], 0.5) | {"p 0.01": math.inf}
    assert np.isinf(loss_ratios(evaluation(test_losses)).test_loss["p"])


# ---------------------------------------------------------------------- all of it


def test_from_training_to_figures(tmp_path, capsys):
    words = ["--seeds", "0", "1", "--every", "1e-3", "--bound", "1e9", "--runs", "2", "--rates", "2"]
    words += ["--training", *TRAINING, "--evaluation", *EVALUATION, "workers=0", "--cache", str(tmp_path / "c.jsonl")]
    found = measure(parse(words), Console(width=200))
    json.loads(json.dumps(_json(found), allow_nan=False))
    assert found["schedules"].keys() == {"rex", "cosine"}
    assert [item["seed"] for item in found["policies"]] == [0, 0, 1, 1]
    assert found["policies"][0]["episodes"] < found["policies"][1]["episodes"]
    firsts = [item["seconds"] for item in found["policies"][::2]]
    for item in found["times"]:  # everything is good enough
        assert item["first"] == item["for_good"] == firsts[item["seed"]]
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 2 * 2 * 2 + 4 * 2 * 2
    shown = capsys.readouterr().out
    for word in ("seed 1", "reward split; best tuned schedule", "test split", "median", "over 2 training seeds"):
        assert word in shown


def test_several_settings_are_refused_before_training():
    words = ["--training", *TRAINING, "--evaluation", "budgets=[30,40]"]
    with pytest.raises(InvalidSettingError, match=r"budgets \[30, 40\].*expected one task, one budget"):
        measure(parse(words), Console())
