"""What methods are worth in tries: worth.md and worth.csv of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from agents.evaluation.worth import FEWEST, MOST
from agents.evaluation.yardstick import Valued, Yardstick
from agents.reports.tables import markdown_table

LEGEND = (
    "worth: rates, drawn at random from the grid's range, that the schedule has to be tried from to end as well; "
    "pooled over settings, with a 95 % interval over settings and seeds. ratio: over the schedule tuned on seeds of "
    "their own, all measured on fresh seeds. cost: updates of one result over the budget, tuning among them."
)
_HEADINGS = ["method", "worth", "95 % interval", "median", "geometric mean", "ratio", "cost"]


def write_worth(folder: Path, found: Yardstick) -> list[Path]:
    """Write both files and return their paths."""
    markdown, table = folder / "worth.md", folder / "worth.csv"
    markdown.write_text(worth_markdown(found), encoding="utf-8")
    pd.DataFrame([_row(row) for row in found.rows]).to_csv(table, index=False)
    return [markdown, table]


def worth_markdown(found: Yardstick) -> str:
    """Return the tables, one for each schedule that tries are counted by and each quantity."""
    parts = [LEGEND, ""]
    groups: dict[tuple[str, str, int], list[Valued]] = {}
    for row in found.rows:
        groups.setdefault((row.schedule, row.quantity, row.settings), []).append(row)
    for (schedule, quantity, settings), rows in groups.items():
        title = f"**Tries with {schedule}, by {quantity}, over {settings} setting{'s' * (settings > 1)}**"
        parts += [title, "", *markdown_table(_HEADINGS, [_cells(row) for row in rows])]
    if found.left_out:
        names = "; ".join(setting.title for setting in found.left_out)
        parts += [f"Left out, since no tuned schedule learned anything there: {names}.", ""]
    return "\n".join(parts)


def _cells(row: Valued) -> list[str]:
    low, high = row.worth.intervals["pooled"]
    return [
        row.method,
        _tries(row.worth.pooled),
        f"{_tries(low)} to {_tries(high)}",
        _tries(row.worth.median),
        _tries(row.worth.mean),
        f"{row.ratio:.3f}",
        f"{row.cost:.1f}",
    ]


def _tries(count: float) -> str:
    if count >= MOST:
        return f"{MOST:.0f} or more"
    return f"{FEWEST:g} or fewer" if count <= FEWEST else f"{count:.2g}" if count < 10 else f"{count:.0f}"


def _row(row: Valued) -> dict[str, object]:
    ends = {
        f"{name}_{end}": value
        for name, ends in row.worth.intervals.items()
        for end, value in zip(("low", "high"), ends, strict=True)
    }
    about = {"schedule": row.schedule, "quantity": row.quantity, "method": row.method, "settings": row.settings}
    figures = {"pooled": row.worth.pooled, "median": row.worth.median, "mean": row.worth.mean}
    return {**about, **figures, **ends, "ratio": row.ratio, "cost": row.cost}
