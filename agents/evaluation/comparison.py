"""The comparison of controllers: means over seeds with intervals, what a result costs, and hindsight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from agents.evaluation.results import SETTING, Evaluation, Setting, mean_metrics
from agents.evaluation.statistics import bootstrap_interval

MARK = "†"  # of a figure that runs which learned nothing have a part in


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
    :param learned_nothing: share of the runs that learned nothing
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
    learned_nothing: float = 0.0

    @property
    def setting(self) -> Setting:
        """The setting it is of."""
        return Setting(self.task, self.optimizer, self.budget)

    @property
    def is_mean(self) -> bool:
        """Whether it is a policy's mean over its initial rates."""
        return math.isnan(self.initial_lr) and not self.own_rate

    @property
    def where(self) -> str:
        """The initial rate: ``own`` for a controller that ignores it, ``all`` for the mean over a policy's."""
        return "own" if self.own_rate else "all" if self.is_mean else f"{self.initial_lr:.2g}"

    @property
    def loss(self) -> str:
        """The test loss as tables have it; :data:`MARK` where any of its runs learned nothing."""
        return f"{self.test_loss:.4f}{MARK * (self.learned_nothing > 0)}"


def by_setting(lines: Sequence[Line]) -> dict[Setting, list[Line]]:
    """Return the lines of each setting."""
    groups: dict[Setting, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.setting, []).append(line)
    return groups


def compare(evaluation: Evaluation) -> list[Line]:
    """Return the comparison: whatever is tuned at its tuned rate, each policy from each initial rate and over all."""
    return [line for setting in evaluation.settings for line in _lines(evaluation, setting)]


def _lines(evaluation: Evaluation, setting: Setting) -> Iterator[Line]:
    best = evaluation.best_loss(setting)
    for name, own in evaluation.runs_of(setting).groupby("controller", sort=False):
        rate, counted = evaluation.tuned_rate(setting, name), evaluation.counted(setting, name)
        if name in evaluation.policies:
            for start, part in own.groupby("initial_lr"):
                yield _line(evaluation, setting, float(start), best, part, part)
        yield _line(evaluation, setting, rate, best, counted, own)


def _line(
    evaluation: Evaluation, setting: Setting, rate: float, best: float, counted: pd.DataFrame, paid: pd.DataFrame
) -> Line:
    """Return the line of the runs that count; one result of them costs what all those paid for took."""
    name = str(counted.controller.iloc[0])
    by_seed = counted.groupby("seed").test_loss.mean().to_numpy()
    low, high = bootstrap_interval(by_seed)
    mean = counted.test_loss.mean()
    return Line(
        **setting._asdict(),
        controller=name,
        initial_lr=rate,
        test_loss=float(mean),
        low=low,
        high=high,
        deviation=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan,
        metric=str(counted.metric.iloc[0]),
        test_metric=float(counted.test_metric.mean(skipna=False)),
        metrics=mean_metrics(counted),
        ratio=float(mean / best) if math.isfinite(best) else math.nan,
        runs=len(paid) // len(counted),
        cost=float((paid.updates + paid.search_updates).sum() / len(counted) / setting.budget),
        rollbacks=float(counted.rollbacks.mean()),
        own_rate=name in evaluation.own_rates,
        learned_nothing=float(evaluation.learned_nothing(counted).mean()),
    )


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
