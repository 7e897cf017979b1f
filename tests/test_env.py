"""The environment keeps Gymnasium's and SB3's contract, and the decision process it documents."""

import math
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conformance import conformance_task
from gymnasium.utils.env_checker import check_env
from plain_loop import plain_run, same_state, small_task
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch import nn

from envs import EnvConfig, LearningRateEnv, PadGraph, get_task, known_tasks
from gns import DecisionConfig, InvalidSettingError, UnknownNameError
from gns.deciding.decision import ACTION_MODES
from gns.features.schemas import SCHEMAS

SHORT = EnvConfig(budgets=(10, 30), decision=DecisionConfig(num_decisions=5))
GLOBALS = SCHEMAS["gns-1"].globals
every_task = pytest.mark.parametrize("name", known_tasks())
VARIANTS = {
    **{mode: replace(SHORT, decision=DecisionConfig(mode=mode, num_decisions=5)) for mode in ACTION_MODES},
    "paper features": replace(SHORT, decision=DecisionConfig(mode="gns-paper", features="gns-paper", num_decisions=5)),
    "paper reward": replace(SHORT, reward="gns-paper"),
    "srls": replace(SHORT, decision=DecisionConfig(mode="recursive", features="srls", num_decisions=5)),
}
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def actions(seed: int, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1)).astype(np.float32)


def play(env: gym.Env, choices: np.ndarray, **reset) -> list[tuple]:
    """Play one episode; the first entry is what reset returned."""
    seen = [env.reset(**reset)]
    for action in choices:
        seen.append(env.step(action))
        if seen[-1][2] or seen[-1][3]:
            return seen
    raise AssertionError("The episode did not end.")


def feature(observation, name: str) -> float:
    """A global feature; it stands in every row of the node matrix."""
    column = observation.nodes[:, len(GLOBALS) * -1 + GLOBALS.index(name)]
    assert (column == column[0]).all()
    return float(column[0])


