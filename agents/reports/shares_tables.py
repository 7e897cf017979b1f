"""The table of the REX paper as files and on the terminal, beside the paper's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.table import Table

from agents.evaluation.comparison import MARK
from agents.evaluation.shares import BUDGETS, Shares
from agents.reports.tables import markdown_table, terminal_table

# Chen et al., Table 1: Top-1 and Top-3 in percent at low budgets, at high ones, overall.
PAPER: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "constant": ((0, 0), (2, 10), (1, 5)),
    "exponential": ((5, 7), (5, 14), (5, 11)),
    "onecycle": ((15, 49), (12, 40), (13, 45)),
    "linear": ((10, 78), (12, 62), (11, 70)),
    "step": ((2, 12), (7, 38), (5, 25)),
    "cosine": ((2, 66), (10, 62), (6, 64)),
    "rex": ((73, 95), (67, 88), (70, 92)),
}
LEGEND = (
    "Shares in percent of settings (task, optimizer, budget) in which a method is the best / among the best three by "
    "its mean over seeds on the test split; ties count for each, a diverged method for none. low: budgets below 25 % "
    "of a full run. paper: Chen et al. (MLSys 2022), Table 1, among its seven methods, by the task's metric, step "
    "including decay on plateau. rank: mean rank. regret: interquartile mean over settings and seeds of ln(test loss / "
    "mean test loss of the setting's best method), with its 95 % bootstrap interval over seeds within settings. A "
    "policy counts with its mean over initial rates. "
    f"{MARK}: some of its runs learned nothing."
)


def write_shares(folder: Path, table: Sequence[Shares]) -> list[Path]:
    """Write shares.csv (a row a method and ranking) and shares.md; return their paths."""
    rows, text = folder / "shares.csv", folder / "shares.md"
    pd.DataFrame([_row(item) for item in table]).to_csv(rows, index=False)
    text.write_text(shares_markdown(table), encoding="utf-8")
    return [rows, text]


def shares_markdown(table: Sequence[Shares]) -> str:
    """Return the shares in Markdown: a table by metric, one by loss, and what the columns are."""
    parts = []
    for title, items in _by_ranking(table):
        parts += [f"**{title}**", "", *markdown_table(_HEADINGS, [_cells(item) for item in items])]
    return "\n".join([*parts, LEGEND, ""])


def shares_tables(table: Sequence[Shares]) -> list[Table]:
    """Return the shares as rich tables, by metric and by loss."""
    ranked = _by_ranking(table)
    return [terminal_table(title, _HEADINGS, [_cells(item) for item in items]) for title, items in ranked]


_HEADINGS = ("controller", "low", "paper", "high", "paper", "overall", "paper", "rank", "regret", "95 %")
_TITLES = {"metric": "by the task's metric", "loss": "by the test loss"}


def _by_ranking(table: Sequence[Shares]) -> list[tuple[str, list[Shares]]]:
    groups: dict[str, list[Shares]] = {}
    for item in table:
        groups.setdefault(item.ranked_by, []).append(item)
    return [
        (
            f"Top-1/Top-3 {_TITLES[name]} in {{overall}} settings ({{low}} low, {{high}} high budgets)".format(
                **items[0].settings
            ),
            items,
        )
        for name, items in groups.items()
    ]


def _cells(item: Shares) -> list[str]:
    parts = [item.controller + MARK * (item.learned_nothing > 0)]
    for number, kind in enumerate(BUDGETS):
        paper = PAPER.get(item.controller)
        parts.append("/".join("-" if math.isnan(share) else f"{100 * share:.0f}" for share in item.top[kind]))
        parts.append("/".join(map(str, paper[number])) if paper else "")
    interval = f"{_rounded(item.regret_low)}, {_rounded(item.regret_high)}"
    return [*parts, f"{item.rank:.2f}", _rounded(item.regret), interval]


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no minus before nothing


def _row(item: Shares) -> dict[str, object]:
    row = asdict(item)
    top, settings = row.pop("top"), row.pop("settings")
    paper = PAPER.get(item.controller)
    for number, kind in enumerate(BUDGETS):
        for place, k in enumerate((1, 3)):
            row[f"{kind}_top{k}"] = top[kind][place]
            row[f"{kind}_top{k}_paper"] = paper[number][place] / 100 if paper else math.nan
        row[f"{kind}_settings"] = settings[kind]
    return row
