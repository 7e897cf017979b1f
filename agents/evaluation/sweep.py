"""Many training runs in a few processes, or as tasks of a Ray cluster."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.controllers.base import Controller
from agents.evaluation.results_cache import ResultsCache, result_key
from agents.evaluation.side_by_side import End, groups, train_together
from agents.runtime.lanes import make_lanes, run_in_lanes
from agents.training.resuming import CheckpointConfig, Resuming
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import Episode
from envs.memory import out_of_memory
from envs.passes import Figures, evaluate_split
from envs.tasks import Split, Task
from gns.errors import InvalidSettingError

PATH_POINTS = 100  # points of a rate path that are kept
ATTEMPTS = 2  # at a job that is lost
_SPLITS_KEPT = 8
_LOGGER = logging.getLogger(__name__)
_TEST_SPLITS: dict[str, Split] = {}


@dataclass(frozen=True)
class Job:
    """One training run under one controller.

    :param report: also measure the trained model on the test split
    :param checkpoints: where the run is kept while it lasts; None: it is not kept
    """

    controller: Controller
    episode: Episode
    report: bool = True
    checkpoints: Resuming | None = None


@dataclass(frozen=True)
class RunCheckpoints:
    """Where runs under way are kept, each in a folder of its own until it is over.

    :param folder: of all of them; where runs are trained on several machines, one that these share
    """

    folder: Path
    config: CheckpointConfig

    def of(self, key: str) -> Resuming:
        """Return the checkpoints of the run that has a key, see :func:`agents.evaluation.results_cache.result_key`."""
        return Resuming(self.folder / key[:32], self.config, key)

    def clear(self) -> None:
        """Delete them all: every run is over."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    done: Callable[[Job, dict[str, Any], bool], None] = lambda job, row, trained: None,
    cache: ResultsCache | None = None,
    engine: EngineConfig = PROCESSES,
    checkpoints: RunCheckpoints | None = None,
    together: bool = True,
) -> list[dict[str, Any]]:
    """Run jobs and return a row each, in the order of the jobs whatever order they end in.

    A job that is lost is run once more: its process died (with its machine, perhaps), it ran out of memory, or out of
    the engine's ``job_timeout``. If it is lost again it has failed and the others go on: its losses are infinite,
    ``failed`` in its row says why, and so does the log. Such a row is not kept in the cache. Any other error that a job
    raises ends everything.

    :param workers: jobs at once, in a process of one thread each; 0 runs them here
    :param done: called after each job with it, its row, and whether it was run now: neither known nor run for another
    :param cache: rows of earlier runs, which are not run again; new rows are kept there as they come. Jobs that differ
        in the controller's name alone are run once. None: every job is run
    :param engine: what runs them. Changes no row
    :param checkpoints: where runs under way are kept, so that one that is lost goes on; needs a cache. Changes no row
    :param together: train runs side by side whose rates are known beforehand, where that is faster (see
        :mod:`agents.evaluation.side_by_side`). Rows are the same to float tolerance. Such runs are short and not kept
        while under way; where a group of them is lost, they are trained one by one
    :raises MissingPackageError: if the engine is not installed
    :raises InvalidSettingError: if a row of the cache lacks columns
    """
    rows: list[dict[str, Any]] = [{} for _ in jobs]
    places: dict[str | int, list[int]] = {}  # jobs by key, or by their number where there is none
    for number, job in enumerate(jobs):
        key = result_key(job.controller, job.episode, job.report) if cache is not None else None
        places.setdefault(number if key is None else key, []).append(number)

    def deliver(place: str | int, row: dict[str, Any], trained: bool) -> None:
        for number in places[place]:
            rows[number] = {**row, "controller": jobs[number].controller.name}
            done(jobs[number], rows[number], trained and number == places[place][0])

    def keep(place: str | int, row: dict[str, Any]) -> None:
        if cache is not None and isinstance(place, str) and "failed" not in row:
            cache.put(place, row)
        deliver(place, row, True)

    wanted: dict[str | int, Job] = {}
    for place, numbers in places.items():
        known = cache.get(place) if cache is not None and isinstance(place, str) else None
        if known is None:
            kept = checkpoints.of(place) if checkpoints is not None and isinstance(place, str) else None
            wanted[place] = replace(jobs[numbers[0]], checkpoints=kept)
        else:
            assert cache is not None
            _require_columns(known, jobs[numbers[0]], cache.path)
            deliver(place, known, False)
    _run_bundles(_bundles(wanted, together), wanted, workers, keep, engine)
    return rows


Place = str | int


def _bundles(wanted: Mapping[Place, Job], together: bool) -> list[list[Place]]:
    """Return jobs that are run as one: those to be trained side by side first, which take longest, then each alone."""
    side_by_side = []
    for report in (True, False) if together else ():
        side_by_side += groups(
            {place: (job.controller, job.episode) for place, job in wanted.items() if job.report is report}
        )
    taken = {place for places in side_by_side for place in places}
    return side_by_side + [[place] for place in wanted if place not in taken]


