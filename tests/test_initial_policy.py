"""A training may begin with the weights of a policy that there is already."""

from dataclasses import replace

import pytest
import torch

from agents.runtime.stopping import StoppedError, StopRequest
from agents.training.ppo import PPOConfig
from agents.training.resuming import CheckpointConfig, Resuming
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from envs import EnvConfig, get_task
from gns import DecisionConfig, GNSPolicy, NetworkConfig
from gns.errors import InvalidSettingError, PolicyFormatError
from gns.policy.artefact import PolicyConfig

NETWORK = NetworkConfig(hidden=16, head=16)
CONFIG = TrainConfig(
    episodes=8,
    workers=0,
    env=EnvConfig(optimizers=("adam",), budgets=(10, 10), decision=DecisionConfig(num_decisions=5)),
    agent=PPOConfig(num_envs=4, episodes_per_rollout=4, batch_size=20, n_epochs=2, network=NETWORK),
    baseline=BaselineConfig(controllers=()),
)


@pytest.fixture(autouse=True)
def _denormals():
    yield
    torch.set_flush_denormal(False)  # training sets it


@pytest.fixture
def task():
    return get_task("digits_mlp")


def saved(folder, network: NetworkConfig = NETWORK, **decision) -> str:
    """Save a policy of weights that no training of these tests would draw, and return its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(99)
        policy = GNSPolicy(PolicyConfig(network=network, decision=DecisionConfig(**{"num_decisions": 5, **decision})))
    policy.save_pretrained(folder)
    return str(folder)


def distance(one: GNSPolicy, other: GNSPolicy) -> float:
    there = other.state_dict()
    return max(float((value - there[name]).abs().max()) for name, value in one.state_dict().items())


@pytest.mark.parametrize("mode", ["profile", "per-layer"])
def test_a_training_begins_with_the_weights_of_a_policy(task, tmp_path, mode):
    folder = saved(tmp_path / "old", mode=mode)
    env = replace(CONFIG.env, decision=replace(CONFIG.env.decision, mode=mode))
    still = replace(CONFIG.agent, learning_rate=1e-12)
    policy = train([task], replace(CONFIG, env=env, agent=still, initial_policy=folder))
    assert distance(policy, GNSPolicy.from_pretrained(folder)) < 1e-6
    assert distance(train([task], replace(CONFIG, env=env, agent=still)), policy) > 0.1
    assert policy.config.training["begun with the policy"] == folder


def test_it_learns_from_there_and_leaves_the_policy_alone(task, tmp_path):
    folder = saved(tmp_path / "old")
    policy = train([task], replace(CONFIG, initial_policy=folder))
    assert 1e-5 < distance(policy, GNSPolicy.from_pretrained(folder)) < 0.1


def test_reach_bounds_and_number_of_decisions_may_be_others(task, tmp_path):
    folder = saved(tmp_path / "old", num_decisions=7, base=3.0, max_lr=1.0)
    wider = replace(CONFIG.env, decision=replace(CONFIG.env.decision, first_base=100.0))
    policy = train([task], replace(CONFIG, env=wider, initial_policy=folder))
    assert policy.config.decision == wider.decision


@pytest.mark.parametrize(
    ("network", "decision", "message"),
    [
        (NetworkConfig(hidden=32, head=16), {}, "has hidden = 32; expected hidden = 16"),
        (replace(NETWORK, convolution="none"), {}, "has convolution = 'none'; expected convolution = 'GCNConv'"),
        (NETWORK, {"mode": "recursive"}, "has mode = 'recursive'; expected mode = 'profile'"),
    ],
)
def test_another_network_or_action_mode_is_refused(task, tmp_path, network, decision, message):
    folder = saved(tmp_path / "old", network, **decision)
    with pytest.raises(InvalidSettingError, match=message):
        train([task], replace(CONFIG, initial_policy=folder))


def test_a_policy_that_is_none_is_refused(task, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PolicyFormatError):
        train([task], replace(CONFIG, initial_policy=str(tmp_path)))


def test_a_training_gone_on_with_does_not_begin_with_it_again(task, tmp_path):
    config = replace(CONFIG, initial_policy=saved(tmp_path / "old"))
    whole = train([task], config)

    def checkpoints():
        return Resuming(tmp_path / "checkpoints", CheckpointConfig(every=0.0, keep=2), "the same")

    stop = StopRequest()
    with pytest.raises(StoppedError):
        train([task], config, checkpoints=checkpoints(), stop=stop, on_policy=lambda *_: setattr(stop, "number", 2))
    assert distance(whole, train([task], config, checkpoints=checkpoints())) == 0.0