def same(one, other) -> bool:
    """Whether two observations are equal to the last bit."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------- the contract


@pytest.fixture
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker's words on how it was called, not on the environment.
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        yield


@every_task
def test_gymnasiums_checker_passes_on_every_task(name, warnings_are_errors):
    check_env(LearningRateEnv([conformance_task(name)], SHORT))


@every_variant
def test_gymnasiums_checker_passes_on_every_variant(config, warnings_are_errors):
    check_env(LearningRateEnv(["digits_mlp"], config))


def test_gymnasiums_checker_passes_on_the_registered_environment(warnings_are_errors):
    env = gym.make("gns/LearningRate-v0", tasks=["digits_mlp", "digits_cnn"], config=SHORT)
    assert isinstance(env.unwrapped, LearningRateEnv)
    check_env(env.unwrapped)
    # Through Gymnasium's own wrappers, the passive checker among them.
    assert play(env, actions(0), seed=1)[-1][2] is True


def test_the_registered_environment_needs_no_arguments(warnings_are_errors):
    env = gym.make("gns/LearningRate-v0")
    observation, _ = env.reset(seed=0, options={"budget": 20})
    assert observation in env.observation_space


@pytest.mark.parametrize("task", [*(n for n in known_tasks() if n.startswith("digits")), "one layer"])
@every_variant
def test_sb3s_checker_passes_on_padded_graphs(task, config):
    task = get_task("digits_mlp", model={"hidden": []}) if task == "one layer" else get_task(task)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_sb3(PadGraph(LearningRateEnv([task], config)))
    messages = [str(warning.message) for warning in caught]
    assert all("unconventional shape" in message for message in messages), messages


@every_variant
@every_task
def test_a_whole_episode_stays_in_the_spaces(name, config):
    env = LearningRateEnv([conformance_task(name)], config)
    seen = play(env, actions(3), seed=3)
    assert seen[0][0] in env.observation_space
    for observation, reward, terminated, truncated, info in seen[1:]:
        assert observation in env.observation_space
        assert type(reward) is float and math.isfinite(reward)
        assert type(terminated) is bool and truncated is False
        assert info["task"] == name


def test_a_model_of_one_layer_has_a_graph_without_edges():
    env = LearningRateEnv([get_task("digits_mlp", model={"hidden": []})], SHORT)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert len(observation.nodes) == 1 and len(observation.edges) == 0


def test_graph_limits_are_the_largest_over_the_tasks():
    env = LearningRateEnv(["digits_mlp", get_task("mnist1d_mlp", model={"hidden": [4, 4, 4, 4, 4]})], SHORT)
    assert env.graph_limits() == (6, 5)
    observation, _ = env.reset(seed=0, options={"task": "mnist1d_mlp"})
    assert observation.nodes.shape[0] == 6 and observation.edge_links.shape == (5, 2)


def test_settings_of_one_task_side_by_side_keep_their_own_graphs():
    sizes = ([64, 32], [8, 4], [16])
    tasks = [get_task("digits_mlp", model={"hidden": hidden}) for hidden in sizes]
    env, met = LearningRateEnv(tasks, SHORT), set()
    for seed in range(20):
        env.reset(seed=seed)
        met.add(len(list(env.run.model.parameters())))
        assert sum(env.core.graph.sizes) == sum(p.numel() for p in env.run.model.parameters())
    assert met == {4, 6}
    assert env.graph_limits() == (3, 2)


# ---------------------------------------------------------------------- seeds and options


@every_variant
def test_the_seed_decides_the_episode(config):
    env, other = (LearningRateEnv(["digits_mlp", "digits_cnn"], config) for _ in range(2))
    first = play(env, actions(1), seed=7)
    play(env, actions(2), seed=8)
    for again in (play(env, actions(1), seed=7), play(other, actions(1), seed=7)):
        assert len(again) == len(first)
        for a, b in zip(first, again, strict=True):
            assert same(a[0], b[0])
            assert a[1:] == b[1:]


def test_another_seed_is_another_episode():
    env = LearningRateEnv(["digits_mlp", "digits_cnn"], SHORT)
    episodes = []
    for seed in range(6):
        env.reset(seed=seed)
        episodes.append(env.episode)
    assert len({episode.seed for episode in episodes}) == 6
    assert len({episode.learning_rate for episode in episodes}) == 6
    assert len({episode.task.name for episode in episodes}) == 2
    assert len({episode.optimizer for episode in episodes}) == 2
    assert len({episode.budget for episode in episodes}) > 2


def test_episodes_without_a_seed_go_on_with_the_stream():
    env = LearningRateEnv(["digits_mlp"], SHORT)
    runs = []
    for _ in range(2):
        env.reset(seed=5)
        first = env.episode
        env.reset()
        assert env.episode.seed != first.seed
        runs.append((first, env.episode))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"task": "digits_mlp"},
        {"task": "digits_cnn"},
        {"optimizer": "sgdm"},
        {"optimizer": "adam"},
        {"optimizer": "adamw"},
        {"budget": 17},
        {"learning_rate": 0.0123},
        {"seed": 99},
        {"task": "digits_cnn", "budget": 11, "seed": 3},
        {},
    ],
    ids=str,
)
def test_options_fix_what_they_name_and_nothing_else(options, seed):
    env = LearningRateEnv(["digits_mlp", "digits_cnn"], SHORT)
    env.reset(seed=seed)
    drawn = env.episode
    _, info = env.reset(seed=seed, options=options)
    episode = env.episode
    given = {**options, "task": env.tasks[known(env, options["task"])]} if "task" in options else options
    for key in ("task", "optimizer", "budget", "seed"):
        assert getattr(episode, key) == given.get(key, getattr(drawn, key))

    def position(of) -> float:
        low, high = SHORT.learning_rates_of(of.task, of.optimizer)
        return math.log(of.learning_rate / low) / math.log(high / low)

    if "learning_rate" in options:
        assert episode.learning_rate == info["learning_rate"] == options["learning_rate"]
    else:  # the same place in the optimizer's own prior
        assert position(episode) == pytest.approx(position(drawn))
    # What comes after is drawn as before.
    env.reset()
    after = env.episode
    env.reset(seed=seed)
    env.reset()
    assert env.episode == after


def known(env: LearningRateEnv, name: str) -> int:
    return [task.name for task in env.tasks].index(name)


def test_info_says_what_is_trained():
    env = LearningRateEnv(["digits_mlp"], SHORT)
    options = {"task": "digits_mlp", "optimizer": "sgdm", "budget": 12, "learning_rate": 0.02, "seed": 4}
    seen = play(env, np.zeros((9, 1), dtype=np.float32), seed=0, options=options)
    info = seen[-1][4]
    assert info | {"task": "digits_mlp", "optimizer": "sgdm", "budget": 12, "initial_lr": 0.02} == info
    assert (info["update"], info["rollbacks"], info["diverged"]) == (12, 0, False)
    assert [entry[-1]["update"] for entry in seen] == [0, 3, 6, 9, 12]
    figures = env.run.evaluate_reward_split()
    loss, metric = figures.loss, figures.metric
    assert (info["reward_loss"], info["reward_metric"]) == (loss, metric)


def test_numpys_numbers_are_numbers():
    env = LearningRateEnv(["digits_mlp"], SHORT)
    env.reset(seed=0, options={"budget": np.int64(12), "learning_rate": np.float32(0.01), "seed": np.int64(3)})
    assert (env.core.budget, env.core.interval) == (12, 3)
    assert env.core.learning_rate == pytest.approx(0.01)


# ---------------------------------------------------------------------- the decision process


@pytest.mark.parametrize("budget", [5, 7, 10, 11, 23, 24, 25])
@pytest.mark.parametrize("decision", [{"num_decisions": 5}, {"decision_interval": 4}, {"decision_interval": 100}])
def test_number_of_decisions_and_end(budget, decision):
    config = EnvConfig(budgets=(5, 30), decision=DecisionConfig(**decision))
    interval = decision.get("decision_interval") or math.ceil(budget / 5)
    env = LearningRateEnv([small_task()], config)
    env.reset(seed=0, options={"budget": budget})
    updates = []
    env.run.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    ends, done_updates = [], []
    while not any(ends):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
        assert truncated is False
        ends.append(terminated)
        done_updates.append(len(updates))
    assert len(ends) == math.ceil(budget / interval)
    assert done_updates == [min((i + 1) * interval, budget) for i in range(len(ends))]


def test_decisions_of_episodes_on_several_tasks():
    tasks = [replace(small_task(), budgets=(20, 400)), replace(small_task(), budgets=(20, 100))]
    config = EnvConfig(budgets=None, decision=DecisionConfig(decision_interval=10))
    generator = np.random.default_rng(0)
    drawn = [20 * factor ** generator.uniform(size=20_000) for factor in (20, 5)]
    mean = np.mean([np.ceil(np.round(budgets) / 10) for budgets in drawn])
    assert config.usual_decisions(tasks) == math.ceil(mean)
    several = replace(config, decision=DecisionConfig(num_decisions=7))
    assert several.usual_decisions(tasks) == 7


@pytest.mark.parametrize("action", [-1.0, 0.5, 1.0])
@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
def test_the_first_decision_precedes_the_first_update(action, optimizer):
    config = EnvConfig(
        optimizers=(optimizer,), budgets=(10, 10), decision=DecisionConfig(mode="recursive", base=3.0, num_decisions=10)
    )
    env = LearningRateEnv([small_task()], config)
    env.reset(seed=0, options={"seed": 6, "learning_rate": 1e-3})
    untouched = plain_run(small_task(), optimizer, 1e-3, seed=6, updates=0)
    assert same_state(env.run.model, untouched.model)
    env.step(np.array([action], dtype=np.float32))
    rate = 1e-3 * 3.0 ** float(np.float32(action))
    plain = plain_run(small_task(), optimizer, 1e-3, seed=6, updates=1, rate=lambda _: rate)
    assert same_state(env.run.model, plain.model)


def test_the_observation_is_taken_on_the_pending_gradient():
    env = LearningRateEnv([small_task()], SHORT)
    env.reset(seed=0, options={"seed": 6, "budget": 20, "learning_rate": 1e-3, "optimizer": "sgdm"})
    observation, *_ = env.step(np.zeros(1, dtype=np.float32))
    task = small_task()
    rate = lambda t: 1e-3 * (1 - t / 20) / (0.5 + 0.5 * (1 - t / 20))  # noqa: E731
    before = plain_run(task, "sgdm", 1e-3, seed=6, updates=4, rate=rate).model
    assert same_state(env.run.model, before)
    plain = plain_run(task, "sgdm", 1e-3, seed=6, updates=5, rate=rate).model  # its gradients are the pending ones
    for row, layer in zip(observation.nodes, [plain[1], plain[3]], strict=True):
        squares = torch.cat([p.grad.flatten() for p in layer.parameters()]).double().square()
        expected = (math.log10(squares.mean().sqrt().item()) + 3.0) / 2.0
        assert row[2 + 1] == pytest.approx(expected, abs=1e-5)


def test_losses_observed_are_those_of_completed_updates():
    env = LearningRateEnv([small_task()], replace(SHORT, decision=DecisionConfig(mode="recursive", num_decisions=5)))
    observation, _ = env.reset(seed=0, options={"seed": 6, "budget": 20, "learning_rate": 0.01, "optimizer": "sgdm"})
    assert feature(observation, "no_loss") == 1.0
    assert feature(observation, "log_loss") == feature(observation, "loss_slope") == 0.0
    assert feature(observation, "progress") == -1.0
    losses = plain_run(small_task(), "sgdm", 0.01, seed=6, updates=20).losses
    for decision in range(1, 6):
        observation, *_ = env.step(np.zeros(1, dtype=np.float32))
        interval = np.array(losses[4 * (decision - 1) : 4 * decision])
        assert feature(observation, "no_loss") == 0.0
        assert feature(observation, "log_loss") == pytest.approx(0.5 * math.log(interval.mean()), abs=1e-6)
        assert feature(observation, "progress") == pytest.approx(2 * decision / 5 - 1, abs=1e-6)


def test_nodes_carry_types_and_blocks():
    env = LearningRateEnv(["digits_cnn"], SHORT)
    observation, _ = env.reset(seed=0)
    assert observation.nodes[:, 0].tolist() == env.core.graph.type_ids.tolist() == [1, 1, 0]
    assert observation.nodes[:, 1].tolist() == env.core.graph.block_ids.tolist()
    assert observation.edge_links.tolist() == env.core.graph.edges.T.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize("action", [5.0, np.array([5.0]), np.array([[5.0]], dtype=np.float64)])
def test_actions_of_any_shape_are_clipped(action):
    env = LearningRateEnv([small_task()], SHORT)
    rates = []
    for choice in (action, np.ones(1, dtype=np.float32)):
        env.reset(seed=0, options={"learning_rate": 1e-3})
        rates.append(env.step(choice)[4]["learning_rate"])
    assert rates[0] == rates[1]


@pytest.mark.parametrize("action", [math.nan, math.inf])
def test_an_action_that_is_no_number_is_refused(action):
    env = LearningRateEnv([small_task()], SHORT)
    env.reset(seed=0)
    with pytest.raises(InvalidSettingError, match="action"):
        env.step(np.array([action]))


# ---------------------------------------------------------------------- reward


def reward_split_loss(model: nn.Module) -> float:
    reward = small_task().training_data().reward
    with torch.no_grad():
        return nn.functional.cross_entropy(model.eval()(reward.inputs), reward.targets).item()


@pytest.mark.parametrize("kind", ["plain", "dropout", "batch_norm"])
@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
def test_rewards_telescope_whatever_is_evaluated(optimizer, kind):
    options = {"seed": 12, "optimizer": optimizer, "learning_rate": 0.01, "budget": 30}
    totals, evaluations = [], []
    for probability in (0.0, 0.2, 1.0):
        env = LearningRateEnv([small_task(kind)], replace(SHORT, reward_probability=probability))
        env.reset(seed=0, options=options)
        before = reward_split_loss(env.run.model)
        env.run.model.train()
        rewards, terminated, info = [], False, {}
        for action in actions(4):
            _, reward, terminated, _, info = env.step(action)
            rewards.append(reward)
            if terminated:
                break
        after = reward_split_loss(env.run.model)
        assert sum(rewards) == pytest.approx(math.log(before) - math.log(after), abs=1e-6)
        if probability == 0.0:
            assert not any(rewards[:-1])
        if probability == 1.0:
            assert all(rewards)
        totals.append(sum(rewards))
        evaluations.append(info["evaluations"])
    assert totals == pytest.approx([totals[0]] * 3, abs=1e-6)
    assert evaluations[0] == 2 and evaluations[2] == 6 and 2 <= evaluations[1] <= 6


def test_the_share_of_decisions_evaluated_is_the_reward_probability():
    config = EnvConfig(budgets=(5, 5), decision=DecisionConfig(num_decisions=5), reward_probability=0.4)
    env = LearningRateEnv([get_task("digits_mlp", model={"hidden": []}, batch_size=2)], config)
    env.reset(seed=0)
    given, asked = 0, 0
    for _ in range(60):
        for entry in play(env, np.zeros((5, 1), dtype=np.float32))[1:-1]:
            given, asked = given + (entry[1] != 0.0), asked + 1
    assert abs(given / asked - 0.4) < 3 * math.sqrt(0.4 * 0.6 / asked)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_the_papers_reward_is_the_gain_of_the_squared_metric(threshold):
    decision = replace(SHORT.decision, base=3.0)
    config = replace(SHORT, reward="gns-paper", reward_probability=1.0, paper_threshold=threshold, decision=decision)
    env = LearningRateEnv([small_task()], config)
    env.reset(seed=0, options={"optimizer": "adam", "learning_rate": 0.003, "budget": 30})
    before, metrics = env.run.evaluate_reward_split().metric, []
    for action in actions(0, 5):
        _, reward, _, _, _ = env.step(action)
        now = env.run.evaluate_reward_split().metric
        metrics.append(now)
        assert reward == pytest.approx(10 * (now**2 - before**2) * (10 if now > threshold else 1))
        before = now
    assert min(metrics) < 0.5 < max(metrics)  # both sides of the middle threshold


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tsak": "digits_mlp"}, UnknownNameError, "reset option 'tsak'.*Did you mean 'task'"),
        ({"task": "digits_mpl"}, UnknownNameError, "task of this environment 'digits_mpl'.*Did you mean 'digits_mlp'"),
        ({"task": "mnist1d_mlp"}, UnknownNameError, "task of this environment 'mnist1d_mlp'"),
        ({"optimizer": "lion"}, UnknownNameError, "optimizer.*'lion'; expected one of: adam, adamw, nadamw, sgd, sgdm"),
        ({"budget": 4}, InvalidSettingError, "budget of 4 updates is smaller than num_decisions = 5"),
        ({"budget": 0}, InvalidSettingError, "budget is 0"),
        ({"budget": -5}, InvalidSettingError, "budget is -5"),
        ({"budget": 10.5}, InvalidSettingError, "budget is 10.5; expected a whole number"),
        ({"learning_rate": 0.0}, InvalidSettingError, "learning rate is 0.0"),
        ({"learning_rate": -0.1}, InvalidSettingError, "learning rate is -0.1"),
        ({"learning_rate": math.nan}, InvalidSettingError, "learning rate is nan"),
        ({"learning_rate": 11.0}, InvalidSettingError, "initial learning rate is 11; expected one within"),
        ({"learning_rate": 1e-9}, InvalidSettingError, "initial learning rate is 1e-09; expected one within"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_and_the_environment_goes_on(options, error, message):
    env = LearningRateEnv(["digits_mlp"], SHORT)
    with pytest.raises(error, match=message):
        env.reset(seed=0, options=options)
    assert play(env, actions(0), seed=0)[-1][2]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"optimizers": ("adma",)}, UnknownNameError, "optimizer 'adma'.*Did you mean 'adam'"),
        ({"optimizers": ()}, InvalidSettingError, "optimizers is empty"),
        ({"reward": "log_loss"}, UnknownNameError, "reward 'log_loss'.*Did you mean 'log-loss'"),
        ({"reward_probability": 1.5}, InvalidSettingError, "reward_probability is 1.5"),
        ({"reward_probability": -0.1}, InvalidSettingError, "reward_probability is -0.1"),
        ({"reward_probability": math.nan}, InvalidSettingError, "reward_probability is nan"),
        ({"divergence_penalty": -1.0}, InvalidSettingError, "divergence_penalty is -1"),
        ({"divergence_penalty": math.inf}, InvalidSettingError, "divergence_penalty is inf"),
        ({"budgets": (19, 400)}, InvalidSettingError, "budget of 19 updates is smaller than num_decisions = 20"),
        ({"budgets": (0, 400)}, InvalidSettingError, "budget is 0"),
        ({"budgets": (200, 100)}, InvalidSettingError, "budgets is"),
        ({"learning_rates": {"adam": (0.0, 0.1), "sgdm": (0.1, 1.0)}}, InvalidSettingError, "rate of adam is 0"),
        ({"learning_rates": {"adam": (0.1, 0.01), "sgdm": (0.1, 1.0)}}, InvalidSettingError, "learning_rates of adam"),
        ({"learning_rates": {"adam": (0.1, math.inf), "sgdm": (0.1, 1.0)}}, InvalidSettingError, "adam"),
        ({"learning_rates": {"adma": (0.1, 1.0)}}, UnknownNameError, "optimizer 'adma'.*Did you mean 'adam'"),
    ],
    ids=str,
)
def test_configurations_that_cannot_be_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        EnvConfig(**settings)


def test_an_environment_needs_tasks_that_exist():
    with pytest.raises(InvalidSettingError, match="tasks is empty"):
        LearningRateEnv([], SHORT)
    with pytest.raises(UnknownNameError, match="Did you mean 'digits_cnn'"):
        LearningRateEnv(["digits_mlp", "digits_cn"], SHORT)
