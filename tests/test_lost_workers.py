"""Worker processes that die or hang cost their episodes, or their job, and no more."""

import logging
import math
import os
import signal
import subprocess
import sys

import losing_workers as checks
import numpy as np
import pytest

from agents.controllers import ScheduleController, make_controller
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, RunCheckpoints, run_jobs
from agents.training.resuming import CheckpointConfig
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import Episode
from envs.tasks import get_task
from envs.workers import WorkersVecEnv
from gns.errors import InvalidSettingError, UnknownNameError

REX = ScheduleController("rex", "rex")


@pytest.fixture(scope="module")
def venv():
    made = checks.walks(WorkersVecEnv, timeout=3.0)
    yield made
    made.close()


@pytest.mark.parametrize("how", ["kill", "die", "hang", "eat"])
def test_a_lost_worker_costs_its_episodes_only(venv, how):
    checks.check_a_lost_worker_costs_its_episodes_only(venv, how)


def test_an_error_is_no_loss(venv):
    checks.check_an_error_is_no_loss(venv)


def test_a_restart_repeats_nothing_and_can_itself_be_repeated():
    checks.check_a_restart_repeats_nothing_and_can_itself_be_repeated(WorkersVecEnv)


def test_calls_find_the_new_worker_as_the_old_one_was():
    checks.check_calls_find_the_new_worker_as_the_old_one_was(WorkersVecEnv)


def test_restarts_end(caplog):
    checks.check_restarts_end(WorkersVecEnv, caplog)


def test_training_goes_on_over_a_lost_worker():
    checks.check_training_goes_on(PROCESSES)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_may_be_lost_right_after_going_on(workers):
    checks.check_a_worker_may_be_lost_right_after_going_on(workers)


def test_signals_that_are_for_the_whole_group_cost_nothing():
    venv = checks.walks(WorkersVecEnv)
    expected = checks.roll(venv, 3)
    for number in (signal.SIGINT, signal.SIGTERM):
        found = checks.roll(venv, 3, lambda step, number=number: [os.kill(pid, number) for pid in venv.processes])
        assert checks.same(found, expected)
    assert venv.dropped_episodes == 0 and venv.restarts == [0, 0]
    venv.close()


FORGETFUL = """
import os, losing_workers
from envs.workers import WorkersVecEnv
venv = losing_workers.walks(WorkersVecEnv)
print(*venv.processes, flush=True)
"""


def test_workers_end_with_a_process_that_never_closes_them():
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", FORGETFUL], env=here, capture_output=True, text=True, timeout=120, check=True
    )
    assert all(checks.gone(int(process)) for process in ended.stdout.split()) and len(ended.stdout.split()) == 2


def test_a_stopped_process_is_ended_too():
    venv = checks.walks(WorkersVecEnv, timeout=1.0)
    venv.reset()
    stopped = venv.processes[0]
    os.kill(stopped, signal.SIGSTOP)
    _, _, dones, _ = venv.step(np.zeros((4, 1), dtype=np.float32))
    assert dones.tolist() == [True, False, True, False]
    assert checks.gone(stopped)
    venv.close()


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"timeout": -1.0}, {"job_timeout": 0}, {"max_restarts": -1}], ids=str
)
def test_limits_that_are_none_are_refused(settings):
    with pytest.raises(InvalidSettingError, match=next(iter(settings))):
        EngineConfig(**settings)


def test_an_unknown_engine_or_resource_is_refused():
    with pytest.raises(UnknownNameError, match="engine 'threads'"):
        EngineConfig("threads")
    with pytest.raises(UnknownNameError, match="resource of a Ray worker 'runtime_env'"):
        EngineConfig("ray", resources={"runtime_env": {"pip": ["anything"]}})


# ---------------------------------------------------------------------- sweeps


