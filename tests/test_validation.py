"""Policies are scored on tasks that training does not learn from, and the best is taken, wherever it is interrupted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.runtime.stopping import StoppedError, StopRequest
from agents.training.choosing import Validation, ValidationConfig
from agents.training.ppo import PPOConfig, make_ppo, make_vec_env
from agents.training.resuming import CheckpointConfig, Resuming
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from agents.training.watch import Progress
from envs import EnvConfig, LearningRateEnv, PadGraph, get_task
from envs.batched.composite import make_vector
from envs.env_config import Curriculum
from gns import DecisionConfig, NetworkConfig
from gns.errors import InvalidSettingError
from gns.features.statistics import log_loss

ENV = EnvConfig(
    optimizers=("adam",),
    budgets=(20, 30),
    decision=DecisionConfig(num_decisions=5),
    curriculum=Curriculum(episodes=4, start=0.25),
)
CONFIG = TrainConfig(
    episodes=24,
    seed=3,
    workers=0,
    env=ENV,
    agent=PPOConfig(
        num_envs=4,
        episodes_per_rollout=8,
        batch_size=20,
        n_epochs=2,
        learning_rate=0.02,
        network=NetworkConfig(hidden=16, head=16),
    ),
    baseline=BaselineConfig(controllers=()),
    validation=ValidationConfig(every=8, num_envs=3, seed=5),
)


@pytest.fixture
def task():
    return get_task("digits_mlp")


@pytest.fixture
def other():
    """Larger than what is learned from, so that observations are padded otherwise."""
    return get_task("digits_cnn", batch_size=8)


def weights(policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def last_layer(model) -> torch.nn.Linear:
    return [module for module in model.policy.action_net.modules() if isinstance(module, torch.nn.Linear)][-1]


def same(a, b) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


# ---------------------------------------------------------------------- scores


@pytest.fixture
def model(task):
    venv = make_vec_env([task], ENV, 4, 0, seed=0)
    model = make_ppo(venv, CONFIG.agent, 5, seed=0)
    yield model
    venv.close()


def test_a_score_is_the_mean_log_loss_of_full_episodes_without_noise(model, other):
    """Against environments one by one, driven by the exported network's own modules."""
    validation = Validation([other], ENV, CONFIG.validation, workers=0, together=False)
    score = validation.score(model, 7)
    losses, budgets = [], []
    for number in range(CONFIG.validation.num_envs):
        env = PadGraph(LearningRateEnv([other], replace(ENV, curriculum=Curriculum())))
        observation, info = env.reset(seed=CONFIG.validation.seed + number)
        budgets.append(info["budget"])
        ended = False
        while not ended:
            tensors = {name: torch.as_tensor(value[None]) for name, value in observation.items()}
            with torch.no_grad():
                action = model.policy.get_distribution(tensors).mode().clamp(-1, 1).numpy()[0]
            observation, _, ended, _, info = env.step(action)
        losses.append(log_loss(info["reward_loss"]))
    assert min(budgets) >= 20
    assert score.log_loss == pytest.approx(np.mean(losses), abs=1e-6)
    assert (score.episodes, score.diverged) == (7, 0.0)
    validation.close()


def test_the_same_policy_has_the_same_score_every_time(model, other):
    validation = Validation([other], ENV, CONFIG.validation, workers=0)
    first, again = validation.score(model, 1), validation.score(model, 2)
    assert first.log_loss == again.log_loss
    with torch.no_grad():
        last_layer(model).bias += 3.0
    assert validation.score(model, 3).log_loss != first.log_loss
    validation.close()


def test_the_best_weights_are_kept(model, other, monkeypatch):
    validation = Validation([other], ENV, CONFIG.validation, workers=0)
    losses = iter([2.0, 1.0, 3.0])
    played = lambda *_: [{"reward_loss": math.exp(next(losses)), "diverged": False}]  # noqa: E731
    monkeypatch.setattr("agents.training.choosing._play", played)
    bias = last_layer(model).bias
    for number in range(3):
        with torch.no_grad():
            bias.fill_(number)
        validation.score(model, number)
    model.policy.load_state_dict(validation.best)
    assert float(bias[0]) == 1.0
    assert [score.log_loss for score in validation.scores] == pytest.approx([2.0, 1.0, 3.0])


def test_a_task_learned_without_error_does_not_decide_alone(model, other, monkeypatch):
    losses = [1e-7, 0.5]
    monkeypatch.setattr(
        "agents.training.choosing._play", lambda *_: [{"reward_loss": loss, "diverged": False} for loss in losses]
    )
    score = Validation([other], ENV, replace(CONFIG.validation, floor=0.01), workers=0).score(model, 1)
    assert score.log_loss == pytest.approx((math.log(0.01) + math.log(0.5)) / 2)
    with pytest.raises(InvalidSettingError, match=r"validation\.floor"):
        ValidationConfig(floor=0.0)


def test_lost_runs_are_told(model, other):
    wild = replace(ENV, optimizers=("sgd",), learning_rates={"sgd": (9.9, 10.0)})
    wild = replace(wild, guard=replace(wild.guard, max_rollbacks=0), decision=replace(wild.decision, max_lr=10.0))
    validation = Validation([get_task("digits_mlp")], wild, CONFIG.validation, workers=0)
    with torch.no_grad():
        last_layer(model).bias += 100.0
    assert validation.score(model, 1).diverged == 1.0


