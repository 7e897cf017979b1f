"""SRLS: seven features and no graph, a full pass over the reward split at every decision, from training to a table."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from plain_loop import MODELS, small_task
from torch import Tensor, nn
from twins.features_twin import RunTwin, srls_features

import evaluate
import train_agent
from agents.controllers import PolicyController
from envs import EnvConfig, LearningRateEnv, PadGraph
from envs.learning_rate_env import Episode
from gns import (
    DecisionConfig,
    DecisionCore,
    GNSPolicy,
    GuardConfig,
    InvalidSettingError,
    NetworkConfig,
    OutOfOrderError,
    PolicyConfig,
    layer_graph,
)
from gns.features.held_out import ValidationStatistics, validation_statistics
from gns.features.schemas import SCHEMAS, compute_features
from gns.features.srls import output_layer
from gns.features.statistics import RunStatistics
from gns.policy.network import GNSNetwork, batch_observations

GLOBALS = SCHEMAS["srls"].globals
DECISION = DecisionConfig(mode="recursive", base=2.0, decision_interval=4, features="srls")
ENV = EnvConfig(budgets=(20, 20), decision=DECISION, reward_probability=1.0)
NO_GRAPH = NetworkConfig("srls", "none", hidden=32, head=32)
STILL = np.zeros(1, dtype=np.float32)
OPTIONS = {"seed": 5, "optimizer": "adam", "learning_rate": 3e-3}


class Broken(nn.Module):
    """Adds a number to its outputs: in training at some passes, counted from 1, and in evaluation at some others."""

    def __init__(self, training: set[int], evaluation: set[int], value: float) -> None:
        super().__init__()
        self.inner, self.value = MODELS["plain"](), value
        self.bad = {True: training, False: evaluation}
        self.passes = {True: 0, False: 0}

    def forward(self, x: Tensor) -> Tensor:
        self.passes[self.training] += 1
        broken = self.passes[self.training] in self.bad[self.training]
        return self.inner(x) + (self.value if broken else 0.0)


def broken_task(training=(), evaluation=(), value: float = math.nan):
    return small_task(build_model=lambda: Broken(set(training), set(evaluation), value))


def play(env: LearningRateEnv, action: np.ndarray = STILL) -> list[tuple]:
    steps = [env.step(action)]
    while not steps[-1][2]:
        steps.append(env.step(action))
    return steps


def observed(env: LearningRateEnv) -> dict[str, float]:
    return dict(zip(GLOBALS, env.observation.globals.tolist(), strict=True))


def count_evaluations(env: LearningRateEnv) -> list[int]:
    """The update before which each evaluation of the reward split comes, from now on."""
    original, seen = env.run.evaluate_reward_split, []

    def counted():
        seen.append(env.core.update)
        return original()

    env.run.evaluate_reward_split = counted
    return seen


@torch.no_grad()
def on_the_reward_split(env: LearningRateEnv) -> tuple[float, Tensor]:
    """Loss and outputs, written out."""
    reward, model = env.run.task.training_data().reward, env.run.model
    model.eval()
    outputs = model(reward.inputs)
    model.train()
    return nn.functional.cross_entropy(outputs.double(), reward.targets).item(), outputs


# ---------------------------------------------------------------------- features


@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
def test_features_in_the_environment_equal_the_twins(optimizer):
    env, rate = LearningRateEnv([small_task()], ENV), 3e-3
    env.reset(seed=0, options={**OPTIONS, "optimizer": optimizer})
    twin, losses = RunTwin(20, [rate]), []
    env.run.optimizer.register_step_post_hook(lambda *_: losses.append(env.run.loss.item()))
    rng = np.random.default_rng(0)
    for decision in range(6):
        loss, outputs = on_the_reward_split(env)
        twin.losses = losses[-4:]
        expected = srls_features(env.run.model[3], twin, env.core.learning_rate / rate, loss, outputs)
        np.testing.assert_allclose(env.observation.globals, expected, rtol=0, atol=1e-4)
        assert env.observation.nodes.shape == (2, 0)
        twin.decided(outputs)
        if decision < 5:
            env.step(rng.uniform(-1, 1, 1).astype(np.float32))
    assert env.core.finished and len(losses) == 20


def test_at_the_first_decision_what_is_not_known_is_0():
    env = LearningRateEnv([small_task()], ENV)
    env.reset(seed=0, options=OPTIONS)
    seen = observed(env)
    assert seen["log_training_loss"] == seen["log_prediction_change_variance"] == 0.0
    assert all(value != 0.0 for name, value in seen.items() if "training" not in name and "change" not in name)
    env.step(STILL)
    assert all(observed(env).values())


def test_rescaling_the_outputs_moves_their_variances_alone():
    now, before = torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(0))
    one, ten = (validation_statistics(0.5, k * now, k * before) for k in (1.0, 10.0))
    assert ten.validation_loss == one.validation_loss == 0.5
    assert ten.prediction_variance == pytest.approx(100 * one.prediction_variance)
    assert ten.prediction_change_variance == pytest.approx(100 * one.prediction_change_variance)
    assert validation_statistics(0.5, now + 3.0, now).prediction_change_variance == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16, torch.float64])
def test_predictions_may_be_of_any_kind_of_number(dtype):
    now = torch.arange(8).reshape(2, 4).to(dtype)
    figures = validation_statistics(1.0, now, torch.zeros_like(now))
    assert figures.prediction_variance == figures.prediction_change_variance == pytest.approx(5.25)
    assert validation_statistics(1.0, now[:1, :1]).prediction_variance == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_predictions_that_blew_up_have_features_at_the_bound(value):
    good, bad = torch.ones(3, 2), torch.tensor([[1.0, value], [0.0, 1.0], [2.0, 3.0]])
    core = small_core()
    for now, before in ((bad, good), (good, bad), (bad, bad)):
        figures = validation_statistics(value, now, before)
        features = dict(zip(GLOBALS, core.observe(figures).globals.tolist(), strict=True))
        assert np.isfinite(list(features.values())).all()
        if now is bad:
            assert features["log_prediction_variance"] == 5.0
        if not (now is before and value == 3e38):
            assert features["log_prediction_change_variance"] == 5.0


def small_core(features: str = "srls") -> DecisionCore:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    outputs = model(torch.ones(5, 3))
    outputs.sum().backward()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return DecisionCore(model, optimizer, layer_graph(model, outputs), 12, replace(DECISION, features=features))


class TwoOutputs(nn.Module):
    """Two layers that nothing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.first(h).sum() + self.second(h).sum()


