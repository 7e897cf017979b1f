"""Action mode ``per-layer`` in training: environment, PPO, workers, and what padding may not do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_loop import same_state, small_task
from stable_baselines3 import PPO

from agents.controllers import PolicyController
from agents.runtime.stopping import StoppedError, StopRequest
from agents.training.choosing import ValidationConfig
from agents.training.ppo import PPOConfig, export_policy, make_ppo, make_vec_env
from agents.training.resuming import CheckpointConfig, Resuming
from agents.training.schedule_reference import BaselineConfig
from agents.training.train import TrainConfig, train
from envs import EnvConfig, LearningRateEnv, PadGraph, get_task
from envs.batched.composite import plan
from envs.batched.env import BatchedEnv
from envs.batched.model import NotBatchableError
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns import DecisionConfig, GuardConfig, InvalidSettingError, NetworkConfig
from gns.policy.network import network_for

DECISION = DecisionConfig(mode="per-layer", num_decisions=5)
ENV = EnvConfig(budgets=(20, 30), decision=DECISION, reward_probability=1.0)
NETWORK = network_for(NetworkConfig(hidden=16, head=16), DECISION)
CONFIG = PPOConfig(num_envs=2, episodes_per_rollout=4, batch_size=10, n_epochs=2, network=NETWORK)
LARGER = get_task("digits_cnn", model={"channels": [4, 4, 8]}, batch_size=8)
TASKS = [get_task("digits_mlp"), LARGER]  # of 3 and 4 layers


def vectors(workers: int = 0, **changes):
    return make_vec_env(TASKS, replace(ENV, **changes), 2, workers, seed=0)


@pytest.fixture
def ppo(request):
    network = replace(NETWORK, hierarchical=getattr(request, "param", False))
    venv = vectors()
    yield make_ppo(venv, replace(CONFIG, network=network), 5, seed=0)
    venv.close()


def observations(count: int = 6) -> dict[str, torch.Tensor]:
    """Padded observations of both tasks."""
    env = PadGraph(LearningRateEnv(TASKS, ENV))
    seen = [env.reset(seed=seed, options={"task": TASKS[seed % 2]})[0] for seed in range(count)]
    found = {name: torch.from_numpy(np.stack([one[name] for one in seen])) for name in seen[0]}
    assert len(set(found["sizes"][:, 0].tolist())) == 2
    return found


def missing(seen: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which numbers of an action belong to no layer."""
    return torch.arange(1 + seen["nodes"].shape[1]) > seen["sizes"][:, :1]


# ---------------------------------------------------------------------- the environment


def test_the_action_space_has_a_number_for_every_layer_of_the_largest_task():
    assert LearningRateEnv(["digits_mlp"], ENV).action_space.shape == (4,)
    assert LearningRateEnv(TASKS, ENV).action_space.shape == (5,)
    assert PadGraph(LearningRateEnv(["digits_mlp"], ENV), 9, 9).action_space.shape == (10,)
    assert LearningRateEnv(TASKS, replace(ENV, decision=DecisionConfig())).action_space.shape == (1,)


@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
@pytest.mark.parametrize("kind", ["plain", "dropout", "batch_norm"])
def test_layers_that_want_nothing_give_the_episode_of_mode_profile_bit_for_bit(kind, optimizer):
    found = []
    for mode, action in (("profile", [0.4]), ("per-layer", [0.4]), ("per-layer", [0.4, 0.0, 0.0, 0.0, 0.0, 0.0])):
        config = replace(ENV, decision=replace(DECISION, mode=mode))
        env = LearningRateEnv([small_task(kind)], config)
        instance, _ = env.reset(seed=3, options={"optimizer": optimizer, "learning_rate": 1e-3})
        rewards, nodes, terminated = [], [instance.nodes], False
        layers = env.core.graph.num_nodes
        while not terminated:
            instance, reward, terminated, _, _ = env.step(np.array(action[: 1 + layers], dtype=np.float32))
            rewards.append(reward)
            nodes.append(instance.nodes)
        found.append((rewards, env.rates, nodes, env.run.model))
    for rewards, rates, nodes, model in found[1:]:
        assert rewards == found[0][0] and rates == found[0][1]
        assert all(map(np.array_equal, nodes, found[0][2])) and same_state(model, found[0][3])


def test_each_layer_moves_at_its_own_rate():
    env = LearningRateEnv(["digits_mlp"], ENV)
    env.reset(seed=0)
    env.step(np.array([0.2, 1.0, 0.0, -1.0]))
    ratios = np.array([group["lr"] for group in env.run.optimizer.param_groups]) / env.rates[-1]
    assert ratios == pytest.approx([3.0, 1.0, 1 / 3])


