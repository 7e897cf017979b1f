import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents.training.ppo import PPOConfig, export_policy, make_ppo, make_vec_env
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from envs import EnvConfig, LearningRateEnv, PadGraph, get_task
from gns import DecisionConfig, InvalidSettingError, NetworkConfig

TASKS = ["digits_mlp", "digits_cnn"]
ENV = EnvConfig(budgets=(20, 30), decision=DecisionConfig(num_decisions=5), reward_probability=1.0)


@pytest.fixture
def model():
    config = PPOConfig(num_envs=2, episodes_per_rollout=4, batch_size=10, n_epochs=2, network=NetworkConfig(hidden=16))
    venv = make_vec_env([get_task(name) for name in TASKS], ENV, 2, 0, seed=0)
    yield make_ppo(venv, config, 5, seed=0), config
    venv.close()


def test_several_members_are_not_trained_by_ppo():
    config = PPOConfig(num_envs=1, network=NetworkConfig(hidden=8, members=2))
    venv = make_vec_env([get_task(TASKS[0])], ENV, 1, 0, seed=0)
    with pytest.raises(InvalidSettingError, match="members = 2; PPO trains one"):
        make_ppo(venv, config, 5, seed=0)
    venv.close()


def test_the_exported_policy_acts_as_the_agent_does(model):
    ppo, config = model
    ppo.learn(20)
    policy = export_policy(ppo, ENV, config, {"seed": 0})
    env = LearningRateEnv(TASKS, ENV)
    inner = PadGraph(LearningRateEnv(TASKS, ENV))
    for seed in range(4):
        env.reset(seed=seed)
        observation, _ = inner.reset(seed=seed)
        action, _ = ppo.predict({key: value[None] for key, value in observation.items()}, deterministic=True)
        assert policy.act(env.observation) == pytest.approx(float(action[0, 0]), abs=1e-6)


def test_learning_changes_encoder_actor_and_critic(model):
    ppo, _ = model
    before = ppo.policy.network_state()
    ppo.learn(20)
    after = ppo.policy.network_state()
    for part in ("encoder.first", "encoder.type_embedding", "actor.0", "critic.0"):
        changed = [not torch.equal(before[name], after[name]) for name in before if name.startswith(part)]
        assert changed and any(changed)


def test_training_gives_the_weights_of_pygs_layers_to_the_last_bit():
    config = PPOConfig(num_envs=2, episodes_per_rollout=4, batch_size=10, n_epochs=3, network=NetworkConfig(hidden=16))
    found = []
    for cached in (True, False):
        venv = make_vec_env([get_task(name) for name in TASKS], ENV, 2, 0, seed=0)
        ppo = make_ppo(venv, config, 5, seed=0)
        if not cached:
            ppo.policy.features_extractor.encoder.message_cache = None
        ppo.learn(40)
        found.append(ppo.policy.network_state())
        venv.close()
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_an_exported_policy_no_longer_moves_with_the_agent(model):
    ppo, config = model
    policy = export_policy(ppo, ENV, config, {})
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    ppo.learn(20)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_fixed_deviation_stays_fixed():
    config = PPOConfig(
        num_envs=1,
        episodes_per_rollout=2,
        batch_size=5,
        n_epochs=1,
        log_std=-2.0,
        learn_std=False,
        network=NetworkConfig(hidden=8),
    )
    venv = make_vec_env([get_task("digits_mlp")], ENV, 1, 0, seed=0)
    ppo = make_ppo(venv, config, 5, seed=0)
    ppo.learn(10)
    assert float(ppo.policy.log_std.detach()) == -2.0
    venv.close()


def test_the_agent_survives_sb3s_own_save_and_load(model, tmp_path):
    ppo, _ = model
    ppo.learn(20)
    ppo.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    observation = ppo.get_env().reset()
    np.testing.assert_array_equal(
        ppo.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )


def test_a_rollout_mixes_tasks_and_optimizers(model):
    ppo, _ = model
    ppo.learn(60)
    assert len(ppo.get_env().moments) >= 3  # of 2 tasks x 2 optimizers


def test_a_training_with_a_fixed_interval_takes_about_the_episodes_that_it_was_told():
    config = TrainConfig(
        episodes=48,
        workers=0,
        env=EnvConfig(budgets=(5, 100), decision=DecisionConfig(decision_interval=5)),
        agent=PPOConfig(
            num_envs=4, episodes_per_rollout=8, batch_size=20, n_epochs=1, network=NetworkConfig(hidden=8, head=8)
        ),
        baseline=BaselineConfig(controllers=()),
    )
    training = train([get_task("digits_mlp")], config).config.training
    assert training["episodes"] == pytest.approx(48, rel=0.25)  # the longest take 20 decisions, the mean 7


@pytest.mark.parametrize("episodes, steps", [(4, 2), (8, 5), (16, 10)])
def test_a_rollout_may_be_shorter_or_longer_than_an_episode(episodes, steps):
    config = PPOConfig(num_envs=8, episodes_per_rollout=episodes, batch_size=20, network=NetworkConfig(hidden=16))
    venv = make_vec_env([get_task("digits_mlp")], ENV, 8, 0, seed=0)
    assert make_ppo(venv, config, 5, seed=0).n_steps == steps  # episodes of 5 decisions in 8 environments
    venv.close()
