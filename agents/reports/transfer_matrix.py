"""The matrix of transfer as files, tables and a heat map: a row a policy, a column a setting."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap

import numpy as np
import pandas as pd
from rich.table import Table

from agents.evaluation.results import FAR, Setting
from agents.evaluation.transfer import TransferCell
from agents.reports.tables import markdown_table, terminal_table
from envs.trivial import NOTHING
from gns.tools.drawing import dpi_within_budget

LEGEND = (
    "regret: ln of the mean test loss over that of the best tuned schedule; 0: equal, 0.1: about 10 % worse; with its "
    "95 % bootstrap interval over seeds. The best is chosen on the reward split (vs best divides by the lowest test "
    f"loss of any tuned schedule, which is stricter). far: share of runs that end far from the best, above {FAR:g} "
    f"times its test loss or not finite. nothing: share of runs that learned nothing: their test loss is at least "
    f"{NOTHING:g} times that of a model that has learned nothing. *: the policy was trained on this task."
)
_LARGEST_SHADE = math.log(2.0)
_POLICIES, _SETTINGS = 12, 30  # that are drawn; transfer.csv has all


def write_transfer(folder: Path, cells: Sequence[TransferCell]) -> list[Path]:
    """Write transfer.csv (a row a cell), transfer.md and transfer.png; return their paths."""
    rows, matrix, picture = (folder / f"transfer.{ending}" for ending in ("csv", "md", "png"))
    frame = pd.DataFrame([asdict(cell) for cell in cells])
    frame.assign(metrics=frame.metrics.map(json.dumps)).to_csv(rows, index=False)
    matrix.write_text(transfer_markdown(cells), encoding="utf-8")
    draw_transfer(picture, cells)
    return [rows, matrix, picture]


def transfer_tables(cells: Sequence[TransferCell]) -> list[Table]:
    """Return a rich table for each policy: its row of the matrix, from top to bottom."""
    headings = ("task", "metric", "", "test loss", "regret", "95 % interval", "far", "nothing")
    rows: dict[str, list[list[str]]] = {}
    for cell in cells:
        row = [
            cell.task + "*" * cell.home + f"\n{cell.optimizer}, {cell.budget}" * _several(cells),
            cell.metric,
            f"{cell.test_metric:.4f}",
            f"{cell.test_loss:.4f}",
            _signed(cell.regret),
            _interval(cell),
            f"{cell.far_from_best:.0%}",
            f"{cell.learned_nothing:.0%}",
        ]
        rows.setdefault(f"{cell.policy}, trained on {cell.trained_on}", []).append(row)
    return [terminal_table(title, headings, own) for title, own in rows.items()]


def transfer_markdown(cells: Sequence[TransferCell]) -> str:
    """Return the matrix in Markdown: a row a policy, a column a setting."""
    settings, by_place = _settings(cells), {(cell.policy, cell.setting): cell for cell in cells}
    labels = ["/".join(map(str, setting)) if _several(cells) else setting.task for setting in settings]
    rows = []
    for policy, trained_on in _policies(cells).items():
        rows.append([policy, trained_on])
        for cell in (by_place[policy, setting] for setting in settings):
            parts = [f"{cell.metric} {cell.test_metric:.4f}", *outcomes(cell)]
            rows[-1].append(f"{_signed(cell.regret)}{'*' * cell.home} ({_interval(cell)}), {', '.join(parts)}")
    best = {cell.setting: cell for cell in cells}
    rows.append(["best tuned schedule", ""])
    for cell in (best[setting] for setting in settings):
        loss, metric = f"test loss {cell.best_test_loss:.4f}", f"{cell.metric} {cell.best_test_metric:.4f}"
        rows[-1].append(f"{cell.best} from {cell.best_lr:.2g}: {loss}, {metric}")
    lines = markdown_table(["policy", "trained on", *labels], rows, left=range(len(labels) + 2))
    return "\n".join([*lines, LEGEND, ""]).replace("*", r"\*")


def outcomes(cell: TransferCell) -> list[str]:
    """Return in words which shares of a policy's runs ended far from the best and learned nothing, where any did."""
    shares = {"far from the best": cell.far_from_best, "learned nothing": cell.learned_nothing}
    return [f"{share:.0%} {words}" for words, share in shares.items() if share]