def test_groups_of_a_task_are_divided_by_layer():
    def two_groups(model):
        vectors = [p for p in model.parameters() if p.ndim == 1]
        return [{"params": [p for p in model.parameters() if p.ndim > 1]}, {"params": vectors, "weight_decay": 0.5}]

    run = TrainingRun(small_task(parameter_groups=two_groups), "adamw", 1e-3, seed=0, by_layer=True)
    plain = TrainingRun(small_task(parameter_groups=two_groups), "adamw", 1e-3, seed=0)
    layers = len({name.rpartition(".")[0] for name, _ in run.model.named_parameters()})
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.01] * layers + [0.5] * layers
    for one in (run, plain):
        for _ in range(5):
            one.compute_gradient()
            one.apply_update()
    assert same_state(run.model, plain.model)


def test_an_environment_goes_on_from_its_state_in_the_middle_of_an_episode():
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 5)).astype(np.float32)

    def play(env, actions):
        return [env.step(action)[1] for action in actions], [g["lr"] for g in env.run.optimizer.param_groups]

    whole = LearningRateEnv(TASKS, ENV)
    whole.reset(seed=4)
    before = play(whole, actions[:2])
    state = whole.state_dict()
    again = LearningRateEnv(TASKS, ENV)
    again.load_state_dict(state)
    assert np.array_equal(again.observation.nodes, whole.observation.nodes)
    assert again.core.multipliers == whole.core.multipliers != [1.0] * len(whole.core.multipliers)
    assert len(before[0]) == 2 and play(again, actions[2:]) == play(whole, actions[2:])
    assert same_state(again.run.model, whole.run.model)


def test_runs_are_trained_one_at_a_time():
    groups = plan([get_task("digits_mlp")], ENV, 4)
    assert [(group.places, group.together) for group in groups] == [((i,), False) for i in range(4)]
    with pytest.raises(NotBatchableError, match="layers have rates of their own"):
        BatchedEnv(get_task("digits_mlp"), ENV, "adam", 2)


# ---------------------------------------------------------------------- padding


def test_padded_entries_have_no_influence_on_ratios_and_entropy(ppo):
    seen = observations()
    absent = missing(seen)
    assert absent.any() and not absent[:, 0].any()
    actions = torch.rand(absent.shape) * 2 - 1
    other = torch.where(absent, torch.rand(absent.shape) * 200 - 100, actions)
    with torch.no_grad():
        old = ppo.policy.evaluate_actions(seen, actions)[1]
        ppo.policy.log_std += torch.tensor([0.3, -0.2])
        ppo.policy.features_extractor.layer_actor.head[2].bias += 0.5
        _, new, entropy = ppo.policy.evaluate_actions(seen, actions)
        _, log_prob, same_entropy = ppo.policy.evaluate_actions(seen, other)
    assert torch.equal(new, log_prob) and torch.equal(entropy, same_entropy)
    assert not torch.equal(new, old)
    small, large = entropy[::2], entropy[1::2]
    log_std = ppo.policy.log_std.detach()
    one = 0.5 + 0.5 * np.log(2 * np.pi)
    torch.testing.assert_close(small, (4 * one + log_std[0] + 3 * log_std[1]).expand(3))
    torch.testing.assert_close(large - small, (one + log_std[1]).expand(3))


def test_more_room_changes_nothing(ppo):
    seen = observations()
    wide = {**seen, "nodes": torch.nn.functional.pad(seen["nodes"], (0, 0, 0, 3))}
    actions = torch.rand(6, 5) * 2 - 1
    padded = torch.nn.functional.pad(actions, (0, 3), value=9.0)
    with torch.no_grad():
        for one, other in zip(
            ppo.policy.evaluate_actions(seen, actions), ppo.policy.evaluate_actions(wide, padded), strict=True
        ):
            torch.testing.assert_close(one, other)  # sums over more zeros round otherwise
        modes = [ppo.policy.get_distribution(which).mode() for which in (seen, wide)]
    assert torch.equal(modes[0], modes[1][:, :5]) and not modes[1][:, 5:].any()


def test_actions_that_are_drawn_are_0_where_there_is_no_layer(ppo):
    seen = observations()
    absent = missing(seen)
    with torch.no_grad():
        actions, values, log_prob = ppo.policy(seen)
        again = ppo.policy.evaluate_actions(seen, actions)
    assert actions.shape == (6, 5) and not actions[absent].any() and (actions[~absent] != 0).all()
    assert torch.equal(values, again[0]) and torch.equal(log_prob, again[1])


