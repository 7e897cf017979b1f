"""Rate paths applied open loop: interpolation, what is applied to whom, and what the cache takes for the same."""

import math

import numpy as np
import pytest
from plain_loop import small_task

from agents.controllers import PolicyController, ScheduleController, make_controller
from agents.controllers.replay import ReplayController
from agents.evaluation.protocol import EvaluationConfig, InitialRates, evaluate
from agents.evaluation.replays import MEAN_PATH, REPLAY, control_name, controls, mean_path, replay_jobs, with_replays
from agents.evaluation.results_cache import ResultsCache, result_key
from agents.evaluation.sweep import _path
from envs.learning_rate_env import Episode
from envs.tasks import get_task
from gns import GNSPolicy
from gns.errors import InvalidSettingError


def test_the_logarithm_of_the_rate_is_linear_between_points_and_constant_outside():
    replay = ReplayController("replay", ((0.25, 1e-2), (0.75, 1e-4)))
    rates = replay.rates(8)
    assert rates[:3].tolist() == pytest.approx([1e-2] * 3)
    assert rates[3:6].tolist() == pytest.approx([1e-2 * 10**-0.5, 1e-3, 1e-2 * 10**-1.5])
    assert rates[6:].tolist() == pytest.approx([1e-4] * 2)


def test_a_replayed_schedule_ends_where_the_schedule_does():
    episode = Episode(small_task("plain", batch_size=8), "sgdm", 40, 0.05, seed=1)
    run = ScheduleController("linear", "linear").train(episode)
    path = tuple(_path(run.rates, 40))
    elsewhere = Episode(episode.task, "sgdm", 40, 7.0, seed=1)  # the initial rate changes nothing
    replayed = ReplayController("replay", path).train(elsewhere)
    assert replayed.rates == pytest.approx(run.rates, rel=1e-12)
    assert replayed.reward_loss == pytest.approx(run.reward_loss, rel=1e-5)


@pytest.mark.parametrize(
    "path",
    [[], [[0.0, 0.0]], [[0.0, math.nan]], [[0.0, math.inf]], [[0.5, 0.1], [0.5, 0.2]], [[-0.1, 0.1]], [[1.1, 1]]],
)
def test_paths_that_are_none_are_refused(path):
    with pytest.raises(InvalidSettingError, match="path of controller x"):
        make_controller("x", {"kind": "replay", "path": path})


def test_the_cache_tells_paths_apart():
    episode = Episode(get_task("digits_mlp"), "adam", 20, 0.01, seed=0)
    keys = {result_key(ReplayController("r", ((0.0, rate),)), episode, True) for rate in (0.1, 0.1 * (1 + 1e-15), 0.2)}
    assert len(keys) == 3 and None not in keys


def test_each_seed_gets_the_path_of_the_seed_before_and_the_mean_of_all_others():
    paths = {seed: [(0.0, 10.0**-seed), (0.5, 10.0 ** (-2 * seed))] for seed in (0, 1, 2)}
    made = controls(paths)
    assert {seed: own[REPLAY] for seed, own in made.items()} == {
        0: tuple(paths[2]),
        1: tuple(paths[0]),
        2: tuple(paths[1]),
    }
    assert made[0][MEAN_PATH] == ((0.0, pytest.approx(10**-1.5)), (0.5, pytest.approx(1e-3)))
    assert controls({4: paths[0]}) == {4: {}}  # nobody else's run to take rates from


def test_runs_given_up_leave_their_points_to_the_others():
    whole, given_up = [(0.0, 0.1), (0.5, 0.01)], [(0.0, 0.4), (0.5, math.nan)]
    assert mean_path([whole, given_up]) == [(0.0, pytest.approx(0.2)), (0.5, pytest.approx(0.01))]
    lost = [(0.0, math.nan), (0.5, math.nan)]
    made = controls({0: lost, 1: lost, 2: given_up})
    assert made[0] == {REPLAY: ((0.0, 0.4),), MEAN_PATH: ((0.0, pytest.approx(0.4)),)} and made[2] == {}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replays")
    GNSPolicy().save_pretrained(folder / "policy")
    controllers = [PolicyController("mine", str(folder / "policy"))]
    task = get_task("digits_mlp", budget=20)
    config = EvaluationConfig(
        optimizers=None, seeds=3, workers=0, initial_rates={"adam": InitialRates(1e-3, 1e-2, 2)}, widen=0
    )
    cache = ResultsCache(folder / "cache.jsonl")
    return controllers, task, config, cache, evaluate(controllers, [task], config, cache=cache)


def test_replays_stand_beside_the_policies_they_are_of(evaluated):
    controllers, task, config, cache, evaluation = evaluated
    calls = []
    whole = with_replays(
        evaluation, controllers, [task], config, lambda work: calls.append((work.done, work.total)), cache
    )
    names = [control_name("mine", control) for control in (REPLAY, MEAN_PATH)]
    counts = whole.runs.groupby("controller").size()
    assert dict(counts) == {"mine": 6, **dict.fromkeys(names, 6)} and calls[-1] == (12, 12)
    assert whole.own_rates == set(names) and len(whole.paths) == len(whole.runs) == 18
    table = whole.runs.set_index(["controller", "initial_lr", "seed"])
    assert np.isfinite(table.test_loss).all()
    place = {key: number for number, key in enumerate(table.index)}
    for rate in (1e-3, 1e-2):
        donor, taken = (whole.paths[place[key]] for key in (("mine", rate, 2), (names[0], rate, 0)))
        assert [r for _, r in taken] == pytest.approx([r for _, r in donor], rel=1e-9)
    before = len(cache)
    again = with_replays(evaluation, controllers, [task], config, cache=cache)
    assert len(cache) == before and again.runs.equals(whole.runs)


def test_choosing_a_path_reads_no_test_column(evaluated):
    _, task, config, _, evaluation = evaluated
    runs = evaluation.runs
    blind = runs.drop(columns=["test_loss", "test_metric", "test_metrics"])
    tasks = {task.name: task}
    seeing, unseeing = (replay_jobs(evaluation, table, tasks, config.device) for table in (runs, blind))
    assert seeing == unseeing and len(seeing) == 12
