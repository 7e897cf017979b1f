"""Plots as plain figures in pixels, and the same as tables. Each is made once and drawn by two writers.

The template of the HTML report writes them as SVG, :mod:`agents.reports.pictures` as PNG. Matplotlib's own SVG cannot
take the template's place: it styles each element by an attribute, which the report's content security policy forbids,
and so it could neither be switched by controller nor follow a dark screen.

Coordinates are those of a view box of :data:`WIDTH` x :data:`HEIGHT`, from the top left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from agents.evaluation.results import Evaluation, Setting
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
ERROR = "test error"
_ROOM = 30.0  # losses are drawn up to this many times the lowest


@dataclass(frozen=True)
class Axis:
    """One axis, from a range of values to a range of pixels; logarithmic by default."""

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
            return [(self.place(value), f"{value:.3g}") for value in np.linspace(self.low, self.high, 6).round(6)]
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
    :param colour: class c0 .. c7 of the style sheet; None: the ink of the text
    :param dash: class d0 .. d2
    :param shape: of its marks, a place in :data:`MARKS`
    :param broad: whether its lines are broad
    """

    index: int
    name: str
    colour: int | None
    dash: int
    shape: int
    broad: bool

    @property
    def style(self) -> str:
        """Classes of the style sheet."""
        colour = "ink" if self.colour is None else f"c{self.colour}"
        return f"{colour} d{self.dash}{' broad' * self.broad}"

    @property
    def mark(self) -> str:
        """SVG path of its marks."""
        return MARKS[self.shape]


@dataclass(frozen=True)
class Mark:
    """A point of a line, with the text that it shows; ``bar`` is its interval, from above to below, in pixels."""

    x: float
    y: float
    text: str
    bar: tuple[float, float] | None = None
    outside: bool = False


@dataclass(frozen=True)
class Series:
    """What one controller has in a plot: lines as points with what they say, and marks."""

    look: Look
    lines: list[tuple[list[tuple[float, float]], str]]
    marks: list[Mark] = field(default_factory=list)

    @property
    def paths(self) -> list[tuple[str, str]]:
        """The lines as SVG paths, with as few digits as they need; an empty one for a line without points."""
        return [("M" + "L".join(f"{x:g} {y:g}" for x, y in line) if line else "", text) for line, text in self.lines]


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
    levels: Sequence[tuple[float, str]] = ()