def test_gradients_do_not_pass_through_padded_entries(ppo):
    seen = observations()
    found = []
    for fill in (0.0, 50.0):
        actions = torch.where(missing(seen), torch.tensor(fill), torch.tensor(0.3))
        ppo.policy.zero_grad()
        ppo.policy.evaluate_actions(seen, actions)[1].sum().backward()
        found.append([p.grad.clone() for p in ppo.policy.parameters() if p.grad is not None])
    assert all(map(torch.equal, *found)) and any(bool(g.any()) for g in found[0])


# ---------------------------------------------------------------------- PPO


@pytest.mark.parametrize("ppo", [False, True], indirect=True, ids=["flat", "hierarchical"])
def test_ppo_trains_the_actor_of_layers_and_the_exported_policy_acts_as_the_agent(ppo):
    before = ppo.policy.network_state()
    ppo.learn(20)
    after = ppo.policy.network_state()
    for part in ("encoder.first", "actor.0", "critic.0", "layer_actor.head.0", "layer_actor.head.2"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(part)), part
    assert not torch.equal(ppo.policy.log_std.detach(), torch.full((2,), CONFIG.log_std))
    policy = export_policy(ppo, ENV, replace(CONFIG, network=ppo.policy.network_config), {})
    env = PadGraph(LearningRateEnv(TASKS, ENV))
    for seed in range(4):
        padded, _ = env.reset(seed=seed)
        own = policy.act(env.unwrapped.observation)
        batch = {name: value[None] for name, value in padded.items()}
        action, _ = ppo.predict(batch, deterministic=True)
        assert action[0, : len(own)] == pytest.approx(own, abs=1e-6) and not action[0, len(own) :].any()


def test_the_agent_survives_sb3s_own_save_and_load(ppo, tmp_path):
    ppo.learn(20)
    ppo.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", device="cpu")
    seen = ppo.get_env().reset()
    np.testing.assert_array_equal(ppo.predict(seen, deterministic=True)[0], loaded.predict(seen, deterministic=True)[0])


def test_network_and_environments_must_agree():
    venv = vectors()
    with pytest.raises(InvalidSettingError, match="take 5 numbers as an action and the network has per_layer = False"):
        make_ppo(venv, replace(CONFIG, network=NetworkConfig()), 5, seed=0)
    venv.close()
    venv = vectors(decision=DecisionConfig(num_decisions=5))
    with pytest.raises(InvalidSettingError, match="take 1 numbers as an action and the network has per_layer = True"):
        make_ppo(venv, CONFIG, 5, seed=0)
    venv.close()


def test_other_modes_have_one_action_and_one_deviation():
    venv = vectors(decision=DecisionConfig(num_decisions=5))
    policy = make_ppo(venv, replace(CONFIG, network=NetworkConfig()), 5, seed=0).policy
    assert policy.action_space.shape == policy.log_std.shape == (1,)
    venv.close()


TRAINING = TrainConfig(
    episodes=8,
    workers=0,
    env=ENV,
    agent=replace(CONFIG, num_envs=4, network=NetworkConfig(hidden=16, head=16)),
    baseline=BaselineConfig(controllers=()),
    validation=ValidationConfig(every=4, num_envs=2),
)


def weights_of(policy) -> list[torch.Tensor]:
    return list(policy.state_dict().values())


def test_a_training_is_the_same_with_workers_and_when_it_is_interrupted(tmp_path):
    assert TRAINING.agent.network.per_layer
    tasks, others = [get_task("digits_mlp")], [LARGER]
    whole = train(tasks, TRAINING, validation_tasks=others)
    assert whole.config.network.per_layer and whole.config.decision == DECISION
    apart = train(tasks, replace(TRAINING, workers=2), validation_tasks=others)
    assert all(map(torch.equal, weights_of(whole), weights_of(apart)))

    checkpoints = Resuming(tmp_path / "checkpoints", CheckpointConfig(every=0), "one")
    stop = StopRequest()

    def interrupt(policy, episodes):
        stop.number = 15

    with pytest.raises(StoppedError):
        train(tasks, TRAINING, on_policy=interrupt, checkpoints=checkpoints, stop=stop, validation_tasks=others)
    again = train(tasks, TRAINING, checkpoints=checkpoints, validation_tasks=others)
    assert all(map(torch.equal, weights_of(whole), weights_of(again)))

    folder = tmp_path / "policy"
    whole.save_pretrained(folder)
    episode = Episode(others[0], "adam", 23, 1e-3, seed=2)
    session = PolicyController(name="policy", policy=str(folder), guard=GuardConfig()).start(episode)
    while not session.finished:
        session.update()
    assert len({group["lr"] for group in session.run.optimizer.param_groups}) == 4