def _run_bundles(
    bundles: Sequence[list[Place]],
    wanted: Mapping[Place, Job],
    workers: int,
    keep: Callable[[Place, dict[str, Any]], None],
    engine: EngineConfig,
) -> None:
    """Run bundles of jobs; what is lost of several is run one by one then.

    :param keep: given every row
    """
    alone: list[list[Place]] = []

    def finished(number: int, found: list[dict[str, Any]]) -> None:
        for place, row in zip(bundles[number], found, strict=True):
            keep(place, row)

    def failed(number: int, why: str) -> None:
        places = bundles[number]
        if len(places) > 1:
            _LOGGER.warning("%d runs side by side were lost and are trained one by one: %s.", len(places), why)
            alone.extend([place] for place in places)
        else:
            keep(places[0], _failed(wanted[places[0]], why))

    jobs = {number: [wanted[place] for place in places] for number, places in enumerate(bundles)}
    if workers == 0:
        for number, bundle in jobs.items():
            try:
                found = run_bundle(bundle)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                failed(number, f"it ran out of memory, {error}")
            else:
                finished(number, found)
    elif jobs:
        lanes = make_lanes(engine, min(workers, len(jobs)))
        run_in_lanes(run_bundle, jobs, lanes, ATTEMPTS, finished, failed, engine.job_timeout)
    if alone:
        _run_bundles(alone, wanted, workers, keep, engine)


def run_bundle(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the rows of jobs: of one that is run alone, or of several that are trained side by side."""
    if len(jobs) == 1:
        return [run_job(jobs[0])]
    episode = jobs[0].episode
    test = _test_split(episode.task, episode.device) if jobs[0].report else None
    ends = train_together([(job.controller, job.episode) for job in jobs], test)
    return [_row_of(job, end) for job, end in zip(jobs, ends, strict=True)]


def _row_of(job: Job, end: End) -> dict[str, Any]:
    """Return the row of a run that was trained beside others, as :func:`run_job` does of one alone."""
    budget = job.episode.budget
    row = _blank(job) | {
        "reward_loss": _worst_if_nan(end.reward.loss),
        "updates": budget,
        "evaluations": 1,
        "seconds": end.seconds,
    }
    return row | _tested(end.test) | {"path": _path(end.rates, budget), "losses": _means(end.losses, budget)}


def _tested(figures: Figures | None) -> dict[str, Any]:
    if figures is None:
        return {}
    loss, metrics = _worst_if_nan(figures.loss), json.dumps(figures.metrics)
    return {"test_loss": loss, "test_metric": figures.metric, "test_metrics": metrics}


def run_job(job: Job) -> dict[str, Any]:
    """Train a run and return its row.

    ``path`` holds (progress, learning rate) pairs, ``losses`` the mean loss of the batches from each of these on.
    """
    episode = job.episode
    run = job.controller.train(episode, job.checkpoints)
    row = _blank(job) | {
        "reward_loss": _worst_if_nan(run.reward_loss),
        "updates": run.ledger.updates,
        "search_updates": run.ledger.search_updates,
        "hessian_products": run.ledger.hessian_products,
        "evaluations": run.ledger.evaluations,
        "seconds": run.ledger.seconds,
        "rollbacks": run.ledger.rollbacks,
    }
    if job.report:
        row |= _tested(evaluate_split(run.model, episode.task, _test_split(episode.task, episode.device)))
    row["path"], row["losses"] = _path(run.rates, episode.budget), _means(run.losses, episode.budget)
    if job.checkpoints is not None:
        job.checkpoints.clear()
    return row


def _blank(job: Job) -> dict[str, Any]:
    """Return the row of a job before it is run."""
    episode = job.episode
    return {
        "task": episode.task.name,
        "controller": job.controller.name,
        "optimizer": episode.optimizer,
        "budget": episode.budget,
        "initial_lr": episode.learning_rate,
        "seed": episode.seed,
        "reward_loss": math.inf,
        "test_loss": math.nan,
        "metric": episode.task.metric_name,
        "test_metric": math.nan,
        "test_metrics": "{}",
        **dict.fromkeys(("updates", "search_updates", "hessian_products", "evaluations"), 0),
        "seconds": 0.0,
        "rollbacks": 0,
    }


def _require_columns(row: dict[str, Any], job: Job, path: Path) -> None:
    missing = sorted({*_blank(job), "path", "losses"} - {"controller"} - set(row))
    if missing:
        raise InvalidSettingError(
            f"A row of {path} lacks the columns {', '.join(missing)}; expected all that "
            "this version writes. Move the file away, or set cache: false."
        )


def _failed(job: Job, why: str) -> dict[str, Any]:
    """Return the row of a job that was lost again and again."""
    episode = job.episode
    _LOGGER.error(
        "%s on %s with %s, budget %d, rate %g, seed %d has failed: %s. It counts as infinitely bad. "
        "Where memory is short, fewer workers or task.NAME.accumulation=2 (a batch in two parts) need less.",
        *(job.controller.name, episode.task.name, episode.optimizer),
        *(episode.budget, episode.learning_rate, episode.seed, why),
    )
    lost = {"test_loss": math.inf} if job.report else {}
    return _blank(job) | lost | {"failed": why, "path": _path([], episode.budget), "losses": _means([], episode.budget)}


def _path(rates: list[float], budget: int) -> list[tuple[float, float]]:
    """Progress and rate at about :data:`PATH_POINTS` updates; NaN after the end of a run that was given up."""
    return [(t / budget, rates[t] if t < len(rates) else math.nan) for t in _points(budget)]


def _means(losses: list[float], budget: int) -> list[float]:
    """Mean loss from each point of a rate path to the next; NaN after the end of a run that was given up."""
    points = _points(budget)
    parts = [losses[t : t + points.step] for t in points]
    return [sum(part) / len(part) if part else math.nan for part in parts]


def _points(budget: int) -> range:
    return range(0, budget, max(1, budget // PATH_POINTS))


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
