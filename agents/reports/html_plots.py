"""Plots of the HTML report as plain figures in pixels, which the template writes as SVG; and the same as tables.

Coordinates are those of a view box of :data:`WIDTH` x :data:`HEIGHT`, from the top left. What is drawn is what the PNGs
of :mod:`agents.reports.files` show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from agents.evaluation.comparison import Line
from agents.evaluation.protocol import SETTING, Evaluation
from agents.evaluation.statistics import bootstrap_interval
from agents.reports.html_tables import Column, Table, number

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 92, 546, 14, 322  # edges of the drawing area
BOX = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
COLOURS = 8  # classes c0 .. c7 of the style sheet
DASHES = 3  # classes d0 .. d2
# Paths from a mark's middle, 5 pixels around it: circle, square, triangles, diamond, cross.
MARKS = (
    "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "m-4 -4h8v8h-8z",
    "m0 -5l5 9h-10z",
    "m0 5l5 -9h-10z",
    "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "m-5 -2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
)
OFF_MARK = "m0 -6l5 8h-10z"
_ROOM = 30.0  # losses are drawn up to this many times the lowest


@dataclass(frozen=True)
class Axis:
    """One axis, from a range of values to a range of pixels; logarithmic unless told otherwise."""

    low: float
    high: float
    start: float
    end: float
    log: bool = True

    def place(self, value: float) -> float:
        """Return the pixel of a value, within the axis."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return pixels and labels: at most 7, round numbers."""
        if not self.log:
            return [(self.place(value), f"{value:g}") for value in np.linspace(self.low, self.high, 6).round(6)]
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            values = [m * 10.0**e for e in range(first, last + 1) for m in factors]
            inside = [value for value in values if self.low <= value <= self.high * (1 + 1e-9)]
            if len(inside) <= 7:
                break
        else:
            inside = inside[:: math.ceil(len(inside) / 7)]
        if len(inside) < 2:
            inside = [self.low, self.high]
        return [(self.place(value), f"{value:.3g}") for value in inside]


@dataclass(frozen=True)
class Look:
    """How a controller is drawn everywhere.

    :param index: its place among the controllers
    :param style: classes of the style sheet
    :param mark: path of its marks
    """

    index: int
    name: str
    style: str
    mark: str


@dataclass(frozen=True)
class Mark:
    """A point of a line, with what it says; ``bar`` is its interval, from above to below, in pixels."""

    x: float
    y: float
    text: str
    bar: tuple[float, float] | None = None
    outside: bool = False


