"""Ray actors and tasks do what worker processes do, and are lost and replaced as they are."""

import os
import sys

import losing_workers as checks
import pytest
import ray
from documents import python_blocks
from stable_baselines3.common.vec_env import DummyVecEnv
from test_lost_workers import REX, check_a_job_lost_once_is_run_again, check_a_job_that_kills_its_process_fails_alone

from agents.evaluation.sweep import run_jobs
from envs import restarting
from envs.batched.composite import make_vector
from envs.engine import RAY, EngineConfig
from envs.ray_workers import RayVecEnv
from envs.tasks import get_task
from gns.errors import InvalidSettingError, MissingPackageError, WorkerError


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One local Ray for all, with room for two vectors at once: those that are closed make room."""
    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # workers import the helpers of these tests
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=here)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def venv(cluster):
    made = checks.walks(RayVecEnv, timeout=5.0)
    yield made
    made.close()


def test_actors_change_no_bit_and_what_they_return_can_be_written_to(venv):
    expected, found = checks.roll(DummyVecEnv([checks.walk] * 4), 9), checks.roll(venv, 9)
    assert checks.same(found, expected)
    for observation, _, _, infos in found:
        observation += 1.0
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] += 1.0


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_lost_actor_costs_its_episodes_only(venv, how):
    checks.check_a_lost_worker_costs_its_episodes_only(venv, how)


def test_an_error_is_no_loss(venv):
    checks.check_an_error_is_no_loss(venv)


def test_training_goes_on_over_a_lost_actor():
    checks.check_training_goes_on(RAY)


def test_collected_runs_are_those_of_one_process():
    checks.check_processes_change_no_bit(RAY)


def test_resources_are_asked_for_and_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(restarting, "START", 1.0)
    with pytest.raises(WorkerError, match=r"Worker 0 .*waits for resources"):
        checks.walks(RayVecEnv, timeout=1.0, resources={"resources": {"rare": 1}})


# ---------------------------------------------------------------------- sweeps


def test_a_sweep_of_tasks_gives_the_rows_of_this_process():
    rows = run_jobs(checks.jobs_of(REX), 2, engine=EngineConfig("ray", resources={"num_cpus": 0.5}))
    assert checks.without_seconds(rows) == checks.run_here(REX)


def test_a_job_that_kills_its_process_fails_alone(tmp_path, caplog):
    check_a_job_that_kills_its_process_fails_alone(RAY, tmp_path, caplog)


def test_a_job_lost_once_is_run_again(tmp_path):
    check_a_job_lost_once_is_run_again(RAY, tmp_path)


def test_an_error_of_a_job_ends_the_sweep():
    class Wrong(checks.Dying):
        def train(self, episode, checkpoints=None):
            raise InvalidSettingError("the cause of it all")

    with pytest.raises(InvalidSettingError, match="the cause of it all"):
        run_jobs(checks.jobs_of(Wrong(REX, budget=0)), 2, engine=RAY)


# ---------------------------------------------------------------------- without Ray


@pytest.mark.parametrize("make", [lambda: make_vector([get_task("digits_mlp")], checks.CONFIG, 2, 2, engine=RAY)])
def test_without_ray_an_error_says_how_to_install_it(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"gns-scheduler\[cluster\]"):
        make()
    with pytest.raises(MissingPackageError, match=r"gns-scheduler\[cluster\]"):
        run_jobs(checks.jobs_of(REX), 2, engine=RAY)


def test_the_code_of_the_document_runs(root):
    (block,) = python_blocks((root / "docs" / "cluster.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/cluster.md", "exec"), names := {"__name__": "document"})
    assert all(len(values) == 4 for values in names["observations"].values())
