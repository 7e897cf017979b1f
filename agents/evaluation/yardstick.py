"""What each method of an evaluation is worth in tries: :mod:`agents.evaluation.worth` on its results.

It needs ``tuning_seeds`` of 2 or more: curves come from the runs that schedules were tuned by, and everything, tuned
schedules too, is measured on fresh seeds. Settings in which no tuned schedule learned anything are left out and named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from agents.evaluation.results import TUNING_SEED, Evaluation, Setting
from agents.evaluation.worth import TuningCurve, Worth, log_loss, worth_over_settings

SCHEDULES = ("cosine", "rex")  # whose tuning curves tries are counted by, where they were run
_LEAST_ERROR = 1e-3  # of a metric: below it, one example more or less would decide
LOSS, ERROR = "test loss", "test error"


@dataclass(frozen=True)
class Valued:
    """What one method is worth.

    :param method: name of the controller
    :param schedule: whose tries it is counted in
    :param quantity: :data:`LOSS`, or :data:`ERROR`, 1 minus a metric such as the accuracy
    :param settings: how many it is over
    :param worth: in tries
    :param ratio: geometric mean over settings of its figure over that of the schedule tuned on seeds of their own
    :param cost: updates of one result over the budget, search and tuning among them
    """

    method: str
    schedule: str
    quantity: str
    settings: int
    worth: Worth
    ratio: float
    cost: float


@dataclass(frozen=True)
class Yardstick:
    """Worth of every method.

    :param rows: best first, by the pooled figure, for each schedule and quantity
    :param left_out: settings in which nothing tuned learned anything
    """

    rows: list[Valued]
    left_out: list[Setting]


def yardstick(evaluation: Evaluation, resamples: int = 500) -> Yardstick:
    """Return what each method of an evaluation is worth; nothing where schedules were not tuned on seeds of their own.

    :param resamples: of the bootstrap
    """
    schedules = [name for name in SCHEDULES if name in evaluation.references]
    tuned_apart = [
        setting
        for setting in evaluation.settings
        if schedules and evaluation.runs_of(setting, schedules[0]).seed.ge(TUNING_SEED).any()
    ]
    left_out = [setting for setting in tuned_apart if _nothing_learned(evaluation, setting)]
    settings = [setting for setting in tuned_apart if setting not in left_out]
    rows = []
    for schedule in schedules:
        for quantity, of_runs, ceiling in _QUANTITIES:
            asked = [setting for setting in settings if math.isfinite(ceiling(evaluation, setting))]
            curves = {
                setting: _curve(evaluation, setting, schedule, of_runs, ceiling(evaluation, setting))
                for setting in asked
            }
            found = [
                _valued(evaluation, name, schedule, quantity, of_runs, curves, resamples)
                for name in evaluation.controllers
                if curves
            ]
            rows += sorted(found, key=lambda row: -row.worth.pooled)
    return Yardstick(rows, left_out)


def _valued(
    evaluation: Evaluation,
    method: str,
    schedule: str,
    quantity: str,
    of_runs: Callable[[pd.DataFrame], np.ndarray],
    curves: dict[Setting, TuningCurve],
    resamples: int,
) -> Valued:
    runs = {setting: evaluation.counted(setting, method) for setting in curves}
    losses = [of_runs(runs[setting]) for setting in curves]
    floors = [of_runs(evaluation.counted(setting, schedule)) for setting in curves]
    ratios = [
        log_loss(own, curve.ceiling).mean() - log_loss(floor, curve.ceiling).mean()
        for own, floor, curve in zip(losses, floors, curves.values(), strict=True)
    ]
    everything = pd.concat(list(runs.values()))
    updates = (everything.updates + everything.search_updates) / everything.budget
    tried = [len(evaluation.tuning_runs(setting, method)) for setting in curves]
    tuned = not math.isnan(evaluation.tuned_rate(next(iter(curves)), method))
    return Valued(
        method,
        schedule,
        quantity,
        len(curves),
        worth_over_settings(list(curves.values()), losses, resamples=resamples),
        math.exp(float(np.mean(ratios))),
        float(updates.mean()) + (float(np.mean(tried)) if tuned else 0.0),
    )


def _curve(
    evaluation: Evaluation,
    setting: Setting,
    schedule: str,
    of_runs: Callable[[pd.DataFrame], np.ndarray],
    ceiling: float,
) -> TuningCurve:
    runs = evaluation.tuning_runs(setting, schedule)
    table = runs.assign(measured=of_runs(runs))
    tuning, measured = (table.pivot(index="seed", columns="initial_lr", values=v) for v in ("reward_loss", "measured"))
    return TuningCurve(
        tuning.columns.to_numpy(dtype=float), tuning.to_numpy(dtype=float), measured.to_numpy(dtype=float), ceiling
    )


def _nothing_learned(evaluation: Evaluation, setting: Setting) -> bool:
    tuned: Sequence[str] = [name for name in evaluation.controllers if name in evaluation.references]
    return all(evaluation.learned_nothing(evaluation.counted(setting, name)).all() for name in tuned)


def _error(runs: pd.DataFrame) -> np.ndarray:
    return np.maximum(1.0 - runs.test_metric.to_numpy(dtype=float), _LEAST_ERROR)


def _error_ceiling(evaluation: Evaluation, setting: Setting) -> float:
    """The worst error; infinite for what is no share that is better when higher."""
    metric = evaluation.runs_of(setting).test_metric
    share = evaluation.higher_is_better.get(setting.task, False) and metric.dropna().between(0.0, 1.0).all()
    return 1.0 if share else math.inf


_QUANTITIES: tuple[tuple[str, Callable[[pd.DataFrame], np.ndarray], Callable[[Evaluation, Setting], float]], ...] = (
    (LOSS, lambda runs: runs.test_loss.to_numpy(dtype=float), lambda evaluation, s: evaluation.trivial[s.task]),
    (ERROR, _error, _error_ceiling),
)
