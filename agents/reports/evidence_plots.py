"""Test loss against the initial rate relative to the tuned one: flat for a policy, V-shaped for schedules."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from agents.evaluation.protocol import SETTING, Evaluation, best_schedules
from agents.evaluation.suite import PartResult
from agents.reports.files import COLOURS, MARKERS

_COLUMNS = 3


def draw_relative_rates(path: Path, result: PartResult) -> list[Path]:
    """Draw a panel for each task, optimizer and budget (Figure 3 of the REX paper with another abscissa).

    :return: the file; none where no policy starts from several rates, or there is no schedule to be relative to
    """
    evaluation = result.evaluation
    if evaluation is None or not evaluation.references:
        return []
    policies = [name for name in result.policies if name in set(evaluation.runs.controller)]
    own = evaluation.runs[evaluation.runs.controller.isin(policies)]
    if own.empty or own.groupby([*SETTING, "controller"]).initial_lr.nunique().max() < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    anchors = best_schedules(evaluation.tuned[evaluation.tuned.controller.isin(evaluation.references)])
    groups = list(evaluation.runs.groupby(SETTING, sort=False))
    columns = 2 if len(groups) in (2, 4) else min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6.5, 4.2 * columns), 3.5 * rows + 0.9), layout="constrained", squeeze=False
    )
    for axis, (setting, runs) in zip(axes.flat, groups, strict=False):
        _draw_panel(axis, runs, evaluation, policies, anchors.loc[setting], result.trivial[setting[0]])
        axis.set_title(f"{setting[0]}, {setting[1]}, {setting[2]} updates", fontsize=9)
    for axis in axes.flat[len(groups) :]:
        axis.remove()
    for row in axes:
        row[0].set_ylabel("test loss")
    figure.supxlabel("initial learning rate / tuned rate of the schedule that is best on the reward split", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5 if columns < 3 else len(labels), fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return [path]


def _draw_panel(
    axis: object, runs: pd.DataFrame, evaluation: Evaluation, policies: list[str], anchor: pd.Series, trivial: float
) -> None:
    """Means over seeds; a band or bars from the lowest to the highest would hide the shape, so there are none."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator, NullFormatter

    assert isinstance(axis, Axes)
    shown: list[float] = []
    drawn = [name for name in runs.controller.unique() if name in evaluation.references or name in policies]
    for number, name in enumerate(drawn):
        means = runs[runs.controller == name].groupby("initial_lr").test_loss.mean()
        place = policies.index(name) if name in policies else -1
        shade = f"{0.6 * place / max(1, len(policies)):.2f}"
        axis.plot(
            means.index / anchor.tuned_lr,
            means.to_numpy(),
            label=name,
            color=shade if place >= 0 else COLOURS[number % len(COLOURS)],
            marker="*" if place >= 0 else MARKERS[number % len(MARKERS)],
            markersize=9 if place >= 0 else 3.5,
            linewidth=2.4 if place >= 0 else 1.1,
            zorder=5 if place >= 0 else 2,
        )
        shown += [value for value in means if math.isfinite(value)]
    axis.axhline(trivial, color="grey", linestyle="--", linewidth=1.0, label="learned nothing")
    axis.set(xscale="log", yscale="log")
    if shown:
        low = min(shown)
        axis.set_ylim(low / (trivial / low) ** 0.08, trivial * (trivial / low) ** 0.12 if trivial > low else None)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
