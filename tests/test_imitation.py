"""A policy learns to follow a schedule that is tuned on every task, before PPO begins."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.controllers import ScheduleController
from agents.evaluation.results_cache import ResultsCache
from agents.runtime.stopping import StoppedError, StopRequest
from agents.training.choosing import ValidationConfig
from agents.training.imitation import ImitationConfig, TunedRates, action_towards, imitate, lowest_point, returns_of
from agents.training.ppo import PPOConfig, make_ppo, make_vec_env
from agents.training.resuming import CheckpointConfig, Resuming
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from envs import EnvConfig, get_task
from envs.learning_rate_env import Episode
from gns import DecisionConfig, NetworkConfig
from gns.deciding.rate_control import RateControl
from gns.errors import GNSError, InvalidSettingError
from gns.schedules.profiles import get_profile

ENV = EnvConfig(optimizers=("adam",), budgets=(20, 40), decision=DecisionConfig(num_decisions=5, first_base=100.0))
AGENT = PPOConfig(
    num_envs=8, episodes_per_rollout=8, batch_size=20, n_epochs=2, network=NetworkConfig(hidden=16, head=16)
)
IMITATION = ImitationConfig("cosine", rates=3, rounds=2, epochs=3, batch_size=16)


@pytest.fixture(autouse=True)
def _denormals():
    yield
    torch.set_flush_denormal(False)  # training sets it


@pytest.fixture
def task():
    return get_task("digits_mlp")


class OneRate:
    """The same rate for everything, in place of tuned ones."""

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def rate(self, task: str, optimizer: str, budget: int) -> float:
        return self._rate


# ---------------------------------------------------------------------- the rate to follow


def test_the_lowest_point_is_the_vertex_of_the_parabola():
    points = [(x, (x - 0.3) ** 2 + 5.0) for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    assert lowest_point(points) == pytest.approx(0.3)


@pytest.mark.parametrize("values, expected", [((1, 2, 3), 0.0), ((3, 2, 1), 2.0), ((1, 1, 1), 0.0), ((4,), 0.0)])
def test_at_an_edge_or_on_a_plane_it_is_a_point_that_was_tried(values, expected):
    assert lowest_point([(float(x), float(y)) for x, y in enumerate(values)]) == expected


def test_the_vertex_stays_between_the_neighbours_of_the_lowest_point():
    draws = np.random.default_rng(0)
    for _ in range(200):
        points = [(float(x), float(y)) for x, y in enumerate(draws.normal(size=6))]
        best = min(points, key=lambda point: point[1])[0]
        assert abs(lowest_point(points) - best) <= 0.5 + 1e-9


def test_rates_are_tuned_on_the_smallest_and_the_largest_budget(task):
    rates = TunedRates([task], ENV, IMITATION, workers=0)
    top = task.learning_rates["adam"][1]
    for budget in (20, 40):
        curve = []
        for rate in (top / 9.0, top / 3.0, top):
            run = ScheduleController("cosine", "cosine").train(Episode(task, "adam", budget, rate, seed=0))
            curve.append((math.log(rate), math.log(run.reward_loss)))
        assert math.log(rates.rate("digits_mlp", "adam", budget)) == pytest.approx(lowest_point(curve), abs=1e-5)
    between = math.sqrt(rates.rate("digits_mlp", "adam", 20) * rates.rate("digits_mlp", "adam", 40))
    halfway = TunedRates([task], replace(ENV, budgets=(20, 80)), replace(IMITATION, rates=1), workers=0)
    assert halfway.rate("digits_mlp", "adam", 40) == pytest.approx(top)  # one rate tried: that one everywhere
    low, high = sorted(rates.rate("digits_mlp", "adam", budget) for budget in (20, 40))
    assert low <= between <= high and low <= rates.rate("digits_mlp", "adam", 28) <= high


def test_runs_of_the_tuning_are_kept(task, tmp_path):
    cache = ResultsCache(tmp_path / "tuning.jsonl")
    first = TunedRates([task], ENV, IMITATION, workers=0, cache=cache)
    size = len(cache)
    again = TunedRates([task], ENV, IMITATION, workers=0, cache=ResultsCache(tmp_path / "tuning.jsonl"))
    assert size == 6 and first.rate("digits_mlp", "adam", 30) == again.rate("digits_mlp", "adam", 30)
    assert len(ResultsCache(tmp_path / "tuning.jsonl")) == size


# ---------------------------------------------------------------------- actions that follow it


@pytest.mark.parametrize("schedule", ["cosine", "rex", "linear", "onecycle"])
@pytest.mark.parametrize("mode", ["profile", "recursive"])
@pytest.mark.parametrize("initial", [1e-5, 1e-3, 1e-1])
def test_the_actions_bring_any_initial_rate_to_the_schedule(schedule, mode, initial):
    decision = DecisionConfig(mode=mode, num_decisions=10, base=10.0, first_base=1000.0)
    control = RateControl(100, decision, [initial])
    for number in range(10):
        info = {"budget": 100, "update": control.update, "learning_rate": control.learning_rate}
        control.decide(action_towards(1e-3, schedule, decision, info))
        rates = control.rates(10)
        middle = 1e-3 * get_profile(schedule)((10 * number + 5) / 100)
        assert rates[5] == pytest.approx(middle, rel=1e-6)
        control.count_updates(10)


def test_an_action_out_of_reach_is_the_nearest():
    decision = DecisionConfig(num_decisions=10, base=3.0)
    info = {"budget": 100, "update": 0, "learning_rate": 1e-5}
    assert action_towards(1e-2, "cosine", decision, info) == 1.0
    assert action_towards(1e-8, "cosine", decision, info) == -1.0
    wider = replace(decision, first_base=1e4)
    assert 0.0 < action_towards(1e-2, "cosine", wider, info) < 1.0
    assert action_towards(1e-2, "cosine", wider, info | {"update": 10}) == 1.0  # the later decisions reach less far


def test_where_the_first_decision_does_nothing_the_second_has_its_range():
    decision = DecisionConfig(num_decisions=10, base=3.0, first_base=1000.0, decide_first=False)
    control = RateControl(100, decision, [1e-5])
    for wanted in (1e-5, 1e-3):
        info = {"budget": 100, "update": control.update, "learning_rate": control.learning_rate}
        action = action_towards(1e-3, "rex", decision, info)
        control.decide(action)
        assert control.rates(1)[0] == pytest.approx(wanted * get_profile("rex")(control.update / 100))
        control.count_updates(10)
    assert action > 0.0


# ---------------------------------------------------------------------- what is learned from


def test_returns_are_known_where_the_end_of_an_episode_was_seen():
    rewards = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    dones = np.array([[False, False], [True, False], [False, True]])
    found = returns_of(rewards, dones)
    np.testing.assert_allclose(found, [[3.0, 7.0], [2.0, 6.0], [np.nan, 4.0]])


def agent(task, env=ENV, config=AGENT, seed=0):
    return make_ppo(make_vec_env([task], env, config.num_envs, 0, seed), config, env.decision.num_decisions, seed)


def test_the_policy_learns_to_follow_from_any_rate_and_its_critic_what_comes_of_it(task):
    model = agent(task)
    config = replace(IMITATION, rounds=4, epochs=40, learning_rate=3e-3)
    errors = imitate(model, OneRate(3e-3), config, ENV.decision, 5)
    assert len(errors) == 4 and errors[-1] < 0.25  # of ln(rate), from initial rates over four decades

    observations, infos = model.env.reset(), model.env.unwrapped.reset_infos
    wanted = [action_towards(3e-3, "cosine", ENV.decision, info) for info in infos]
    actions, _ = model.predict(observations, deterministic=True)
    assert np.corrcoef(actions.ravel(), wanted)[0, 1] > 0.98 and np.ptp(wanted) > 0.5
    values, returns, ends = [], [], []
    for _ in range(5):
        tensors = {name: torch.as_tensor(value) for name, value in observations.items()}
        with torch.no_grad():
            values.append(model.policy.predict_values(tensors).numpy().ravel())
        observations, rewards, dones, _ = model.env.step(model.predict(observations, deterministic=True)[0])
        returns.append(rewards)
        ends.append(dones)
    known = returns_of(np.stack(returns), np.stack(ends))
    assert np.isfinite(known).all() and np.corrcoef(np.stack(values).ravel(), known.ravel())[0, 1] > 0.5


def test_it_leaves_the_noise_of_actions_alone(task):
    model = agent(task)
    before = model.policy.log_std.detach().clone()
    imitate(model, OneRate(3e-3), replace(IMITATION, rounds=1, epochs=1), ENV.decision, 5)
    assert torch.equal(model.policy.log_std, before)


# ---------------------------------------------------------------------- in a training


CONFIG = TrainConfig(
    episodes=16, seed=3, workers=0, env=ENV, agent=AGENT, baseline=BaselineConfig(controllers=()), imitation=IMITATION
)


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_a_training_begins_with_it_whatever_the_workers(task):
    policy = train([task], CONFIG)
    assert policy.config.training["begun by imitating"] == "tuned cosine"
    assert same(policy, train([task], replace(CONFIG, workers=2)))


def test_the_policy_is_scored_before_ppo_changes_it(task):
    other = get_task("digits_cnn", batch_size=8)
    config = replace(CONFIG, validation=ValidationConfig(every=8, num_envs=3))
    told = []
    train([task], config, report=told.append, validation_tasks=[other])
    scores = [progress.score for progress in told if progress.score is not None]
    assert scores[0].episodes == 0 and scores[-1].episodes >= 16


def test_a_training_gone_on_with_does_not_imitate_again(task, tmp_path, monkeypatch):
    def checkpoints():
        return Resuming(tmp_path, CheckpointConfig(every=0), "same")

    whole = train([task], CONFIG)
    stop = StopRequest()
    with pytest.raises(StoppedError):
        train([task], CONFIG, checkpoints=checkpoints(), stop=stop, on_policy=lambda *_: setattr(stop, "number", 2))
    monkeypatch.setattr("agents.training.train.imitate", lambda *_: pytest.fail("it imitated again"))
    assert same(whole, train([task], CONFIG, checkpoints=checkpoints()))


def test_it_ends_early_when_asked_and_its_tuning_is_kept(task, tmp_path):
    stop, cache = StopRequest(), ResultsCache(tmp_path / "tuning.jsonl")
    stop.number = 2
    with pytest.raises(StoppedError):
        train([task], CONFIG, stop=stop, tuning=cache)
    assert len(cache) == 1
    TunedRates([task], ENV, IMITATION, workers=0, cache=cache)
    assert len(cache) == 6  # it goes on from there


def test_a_rollout_may_be_shorter_than_an_episode(task):
    short = replace(AGENT, episodes_per_rollout=4)
    assert agent(task, config=short).n_steps == 2  # 4 episodes of 5 decisions in 8 environments
    assert agent(task).n_steps == 5 and agent(task, config=replace(AGENT, episodes_per_rollout=16)).n_steps == 10
    policy = train([task], replace(CONFIG, agent=short))
    assert policy.config.training["episodes"] >= 16


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rates": 0}, "imitation.rates is 0"),
        ({"rounds": 0}, "imitation.rounds is 0"),
        ({"learning_rate": -1.0}, "imitation.learning_rate"),
        ({"noise": math.nan}, "imitation.noise is nan; expected a standard deviation"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
    ],
)
def test_bad_settings_are_told(changes, message):
    with pytest.raises(GNSError, match=message):
        ImitationConfig(**changes)


@pytest.mark.parametrize("mode", ["anchored", "gns-paper"])
def test_actions_that_do_not_multiply_the_rate_are_refused_before_any_run(mode):
    env = replace(ENV, decision=DecisionConfig(mode=mode, num_decisions=5))
    with pytest.raises(InvalidSettingError, match=f"env.decision.mode '{mode}'; expected profile or recursive"):
        replace(CONFIG, env=env)