# ---------------------------------------------------------------------- in training


def test_training_returns_the_policy_with_the_best_score(task, other):
    policies, told = {}, []
    policy = train(
        [task],
        CONFIG,
        report=told.append,
        on_policy=lambda policy, episodes: policies.update({episodes: weights(policy)}),
        validation_tasks=[other],
    )
    final: Progress = told[-1]
    assert final.best is not None and final.score is not None
    assert final.best.log_loss <= final.score.log_loss
    assert same(weights(policy), policies[final.best.episodes])
    card = policy.config.training
    assert card["chosen on validation tasks after"] == f"{final.best.episodes} episodes"
    assert card["mean log loss there, on the reward split"] == pytest.approx(final.best.log_loss, abs=1e-4)


def test_scores_do_not_change_what_is_learned(task, other):
    def last(config, **others) -> dict[str, torch.Tensor]:
        seen = []
        train([task], config, on_policy=lambda policy, _: seen.append(weights(policy)), **others)
        return seen[-1]

    assert same(last(CONFIG, validation_tasks=[other]), last(replace(CONFIG, validation=ValidationConfig())))


def test_an_interrupted_training_chooses_the_same_policy(task, other, tmp_path):
    whole = train([task], CONFIG, validation_tasks=[other])
    config = replace(CONFIG, checkpoint=CheckpointConfig(every=0.0))
    parts = 0
    while parts < 20:
        checkpoints, stop = Resuming(tmp_path / "x", config.checkpoint, "x"), StopRequest(lambda name: None)
        stop.number = 15  # ends after one rollout
        try:
            policy = train([task], config, checkpoints=checkpoints, stop=stop, validation_tasks=[other])
            break
        except StoppedError:
            parts += 1
    assert 2 <= parts < 20
    assert same(weights(whole), weights(policy))
    assert whole.config.training == policy.config.training


def test_tasks_to_score_on_are_needed_and_are_others(task):
    with pytest.raises(InvalidSettingError, match=r"validation.every is 8 and .* none; expected some"):
        train([task], CONFIG)
    with pytest.raises(InvalidSettingError, match=r"does not learn from, which digits_mlp are"):
        train([task], CONFIG, validation_tasks=[task])


# ---------------------------------------------------------------------- curriculum


def test_budgets_grow_geometrically_to_what_is_drawn():
    assert [Curriculum(4, 0.0625).factor(k) for k in range(6)] == pytest.approx([0.0625, 0.125, 0.25, 0.5, 1.0, 1.0])
    assert Curriculum().factor(0) == 1.0
    config = replace(ENV, curriculum=Curriculum(2, 0.25))
    assert [config.shortened(100.4, begun) for begun in range(4)] == [25, 50, 100, 100]
    assert config.shortened(12.0, 0) == 5  # one update a decision is the least
    assert config.shortened(3.0, 0) == 3  # a budget too small stays what it is, and is refused as ever


@pytest.mark.parametrize("together", [False, True])
def test_every_environment_has_its_own_curriculum_and_goes_on_in_it(task, together):
    config = replace(ENV, curriculum=Curriculum(episodes=3, start=0.25), budgets=(100, 100))

    def play(venv, steps: int) -> list[int]:
        budgets = []
        for _ in range(steps):
            _, _, dones, infos = venv.step(np.zeros((2, 1), dtype=np.float32))
            budgets += [info["budget"] for done, info in zip(dones, infos, strict=True) if done]
        return budgets

    venv = make_vector([task], config, 2, 0, together)
    venv.seed(0)
    venv.reset()
    assert play(venv, 5) == [25, 25]
    state = venv.state_dict()
    expected = play(venv, 15)
    assert expected == [40, 40, 63, 63, 100, 100]
    other = make_vector([task], config, 2, 0, together)
    other.load_state_dict(state)
    assert play(other, 15) == expected


def test_a_reset_that_is_told_a_budget_has_it(task):
    env = LearningRateEnv([task], replace(ENV, curriculum=Curriculum(100, 0.25)))
    assert env.reset(seed=0, options={"budget": 77})[1]["budget"] == 77


@pytest.mark.parametrize("bad", [{"episodes": -1}, {"start": 0.0}, {"start": 1.5}])
def test_a_curriculum_that_makes_no_sense_is_refused(bad):
    with pytest.raises(InvalidSettingError, match="curriculum"):
        Curriculum(**bad)


# ---------------------------------------------------------------------- entropy


def test_the_entropy_coefficient_goes_linearly_to_its_end(task):
    agent = replace(CONFIG.agent, ent_coef=0.02, final_ent_coef=0.01)
    assert [agent.entropy_coefficient(share) for share in (1.0, 0.5, 0.0)] == pytest.approx([0.02, 0.015, 0.01])
    with_entropy = train([task], replace(CONFIG, agent=agent, validation=ValidationConfig(), episodes=16))
    without = train([task], replace(CONFIG, validation=ValidationConfig(), episodes=16))
    assert not same(weights(with_entropy), weights(without))
