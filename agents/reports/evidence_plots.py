"""Test loss against the initial rate relative to the tuned one: flat for a policy, V-shaped for schedules."""

from __future__ import annotations

import math
from pathlib import Path

from agents.evaluation.results import Evaluation, Setting, by_seed_and_rate
from agents.evaluation.suite import PartResult
from agents.reports.pictures import COLOURS, MARKERS, plain_legend
from gns.tools.drawing import dpi_within_budget

_COLUMNS = 3


def draw_relative_rates(path: Path, result: PartResult) -> list[Path]:
    """Draw a panel for each task, optimizer and budget (Figure 3 of the REX paper with another abscissa).

    :return: the file; none where no policy starts from several rates, or there is no schedule to be relative to
    """
    evaluation = result.evaluation
    if evaluation is None or not evaluation.references:
        return []
    policies = [name for name in result.policies if name in evaluation.controllers]
    own = [evaluation.runs_of(setting, name) for setting in evaluation.settings for name in policies]
    if max((runs.initial_lr.nunique() for runs in own), default=0) < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = 2 if len(evaluation.settings) in (2, 4) else min(_COLUMNS, len(evaluation.settings))
    rows = math.ceil(len(evaluation.settings) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6.5, 4.2 * columns), 3.5 * rows + 0.9), layout="constrained", squeeze=False
    )
    for axis, setting in zip(axes.flat, evaluation.settings, strict=False):
        _draw_panel(axis, evaluation, setting, policies)
        axis.set_title(setting.title, fontsize=9, parse_math=False)
    for axis in axes.flat[len(evaluation.settings) :]:
        axis.remove()
    for row in axes:
        row[0].set_ylabel("test loss")
    figure.supxlabel("initial learning rate / tuned rate of the schedule that is best on the reward split", fontsize=10)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    ncols = 5 if columns < 3 else len(labels)
    plain_legend(figure, handles, labels, loc="outside upper center", ncols=ncols, fontsize=8)
    figure.savefig(path, dpi=dpi_within_budget(figure))
    plt.close(figure)
    return [path]


def _draw_panel(axis: object, evaluation: Evaluation, setting: Setting, policies: list[str]) -> None:
    """Means over seeds; a band or bars from the lowest to the highest would hide the shape, so there are none."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator, NullFormatter

    assert isinstance(axis, Axes)
    anchor = evaluation.tuned_rate(setting, str(evaluation.chosen_schedule(setting)))
    trivial, shown = evaluation.trivial[setting.task], list[float]()
    drawn = [name for name in evaluation.controllers if name in evaluation.references or name in policies]
    for number, name in enumerate(drawn):
        means = by_seed_and_rate(evaluation.runs_of(setting, name), "test_loss").mean()
        place = policies.index(name) if name in policies else -1
        shade = f"{0.6 * place / max(1, len(policies)):.2f}"
        axis.plot(
            means.index / anchor,
            means.to_numpy(),
            label=name,
            color=shade if place >= 0 else COLOURS[number % len(COLOURS)],
            marker="*" if place >= 0 else MARKERS[number % len(MARKERS)],
            markersize=9 if place >= 0 else 3.5,
            linewidth=2.4 if place >= 0 else 1.1,
            zorder=5 if place >= 0 else 2,
        )
        shown += [value for value in means if math.isfinite(value)]
    axis.axhline(trivial, color="grey", linestyle="--", linewidth=1.0, label="a model that has learned nothing")
    axis.set(xscale="log", yscale="log")
    if shown:
        low = min(shown)
        axis.set_ylim(low / (trivial / low) ** 0.08, trivial * (trivial / low) ** 0.12 if trivial > low else None)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
