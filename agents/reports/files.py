"""The files of an evaluation (results.csv, summary.json, table.md, pictures), and its tables on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.evaluation.comparison import MARK, Line, by_setting, hindsight
from agents.evaluation.results import Evaluation
from agents.reports.tables import markdown_table, terminal_table
from envs.trivial import NOTHING

NOTHING_LEGEND = (
    f"{MARK}: some of its runs learned nothing. Their test loss is not finite, or at least {NOTHING:g} times that of a "
    "model that has learned nothing."
)


def tables(lines: Sequence[Line]) -> list[Table]:
    """Return a rich table for each setting."""
    return [
        terminal_table(
            setting.title,
            ["controller", "lr", "test loss", "95 % interval", "s.d.", group[0].metric, "vs best", "cost"],
            [_cells(line, "-") for line in group],
            bold=[place for place, line in enumerate(group) if line.is_mean],
        )
        for setting, group in by_setting(lines).items()
    ]


def markdown(lines: Sequence[Line]) -> str:
    """Return the comparison as Markdown tables."""
    parts = []
    for setting, group in by_setting(lines).items():
        headings = [
            "controller",
            "initial lr",
            "test loss",
            "95 % interval",
            "s.d.",
            group[0].metric,
            "vs best",
            "cost",
        ]
        parts += [f"**{setting.title}**", "", *markdown_table(headings, [_cells(line, " to ") for line in group])]
        if any(line.learned_nothing for line in group):
            parts += [NOTHING_LEGEND, ""]
    return "\n".join(parts)


def _cells(line: Line, to: str) -> list[str]:
    return [
        line.controller,
        line.where,
        line.loss,
        f"{line.low:.4f}{to}{line.high:.4f}",
        f"{line.deviation:.4f}",
        f"{line.test_metric:.4f}",
        f"{line.ratio:.3f}",
        f"{line.cost:.1f}",
    ]


def write_results(folder: Path, evaluation: Evaluation, lines: Sequence[Line], about: dict[str, Any]) -> list[Path]:
    """Write results.csv, summary.json and table.md; return their paths.

    :param about: what made the results (configuration, versions), put into the summary
    """
    results, summary, table = folder / "results.csv", folder / "summary.json", folder / "table.md"
    evaluation.runs.to_csv(results, index=False)
    table.write_text(markdown(lines), encoding="utf-8")
    content = {
        "hindsight": [asdict(item) for item in hindsight(evaluation)],
        "lines": [asdict(line) for line in lines],
        "tuned": evaluation.tuned.to_dict(orient="records"),
        **about,
    }
    summary.write_text(json.dumps(plain_json(content), indent=2, allow_nan=False), encoding="utf-8")
    return [results, summary, table]


def plain_json(value: Any) -> Any:
    """Return a value as JSON can hold it: it has no NaN and no infinity, None stands for them."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
