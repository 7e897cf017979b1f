"""Evaluations made up for the tests of the HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from agents.evaluation.comparison import compare
from agents.evaluation.results import COLUMNS, Evaluation, tune
from agents.evaluation.transfer import transfer
from agents.reports.html_report import html

ABOUT = {"config": {"name": "made", "seeds": 2, "task": {"digits": {}}}, "versions": {"gns": "0.1"}}


def rows_of(controller: str, rate: float, test: Sequence[float], task="digits", optimizer="adam", budget=100, **more):
    """One row a seed; the loss on the reward split is the test loss."""
    blank: dict[str, Any] = dict.fromkeys(COLUMNS, 0) | {
        "task": task,
        "controller": controller,
        "optimizer": optimizer,
        "budget": budget,
        "initial_lr": rate,
        "metric": "accuracy",
        "test_metrics": json.dumps({"accuracy": 0.5}),
        "test_metric": 0.5,
        "updates": budget,
        "seconds": 0.5,
    }
    return [{**blank, "seed": seed, "reward_loss": loss, "test_loss": loss, **more} for seed, loss in enumerate(test)]


def evaluation_of(rows: list[dict[str, Any]], schedules: Sequence[str] = ("rex", "cosine"), own: Sequence[str] = ()):
    """An evaluation in which rates fall from the initial one to a tenth; runs that made no update have none."""
    runs = pd.DataFrame(rows, columns=COLUMNS)
    paths = [
        [(t, row["initial_lr"] * 0.1**t if row["updates"] else math.nan) for t in (0.0, 0.25, 0.5, 0.75)]
        for row in rows
    ]
    losses = [[row["test_loss"] * 2.0 ** (1 - k) for k in range(4)] for row in rows]
    tuned = tune(runs[runs.controller.isin(schedules)])
    return Evaluation(runs, tuned, paths, references=frozenset(schedules), own_rates=frozenset(own), losses=losses)


def small(policy: str = "policy", **setting) -> list[dict[str, Any]]:
    """Rex is best at 0.1, cosine at 0.3; the policy is flat and a little worse than rex."""
    return [
        *rows_of("rex", 0.03, [2.0, 2.2], **setting),
        *rows_of("rex", 0.1, [0.9, 1.1], **setting),
        *rows_of("rex", 0.3, [3.0, math.inf], **setting),
        *rows_of("cosine", 0.1, [1.9, 1.7], **setting),
        *rows_of("cosine", 0.3, [1.2, 1.4], **setting),
        *rows_of(policy, 0.01, [1.1, 1.3], rollbacks=1, **setting),
        *rows_of(policy, 1.0, [1.2, 1.4], **setting),
    ]


def page(evaluation: Evaluation, policies: Sequence[str] = ("policy",), **about) -> str:
    """Return its report."""
    cells = transfer(evaluation, dict.fromkeys(policies, "digits"))
    return html(evaluation, compare(evaluation), cells, {**ABOUT, **about})
