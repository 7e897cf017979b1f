"""Transfer of policies to other tasks: a matrix of what each was trained on and what it was evaluated on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.evaluation.results import Evaluation, Setting, by_seed_and_rate, mean_metrics
from agents.evaluation.statistics import bootstrap_interval
from gns.tools.console import printable

LONGEST = 400  # characters of what a policy was trained on that are shown


@dataclass(frozen=True)
class TransferCell:
    """One policy in one setting against the best tuned schedule there. Intervals are of 95 %, over seeds.

    Means are over initial rates and seeds for the policy, over seeds for the schedule. The best tuned schedule is the
    one with the lowest mean loss on the reward split, each at the rate chosen there: to choose among schedules is a
    choice too, and none is made on the test split. (:attr:`agents.evaluation.comparison.Line.ratio` divides by the
    lowest test loss among tuned schedules, which nobody can choose before testing and which is stricter on policies.)

    :param policy: name of the policy's controller
    :param trained_on: names of the tasks it was trained on, comma-separated, or ``unknown``
    :param home: whether the task is among them, by name
    :param seeds: training runs from each initial rate
    :param initial_rates: initial rates the policy starts from
    :param test_loss: mean test loss; infinite if any run diverged
    :param metric: name of the task's metric
    :param test_metric: its mean on the test split
    :param metrics: means of all the task's metrics on the test split
    :param best: name of the best tuned schedule
    :param best_lr: its tuned rate
    :param best_test_loss: its mean test loss
    :param best_test_metric: the mean of its metric
    :param regret: ln(test_loss / best_test_loss): 0 is equal, above 0 the policy is worse
    :param metric_regret: how much worse the policy's metric is than the schedule's; above 0 the policy is worse
    :param worst_regret: regret of the policy's worst single initial rate
    :param far_from_best: share of runs that ended far from the best, see
        :meth:`agents.evaluation.results.Evaluation.far_from_best`
    :param learned_nothing: share of runs that learned nothing
    :param best_learned_nothing: the same share of the schedule's runs
    """

    policy: str
    trained_on: str
    home: bool
    task: str
    optimizer: str
    budget: int
    seeds: int
    initial_rates: int
    test_loss: float
    test_loss_low: float
    test_loss_high: float
    metric: str
    test_metric: float
    test_metric_low: float
    test_metric_high: float
    metrics: dict[str, float]
    best: str
    best_lr: float
    best_test_loss: float
    best_test_metric: float
    regret: float
    regret_low: float
    regret_high: float
    metric_regret: float
    metric_regret_low: float
    metric_regret_high: float
    worst_regret: float
    far_from_best: float
    learned_nothing: float
    best_learned_nothing: float

    @property
    def setting(self) -> Setting:
        """The setting it is of."""
        return Setting(self.task, self.optimizer, self.budget)


def transfer(evaluation: Evaluation, trained_on: Mapping[str, str]) -> list[TransferCell]:
    """Return a cell for each policy and setting (task, optimizer, budget) in which schedules were tuned.

    :param trained_on: for each policy, by the name of its controller, the tasks it was trained on, comma-separated
    """
    return [
        _cell(evaluation, setting, policy, tasks)
        for policy, tasks in trained_on.items()
        for setting in evaluation.settings
        if evaluation.chosen_schedule(setting) is not None and len(evaluation.runs_of(setting, policy))
    ]


def _cell(evaluation: Evaluation, setting: Setting, policy: str, trained_on: str) -> TransferCell:
    best = str(evaluation.chosen_schedule(setting))
    own, schedule = evaluation.runs_of(setting, policy), evaluation.counted(setting, best)
    losses, metrics = by_seed_and_rate(own, "test_loss"), by_seed_and_rate(own, "test_metric")
    best_losses = by_seed_and_rate(schedule, "test_loss").reindex(losses.index).to_numpy()[:, 0]
    best_metrics = by_seed_and_rate(schedule, "test_metric").reindex(losses.index).to_numpy()[:, 0]
    loss_of_seed, metric_of_seed = losses.to_numpy().mean(axis=1), metrics.to_numpy().mean(axis=1)
    sign = 1.0 if evaluation.higher_is_better.get(setting.task, True) else -1.0

    def metric_regret(a: Any, b: Any, axis: int = -1) -> Any:
        return sign * (np.mean(b, axis=axis) - np.mean(a, axis=axis))

    figures = {
        "test_loss": (loss_of_seed.mean(), bootstrap_interval(loss_of_seed)),
        "test_metric": (metric_of_seed.mean(), bootstrap_interval(metric_of_seed)),
        "regret": (log_ratio(loss_of_seed, best_losses), paired_interval(loss_of_seed, best_losses, log_ratio)),
        "metric_regret": (
            metric_regret(metric_of_seed, best_metrics),
            paired_interval(metric_of_seed, best_metrics, metric_regret),
        ),
    }
    return TransferCell(
        policy=policy,
        trained_on=printable(trained_on, LONGEST),
        home=setting.task in [name.strip() for name in trained_on.split(",")],
        task=setting.task,
        optimizer=setting.optimizer,
        budget=setting.budget,
        seeds=losses.shape[0],
        initial_rates=losses.shape[1],
        metric=str(own.metric.iloc[0]),
        metrics=mean_metrics(own),
        best=best,
        best_lr=evaluation.tuned_rate(setting, best),
        best_test_loss=float(best_losses.mean()),
        best_test_metric=float(best_metrics.mean()),
        worst_regret=float(np.max(log_ratio(losses.to_numpy(), best_losses[:, None], axis=0))),
        far_from_best=float(evaluation.far_from_best(setting, own.test_loss).mean()),
        learned_nothing=float(evaluation.learned_nothing(own).mean()),
        best_learned_nothing=float(evaluation.learned_nothing(schedule).mean()),
        **{
            f"{name}{end}": float(value)
            for name, (mean, (low, high)) in figures.items()
            for end, value in (("", mean), ("_low", low), ("_high", high))
        },
    )


def log_ratio(a: Any, b: Any, axis: int = -1) -> Any:
    """Return ln(mean of ``a`` / mean of ``b``) along an axis; NaN where both are 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.mean(a, axis=axis)) - np.log(np.mean(b, axis=axis))


def paired_interval(
    a: np.ndarray, b: np.ndarray, statistic: Callable[..., Any], confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of two samples (``scipy.stats.bootstrap``).

    Runs of one seed share initial weights and the order of the data, so the two are resampled jointly.

    :param a: figures of one controller, float (S,), a seed each
    :param b: figures of the other, float (S,), of the same seeds
    :param statistic: function of the two samples and ``axis``
    :return: the ends; NaN for fewer than 2 seeds or where a figure is not finite
    """
    from scipy.stats import bootstrap

    if len(a) < 2 or not np.isfinite([a, b]).all():
        return math.nan, math.nan
    interval = bootstrap(
        (a, b),
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
