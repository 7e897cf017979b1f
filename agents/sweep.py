"""Many training runs in a few processes."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from agents.controllers.base import Controller
from agents.ppo import single_thread
from agents.results_cache import ResultsCache, result_key
from envs.learning_rate_env import Episode
from envs.tasks import Split, Task
from envs.training_run import evaluate_split

PATH_POINTS = 100  # points of a rate path that are kept
_SPLITS_KEPT = 8
_TEST_SPLITS: dict[str, Split] = {}


@dataclass(frozen=True)
class Job:
    """One training run under one controller.

    :param report: also measure the trained model on the test split
    """

    controller: Controller
    episode: Episode
    report: bool = True


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    done: Callable[[], None] = lambda: None,
    cache: ResultsCache | None = None,
) -> list[dict[str, Any]]:
    """Run jobs and return a row each, in the order of the jobs whatever order they end in.

    :param workers: processes of one thread each; 0 runs them here
    :param done: called after each job
    :param cache: rows of earlier runs, which are not run again; new rows are kept there as they come. Jobs that differ
        in the controller's name alone are run once. None: every job is run
    """
    rows: list[dict[str, Any]] = [{} for _ in jobs]
    places: dict[str | int, list[int]] = {}  # jobs by key, or by their number where there is none
    for number, job in enumerate(jobs):
        key = result_key(job.controller, job.episode, job.report) if cache is not None else None
        places.setdefault(number if key is None else key, []).append(number)

    def deliver(place: str | int, row: dict[str, Any]) -> None:
        for number in places[place]:
            rows[number] = {**row, "controller": jobs[number].controller.name}
            done()

    def keep(place: str | int, row: dict[str, Any]) -> None:
        if cache is not None and isinstance(place, str):
            cache.put(place, row)
        deliver(place, row)

    wanted: dict[str | int, Job] = {}
    for place, numbers in places.items():
        known = cache.get(place) if cache is not None and isinstance(place, str) else None
        if known is None:
            wanted[place] = jobs[numbers[0]]
        else:
            deliver(place, known)
    _run_all(wanted, workers, keep)
    return rows


def _run_all(
    jobs: Mapping[str | int, Job], workers: int, finished: Callable[[str | int, dict[str, Any]], None]
) -> None:
    """Run jobs, here or in processes, and hand over each row as it comes."""
    if not jobs:
        return
    if workers == 0:
        for key, job in jobs.items():
            finished(key, run_job(job))
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["agents.sweep"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=single_thread) as pool:
        futures = {pool.submit(run_job, job): key for key, job in jobs.items()}
        try:
            for future in as_completed(futures):
                finished(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run_job(job: Job) -> dict[str, Any]:
    """Train a run and return its row; ``path`` holds (progress, learning rate) pairs."""
    episode = job.episode
    run = job.controller.train(episode)
    row: dict[str, Any] = {
        "task": episode.task.name,
        "controller": job.controller.name,
        "optimizer": episode.optimizer,
        "budget": episode.budget,
        "initial_lr": episode.learning_rate,
        "seed": episode.seed,
        "reward_loss": _worst_if_nan(run.reward_loss),
        "test_loss": math.nan,
        "metric": episode.task.metric_name,
        "test_metric": math.nan,
        "test_metrics": "{}",
        "updates": run.ledger.updates,
        "search_updates": run.ledger.search_updates,
        "hessian_products": run.ledger.hessian_products,
        "evaluations": run.ledger.evaluations,
        "seconds": run.ledger.seconds,
        "rollbacks": run.ledger.rollbacks,
    }
    if job.report:
        figures = evaluate_split(run.model, episode.task, _test_split(episode.task, episode.device))
        row["test_loss"], row["test_metric"] = _worst_if_nan(figures.loss), figures.metric
        row["test_metrics"] = json.dumps(figures.metrics)
    row["path"] = _path(run.rates, episode.budget)
    return row


def _path(rates: list[float], budget: int) -> list[tuple[float, float]]:
    """Progress and rate at about :data:`PATH_POINTS` updates; NaN after the end of a run that was given up."""
    updates = range(0, budget, max(1, budget // PATH_POINTS))
    return [(t / budget, rates[t] if t < len(rates) else math.nan) for t in updates]


def _worst_if_nan(loss: float) -> float:
    """A diverged run's loss is infinite, so that no mean leaves it out."""
    return math.inf if math.isnan(loss) else loss


def _test_split(task: Task, device: str) -> Split:
    from envs.tasks.report import load_test_split

    key = json.dumps([task.name, device, task.for_loaders()], sort_keys=True, default=str)
    if key not in _TEST_SPLITS:
        if len(_TEST_SPLITS) >= _SPLITS_KEPT:
            _TEST_SPLITS.pop(next(iter(_TEST_SPLITS)))
        _TEST_SPLITS[key] = load_test_split(task).to(device)
    return _TEST_SPLITS[key]
