"""What an evaluation says of each controller: means over seeds, intervals, what a result costs, and hindsight."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from agents.evaluation.protocol import SETTING, Evaluation
from agents.evaluation.statistics import bootstrap_interval


@dataclass(frozen=True)
class Line:
    """A line of the comparison: one controller in one setting, means over seeds (and initial rates of a policy).

    :param initial_lr: tuned rate, or NaN for the mean over all initial rates of a policy, and where ``own_rate``
    :param own_rate: whether the controller ignores the initial rate
    :param test_loss: mean test loss
    :param low: lower end of its 95 % bootstrap interval over seeds
    :param high: upper end
    :param deviation: standard deviation over seeds
    :param metric: name of the task's metric
    :param test_metric: its mean on the test split
    :param metrics: means of all the task's metrics on the test split
    :param ratio: test loss over the best tuned schedule's; NaN without schedules
    :param runs: training runs it costs to get one such result: the rates tried for a schedule, 1 for a policy
    :param cost: updates it costs to get one such result, over the budget: those of all these runs, in training and in
        search
    :param rollbacks: rollbacks a run
    """

    task: str
    optimizer: str
    budget: int
    controller: str
    initial_lr: float
    test_loss: float
    low: float
    high: float
    deviation: float
    metric: str
    test_metric: float
    metrics: dict[str, float]
    ratio: float
    runs: int
    cost: float
    rollbacks: float
    own_rate: bool = False


def compare(evaluation: Evaluation) -> list[Line]:
    """Return the comparison: whatever is tuned at its tuned rate, each policy from each initial rate and over all."""
    lines: list[Line] = []
    tuned = evaluation.tuned.set_index([*SETTING, "controller"]).tuned_lr
    for key, runs in evaluation.runs.groupby(SETTING, sort=False):
        setting: tuple[Any, ...] = tuple(key)
        chosen: list[tuple[str, float, pd.DataFrame, pd.DataFrame]] = []  # name, rate, runs shown, runs paid for
        for name, own in runs.groupby("controller", sort=False):
            if (*setting, name) in tuned.index:
                rate = float(tuned[(*setting, name)])
                chosen.append((name, rate, own[own.initial_lr == rate], own))
                continue
            if name not in evaluation.own_rates:
                chosen += [(name, rate, part, part) for rate, part in own.groupby("initial_lr")]
            chosen.append((name, math.nan, own, own))
        best = min(
            (part.test_loss.mean() for name, _, part, _ in chosen if name in evaluation.references), default=math.nan
        )
        for name, rate, part, paid in chosen:
            by_seed = part.groupby("seed").test_loss.mean().to_numpy()
            low, high = bootstrap_interval(by_seed)
            mean = part.test_loss.mean()
            results = len(part) if math.isnan(rate) else part.seed.nunique()
            lines.append(
                Line(
                    **dict(zip(SETTING, setting, strict=True)),
                    controller=name,
                    initial_lr=rate,
                    test_loss=float(mean),
                    low=low,
                    high=high,
                    deviation=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan,
                    metric=str(part.metric.iloc[0]),
                    test_metric=float(part.test_metric.mean(skipna=False)),
                    metrics=mean_metrics(part),
                    ratio=float(mean / best) if math.isfinite(best) else math.nan,
                    runs=len(paid) // results,
                    cost=float((paid.updates + paid.search_updates).sum() / results / setting[-1]),
                    rollbacks=float(part.rollbacks.mean()),
                    own_rate=name in evaluation.own_rates,
                )
            )
    return lines


def mean_metrics(runs: pd.DataFrame) -> dict[str, float]:
    """Return the mean of every test metric over runs of one task; NaN where a diverged run has none."""
    means = pd.DataFrame(list(runs.test_metrics.map(json.loads))).mean(skipna=False)
    return {str(name): float(mean) for name, mean in means.items()}


@dataclass(frozen=True)
class Hindsight:
    """The schedule and rate with the lowest mean test loss in a setting, picked on the test split itself.

    Nobody can choose so; it bounds from below what any tuning of these schedules could have reached.
    """

    task: str
    optimizer: str
    budget: int
    controller: str
    initial_lr: float
    test_loss: float


def hindsight(evaluation: Evaluation) -> list[Hindsight]:
    """Return the best schedule and rate of each setting, seen from the test split: for reporting only."""
    runs = evaluation.runs[evaluation.runs.controller.isin(evaluation.references)]
    means = runs.groupby([*SETTING, "controller", "initial_lr"], sort=False).test_loss.mean().reset_index()
    best = means.loc[means.groupby(SETTING, sort=False).test_loss.idxmin()]
    return [Hindsight(**row) for row in best.to_dict(orient="records")]
