"""Tables of the HTML report: what stands in each cell, and what it is sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from agents.evaluation.comparison import Line
from agents.evaluation.results import SETTING, Evaluation

TableCell = tuple[str, str | None]  # what is shown, and the number it is sorted by: None for a text
LISTED_RUNS = 200  # runs that went wrong are listed one by one up to this many


@dataclass(frozen=True)
class Column:
    """A column by its heading; numbers stand to the right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    :param emphasis: numbers of rows that are printed bold
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[TableCell]]
    emphasis: frozenset[int] = frozenset()


def number(value: float, form: str = ".4f") -> TableCell:
    """Return a cell for a number: a dash stands for what is unknown, infinity for what diverged."""
    if math.isnan(value):
        return "–", "nan"
    return ("∞", "inf") if math.isinf(value) else (format(value, form), f"{value:.6g}")


def results_table(title: str, lines: Sequence[Line]) -> Table:
    """Return the comparison in one setting, as :func:`agents.reports.files.tables` has it on the terminal."""
    metric = lines[0].metric
    figures = ("test loss", "95 % from", "to", "s.d.", metric, "vs best", "cost", "rollbacks", "learned nothing")
    names = ("initial rate", *figures)
    rows, mean = [], set()
    for place, line in enumerate(lines):
        rate = number(line.initial_lr, ".2g") if line.initial_lr > 0 else (line.where, "nan")
        mean |= {place} if line.is_mean else set()
        rows.append(
            [
                (line.controller, None),
                rate,
                *(number(x) for x in (line.test_loss, line.low, line.high, line.deviation, line.test_metric)),
                number(line.ratio, ".3f"),
                number(line.cost, ".1f"),
                number(line.rollbacks, ".2g"),
                number(line.learned_nothing, ".0%"),
            ]
        )
    return Table(title, [Column("controller"), *(Column(name, True) for name in names)], rows, frozenset(mean))


def cost_table(evaluation: Evaluation, lines: Sequence[Line]) -> Table:
    """Return what a result of each controller costs, means over settings, and what its runs took and rolled back."""
    rows = []
    for name, runs in evaluation.runs.groupby("controller", sort=False):
        own = [line for line in lines if line.controller == name]
        shown = [line for line in own if math.isnan(line.initial_lr)] or own
        rows.append(
            [
                (str(name), None),
                number(sum(line.cost for line in shown) / len(shown), ".1f"),
                number(sum(line.runs for line in shown) / len(shown), ".1f"),
                number(len(runs), ",.0f"),
                number(float(runs.updates.sum()), ",.0f"),
                number(float(runs.search_updates.sum()), ",.0f"),
                number(float(runs.evaluations.sum()), ",.0f"),
                number(float(runs.seconds.mean()), ".3g"),
                number(float(runs.rollbacks.sum()), ",.0f"),
                number(float((runs.rollbacks > 0).sum()), ",.0f"),
            ]
        )
    names = (
        "budgets a result",
        "runs a result",
        "runs made",
        "updates",
        "in search",
        "evaluations",
        "seconds a run",
        "rollbacks",
        "runs with any",
    )
    caption = "Cost and rollbacks of each controller, over all settings"
    return Table(caption, [Column("controller"), *(Column(name, True) for name in names)], rows)


def wrong_runs(evaluation: Evaluation) -> pd.DataFrame:
    """Return the runs whose loss is not finite, with ``what``: "failed" for those that never ended, else "diverged".

    A run fails where its process was lost, ran out of memory or out of time again and again.
    """
    runs = evaluation.runs
    finite = runs[["reward_loss", "test_loss"]].apply(lambda column: column.abs() < math.inf).all(axis=1)
    wrong = runs[~finite]
    return wrong.assign(what=["failed" if updates == 0 else "diverged" for updates in wrong.updates])


def failures_tables(evaluation: Evaluation) -> list[Table]:
    """Return how many runs went wrong by controller and setting, and which; nothing where none did."""
    wrong = wrong_runs(evaluation)
    if wrong.empty:
        return []
    totals = evaluation.runs.groupby([*SETTING, "controller"], sort=False).size()
    rows = [
        [
            (str(controller), None),
            (f"{task}, {optimizer}", None),
            number(budget, ",.0f"),
            number(float(totals[task, optimizer, budget, controller]), ",.0f"),
            *(number(float((part.what == what).sum()), ",.0f") for what in ("failed", "diverged")),
            *(number(float(rate), ".2g") for rate in (part.initial_lr.min(), part.initial_lr.max())),
        ]
        for (task, optimizer, budget, controller), part in wrong.groupby([*SETTING, "controller"], sort=False)
    ]
    names = ("budget", "runs", "failed", "diverged", "lowest rate", "highest rate")
    words = [Column("controller"), Column("task, optimizer")]
    by_setting = Table(
        "Runs that failed or diverged, by controller and setting",
        [*words, *(Column(name, True) for name in names)],
        rows,
    )
    listed = wrong.head(LISTED_RUNS)
    forms = {
        "budget": ",.0f",
        "initial_lr": ".2g",
        "seed": ".0f",
        "updates": ",.0f",
        "rollbacks": ",.0f",
    }  # as in results.csv
    rows = [
        [
            (str(run["controller"]), None),
            (f"{run['task']}, {run['optimizer']}", None),
            (run["what"], None),
            *(number(run[name], form) for name, form in forms.items()),
        ]
        for run in listed.to_dict("records")
    ]
    first = f", the first {len(listed)} of {len(wrong):,}; results.csv has all" if len(wrong) > len(listed) else ""
    columns = [*words, Column("what"), *(Column(name, True) for name in forms)]
    return [by_setting, Table(f"Each of these runs{first}", columns, rows)]
