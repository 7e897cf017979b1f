"""Baselines in an agent's place: they drive the environment through its action space."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.optim.lr_scheduler import ReduceLROnPlateau

from agents.controllers import ScheduleController, make_controller
from agents.controllers.acting import Acting
from agents.controllers.plateau import PlateauController
from agents.controllers.policy import PolicyController
from envs import EnvConfig, LearningRateEnv, PadGraph
from gns import DecisionConfig, GNSPolicy, InvalidSettingError, PolicyConfig
from gns.schedules.profiles import get_profile

BUDGET, DECISIONS, INITIAL = 100, 20, 0.003
RECURSIVE = DecisionConfig("recursive")
EPISODE = {"optimizer": "adam", "budget": BUDGET, "learning_rate": INITIAL, "seed": 5}


def play(agent, env, seed: int = 0, **options) -> tuple[float, list[float]]:
    """Play one episode of an unpadded or padded environment; return the sum of rewards and the rates."""
    observation, _ = env.reset(seed=seed, options={**EPISODE, **options})
    state, total, start = None, 0.0, np.array([True])
    while True:
        action, state = agent.predict(observation, state, start, deterministic=True)
        assert action in env.action_space
        observation, reward, terminated, _, _ = env.step(action)
        total, start = total + reward, np.array([False])
        if terminated:
            return total, env.unwrapped.rates


def environment(decision: DecisionConfig, **settings) -> LearningRateEnv:
    return LearningRateEnv(["digits_mlp"], EnvConfig(decision=decision, **settings))


@pytest.mark.parametrize("profile", ["step", "linear", "cosine", "exponential", "onecycle", "rex"])
@pytest.mark.parametrize("mode", ["recursive", "profile", "anchored", "gns-paper"])
def test_the_rate_is_the_schedules_at_every_decision(profile, mode):
    decision = DecisionConfig(mode, profile="cosine", strength=6.0, base=100.0)
    _, rates = play(ScheduleController("s", profile).acting(decision), environment(decision))
    wanted = [INITIAL * get_profile(profile)(t / BUDGET) for t in range(0, BUDGET, BUDGET // DECISIONS)]
    assert rates[:: BUDGET // DECISIONS] == pytest.approx(wanted, rel=1e-4)
    if mode in ("recursive", "gns-paper"):  # constant in between
        assert all(len(set(rates[t : t + 5])) == 1 for t in range(0, BUDGET, 5))


@pytest.mark.parametrize("decide_first", [True, False])
@pytest.mark.parametrize("mode", ["recursive", "profile", "anchored", "gns-paper"])
def test_the_first_decision_reaches_what_is_wanted_with_its_own_range(mode, decide_first):
    """The wanted rate is a tenth of the initial one at first, and the range of the first decision two decades."""
    decision = DecisionConfig(mode, first_base=100.0, decide_first=decide_first, strength=4.0)
    shares = iter([0.1, 0.2, 0.15, 0.3, *[0.25] * DECISIONS])
    wanted = []

    def target(view, memory):
        wanted.append(view.initial * next(shares))
        return wanted[-1]

    _, rates = play(Acting(decision, target), environment(decision), budget=BUDGET)
    if not decide_first:
        wanted[0] = INITIAL
    decided = rates[:: BUDGET // DECISIONS]
    assert decided == pytest.approx(wanted, rel=1e-3)


def test_the_environments_own_profile_is_followed_at_every_update():
    decision = DecisionConfig("profile", profile="rex")
    _, rates = play(ScheduleController("rex", "rex").acting(decision), environment(decision))
    assert rates == pytest.approx([INITIAL * get_profile("rex")(t / BUDGET) for t in range(BUDGET)], rel=1e-4)


def test_what_an_action_cannot_reach_is_caught_up_with():
    decision = DecisionConfig("gns-paper")
    _, rates = play(ScheduleController("s", "cosine-restarts").acting(decision), environment(decision))
    assert rates[25] == pytest.approx(2 * rates[20], rel=1e-6)  # a restart wants more; one decision can double
    assert rates[35] == pytest.approx(INITIAL * get_profile("cosine-restarts")(0.35), rel=1e-4)


def test_sampling_rates_are_kept():
    _, rates = play(ScheduleController("s", "linear", sampling="50-75").acting(RECURSIVE), environment(RECURSIVE))
    assert rates == pytest.approx([INITIAL * x for x in [1.0] * 50 + [0.5] * 25 + [0.25] * 25], rel=1e-4)


def test_padded_batched_and_plain_observations_give_the_same_actions():
    agent = ScheduleController("rex", "rex").acting(RECURSIVE)
    plain, padded = environment(RECURSIVE), PadGraph(environment(RECURSIVE))
    total, rates = play(agent, plain)
    assert play(agent, padded) == (total, rates)
    venv = DummyVecEnv([lambda: PadGraph(environment(RECURSIVE))] * 2)
    venv.set_options({**EPISODE})
    venv.seed(0)
    observation, state, starts = venv.reset(), None, np.ones(2, dtype=bool)
    for _ in range(DECISIONS - 1):
        actions, state = agent.predict(observation, state, starts)
        assert actions.shape == (2, 1) and actions.dtype == np.float32
        observation, _, starts, _ = venv.step(actions)
    for env in venv.envs:
        assert env.unwrapped.rates == pytest.approx(rates[: len(env.unwrapped.rates)], rel=1e-6)


@pytest.mark.parametrize("name", ["rex", "plateau", "policy"])
def test_sb3s_evaluate_policy_takes_a_baseline(name, tmp_path):
    torch.manual_seed(0)
    GNSPolicy(PolicyConfig(decision=RECURSIVE)).save_pretrained(tmp_path)
    settings = {"rex": {"kind": "schedule"}, "plateau": {"kind": "plateau"}}
    controller = make_controller(name, settings.get(name, {"kind": "policy", "policy": str(tmp_path)}))
    venv = DummyVecEnv([lambda: PadGraph(environment(RECURSIVE, optimizers=("adam",), budgets=(40, 60)))] * 2)
    venv.seed(1)
    returns, lengths = evaluate_policy(
        controller.acting(RECURSIVE), venv, n_eval_episodes=6, return_episode_rewards=True, warn=False
    )
    assert len(returns) == 6 and all(map(math.isfinite, returns)) and all(13 <= length <= 20 for length in lengths)
    assert np.std(returns) > 0


def test_an_episode_begins_with_a_fresh_memory():
    agent = ScheduleController("rex", "rex").acting(RECURSIVE)
    env = PadGraph(environment(RECURSIVE))
    state = None
    for learning_rate in (0.003, 0.03):
        observation, _ = env.reset(seed=0, options={**EPISODE, "learning_rate": learning_rate})
        start = np.array([True])
        terminated = False
        while not terminated:
            action, state = agent.predict(observation, state, start)
            observation, _, terminated, _, _ = env.step(action)
            start = np.array([False])
        assert env.unwrapped.rates[0] == pytest.approx(learning_rate, rel=1e-5)


def test_a_rate_the_guard_cut_stays_cut():
    env = environment(DecisionConfig("recursive", num_decisions=10), optimizers=("sgdm",))
    agent = ScheduleController("constant", "constant").acting(env.config.decision)
    _, rates = play(agent, env, optimizer="sgdm", learning_rate=8.0)
    assert env.rollbacks > 0
    assert rates[-1] == pytest.approx(8.0 * 0.1**env.rollbacks, rel=1e-3)


def test_a_plateau_acts_as_pytorchs_on_the_losses_of_the_intervals():
    env = environment(RECURSIVE, optimizers=("adam",))
    controller = PlateauController("plateau", patience=0, threshold=0.2, factor=0.5)
    agent = controller.acting(RECURSIVE)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=INITIAL)
    pytorch = ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.2)
    observation, _ = env.reset(seed=0, options=EPISODE)
    state, wanted = None, []
    for decision in range(DECISIONS):
        if decision:
            pytorch.step(float(env.core.statistics.losses.mean()))
        wanted.append(optimizer.param_groups[0]["lr"])
        action, state = agent.predict(observation, state, np.array([decision == 0]))
        observation, *_ = env.step(action)
    assert env.rates[:: BUDGET // DECISIONS] == pytest.approx(wanted, rel=1e-4)
    assert wanted[-1] < INITIAL


def test_a_policy_acts_as_its_controller_decides(tmp_path):
    torch.manual_seed(1)
    GNSPolicy(PolicyConfig(decision=RECURSIVE)).save_pretrained(tmp_path)
    controller = PolicyController("p", str(tmp_path))
    agent, env = controller.acting(RECURSIVE), environment(RECURSIVE)
    _, rates = play(agent, env)
    assert play(agent, PadGraph(environment(RECURSIVE)))[1] == pytest.approx(rates, rel=1e-5)
    assert controller.train(env.episode).rates == pytest.approx(rates, rel=1e-5)


def test_what_cannot_act_says_so(tmp_path):
    with pytest.raises(InvalidSettingError, match="at every update"):
        make_controller("hd", {"kind": "hd"}).acting(RECURSIVE)
    with pytest.raises(InvalidSettingError, match="gns-paper"):
        ScheduleController("rex", "rex").acting(DecisionConfig("gns-paper", features="gns-paper"))
    GNSPolicy().save_pretrained(tmp_path)
    with pytest.raises(InvalidSettingError, match="policy's own"):
        PolicyController("p", str(tmp_path)).acting(RECURSIVE)