def test_the_output_layer_is_the_last_that_nothing_follows_and_its_bias_is_left_out():
    model = TwoOutputs()
    graph = layer_graph(model, model(torch.ones(2, 3)))
    assert sorted(graph.edges.T.tolist()) == [[0, 1], [0, 2]] and output_layer(graph) == 2

    core = small_core()
    with torch.no_grad():
        core.model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))
    for bias in (0.0, 1e3):
        core.model[2].bias.data.fill_(bias)
        features = dict(zip(GLOBALS, core.observe(ValidationStatistics(1.0, 1.0)).globals.tolist(), strict=True))
        assert features["output_weight_mean_over_rms"] == pytest.approx(4.5 / math.sqrt(204 / 8), abs=1e-6)
        assert features["log_output_weight_variance"] == pytest.approx(math.log10(5.25) / 2 + 1, abs=1e-6)


def test_features_of_many_runs_share_a_graph_without_validation_figures():
    """A batch of runs of which nothing was measured: what is unknown is 0 for each."""
    core = small_core()
    core.observe(ValidationStatistics(2.0, 3.0, 4.0))
    unknown = {name: np.asarray(math.nan) for name in vars(ValidationStatistics(0.0, 0.0))}
    alone = replace(core.statistics, **unknown)
    names = [name for name in vars(alone) if name not in unknown]
    batch = RunStatistics(**{name: np.stack([getattr(alone, name)] * 3) for name in names})
    nodes, global_features = compute_features("srls", core.graph, batch)
    assert nodes.shape == (3, 2, 0) and global_features.shape == (3, 7)
    assert not global_features[:, 1:4].any() and global_features[:, 4:].all()


# ---------------------------------------------------------------------- the decision core


def test_observing_without_validation_figures_is_refused():
    core = small_core()
    with pytest.raises(OutOfOrderError, match=r"features 'srls' need.*validation_statistics"):
        core.observe()
    core.observe(ValidationStatistics(1.0, 1.0))


@pytest.mark.parametrize("features", ["gns-1", "gns-paper"])
def test_other_features_ignore_validation_figures(features):
    core = small_core(features)
    without, given = core.observe(), core.observe(ValidationStatistics(math.inf, 3.0, 4.0))
    assert np.array_equal(without.nodes, given.nodes) and np.array_equal(without.globals, given.globals)
    assert math.isnan(core.statistics.validation_loss)


# ---------------------------------------------------------------------- the environment


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_the_reward_split_is_evaluated_once_a_decision_and_once_at_the_end(probability):
    env = LearningRateEnv([small_task()], replace(ENV, reward_probability=probability))
    env.reset(seed=0, options=OPTIONS)
    before, _ = on_the_reward_split(env)
    seen = count_evaluations(env)
    steps = play(env)
    assert seen == [4, 8, 12, 16, 20]
    assert steps[-1][4]["evaluations"] == env.evaluations == len(steps) + 1 == 6
    after, _ = on_the_reward_split(env)
    rewards = [step[1] for step in steps]
    assert all(rewards) and sum(rewards) == pytest.approx(math.log(before) - math.log(after), abs=1e-6)


