"""Tasks of different kinds in one environment, one training and one evaluation: images, signals and text."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from agents.controllers import PolicyController, ScheduleController
from agents.evaluation.comparison import compare
from agents.evaluation.protocol import EvaluationConfig, Grid, InitialRates, evaluate
from agents.training.ppo import PPOConfig, make_ppo, make_vec_env
from agents.training.schedule_reference import BaselineConfig, ScheduleReference
from agents.training.train import TrainConfig, train
from envs import EnvConfig, LearningRateEnv, PadGraph, get_task, unpad
from envs.learning_rate_env import Episode
from gns import DecisionConfig, NetworkConfig
from gns.features.statistics import log_loss
from gns.policy.network import GNSNetwork, batch_observations

OWN = EnvConfig(optimizers=None, budgets=None, decision=DecisionConfig(num_decisions=5), reward_probability=1.0)
OPTIMIZERS = {"digits_mlp": "sgdm", "mnist1d_cnn": "adam", "glue_mrpc": "adamw"}
BUDGETS = {"digits_mlp": 15, "mnist1d_cnn": 20, "glue_mrpc": 10}
NODES = {"digits_mlp": 3, "mnist1d_cnn": 4, "glue_mrpc": 22}
AGENT = PPOConfig(
    num_envs=3, episodes_per_rollout=6, batch_size=15, n_epochs=2, learning_rate=0.01, network=NetworkConfig(hidden=8)
)
each_task = pytest.mark.parametrize("name", list(BUDGETS))


@pytest.fixture(scope="module")
def tasks():
    """A network, a convolutional one and a tiny RoBERTa, each with an optimizer and a budget of its own."""
    return [
        get_task("digits_mlp", batch_size=8, budget=BUDGETS["digits_mlp"], optimizer="sgdm"),
        get_task("mnist1d_cnn", batch_size=8, budget=BUDGETS["mnist1d_cnn"]),
        get_task("glue_mrpc", batch_size=8, budget=BUDGETS["glue_mrpc"], model={"max_length": 32}),
    ]


@pytest.fixture(scope="module")
def padded(tasks):
    return PadGraph(LearningRateEnv(tasks, OWN))


def play(env, **options) -> list[tuple]:
    """Play one episode of random actions; the first entry is what reset returned."""
    actions = np.random.default_rng(5)
    seen = [env.reset(seed=5, options=options)]
    while len(seen) == 1 or not seen[-1][2]:
        seen.append(env.step(actions.uniform(-1, 1, 1).astype(np.float32)))
    return seen


# ---------------------------------------------------------------------- one space


def test_every_task_is_drawn_with_its_own_optimizer_budget_and_range(padded, tasks):
    met = set()
    for seed in range(20):
        _, info = padded.reset(seed=seed)
        met.add(info["task"])
        task = next(task for task in tasks if task.name == info["task"])
        assert (info["optimizer"], info["budget"]) == (OPTIMIZERS[task.name], BUDGETS[task.name])
        low, high = task.learning_rates[task.optimizer]
        assert low <= info["initial_lr"] <= high
    assert met == set(BUDGETS)


def test_the_room_is_that_of_the_largest_graph(padded, tasks):
    limits = {task.name: LearningRateEnv([task], OWN).graph_limits() for task in tasks}
    assert {name: nodes for name, (nodes, _) in limits.items()} == NODES
    assert (padded.max_nodes, padded.max_edges) == limits["glue_mrpc"] == LearningRateEnv(tasks, OWN).graph_limits()
    assert padded.observation_space["nodes"].shape[0] == 22


@each_task
def test_episodes_of_every_task_stay_in_the_one_space(padded, name):
    seen = play(padded, task=name)
    assert len(seen) == 6
    for observation, *_ in seen:
        assert observation in padded.observation_space
        assert observation["sizes"].tolist() == [NODES[name], padded.unwrapped.core.graph.num_edges]
    assert all(math.isfinite(reward) for _, reward, *_ in seen[1:])
    info = seen[-1][-1]
    assert (info["task"], info["update"], info["diverged"]) == (name, BUDGETS[name], False)


def test_unpadding_a_mix_gives_back_every_graph(padded):
    observations, instances = [], []
    for name in ["digits_mlp", "glue_mrpc", "mnist1d_cnn", "glue_mrpc", "digits_mlp"]:
        padded.reset(seed=len(observations), options={"task": name})
        observation, *_ = padded.step(np.array([0.3], dtype=np.float32))
        observations.append(observation)
        instances.append(padded.unwrapped.core.observe())
    stacked = {key: torch.from_numpy(np.stack([o[key] for o in observations])) for key in observations[0]}
    batch, expected = unpad(stacked), batch_observations(instances)
    for one, other in zip(batch, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert torch.bincount(batch.graph).tolist() == [3, 22, 4, 22, 3]
    torch.manual_seed(0)
    network = GNSNetwork(NetworkConfig(hidden=8))
    together = network(batch)
    for number, instance in enumerate(instances):  # a graph's answer does not depend on what stands beside it
        for mixed, alone in zip(together, network(batch_observations([instance])), strict=True):
            torch.testing.assert_close(mixed[number : number + 1], alone, rtol=1e-4, atol=1e-5)


def test_gymnasiums_checker_passes_on_a_mix(tasks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        check_env(LearningRateEnv(tasks, OWN))


def test_sb3s_checker_passes_on_a_mix(tasks):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        check_env_sb3(PadGraph(LearningRateEnv(tasks, OWN)))
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert all("unconventional shape" in message for message in messages), messages


def test_the_same_episode_is_the_same_alone_and_in_a_mix(padded, tasks):
    for task in tasks:
        alone = PadGraph(LearningRateEnv([task], OWN), padded.max_nodes, padded.max_edges)
        options = {"task": task.name, "seed": 7, "learning_rate": 1e-3}
        for one, other in zip(play(alone, **options), play(padded, **options), strict=True):
            assert all(np.array_equal(one[0][key], other[0][key]) for key in one[0])
            assert one[1] == other[1]


def test_environments_side_by_side_draw_different_tasks(tasks):
    venv = make_vec_env(tasks, OWN, 6, 0, seed=0)
    observations = venv.reset()
    drawn = {int(nodes) for nodes in observations["sizes"][:, 0]}
    assert observations["nodes"].shape[:2] == (6, 22) and len(drawn) > 1 and drawn <= set(NODES.values())
    venv.close()


# ---------------------------------------------------------------------- schedules to compare with


def test_tuned_schedules_are_measured_on_every_task_at_its_own_budget(tasks):
    reference = ScheduleReference(tasks, OWN, BaselineConfig(("linear", "rex"), rates=2, seeds=1), workers=0)
    for task in tasks:
        reached = reference.log_loss(task.name, task.optimizer, task.budget)
        losses = []
        for profile in ("linear", "rex"):
            for rate in (task.learning_rates[task.optimizer][1] / 3.0, task.learning_rates[task.optimizer][1]):
                episode = Episode(task, task.optimizer, task.budget, rate, seed=0)
                losses.append(ScheduleController(profile, profile).train(episode).reward_loss)
        assert reached == pytest.approx(log_loss(min(losses)), abs=1e-6) and math.isfinite(reached)
    assert math.isnan(reference.log_loss("digits_mlp", "adam", 15))  # not an optimizer of this mix
    assert math.isnan(reference.log_loss("mnist1d_mlp", "adam", 20))


def test_tuned_schedules_are_interpolated_between_budgets(tasks):
    config = EnvConfig(optimizers=("adam",), budgets=(6, 24), decision=OWN.decision)
    reference = ScheduleReference(tasks, config, BaselineConfig(("linear",), rates=2, seeds=1), workers=0)
    for task in tasks:
        low, middle, high = (reference.log_loss(task.name, "adam", budget) for budget in (6, 12, 24))
        assert all(map(math.isfinite, (low, middle, high)))
        assert middle != pytest.approx((low + high) / 2, abs=1e-6)  # measured, not interpolated
        share = math.log(8 / 6) / math.log(12 / 6)
        assert reference.log_loss(task.name, "adam", 8) == pytest.approx((1 - share) * low + share * middle)
        share = math.log(20 / 12) / math.log(24 / 12)
        assert reference.log_loss(task.name, "adam", 20) == pytest.approx((1 - share) * middle + share * high)
        assert reference.log_loss(task.name, "adam", 3) == low and reference.log_loss(task.name, "adam", 99) == high


def test_without_schedules_nothing_is_measured(tasks):
    reference = ScheduleReference(tasks, OWN, BaselineConfig((), rates=2, seeds=1), workers=0)
    assert all(math.isnan(reference.log_loss(task.name, task.optimizer, task.budget)) for task in tasks)


# ---------------------------------------------------------------------- one training


@pytest.fixture(scope="module")
def trained(tasks):
    """Policies trained on the mix with different numbers of workers, and what was reported on the way."""
    made = {}
    for workers in (0, 2):
        reports: list = []
        config = TrainConfig(
            episodes=12, seed=1, workers=workers, env=OWN, agent=AGENT, baseline=BaselineConfig(("rex",), 2, 1)
        )
        made[workers] = train(tasks, config, report=reports.append), reports
    torch.set_flush_denormal(False)  # training sets it
    return made


def test_a_policy_trained_on_a_mix_is_the_same_whatever_the_workers(trained):
    (one, reports), (other, reports_other) = trained[0], trained[2]
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert one.config == other.config and reports == reports_other


def test_training_on_a_mix_says_what_it_was_trained_on(trained):
    policy, reports = trained[0]
    about = policy.config.training
    assert about["tasks"] == "digits_mlp, mnist1d_cnn, glue_mrpc"
    assert about["optimizers"] == "adam, adamw, sgdm"
    assert set(about["budgets"].split(", ")) == {f"{budget} to {budget} updates" for budget in BUDGETS.values()}
    ranges = {"sgdm": [1e-4, 1.0], "adam": [1e-5, 1e-1], "adamw": [1e-6, 1e-2]}
    assert json.loads(about["initial rates"]) == ranges
    assert (about["episodes"], about["episodes lost to divergence"]) == (12, 0)
    assert reports[-1].episodes == 12 and [report.episodes for report in reports] == sorted(
        report.episodes for report in reports
    )
    assert all(
        math.isfinite(report.ratio) and math.isfinite(report.loss) for report in reports[1:]
    )  # the first is of the start
    assert 0.1 < about["loss over tuned schedules at the end, on the reward split"] < 10.0


def test_a_policy_trained_on_a_mix_acts_on_every_task_of_it_and_not_the_same(trained, padded):
    policy, _ = trained[0]
    actions = []
    for name in BUDGETS:
        padded.reset(seed=0, options={"task": name})
        actions.append(policy.act(padded.unwrapped.observation))
    assert all(math.isfinite(action) for action in actions) and len(set(actions)) == 3


def test_training_on_a_mix_moves_encoder_actor_and_critic(trained, tasks):
    venv = make_vec_env(tasks, OWN, AGENT.num_envs, 0, seed=1)
    before = make_ppo(venv, AGENT, 5, seed=1).policy.network_state()
    venv.close()
    after = trained[0][0].network.state_dict()
    for part in ("encoder.first", "encoder.type_embedding", "actor.0", "critic.0"):
        named = [name for name in before if name.startswith(part)]
        assert named and any(not torch.equal(before[name], after[name]) for name in named)


# ---------------------------------------------------------------------- one evaluation


@pytest.fixture(scope="module")
def evaluation(tasks, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "policy"
    trained[0][0].save_pretrained(folder)
    controllers = [ScheduleController("rex", "rex"), PolicyController("policy", folder)]
    return evaluate(controllers, tasks, EvaluationConfig(optimizers=None, budgets=None, seeds=1, workers=0, widen=0))


def test_an_evaluation_uses_each_tasks_own_optimizer_and_budget(evaluation):
    runs = evaluation.runs
    settings = set(zip(runs.task, runs.optimizer, runs.budget, strict=True))
    assert settings == {(name, OPTIMIZERS[name], BUDGETS[name]) for name in BUDGETS}
    assert (runs.updates == runs.budget).all()
    assert np.isfinite(runs[["reward_loss", "test_loss", "test_metric"]].to_numpy()).all()
    assert len(runs) == 3 * (8 + 9) == len(evaluation.paths)


@each_task
def test_grids_and_initial_rates_follow_from_each_tasks_range(evaluation, tasks, name):
    task = next(task for task in tasks if task.name == name)
    low, high = task.learning_rates[task.optimizer]
    own = evaluation.runs[evaluation.runs.task == name]
    schedule, policy = (own[own.controller == controller].initial_lr.tolist() for controller in ("rex", "policy"))
    assert schedule == Grid(10 * low, 8).rates() and schedule[0] == pytest.approx(10 * low)
    assert policy == InitialRates(low, high, 9).rates()
    assert policy == pytest.approx([low * (high / low) ** (k / 8) for k in range(9)])
    tuned = evaluation.tuned[evaluation.tuned.task == name]
    assert len(tuned) == 1 and tuned.tuned_lr.iloc[0] in schedule


def test_rows_carry_every_metric_of_their_task(evaluation):
    expected = {"digits_mlp": ["accuracy"], "mnist1d_cnn": ["accuracy"], "glue_mrpc": ["accuracy", "f1"]}
    for row in evaluation.runs.itertuples():
        metrics = json.loads(row.test_metrics)
        assert list(metrics) == expected[row.task] and row.metric == expected[row.task][0]
        assert metrics[row.metric] == row.test_metric and all(0.0 <= value <= 1.0 for value in metrics.values())
    assert evaluation.runs[evaluation.runs.task == "glue_mrpc"].test_metrics.nunique() > 1


def test_a_comparison_has_a_table_for_every_task_with_its_own_best(evaluation):
    lines = compare(evaluation)
    for name in BUDGETS:
        own = [line for line in lines if line.task == name]
        assert [line.controller for line in own].count("policy") == 10 and len(own) == 11
        schedule = next(line for line in own if line.controller == "rex")
        assert schedule.ratio == 1.0 and schedule.runs == 8
        assert all(line.ratio == pytest.approx(line.test_loss / schedule.test_loss) for line in own)
        whole = next(line for line in own if math.isnan(line.initial_lr))
        starts = [line for line in own if line.controller == "policy" and line is not whole]
        assert whole.test_loss == pytest.approx(np.mean([line.test_loss for line in starts]))
        for metric, value in whole.metrics.items():
            assert value == pytest.approx(np.mean([line.metrics[metric] for line in starts]))


def test_more_optimizers_and_budgets_are_crossed_with_every_task(tasks):
    config = EvaluationConfig(
        optimizers=("adam", "adamw"), budgets=(2, 3), seeds=2, workers=0, widen=0, grids={"adam": Grid(0.01, 1)}
    )
    runs = evaluate([ScheduleController("rex", "rex")], tasks[1:], config, report=False).runs
    assert runs.groupby(["task", "optimizer", "budget"]).size().to_dict() == {
        (task.name, optimizer, budget): 2 * (1 if optimizer == "adam" else 8)
        for task in tasks[1:]
        for optimizer in ("adam", "adamw")
        for budget in (2, 3)
    }
    assert runs.test_loss.isna().all() and (runs.test_metrics == "{}").all()
