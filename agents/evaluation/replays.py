"""Replays: the rates that a policy took on one run, applied open loop to other runs.

They show whether it matters that the policy observes the run.

Two controls beside every run of a policy, of the same setting, initial rate and seed:

- ``replay``: the path that the policy took on the run of the seed before (of the last one, for the first);
- ``mean path``: at each point of progress the geometric mean over its paths on the runs of all other seeds.

Neither has seen anything of the run it is applied to. Paths are those of the results, some hundred points each, and the
logarithm of the rate is linear in between: exact for budgets below 200 updates. The test split plays no part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from agents.controllers import Controller
from agents.controllers.replay import ReplayController
from agents.evaluation.mean_paths import geometric_mean
from agents.evaluation.protocol import EvaluationConfig, rows_of, starts_anywhere
from agents.evaluation.results import SETTING, Evaluation, runs_frame
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, RunCheckpoints, run_jobs
from agents.evaluation.workload import Workload
from agents.runtime.progress import Work
from envs.learning_rate_env import Episode
from envs.tasks import Task

REPLAY, MEAN_PATH = "replay", "mean path"
Path = list[tuple[float, float]]


def control_name(policy: str, control: str) -> str:
    """Return the name of a policy's control, :data:`REPLAY` or :data:`MEAN_PATH`."""
    return f"{policy}, {control}"


def with_replays(
    evaluation: Evaluation,
    controllers: Sequence[Controller],
    tasks: Sequence[Task],
    config: EvaluationConfig,
    progress: Callable[[Work], None] = lambda work: None,
    cache: ResultsCache | None = None,
    checkpoints: RunCheckpoints | None = None,
) -> Evaluation:
    """Return an evaluation and the replays of each of its policies, which need no rate: their path is given.

    A run for which no other seed has a path has no replay.

    :param controllers: those of the evaluation
    :param tasks: its tasks
    :param progress: called after every run, with the replays run and to be run
    """
    policies = [controller for controller in controllers if starts_anywhere(controller)]
    runs, by_name = rows_of(evaluation.runs, policies), {task.name: task for task in tasks}
    jobs = replay_jobs(evaluation, runs, by_name, config.device)
    workload = Workload(progress)
    workload.add(jobs)
    rows = run_jobs(jobs, config.workers, workload.done, cache, config.engine, checkpoints)
    before = len(evaluation.runs)
    names = {control_name(policy.name, control) for policy in policies for control in (REPLAY, MEAN_PATH)}
    return replace(
        evaluation,
        runs=pd.concat([evaluation.runs, runs_frame(rows)], ignore_index=True) if rows else evaluation.runs,
        paths=[*evaluation.paths, *(row["path"] for row in rows)],
        losses=[*evaluation.losses, *(row["losses"] for row in rows)],
        own_rates=evaluation.own_rates | names,
        failures=evaluation.failures
        | {before + number: row["failed"] for number, row in enumerate(rows) if "failed" in row},
    )


def replay_jobs(evaluation: Evaluation, runs: pd.DataFrame, tasks: dict[str, Task], device: str) -> list[Job]:
    """Return the replays of some runs of an evaluation.

    :param runs: rows of policies
    """
    jobs = []
    for key, own in runs.groupby([*SETTING, "controller", "initial_lr"], sort=False):
        task, optimizer, budget, policy, rate = key
        paths = {int(seed): evaluation.paths[int(row)] for row, seed in own.seed.items()}
        for seed, by_control in controls(paths).items():
            episode = Episode(tasks[str(task)], str(optimizer), int(budget), float(rate), seed, device)
            for control, path in by_control.items():
                jobs.append(Job(ReplayController(control_name(str(policy), control), path), episode))
    return jobs


def controls(paths: dict[int, Path]) -> dict[int, dict[str, Any]]:
    """Return for each seed the path of each control that there is one for.

    :param paths: what a policy took, by seed, at the same points of progress; NaN after the end of a run given up
    """
    seeds = sorted(paths)
    result: dict[int, dict[str, Any]] = {}
    for place, seed in enumerate(seeds):
        others = [paths[other] for other in seeds if other != seed]
        made = {REPLAY: usable(paths[seeds[place - 1]]), MEAN_PATH: usable(mean_path(others))} if others else {}
        result[seed] = {control: path for control, path in made.items() if path}
    return result


def mean_path(paths: Sequence[Path]) -> Path:
    """Return the geometric mean of the rates at each point of progress, over the paths that have one there."""
    means = geometric_mean(np.log(np.array([[rate for _, rate in path] for path in paths])))
    return [(t, float(mean)) for (t, _), mean in zip(paths[0], means, strict=True)]


def usable(path: Path) -> tuple[tuple[float, float], ...]:
    """Return the points of a path at which there is a rate above 0."""
    return tuple((float(t), float(rate)) for t, rate in path if rate > 0.0)
