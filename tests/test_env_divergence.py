"""Runs that go wrong: the guard takes them back, episodes end with finite rewards, observations stay finite."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plain_loop import MODELS, plain_run, same_state, small_task
from torch import nn

from envs import EnvConfig, LearningRateEnv, Task
from gns import DecisionConfig, GuardConfig
from gns.deciding.decision import ACTION_MODES
from gns.features.schemas import SCHEMAS

GLOBALS = SCHEMAS["gns-1"].globals
RATES = {"sgdm": 0.05, "adam": 1e-3}
STILL = np.zeros(1, dtype=np.float32)
FROM_INITIAL = [name for name, mode in ACTION_MODES.items() if not mode.from_default]  # the others know no high start


class Misbehaving(nn.Module):
    """Multiplies its outputs by ``factor`` at some training passes, counted from 1; keeps every batch it was given."""

    def __init__(self, kind: str, bad: set[int], factor: float) -> None:
        super().__init__()
        self.inner = MODELS[kind]()
        self.bad, self.factor = bad, factor
        self.batches: list[torch.Tensor] = []  # not a buffer: the guard does not take it back

    def forward(self, x):
        outputs = self.inner(x)
        if not self.training:
            return outputs
        self.batches.append(x)
        return outputs * self.factor if len(self.batches) in self.bad else outputs


def misbehaving(bad, factor: float = math.nan, kind: str = "plain") -> Task:
    return small_task(kind, name=f"misbehaving_{kind}", build_model=lambda: Misbehaving(kind, set(bad), factor))


def make_env(task: Task, guard: GuardConfig | None = None, mode: str = "recursive", **changes) -> LearningRateEnv:
    """An environment of 5 decisions every 4 updates."""
    decision = DecisionConfig(mode=mode, num_decisions=5, max_lr=changes.pop("max_lr", 10.0))
    config = EnvConfig(budgets=(20, 20), decision=decision, guard=guard or GuardConfig(), reward_probability=1.0)
    return LearningRateEnv([task], replace(config, **changes))


def begin(env: LearningRateEnv, optimizer: str = "sgdm", learning_rate: float | None = None):
    rate = RATES[optimizer] if learning_rate is None else learning_rate
    return env.reset(seed=0, options={"seed": 5, "optimizer": optimizer, "learning_rate": rate})


def play(env: LearningRateEnv, action: np.ndarray = STILL) -> list[tuple]:
    steps = [env.step(action)]
    while not steps[-1][2]:
        steps.append(env.step(action))
    return steps


def feature(observation, name: str) -> float:
    return float(observation.nodes[0, GLOBALS.index(name) - len(GLOBALS)])


def optimizer_state(env: LearningRateEnv) -> list[dict]:
    optimizer = env.run.optimizer
    return [
        {key: v.clone() if isinstance(v, torch.Tensor) else v for key, v in optimizer.state.get(p, {}).items()}
        for p in env.run.model.parameters()
    ]


def equal_states(one: list[dict], other: list[dict]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def gradients(env: LearningRateEnv) -> list[torch.Tensor]:
    return [p.grad.clone() for p in env.run.model.parameters()]


# ---------------------------------------------------------------------- rollback


@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
@pytest.mark.parametrize("kind", ["plain", "dropout", "batch_norm"])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_rollback_restores_the_run_as_it_was_at_the_last_good_decision(at, kind, optimizer):
    env = make_env(misbehaving({4 * at + 2}, kind=kind))
    begin(env, optimizer)
    for _ in range(at):
        _, _, _, _, info = env.step(STILL)
        assert info["rollbacks"] == 0
    model = env.run.model
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    state, pending, batch = optimizer_state(env), gradients(env), model.batches[-1]

    observation, reward, terminated, _, info = env.step(STILL)

    assert (info["rollbacks"], info["update"], terminated) == (1, 4 * (at + 1), False)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert equal_states(optimizer_state(env), state)
    assert torch.equal(model.batches[-1], batch)  # the data went back
    assert all(torch.equal(a, b) for a, b in zip(gradients(env), pending, strict=True))  # and the random numbers
    assert reward == 0.0
    assert feature(observation, "rolled_back") == 1.0
    assert feature(observation, "progress") == pytest.approx(2 * (at + 1) / 5 - 1)


@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
@pytest.mark.parametrize("kind", ["plain", "dropout", "batch_norm"])
@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e30])
def test_after_a_rollback_the_run_goes_on_as_if_the_undone_updates_had_not_been(factor, kind, optimizer):
    env = make_env(misbehaving({6}, factor, kind))
    begin(env, optimizer)
    steps = play(env)
    assert [step[4]["rollbacks"] for step in steps] == [0, 1, 1, 1, 1]
    # Updates 4 to 7 are undone but counted: 4 at the initial rate, then the 12 left of 20 at a tenth of it.
    initial = RATES[optimizer]
    plain = plain_run(
        small_task(kind), optimizer, initial, seed=5, updates=16, rate=lambda t: initial * (1.0 if t < 4 else 0.1)
    )
    assert same_state(env.run.model.inner, plain.model)
    assert env.core.steps == 16 and env.core.update == 20


def test_the_rollback_is_seen_once():
    env = make_env(misbehaving({6}))
    observation, _ = begin(env)
    flags = [feature(observation, "rolled_back")] + [feature(step[0], "rolled_back") for step in play(env)]
    assert flags == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_the_observation_after_a_rollback_knows_no_loss_of_what_was_undone():
    env = make_env(misbehaving({6}))
    begin(env)
    env.step(STILL)
    observation, *_ = env.step(STILL)
    assert feature(observation, "no_loss") == 1.0
    assert feature(observation, "log_loss") == 0.0
    observation, *_ = env.step(STILL)
    assert feature(observation, "no_loss") == 0.0


@pytest.mark.parametrize("cut", [0.1, 0.5])
@pytest.mark.parametrize("mode", ACTION_MODES)
def test_a_rollback_cuts_the_rate_in_every_mode(mode, cut):
    rates = []
    for bad in ({6}, set()):
        env = make_env(misbehaving(bad), GuardConfig(cut=cut), mode)
        begin(env)
        used = rates_of(env)
        play(env)
        rates.append(used)
    cut_rates, whole = rates
    assert len(cut_rates) == len(whole) == 20
    assert cut_rates[:8] == whole[:8]
    assert cut_rates[8:] == pytest.approx([cut * rate for rate in whole[8:]], rel=1e-12)


def rates_of(env: LearningRateEnv) -> list[float]:
    used: list[float] = []
    env.run.optimizer.register_step_pre_hook(lambda stepped, *_: used.append(stepped.param_groups[0]["lr"]))
    return used


def test_cuts_of_one_rollback_after_the_other_multiply():
    env = make_env(misbehaving(range(6, 100)), GuardConfig(cut=0.5, max_rollbacks=10))
    begin(env)
    assert [step[4]["learning_rate"] for step in play(env)] == pytest.approx([0.05, 0.025, 0.0125, 0.00625, 0.003125])


def test_a_loss_that_rises_too_far_is_a_divergence_even_if_finite():
    for multiple, rollbacks in ((1.5, 1), (1e4, 0)):
        env = make_env(misbehaving({6}, 1000.0), GuardConfig(loss_multiple=multiple))
        begin(env, "adam")
        assert play(env)[-1][4]["rollbacks"] == rollbacks


def test_a_divergence_in_the_first_interval_goes_back_to_the_start():
    env = make_env(misbehaving({1}))
    begin(env)
    env.step(STILL)
    assert same_state(env.run.model.inner, plain_run(small_task(), "sgdm", 0.05, seed=5, updates=0).model)


def test_a_divergence_in_the_last_interval_is_undone_before_the_end():
    env = make_env(misbehaving({18}))
    begin(env)
    steps = play(env)
    info = steps[-1][4]
    assert len(steps) == 5 and (info["rollbacks"], info["diverged"], info["update"]) == (1, False, 20)
    assert same_state(env.run.model.inner, plain_run(small_task(), "sgdm", 0.05, seed=5, updates=16).model)
    assert steps[-1][1] == 0.0


def test_rewards_telescope_over_a_rollback():
    env = make_env(misbehaving({6}), reward_probability=0.3)
    begin(env)
    before = env.run.evaluate_reward_split().loss
    total = sum(step[1] for step in play(env))
    after = env.run.evaluate_reward_split().loss
    assert total == pytest.approx(math.log(before) - math.log(after), abs=1e-6)


# ---------------------------------------------------------------------- the end of a lost run


@pytest.mark.parametrize("allowed", [0, 1, 2])
@pytest.mark.parametrize("penalty", [0.0, 2.0, 3.5])
def test_more_rollbacks_than_allowed_end_the_episode(allowed, penalty):
    env = make_env(misbehaving(range(6, 100)), GuardConfig(max_rollbacks=allowed), divergence_penalty=penalty)
    begin(env)
    before = env.run.evaluate_reward_split().loss
    steps = play(env)
    assert [step[2] for step in steps] == [False] * (allowed + 1) + [True]
    assert not any(step[3] for step in steps)
    info = steps[-1][4]
    assert (info["diverged"], info["rollbacks"], info["update"]) == (True, allowed + 1, 4 * (allowed + 2))
    assert steps[-1][1] == -penalty  # the run is back where it was evaluated last
    after = env.run.evaluate_reward_split().loss
    assert sum(step[1] for step in steps) == pytest.approx(math.log(before) - math.log(after) - penalty, abs=1e-6)
    assert steps[-1][0] in env.observation_space


def test_a_run_that_never_had_a_finite_loss_ends_finite():
    env = make_env(misbehaving(range(1, 100)), GuardConfig(max_rollbacks=3))
    observation, _ = begin(env)
    assert observation in env.observation_space
    steps = play(env)
    assert len(steps) == 4 and steps[-1][4]["diverged"]
    assert all(math.isfinite(step[1]) and step[0] in env.observation_space for step in steps)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e30])
def test_without_the_guard_a_run_that_is_not_finite_ends(factor):
    env = make_env(misbehaving({6}, factor), GuardConfig(enabled=False))
    begin(env)
    steps = play(env)
    assert [step[2] for step in steps] == [False, True]
    assert not steps[-1][3]
    assert steps[-1][4]["diverged"] and steps[-1][4]["rollbacks"] == 0
    assert math.isfinite(steps[-1][1]) and steps[-1][1] < -env.config.divergence_penalty
    assert steps[-1][0] in env.observation_space


def test_without_the_guard_a_loss_that_is_only_high_goes_on():
    env = make_env(misbehaving({6}, 1000.0), GuardConfig(enabled=False, loss_multiple=1.1))
    begin(env, "adam")
    steps = play(env)
    assert len(steps) == 5 and not steps[-1][4]["diverged"]


def test_without_the_guard_the_last_interval_may_end_a_run_too():
    env = make_env(misbehaving({18}), GuardConfig(enabled=False))
    begin(env)
    steps = play(env)
    assert len(steps) == 5 and steps[-1][4]["diverged"]
    assert math.isfinite(steps[-1][1])


# ---------------------------------------------------------------------- rates that are far too high


@pytest.mark.parametrize("mode", FROM_INITIAL)
@pytest.mark.parametrize(("optimizer", "rate"), [("sgdm", 10.0), ("adam", 10.0), ("adamw", 10.0)])
@pytest.mark.parametrize("enabled", [True, False])
def test_very_high_rates_give_finite_episodes(enabled, optimizer, rate, mode):
    config = DecisionConfig(mode=mode, num_decisions=5, max_lr=1000.0)
    env = make_env(small_task(), GuardConfig(enabled=enabled), decision=config)
    observation, _ = begin(env, optimizer, rate)
    assert observation in env.observation_space
    steps = play(env, np.ones(1, dtype=np.float32))
    assert all(math.isfinite(step[1]) and step[0] in env.observation_space for step in steps)
    if enabled:
        assert steps[-1][4]["rollbacks"] >= 1
        assert all(torch.isfinite(p).all() for p in env.run.model.parameters())


@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
@pytest.mark.parametrize("mode", FROM_INITIAL)
def test_the_guard_brings_a_far_too_high_rate_down(mode, optimizer):
    totals = {}
    for enabled in (True, False):
        env = make_env(small_task(), GuardConfig(enabled=enabled), mode, max_lr=100.0)
        begin(env, optimizer, 10.0)
        totals[enabled] = sum(step[1] for step in play(env))
    assert totals[True] > totals[False]
    assert totals[True] > 0.0  # it learned something, from a rate that learns nothing


HIGH = LearningRateEnv(
    [small_task()],
    EnvConfig(optimizers=("adam", "sgdm", "adamw"), budgets=(8, 8), decision=DecisionConfig(num_decisions=4)),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    optimizer=st.sampled_from(["adam", "sgdm"]),
    exponent=st.floats(-8.0, 1.0),
    choices=st.lists(st.floats(-1.0, 1.0, width=32), min_size=4, max_size=4),
    mode=st.sampled_from(list(ACTION_MODES)),
    enabled=st.booleans(),
)
@example(optimizer="sgdm", exponent=1.0, choices=[1.0] * 4, mode="profile", enabled=False)
@example(optimizer="adam", exponent=1.0, choices=[1.0] * 4, mode="recursive", enabled=True)
@example(optimizer="adam", exponent=-8.0, choices=[-1.0] * 4, mode="gns-paper", enabled=True)
def test_observations_and_rates_stay_within_bounds(optimizer, exponent, choices, mode, enabled):
    decision = DecisionConfig(mode=mode, num_decisions=4)
    HIGH.config = replace(HIGH.config, decision=decision, guard=GuardConfig(enabled=enabled))
    rate = min(max(10.0**exponent, decision.min_lr), decision.max_lr)
    observation, _ = HIGH.reset(seed=0, options={"optimizer": optimizer, "learning_rate": rate})
    used = rates_of(HIGH)
    assert observation in HIGH.observation_space
    for choice in choices:
        observation, reward, terminated, truncated, info = HIGH.step(np.array([choice], dtype=np.float32))
        assert np.isfinite(observation.nodes).all() and observation in HIGH.observation_space
        assert math.isfinite(reward) and math.isfinite(info["learning_rate"]) and not truncated
        if terminated:
            break
    assert terminated
    assert all(decision.min_lr <= rate <= decision.max_lr for rate in used)


@pytest.mark.parametrize("exponent", [-7.799, -7.738, -7.52])
def test_the_lowest_rate_is_not_passed_by_rounding(exponent):
    env = make_env(small_task(), mode="gns-paper")
    begin(env, "sgdm", 10.0**exponent)
    used = rates_of(env)
    play(env, -np.ones(1, dtype=np.float32))
    assert env.config.decision.min_lr <= min(used) == pytest.approx(env.config.decision.min_lr)


@pytest.mark.parametrize("exponent", [-0.568, -0.848, -0.882])
def test_the_highest_rate_is_not_passed_by_rounding(exponent):
    env = make_env(small_task(), GuardConfig(enabled=False))
    begin(env, "adam", 10.0**exponent)
    used = rates_of(env)
    play(env, np.ones(1, dtype=np.float32))
    assert env.config.decision.max_lr >= max(used) == pytest.approx(env.config.decision.max_lr)