def looks(evaluation: Evaluation) -> dict[str, Look]:
    """Return how each controller is drawn: the first policy in the ink of the text, policies with broad lines.

    Colours that come round again have other dashes and marks.
    """
    policies, result, others = evaluation.policies, {}, 0
    for index, name in enumerate(evaluation.controllers):
        if policies and name == policies[0]:
            result[name] = Look(index, name, None, 0, 0, True)
            continue
        dash = (others // COLOURS + (name not in evaluation.references and name not in policies)) % DASHES
        shape = (others + others // COLOURS) % len(MARKS)
        result[name] = Look(index, name, others % COLOURS, dash, shape, name in policies)
        others += 1
    return result


@dataclass(frozen=True)
class _End:
    """What runs of one controller from one initial rate ended with: mean over seeds and its 95 % interval."""

    rate: float
    mean: float
    low: float
    high: float
    learned_nothing: bool = False


def loss_against_rate(
    evaluation: Evaluation, setting: Setting, style: dict[str, Look], relative_to: float = 1.0
) -> Plot:
    """Test loss at the end against the initial rate (the REX paper's Figure 3).

    :param relative_to: a rate that initial rates are divided by
    """
    best = evaluation.best_loss(setting)
    levels = {"best tuned schedule": best, "learned nothing": evaluation.trivial.get(setting.task, math.nan)}
    losses = evaluation.runs_of(setting).test_loss
    return _against_rate(evaluation, setting, style, losses, "test loss", levels=levels, relative_to=relative_to)


def metric_against_rate(evaluation: Evaluation, setting: Setting, style: dict[str, Look]) -> Plot:
    """The task's metric on the test split against the initial rate, an accuracy as the error."""
    runs, words = evaluation.runs_of(setting), metric_words(evaluation, setting)
    values = 1.0 - runs.test_metric if words == ERROR else runs.test_metric
    return _against_rate(evaluation, setting, style, values, words, log=words == ERROR)


def metric_words(evaluation: Evaluation, setting: Setting) -> str:
    """Return what is drawn of a task's metric: :data:`ERROR` for an accuracy, else the metric's name."""
    metric = str(evaluation.runs_of(setting).metric.iloc[0])
    return ERROR if metric.startswith("accuracy") else metric


def _against_rate(
    evaluation: Evaluation,
    setting: Setting,
    style: dict[str, Look],
    values: pd.Series,
    words: str,
    log: bool = True,
    levels: Mapping[str, float] | None = None,
    relative_to: float = 1.0,
) -> Plot:
    """Means over seeds with 95 % intervals; what ignores the initial rate is a level line.

    :param values: of the runs of the setting
    :param words: what they are
    :param levels: heights of dotted lines by what they are; drawn where they are inside
    """
    ends = dict(_ends(evaluation, setting, values, relative_to))
    y_axis = _heights([end for own in ends.values() for end in own], log)
    rates = [end.rate for own in ends.values() for end in own if not math.isnan(end.rate)]
    x_axis = Axis(0.8 * min(rates, default=1e-3), 1.25 * max(rates, default=1e-1), LEFT, RIGHT)
    series, rows, said, cut = [], [], [], 0
    for name, own in ends.items():
        marks = []
        for end in own:
            start = "" if math.isnan(end.rate) else f" from {end.rate:.2g}"
            outside = not end.mean <= y_axis.high
            cut += outside
            bar = (y_axis.place(end.high), y_axis.place(end.low))
            marks.append(
                Mark(
                    RIGHT if math.isnan(end.rate) else x_axis.place(end.rate),
                    TOP + 7 if outside else y_axis.place(end.mean),
                    f"{name}{start}: {_value(end.mean)}{_interval(end.low, end.high)}"
                    + ", some learned nothing" * end.learned_nothing,
                    bar if end.low < end.high < math.inf and not outside else None,
                    outside,
                )
            )
            rows.append([(name, None), number(end.rate, ".2g"), number(end.mean), number(end.low), number(end.high)])
        start_of_line = [(LEFT, marks[0].y)] if math.isnan(own[0].rate) else []
        series.append(Series(style[name], [([*start_of_line, *((mark.x, mark.y) for mark in marks)], "")], marks))
        said.append(_range_in_words(name, own))
    inside = {what: level for what, level in (levels or {}).items() if y_axis.low <= level <= y_axis.high}
    note = f"Dotted: {', '.join(inside)}. " if inside else ""
    if cut:
        note += f"{cut} point{'s' if cut > 1 else ''} above the plot, or diverged: hollow triangles at its top."
    columns = [Column("controller"), *(Column(n, True) for n in ("initial rate", words, "95 % from", "to"))]
    title = f"{words[0].upper()}{words[1:]} at the end against the initial learning rate"
    return Plot(
        title,
        "initial learning rate (one-cycle: peak)",
        words,
        x_axis.ticks(),
        y_axis.ticks(),
        series,
        " ".join(said),
        Table(f"{title}: {setting.title}", columns, rows),
        note,
        [(y_axis.place(level), f"{what}: {level:.4f}") for what, level in inside.items()],
    )


def _ends(
    evaluation: Evaluation, setting: Setting, values: pd.Series, relative_to: float
) -> Iterator[tuple[str, list[_End]]]:
    """Give each controller and its ends by ascending rate; one without a rate for what ignores it."""
    for name, own in evaluation.runs_of(setting).groupby("controller", sort=False):
        if name in evaluation.own_rates:
            nothing = bool(evaluation.learned_nothing(own).any())
            yield str(name), [_End(math.nan, float(values[own.index].mean()), math.nan, math.nan, nothing)]
            continue
        ends = []
        for rate, part in own.groupby("initial_lr"):
            figures, nothing = values[part.index], bool(evaluation.learned_nothing(part).any())
            interval = bootstrap_interval(figures.to_numpy())
            ends.append(_End(float(rate) / relative_to, float(figures.mean(skipna=False)), *interval, nothing))
        yield str(name), ends


def _heights(ends: Sequence[_End], log: bool) -> Axis:
    """Return the axis of values: all that is finite, on a logarithmic one up to :data:`_ROOM` times the lowest."""
    if not log:
        known = [value for end in ends for value in (end.low, end.mean, end.high) if math.isfinite(value)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        margin = 0.06 * (high - low) or 0.1
        return Axis(low - margin, high + margin, BOTTOM, TOP, log=False)
    means = [end.mean for end in ends if 0 < end.mean < math.inf]
    lowest = min(means, default=1.0)
    highs = [end.high for end in ends if lowest < end.high < math.inf]
    highest = min(_ROOM * lowest, 1.15 * max([*means, *highs], default=10.0))
    lows = [end.low for end in ends if end.low > 0]
    return Axis(0.85 * min([lowest, *lows]), max(highest, 1.2 * lowest), BOTTOM, TOP)


def _range_in_words(name: str, ends: Sequence[_End]) -> str:
    low, high = min(ends, key=_mean), max(ends, key=_mean)
    if math.isnan(low.rate):
        return f"{name} ignores the initial rate: {_value(low.mean)}."
    if len(ends) == 1:
        return f"{name} from {low.rate:.2g}: {_value(low.mean)}."
    return f"{name}: lowest {_value(low.mean)} from {low.rate:.2g}, highest {_value(high.mean)} from {high.rate:.2g}."


def _mean(end: _End) -> float:
    return math.inf if math.isnan(end.mean) else end.mean


def _value(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _interval(low: float, high: float) -> str:
    return f" (95 % interval {low:.4f} to {high:.4f})" if math.isfinite(low) else ""