def check_a_job_that_kills_its_process_fails_alone(engine, tmp_path, caplog):
    cache, ticks = ResultsCache(tmp_path / "cache"), []
    jobs = checks.jobs_of(checks.Dying(REX, budget=6))
    with caplog.at_level(logging.WARNING):
        rows = run_jobs(jobs, 2, lambda *_: ticks.append(1), cache, engine=engine)
    expected = checks.run_here(REX)
    assert checks.without_seconds([rows[i] for i in (0, 2, 3)]) == [expected[i] for i in (0, 2, 3)]
    bad = rows[1]
    assert (
        bad["reward_loss"] == bad["test_loss"] == math.inf
        and "died" in bad["failed"]
        and "2 of 2 attempts" in bad["failed"]
    )
    assert bad["budget"] == 6 and bad["controller"] == "rex" and len(bad["path"]) == len(expected[1]["path"])
    assert set(bad) == set(expected[1]) | {"failed"} | {"seconds"}
    assert "budget 6" in caplog.text and "has failed" in caplog.text
    assert len(ticks) == 4 and len(cache) == 3  # it is tried anew next time
    again = run_jobs(checks.jobs_of(REX), 2, cache=ResultsCache(tmp_path / "cache"), engine=engine)
    assert checks.without_seconds(again) == expected


def check_a_job_lost_once_is_run_again(engine, tmp_path):
    rows = run_jobs(checks.jobs_of(checks.Dying(REX, budget=5, once=str(tmp_path / "died"))), 2, engine=engine)
    assert (tmp_path / "died").exists()
    assert checks.without_seconds(rows) == checks.run_here(REX)


def test_a_job_that_kills_its_process_fails_alone(tmp_path, caplog):
    check_a_job_that_kills_its_process_fails_alone(PROCESSES, tmp_path, caplog)


def test_a_job_lost_once_is_run_again(tmp_path):
    check_a_job_lost_once_is_run_again(PROCESSES, tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_that_needs_more_memory_than_there_is_fails_alone(workers, caplog):
    with caplog.at_level(logging.WARNING):
        rows = run_jobs(checks.jobs_of(checks.Dying(REX, budget=6, how="eat")), workers)
    assert [math.isinf(row["reward_loss"]) for row in rows] == [False, True, False, False]
    assert "ran out of memory" in rows[1]["failed"] and "accumulation=2" in caplog.text


def test_a_job_that_hangs_is_ended_and_run_again(tmp_path, caplog):
    hanging = checks.Dying(REX, budget=5, once=str(tmp_path / "hung"), how="hang")
    with caplog.at_level(logging.WARNING):
        rows = run_jobs(checks.jobs_of(hanging), 1, engine=EngineConfig(job_timeout=15.0))
    assert "more than 15 seconds (1 of 2 attempts)" in caplog.text
    assert checks.without_seconds(rows) == checks.run_here(REX)


# ---------------------------------------------------------------------- runs that go on


class Ending(checks.Dying):
    """Ends its process in the middle of the first attempt at a run, right after a checkpoint."""

    def train(self, episode, checkpoints=None):
        assert checkpoints is not None
        write = checkpoints.write

        def write_and_die(state, step):
            write(state, step)
            if step == 3 and not os.path.exists(self.once):
                open(self.once, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if os.path.exists(self.once):
                with open(self.once, "a") as file:
                    file.write(f"{step} ")

        checkpoints.write = write_and_die
        return self.inner.train(episode, checkpoints)


KINDS_THAT_REMEMBER = {
    "rex": {"kind": "schedule", "profile": "rex"},
    "autolrs": {"kind": "autolrs", "min_lr": 1e-4, "max_lr": 0.1},
    "marthe": {"kind": "marthe"},
}


@pytest.mark.parametrize("name", KINDS_THAT_REMEMBER)
def test_a_run_whose_process_died_goes_on_from_its_checkpoint(name, tmp_path):
    inner = make_controller(name, KINDS_THAT_REMEMBER[name])
    episode = Episode(get_task("digits_cnn"), "adam", 8, 0.003, 3)
    cache = ResultsCache(tmp_path / "cache")
    checkpoints = RunCheckpoints(tmp_path / "runs", CheckpointConfig(every=0.0))
    ending = Ending(inner, budget=8, once=str(tmp_path / "log"))
    rows = run_jobs([Job(ending, episode)], 1, cache=cache, checkpoints=checkpoints)
    assert (tmp_path / "log").read_text().split()[0] == "4"  # the first three updates were not made again
    assert checks.without_seconds(rows) == checks.without_seconds(run_jobs([Job(inner, episode)], 0))
    assert not any((tmp_path / "runs").iterdir())