def test_the_reward_is_the_fall_of_the_validation_loss_observed():
    env = LearningRateEnv([small_task()], ENV)
    env.reset(seed=0, options=OPTIONS)
    level = observed(env)["log_validation_loss"]
    for step in range(5):
        _, reward, *_ = env.step(np.array([0.5], dtype=np.float32))
        now = observed(env)["log_validation_loss"]
        assert reward == pytest.approx(2 * (level - now), abs=1e-5), step
        level = now


def test_the_same_seed_is_the_same_episode():
    episodes = []
    for _ in range(2):
        env = LearningRateEnv([small_task("dropout")], replace(ENV, budgets=(12, 24)))
        first, _ = env.reset(seed=3)
        steps = play(env, np.array([0.7], dtype=np.float32))
        episodes.append([first.nodes, *(step[0].nodes for step in steps), np.array([step[1] for step in steps])])
    assert all(np.array_equal(a, b) for a, b in zip(*episodes, strict=True))


def test_evaluating_does_not_change_the_run():
    """The same rates give the same weights as under features that need no evaluation."""
    models = []
    for features in ("srls", "gns-1"):
        config = replace(ENV, decision=replace(DECISION, features=features), reward_probability=0.0)
        env = LearningRateEnv([small_task("dropout")], config)
        env.reset(seed=0, options=OPTIONS)
        play(env, np.array([0.4], dtype=np.float32))
        models.append(env.run.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_after_a_rollback_validation_is_fresh_and_no_pass_is_spent_on_what_was_undone():
    env = LearningRateEnv([broken_task(training={6})], ENV)
    env.reset(seed=0, options=OPTIONS)
    seen = count_evaluations(env)
    env.step(STILL)
    before = observed(env)
    _, reward, _, _, info = env.step(STILL)
    after = observed(env)
    assert info["rollbacks"] == 1 and seen == [4, 8]
    assert after["log_validation_loss"] == before["log_validation_loss"] and reward == 0.0
    assert after["log_prediction_variance"] == before["log_prediction_variance"]
    assert after["log_prediction_change_variance"] == -5.0  # the weights are those of the last decision
    assert after["log_training_loss"] == 0.0
    assert after["log_learning_rate"] == pytest.approx(before["log_learning_rate"] - 0.5, abs=1e-6)
    assert play(env)[-1][4]["evaluations"] == 6


@pytest.mark.parametrize("guard", [GuardConfig(), GuardConfig(enabled=False), GuardConfig(max_rollbacks=0)])
@pytest.mark.parametrize("rate", [3e-3, 10.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_observations_of_runs_that_go_wrong_are_finite(value, rate, guard):
    task = broken_task(training={7}, evaluation={2, 3}, value=value)
    env = LearningRateEnv([task], replace(ENV, guard=guard))
    first, _ = env.reset(seed=0, options={**OPTIONS, "optimizer": "sgdm", "learning_rate": rate})
    assert first in env.observation_space
    steps = play(env, np.ones(1, dtype=np.float32))
    for observation, reward, *_ in steps:
        assert observation in env.observation_space and np.isfinite(observation.nodes).all() and math.isfinite(reward)
    assert steps[-1][4]["evaluations"] == len(steps) + 1


# ---------------------------------------------------------------------- the network and the policy


def some_observations(count: int = 4) -> list:
    env, seen = LearningRateEnv([small_task(), "digits_cnn"], ENV), []
    for seed in range(count):
        env.reset(seed=seed)
        env.step(STILL)
        seen.append(env.observation)
    return seen


def lively(config: NetworkConfig = NO_GRAPH) -> GNSNetwork:
    torch.manual_seed(0)
    network = GNSNetwork(config).eval()
    with torch.no_grad():
        network.actor[2].weight.mul_(100.0)
    return network


def test_the_network_ignores_the_graph_and_reads_every_global_feature():
    network, seen = lively(), some_observations()

    @torch.no_grad()
    def outputs(observations: list) -> Tensor:
        return torch.cat(network(batch_observations(observations)), dim=1)

    before = outputs(seen)
    rng = np.random.default_rng(0)
    other_graphs = [
        replace(
            one,
            nodes=np.zeros((layers, 0), dtype=np.float32),
            node_types=rng.integers(7, size=layers),
            blocks=rng.integers(3, size=layers),
            edges=rng.integers(layers, size=(2, 5)),
        )
        for one, layers in zip(seen, (1, 7, 2, 4), strict=True)
    ]
    assert torch.equal(outputs(other_graphs), before)
    for i in range(len(GLOBALS)):
        moved = [replace(one, globals=one.globals + np.eye(len(GLOBALS), dtype=np.float32)[i]) for one in seen]
        assert (outputs(moved) - before).abs().min() > 1e-4, GLOBALS[i]


def test_actor_and_critic_have_two_hidden_layers_of_32_and_gradients_reach_all():
    network = lively()
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 7), (32, 32), (1, 32), (32, 32), (1, 32)]
    action, value = network(batch_observations(some_observations()))
    (action.sum() + value.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_dropout_drops_out_in_training_alone():
    network, seen = lively(replace(NO_GRAPH, dropout=0.5)), batch_observations(some_observations(1))
    assert len({network(seen)[1].item() for _ in range(5)}) == 1
    network.train()
    assert len({network(seen)[1].item() for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": "gns-paper"}, "'gns-paper' has no global features"),
        ({"hierarchical": True}, "hierarchical is true"),
    ],
)
def test_a_network_without_a_graph_that_needs_one_is_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        NetworkConfig(convolution="none", **settings)


def test_a_network_without_a_graph_may_read_the_global_features_of_another_schema():
    width = GNSNetwork(NetworkConfig(convolution="none", hidden=8)).encoder.first.in_features
    assert width == len(SCHEMAS["gns-1"].globals)


def test_a_saved_policy_acts_the_same_and_says_that_it_has_no_graph(tmp_path):
    policy = GNSPolicy(PolicyConfig(network=NO_GRAPH, decision=DECISION))
    policy.network.load_state_dict(lively().state_dict())
    policy.save_pretrained(tmp_path)
    loaded, seen = GNSPolicy.from_pretrained(tmp_path), some_observations()
    actions = [policy.act(one) for one in seen]
    assert [loaded.act(one) for one in seen] == actions and len(set(actions)) > 1
    assert "Network on global features of" in (tmp_path / "README.md").read_text()


def test_padded_observations_hold_types_and_blocks_but_no_node_features():
    env = PadGraph(LearningRateEnv([small_task()], ENV))
    observation, _ = env.reset(seed=0)
    assert observation["nodes"].shape == (2, 2) and observation["globals"].shape == (7,)
    assert observation in env.observation_space


# ---------------------------------------------------------------------- the commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = ["env.budgets=[20,30]", "agent.num_envs=2", "agent.episodes_per_rollout=4", "agent.batch_size=12"]
SMALL += ["agent.n_epochs=2", "episodes=4", "baseline.controllers=[]", "workers=0", "tracker=none"]


def test_training_then_evaluating_beside_a_schedule(here, compose):
    train_agent.run(compose("train_agent", "env=srls", "agent=srls", "name=s", *SMALL))
    folder = here / "outputs" / "s"
    policy = GNSPolicy.from_pretrained(folder / "policy")
    assert policy.config.network.convolution == "none" and policy.config.decision.decision_interval == 10

    pick = ["controller=[rex,srls]", f"controller.srls.policy={folder / 'policy'}", "name=s", "optimizers=[adam]"]
    small = ["seeds=2", "workers=0", "budgets=[30]", "widen=0", "grids.adam={lowest: 1e-3, count: 1}"]
    small += ["initial_rates.adam={lowest: 1e-4, highest: 1e-2, count: 2}"]
    evaluate.run(compose("evaluate", *pick, *small))
    results = pd.read_csv(folder / "results.csv").set_index("controller")
    assert len(results.loc["srls"]) == 4 and len(results.loc["rex"]) == 2
    assert (results.loc["srls"].evaluations > results.loc["rex"].evaluations.max()).all()
    assert np.isfinite(results.loc["srls"].reward_loss).all()


def test_the_ledger_counts_a_pass_at_every_decision(here):
    passes = {}
    for features, network in (("srls", NO_GRAPH), ("gns-1", NetworkConfig(hidden=8, head=8))):
        policy = PolicyConfig(network=network, decision=replace(DECISION, features=features))
        GNSPolicy(policy).save_pretrained(features)
        passes[features] = (
            PolicyController("p", features).train(Episode(small_task(), "adam", 20, 1e-3, 0)).ledger.evaluations
        )
    assert passes == {"gns-1": 1, "srls": 6}  # one at the end, and one before each of 5 decisions


def test_the_configuration_is_the_one_described(compose):
    content = compose("train_agent", "env=srls", "agent=srls")
    env, agent = content.env, content.agent
    assert (env.decision.decision_interval, env.decision.mode, env.reward_probability) == (10, "recursive", 1.0)
    assert (agent.network.convolution, agent.network.hidden, agent.network.head) == ("none", 32, 32)
    assert compose("evaluate", "controller=[srls]").controller.srls.policy == "outputs/srls/policy"
