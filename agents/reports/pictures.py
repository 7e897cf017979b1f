"""PNG pictures of the plots of :mod:`agents.reports.plots`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import Any

from agents.evaluation.results import Evaluation
from agents.reports.plots import BOTTOM, LEFT, RIGHT, TOP, Look, Plot, looks, loss_against_rate, metric_against_rate
from agents.reports.plots_over_time import rate_paths, training_losses
from gns.tools.drawing import dpi_within_budget

# Okabe and Ito's colours, told apart in every common form of colour blindness.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000"]
MARKERS = ["o", "s", "^", "v", "D", "P"]  # the shapes of agents.reports.plots.MARKS
_DASHES = ["-", "--", ":"]


def draw_settings(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Draw rates.png and initial_rate.png, of each setting where there are several; return their paths."""
    style, written = looks(evaluation), []
    for setting in evaluation.settings:
        over_time = [rate_paths(evaluation, setting, style, 100), training_losses(evaluation, setting, style, 100)]
        ends = [draw(evaluation, setting, style) for draw in (loss_against_rate, metric_against_rate)]
        tag = f"_{'_'.join(map(str, setting))}" if len(evaluation.settings) > 1 else ""
        for name, plots in (("rates", over_time), ("initial_rate", ends)):
            written.append(folder / f"{name}{tag}.png")
            draw_plots(written[-1], setting.title, [plot for plot in plots if plot is not None])
    return written


def draw_relative_rates(path: Path, evaluation: Evaluation) -> list[Path]:
    """Draw test losses against initial rates relative to that of the schedule that is best on the reward split.

    A policy should be flat in it, schedules are V-shaped. Each setting has a plot.

    :return: the file; none where no policy starts from several rates, or there is no schedule
    """
    chosen = {setting: evaluation.chosen_schedule(setting) for setting in evaluation.settings}
    starts = [evaluation.runs_of(setting, name).initial_lr for setting in chosen for name in evaluation.policies]
    if None in chosen.values() or max((rates.nunique() for rates in starts), default=0) < 2:
        return []
    style, plots = looks(evaluation), []
    for setting, name in chosen.items():
        plot = loss_against_rate(evaluation, setting, style, evaluation.tuned_rate(setting, str(name)))
        plots.append(replace(plot, title=setting.title, x_label="initial rate / tuned rate"))
    draw_plots(path, "Test loss against the initial rate, relative to the tuned rate of the chosen schedule", plots, 3)
    return [path]


def draw_plots(path: Path, title: str, plots: Sequence[Plot], columns: int = 2) -> None:
    """Draw plots in rows, with one legend of all controllers.

    :param columns: plots in a row, at most
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(columns, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure = plt.figure(figsize=(5.6 * columns, 3.9 * rows + 0.6), layout="constrained")
    for number, plot in enumerate(plots):
        axis = figure.add_subplot(rows, columns, number + 1)
        axis.set(xlim=(LEFT, RIGHT), ylim=(BOTTOM, TOP))
        axis.set_xticks([place for place, _ in plot.x_ticks], [text for _, text in plot.x_ticks], fontsize=8)
        axis.set_yticks([place for place, _ in plot.y_ticks], [text for _, text in plot.y_ticks], fontsize=8)
        axis.set_xlabel(plot.x_label, parse_math=False)
        axis.set_ylabel(plot.y_label, parse_math=False)
        axis.set_title("\n".join([plot.title, *wrap(plot.note, 72)]), fontsize=8, parse_math=False)
        axis.grid(alpha=0.3)
        for series in reversed(plot.series):
            how = _how(series.look)
            for points, _ in series.lines:
                alpha = 0.5 if len(series.lines) > 3 else 1.0
                axis.plot([x for x, _ in points], [y for _, y in points], alpha=alpha, **how)
            for mark in series.marks:
                face: dict[str, Any] = {"markerfacecolor": "none"} if mark.outside else {}
                shape = "^" if mark.outside else MARKERS[series.look.shape]
                axis.plot(mark.x, mark.y, color=how["color"], marker=shape, markersize=5, clip_on=False, **face)
                if mark.bar:
                    axis.vlines(mark.x, *mark.bar, color=how["color"], linewidth=1.0)
        for height, _ in plot.levels:
            axis.axhline(height, color="grey", linestyle=":", linewidth=1.2)
    figure.suptitle(title, parse_math=False)
    legend = [plt.Line2D([], [], marker=MARKERS[s.look.shape], markersize=4, **_how(s.look)) for s in plots[0].series]
    names = [series.look.name for series in plots[0].series]
    for text in figure.legend(legend, names, loc="outside lower center", ncols=5, fontsize=8).get_texts():
        text.set_parse_math(False)  # a dollar sign in a name begins no formula
    figure.savefig(path, dpi=dpi_within_budget(figure))
    plt.close(figure)


def _how(look: Look) -> dict[str, Any]:
    colour = "black" if look.colour is None else COLOURS[look.colour]
    return {"color": colour, "linestyle": _DASHES[look.dash], "linewidth": 2.4 if look.broad else 1.2}