@dataclass(frozen=True)
class Series:
    """What one controller has in a plot: lines as SVG paths with what they say, and marks."""

    look: Look
    paths: list[tuple[str, str]]
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """A plot, a text that says what it shows, and its figures as a table."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Series]
    text: str
    figures: Table
    note: str = ""
    level: tuple[float, str] | None = None


def from_any_rate(evaluation: Evaluation) -> list[str]:
    """Return the names of controllers that are run from each initial rate as given: policies."""
    tuned = {*evaluation.tuned.controller, *evaluation.own_rates}
    return [name for name in evaluation.runs.controller.unique() if name not in tuned]


def looks(evaluation: Evaluation) -> dict[str, Look]:
    """Return how each controller is drawn: the first policy in the ink of the text, policies with broad lines.

    Colours that come round again have other dashes and marks.
    """
    policies, result, others = from_any_rate(evaluation), {}, 0
    for index, name in enumerate(map(str, evaluation.runs.controller.unique())):
        if policies and name == policies[0]:
            result[name] = Look(index, name, "ink d0 broad", MARKS[0])
            continue
        dash = (others // COLOURS + (name not in evaluation.references and name not in policies)) % DASHES
        style = f"c{others % COLOURS} d{dash}{' broad' if name in policies else ''}"
        result[name] = Look(index, name, style, MARKS[(others + others // COLOURS) % len(MARKS)])
        others += 1
    return result


def loss_against_rate(
    runs: pd.DataFrame, evaluation: Evaluation, lines: Sequence[Line], style: dict[str, Look]
) -> Plot:
    """Test loss at the end against the initial rate, with 95 % intervals over seeds (the REX paper's Figure 3).

    :param runs: of one setting
    :param lines: of that setting
    """
    best = min((line.test_loss for line in lines if line.controller in evaluation.references), default=math.nan)
    stats = {name: _by_rate(own) for name, own in runs.groupby("controller", sort=False)}
    means = [point[1] for points in stats.values() for point in points if 0 < point[1] < math.inf]
    lowest = min(means, default=1.0)
    ends = [high for points in stats.values() for *_, high in points if lowest < high < math.inf]
    highest = min(_ROOM * lowest, 1.15 * max([*means, *ends], default=10.0))
    y_axis = Axis(
        0.85 * min([lowest, *(point[2] for points in stats.values() for point in points if point[2] > 0)]),
        max(highest, 1.2 * lowest),
        BOTTOM,
        TOP,
    )
    rates = [rate for name, points in stats.items() if name not in evaluation.own_rates for rate, *_ in points]
    x_axis = Axis(0.8 * min(rates, default=1e-3), 1.25 * max(rates, default=1e-1), LEFT, RIGHT)
    series, rows, said, cut = [], [], [], 0
    for name, points in stats.items():
        level = name in evaluation.own_rates
        if level:
            points = [(math.nan, float(runs[runs.controller == name].test_loss.mean()), math.nan, math.nan)]
        marks = []
        for rate, mean, low, high in points:
            text = f"{name}{'' if level else f' from {rate:.2g}'}: {_loss(mean)}{_interval(low, high)}"
            outside = not mean <= y_axis.high
            cut += outside
            bar = (y_axis.place(high), y_axis.place(low)) if low < high < math.inf and not outside else None
            x = RIGHT if level else x_axis.place(rate)
            marks.append(Mark(x, TOP + 7 if outside else y_axis.place(mean), text, bar, outside))
            rows.append([(name, None), number(rate, ".2g"), number(mean), number(low), number(high)])
        path = f"M{LEFT} {marks[0].y}H{RIGHT}" if level else path_of([(mark.x, mark.y) for mark in marks])
        series.append(Series(style[name], [(path, "")], marks))
        said.append(_range_in_words(name, points, level))
    note = "Dotted: the best tuned schedule. " * math.isfinite(best)
    if cut:
        note += f"{cut} point{'s' if cut > 1 else ''} above the plot, or diverged: hollow triangles at its top."
    columns = [Column("controller"), *(Column(n, True) for n in ("initial rate", "test loss", "95 % from", "to"))]
    title = "Test loss at the end against the initial learning rate"
    return Plot(
        title,
        "initial learning rate (one-cycle: peak)",
        "test loss",
        x_axis.ticks(),
        y_axis.ticks(),
        series,
        " ".join(said),
        Table(f"{title}: {setting_of(runs)}", columns, rows),
        note,
        (y_axis.place(best), f"best tuned schedule: {best:.4f}") if math.isfinite(best) else None,
    )


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path through points, with as few digits as they need."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _by_rate(own: pd.DataFrame) -> list[tuple[float, float, float, float]]:
    """Initial rate, mean test loss and its interval over seeds, by ascending rate."""
    return [
        (float(rate), float(part.test_loss.mean(skipna=False)), *bootstrap_interval(part.test_loss.to_numpy()))
        for rate, part in own.groupby("initial_lr")
    ]


def _range_in_words(name: str, points: Sequence[tuple[float, float, float, float]], level: bool) -> str:
    if level:
        return f"{name} ignores the initial rate: {_loss(points[0][1])}."
    low, high = min(points, key=_mean), max(points, key=_mean)
    if len(points) == 1:
        return f"{name} from {low[0]:.2g}: {_loss(low[1])}."
    return f"{name}: lowest {_loss(low[1])} from {low[0]:.2g}, highest {_loss(high[1])} from {high[0]:.2g}."


def _mean(point: tuple[float, float, float, float]) -> float:
    return math.inf if math.isnan(point[1]) else point[1]


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _interval(low: float, high: float) -> str:
    return f" (95 % interval {low:.4f} to {high:.4f})" if math.isfinite(low) else ""


def setting_of(runs: pd.DataFrame) -> str:
    """Say which setting runs belong to."""
    task, optimizer, budget = runs[SETTING].iloc[0]
    return f"{task}, {optimizer}, {budget} updates"
