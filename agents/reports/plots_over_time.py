"""Plots of learning rates and of training losses over the share of the budget spent, on the same horizontal axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd

from agents.evaluation.mean_paths import geometric_mean, log_losses, log_rates, progress_of
from agents.evaluation.results import Evaluation, Setting
from agents.reports.html_tables import Column, Table, number
from agents.reports.plots import BOTTOM, LEFT, RIGHT, TOP, Axis, Look, Plot, Series

_POINTS = 60  # of a path, at most
_SHARES = {"first update": 0.0, "a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "at 95 %": 0.95}
_PROGRESS = Axis(0.0, 1.0, LEFT, RIGHT, log=False)
_ROOM = 3.0  # losses are drawn up to this many times the median of the first ones


@dataclass(frozen=True)
class _Curve:
    """Means over the runs of one controller from one initial rate, at the same points of progress."""

    name: str
    start: float
    words: str
    progress: np.ndarray
    values: np.ndarray

    def thinned(self, points: int) -> np.ndarray:
        """Return the numbers of evenly spaced points, both ends among them."""
        count = len(self.progress)
        return np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(int))

    def at(self, share: float) -> float:
        """Return the value when a share of the points is over."""
        return float(self.values[int(share * (len(self.values) - 1))]) if len(self.values) else math.nan


def rate_paths(evaluation: Evaluation, setting: Setting, style: dict[str, Look], points: int = _POINTS) -> Plot:
    """Learning rate over progress, geometric mean over seeds: tuned controllers at their rate, others from each.

    :param points: of a path, at most
    """
    curves = _curves(evaluation, setting, log_rates(evaluation, evaluation.runs_of(setting)))
    shown = [v for c in curves for t, v in zip(c.progress, c.values, strict=True) if t < 0.95 and v > 0]
    y_axis = Axis(0.7 * min(shown, default=1e-4), 1.4 * max(shown, default=1e-1), BOTTOM, TOP)
    # Once a rate has fallen below the plot its line ends there.
    places = [
        [i for i in curve.thinned(points) if y_axis.low <= curve.values[i] or (i and curve.values[i - 1] >= y_axis.low)]
        for curve in curves
    ]
    return Plot(
        title := "Learning rate over progress",
        "share of the budget spent",
        "learning rate",
        _PROGRESS.ticks(),
        y_axis.ticks(),
        _series(curves, places, y_axis, style),
        _halfway(curves, "the rate", ".2g"),
        _figures(f"{title}: {setting.title}", curves),
        "Schedules from their tuned rate, policies from each initial rate.",
    )


def training_losses(
    evaluation: Evaluation, setting: Setting, style: dict[str, Look], points: int = _POINTS
) -> Plot | None:
    """Loss of the training batches over progress, geometric mean over seeds, of the runs that :func:`rate_paths` shows.

    :param points: of a path, at most
    :return: None where the losses are not known
    """
    if not evaluation.losses:
        return None
    curves = _curves(evaluation, setting, log_losses(evaluation, evaluation.runs_of(setting)))
    shown = [value for curve in curves for value in curve.values if 0 < value < math.inf]
    firsts = [curve.at(0.0) for curve in curves if 0 < curve.at(0.0) < math.inf]
    if not firsts:
        return None
    top = min(1.15 * max(shown), _ROOM * median(firsts))
    y_axis = Axis(min(0.85 * min(shown), 0.5 * top), top, BOTTOM, TOP)
    places = [  # not NaN: where all runs had been given up
        [i for i in curve.thinned(points) if curve.values[i] > 0] for curve in curves
    ]
    above = sum(any(curve.values[i] > top for i in numbers) for curve, numbers in zip(curves, places, strict=True))
    note = f"{above} line{'s' if above > 1 else ''} along the top: above it there, or diverged." if above else ""
    return Plot(
        title := "Training loss over progress",
        "share of the budget spent",
        "loss of the batches",
        _PROGRESS.ticks(),
        y_axis.ticks(),
        _series(curves, places, y_axis, style),
        _halfway(curves, "the training loss", ".3g"),
        _figures(f"{title}: {setting.title}", curves),
        note,
    )


def _curves(evaluation: Evaluation, setting: Setting, logs: np.ndarray) -> list[_Curve]:
    """Return geometric means over seeds: tuned controllers at their rate, others from each.

    :param logs: logarithms by run and point, NaN where a run had ended: float (runs, points)
    """
    runs = evaluation.runs_of(setting)
    progress, places = progress_of(evaluation, runs), pd.Series(range(len(runs)), runs.index)
    found = []
    for name in map(str, runs.controller.unique()):
        for start, own in evaluation.counted(setting, name).groupby("initial_lr"):
            words = name if name in evaluation.own_rates else f"{name} from {start:.2g}"
            found.append(_Curve(name, float(start), words, progress, geometric_mean(logs[places[own.index]])))
    return found


def _series(
    curves: Sequence[_Curve], places: Sequence[Sequence[int]], y_axis: Axis, style: dict[str, Look]
) -> list[Series]:
    """Return the lines of each controller.

    :param places: numbers of the points of each curve that are drawn
    """
    lines: dict[str, list[tuple[list[tuple[float, float]], str]]] = {}
    for curve, numbers in zip(curves, places, strict=True):
        points = [(_PROGRESS.place(curve.progress[i]), y_axis.place(curve.values[i])) for i in numbers]
        lines.setdefault(curve.name, []).append((points, curve.words))
    return [Series(style[name], own) for name, own in lines.items()]


def _halfway(curves: Sequence[_Curve], what: str, form: str) -> str:
    """Say in words how it stands halfway."""
    said: dict[str, list[float]] = {}
    for curve in curves:
        said.setdefault(curve.name, []).append(curve.at(0.5))
    return " ".join(
        f"{name}: halfway {what} is {min(values):{form}}."
        if len(values) == 1 or min(values) == max(values)
        else f"{name}, from {len(values)} initial rates: halfway {what} is between {min(values):{form}} and "
        f"{max(values):{form}}."
        for name, values in said.items()
    )


def _figures(title: str, curves: Sequence[_Curve]) -> Table:
    columns = [Column("controller"), *(Column(name, True) for name in ("initial rate", *_SHARES))]
    rows = [
        [
            (curve.name, None),
            number(curve.start, ".2g"),
            *(number(curve.at(share), ".3g") for share in _SHARES.values()),
        ]
        for curve in curves
    ]
    return Table(title, columns, rows)