def draw_transfer(path: Path, cells: Sequence[TransferCell]) -> None:
    """Draw the regret in loss of each policy (rows) in each setting (columns) as a heat map.

    Regrets beyond ln 2 either way have the colour of ln 2. A frame marks the tasks a policy was trained on. Of a large
    matrix the first :data:`_POLICIES` policies and :data:`_SETTINGS` settings are drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    policies, settings = list(_policies(cells))[:_POLICIES], _settings(cells)[:_SETTINGS]
    whole = len(_policies(cells)), len(_settings(cells))
    cells = [cell for cell in cells if cell.policy in policies and cell.setting in settings]
    metrics = {cell.setting: cell.metric for cell in cells}
    rows = [_wrapped(name, f"(trained on {tasks})", width=36) for name, tasks in _policies(cells).items()]
    columns = [_wrapped(s[0], f"{s[1]}, {s[2]} updates", metrics[s], width=22) for s in settings]
    width, height = max(1.4, *map(_inches, columns)), max(0.8, *(0.25 + 0.16 * text.count("\n") for text in rows))
    inches = (max(map(_inches, rows)) + width * len(columns) + 1.2, max(height * len(rows), 1.6) + 1.5)
    figure, axis = plt.subplots(figsize=inches, layout="constrained")

    largest = max([0.1, *(abs(cell.regret) for cell in cells if not math.isnan(cell.regret))])
    limit = min(largest, _LARGEST_SHADE)
    values = np.full((len(rows), len(columns)), np.nan)
    places = [(policies.index(cell.policy), settings.index(cell.setting)) for cell in cells]
    for place, cell in zip(places, cells, strict=True):
        values[place] = np.clip(cell.regret, -limit, limit)
    shades = plt.get_cmap("PuOr_r").with_extremes(bad="lightgrey")
    image = axis.imshow(values, cmap=shades, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), cell in zip(places, cells, strict=True):
        ink = "white" if abs(values[row, column]) > 0.6 * limit else "black"
        for shift, text, size, weight in (
            (8, _signed(cell.regret), 11, "bold"),
            (-8, f"{cell.test_metric:.3f}", 9, "normal"),
        ):
            axis.annotate(
                text,
                (column, row),
                (0, shift),
                textcoords="offset points",
                ha="center",
                va="center",
                color=ink,
                fontsize=size,
                weight=weight,
            )
        if cell.home:
            for shade, line in (("white", 5.0), ("black", 2.5)):
                frame = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=shade, linewidth=line)
                axis.add_patch(frame)
    axis.set_xticks(range(len(columns)), columns, fontsize=9, parse_math=False)
    axis.set_yticks(range(len(rows)), rows, fontsize=9, parse_math=False)
    axis.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    title = "Regret against the best tuned schedule (bold), and the metric. Framed: trained on this task."
    if whole != (len(policies), len(settings)):
        title += (
            f" The first {len(policies)} of {whole[0]} policies in the first {len(settings)} of {whole[1]} settings."
        )
    figure.suptitle(_wrapped(title, width=int(inches[0] / 0.09)), fontsize=10)
    extend = "both" if largest > limit else "neither"
    bar = figure.colorbar(image, extend=extend, fraction=0.6 / inches[0], pad=0.2 / inches[0], aspect=6 * inches[1])
    bar.set_label("ln(test loss / best tuned schedule's)", fontsize=8)
    figure.savefig(path, dpi=dpi_within_budget(figure))
    plt.close(figure)


def _settings(cells: Sequence[TransferCell]) -> list[Setting]:
    return list(dict.fromkeys(cell.setting for cell in cells))


def _several(cells: Sequence[TransferCell]) -> bool:
    """Whether a task comes with more than one optimizer or budget."""
    settings = _settings(cells)
    return len({task for task, *_ in settings}) < len(settings)


def _policies(cells: Sequence[TransferCell]) -> dict[str, str]:
    """Return what each policy was trained on."""
    return {cell.policy: cell.trained_on for cell in cells}


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else f"{value:.0f}"


def _interval(cell: TransferCell) -> str:
    return f"{_signed(cell.regret_low)} to {_signed(cell.regret_high)}"


def _wrapped(*texts: str, width: int) -> str:
    return "\n".join(line for text in texts for line in wrap(text, width))


def _inches(text: str) -> float:
    """Return about the room that lines of 9 points need."""
    return 0.3 + 0.08 * max(map(len, text.split("\n")))
