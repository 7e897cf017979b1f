"""Runs of a sweep that are trained side by side give the rows that they give one by one."""

import math
from dataclasses import replace

import pytest
from plain_loop import small_task

from agents.controllers import ScheduleController, make_controller
from agents.evaluation import sweep
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.side_by_side import LEAST, MOST, groups
from agents.evaluation.sweep import Job, run_jobs
from envs.episode import Episode
from envs.tasks import get_task

REX, COSINE = ScheduleController("rex", "rex"), ScheduleController("cosine", "cosine")
ONECYCLE = ScheduleController("onecycle", "onecycle", cycle_momentum=True)
DEFAULT = make_controller("default-rex", {"kind": "default", "profile": "rex"})


def jobs_of(task, optimizer: str, controllers=(REX, COSINE), rates=(1e-3, 1e-2), budget: int = 40) -> list[Job]:
    episodes = [Episode(task, optimizer, budget, rate, seed) for rate in rates for seed in (0, 1)]
    return [Job(controller, episode) for controller in controllers for episode in episodes]


@pytest.fixture
def trained(monkeypatch):
    """Sizes of the bundles that were trained."""
    seen, real = [], sweep.run_bundle
    monkeypatch.setattr(sweep, "run_bundle", lambda jobs: (seen.append(len(jobs)), real(jobs))[1])
    return seen


@pytest.mark.parametrize(("kind", "optimizer"), [("digits_mlp", "adam"), ("dropout", "nadamw"), ("batch_norm", "sgdm")])
def test_rows_are_those_of_runs_one_by_one(kind, optimizer, trained):
    task = get_task(kind) if kind == "digits_mlp" else small_task(kind)
    jobs = jobs_of(task, optimizer, (REX, COSINE, ONECYCLE, DEFAULT))
    jobs = [replace(job, report=kind == "digits_mlp") for job in jobs]
    ticks = []
    together = run_jobs(jobs, 0, lambda *about: ticks.append(about))
    assert sorted(trained) == [1] * 4 + [12] and len(ticks) == 16  # momentum cycles: not with others
    alone = run_jobs(jobs, 0, together=False)
    assert [row["controller"] for row in together] == [row["controller"] for row in alone]
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.keys() == theirs.keys()
        for key in theirs.keys() - {"seconds"}:
            if isinstance(theirs[key], float | int):
                assert mine[key] == pytest.approx(theirs[key], rel=2e-3, nan_ok=True), key
        assert mine["path"] == theirs["path"]
        assert mine["losses"] == pytest.approx(theirs["losses"], rel=2e-3)
        assert (mine["metric"], type(mine["test_metrics"])) == (theirs["metric"], str)


def test_a_lost_run_is_infinitely_bad_and_leaves_the_others_alone():
    rates = (1e-3, 1e12)
    rows = run_jobs(jobs_of(get_task("digits_mlp"), "sgdm", (REX,), rates), 0)
    assert [math.isinf(row["reward_loss"]) for row in rows] == [math.isinf(row["test_loss"]) for row in rows]
    assert [math.isfinite(row["test_loss"]) for row in rows] == [True, True, False, False]


def test_groups_are_alike_and_do_not_depend_on_processes():
    task, other = get_task("digits_mlp"), small_task("plain")
    jobs = jobs_of(task, "adam", rates=[1e-4 * 2**k for k in range(13)]) + jobs_of(other, "adam")
    jobs += jobs_of(task, "sgdm", (REX,), (0.1,)) + jobs_of(task, "adam", (ONECYCLE,))
    found = groups({number: (job.controller, job.episode) for number, job in enumerate(jobs)})
    assert [number for group in found for number in group] == list(range(60))
    assert [len(group) for group in found] == [13] * 4 + [8] and LEAST <= 8 <= 13 <= MOST
    wide = replace(task, build_model=lambda: __import__("torch").nn.Linear(64, 2_000_000))
    assert groups({0: (REX, Episode(wide, "adam", 10, 0.1, 0))}) == []


def test_rows_are_kept_and_a_lost_group_is_trained_one_by_one(tmp_path, monkeypatch):
    jobs, real = jobs_of(get_task("digits_mlp"), "adam", (REX,), budget=5), sweep.train_together

    def lost(*arguments):
        raise MemoryError("out of memory")

    monkeypatch.setattr(sweep, "train_together", lost)
    rows = run_jobs(jobs, 0, cache=ResultsCache(tmp_path / "cache"))
    assert all(math.isfinite(row["test_loss"]) and "failed" not in row for row in rows)
    monkeypatch.setattr(sweep, "train_together", real)
    monkeypatch.setattr(sweep, "run_bundle", lambda jobs: pytest.fail("a run was trained twice"))
    assert run_jobs(jobs, 0, cache=ResultsCache(tmp_path / "cache")) == rows


def test_processes_give_the_same_rows():
    jobs = jobs_of(get_task("digits_mlp"), "adam", (REX,), budget=5)
    here, there = ([{**row, "seconds": 0} for row in run_jobs(jobs, workers)] for workers in (0, 2))
    assert here == there
