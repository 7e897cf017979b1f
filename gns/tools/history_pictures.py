"""Pictures of a run's history, drawn with matplotlib: rates and losses, layers over time, the layer graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gns.errors import InvalidSettingError, needing
from gns.features.schemas import get_schema
from gns.tools.console import printable
from gns.tools.drawing import LONGEST_LABEL, dpi_within_budget

if TYPE_CHECKING:
    from gns.scheduler.history import RunHistory

_RATE, _ROLLBACK, _LOSS = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's
_LABELLED = 60  # layers that a heat map names


def draw_rates(history: RunHistory, path: str | Path | None = None) -> Any:
    """Draw the rate of every update, a dot a decision and a cross a rollback; below, the mean loss of each interval."""
    with needing("plots"):
        from matplotlib import pyplot as plt

    updates, rates = history.rate_path()
    losses = history.losses()
    rows = 2 if losses else 1
    figure, axes = plt.subplots(
        rows, 1, sharex=True, squeeze=False, figsize=(7.0, 2.0 + 1.8 * rows), layout="constrained"
    )
    axis = axes[0, 0]
    axis.plot(updates, rates, color=_RATE, linewidth=1.2, zorder=1)
    for rollback, marker, colour, label in ((False, "o", _RATE, "decision"), (True, "X", _ROLLBACK, "rollback")):
        chosen = [record for record in history.records if record.rollback is rollback]
        if chosen:
            places = [r.update for r in chosen], [r.learning_rate for r in chosen]
            axis.scatter(*places, color=colour, marker=marker, s=24, label=label, zorder=2)
    axis.set(yscale="log", ylabel="learning rate", xlim=(-0.01 * history.budget, 1.01 * history.budget))
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    axis.set_title(f"{len([r for r in history.records if not r.rollback])} decisions", fontsize=9)
    if losses:
        below = axes[1, 0]
        starts, ends, values = zip(*losses, strict=True)
        below.hlines(values, starts, ends, color=_LOSS, linewidth=2.0)
        for update in (record.update for record in history.records if record.rollback):
            below.axvline(update, color=_ROLLBACK, linewidth=1.0, linestyle=":")
        below.set(ylabel="training loss,\nmean of each interval", yscale="log" if min(values) > 0 else "linear")
        below.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("update")
    return _finished(figure, path)


def draw_layers(history: RunHistory, path: str | Path | None, feature: str) -> Any:
    """Draw a feature of every layer over updates as a heat map, inputs at the top."""
    with needing("plots"):
        from matplotlib import pyplot as plt

    updates, values = history.layer_values(feature)
    graph = history.graph
    assert graph is not None
    height = max(2.4, 1.2 + 0.18 * len(values))
    figure, axis = plt.subplots(figsize=(8.0, min(height, 40.0)), layout="constrained")
    end = min(updates[-1] + history.decision.interval(history.budget), history.budget)
    edges = np.append(updates, max(end, updates[-1] + 1))
    image = axis.pcolormesh(edges, np.arange(len(values) + 1), values, cmap="viridis")
    step = -(-len(values) // _LABELLED)
    names = [printable(name, LONGEST_LABEL) for name in graph.names[::step]]
    axis.set_yticks(np.arange(0, len(values), step) + 0.5, names, fontsize=7, parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("update")
    for record in history.records:
        if record.rollback:
            axis.axvline(record.update, color=_ROLLBACK, linewidth=1.2, linestyle=":")
    figure.colorbar(image, ax=axis).set_label(_label(history, feature), fontsize=8)
    return _finished(figure, path)


def draw_graph(history: RunHistory, path: str | Path | None, feature: str, decision: int) -> Any:
    """Draw the layer graph with every layer in the colour of a feature at one decision."""
    updates, values = history.layer_values(feature)
    if not -len(updates) <= decision < len(updates):
        raise InvalidSettingError(
            f"decision is {decision}; expected one from 0 to {len(updates) - 1}, or negative from the end: features of "
            f"layers were recorded at {len(updates)} decisions."
        )
    assert history.graph is not None
    label = _label(history, feature)
    axis = history.graph.plot(values=values[:, decision], label=label)
    axis.set_title(f"{label}, after {updates[decision]} updates", fontsize=9)
    return _finished(axis.figure, path)


def _label(history: RunHistory, feature: str) -> str:
    return get_schema(history.decision.features).feature(feature).plot_label


def _finished(figure: Any, path: str | Path | None) -> Any:
    """Write a figure where a path is given, and then take it from pyplot's list of open ones."""
    if path is None:
        return figure
    with needing("plots"):
        from matplotlib import pyplot as plt

    try:
        figure.savefig(path, dpi=dpi_within_budget(figure))
    except (OSError, ValueError) as error:
        raise InvalidSettingError(
            f"The picture cannot be written to {path} ({error}); expected a file such as run.png, in a folder that is "
            "there."
        ) from error
    finally:
        plt.close(figure)
    return figure
