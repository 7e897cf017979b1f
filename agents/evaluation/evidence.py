"""The figures of a suite: how far each method is from the best tuned schedule, its cost, and which promises hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from agents.evaluation.promises import Claim, claims
from agents.evaluation.replays import MEAN_PATH, REPLAY, control_name
from agents.evaluation.results import SETTING
from agents.evaluation.statistics import interquartile_mean, pooled_interquartile_mean, stratified_interval, top_shares
from agents.evaluation.suite import PartResult
from agents.evaluation.suite_scores import Scores

TOGETHER = "all, each run once"


@dataclass(frozen=True)
class Standing:
    """One method in one part. Intervals are of 95 %, over seeds within settings.

    :param ratio: geometric mean over settings of its mean test loss over the best tuned schedule's
    :param worst: the largest of these
    :param log_ratio: interquartile mean over settings and seeds of ln(test loss / the best tuned schedule's of the same
        seed)
    :param top: shares of Top-1 and Top-3 by the metric, among schedules and policies; NaN for others
    :param top_loss: the same by the test loss
    :param learned_nothing: how many of the ``runs`` learned nothing
    :param cost: updates one result takes, over the budget
    :param evaluations: passes over the reward split one result takes
    """

    part: str
    controller: str
    ratio: float
    low: float
    high: float
    worst: float
    log_ratio: float
    log_low: float
    log_high: float
    top: tuple[float, float]
    top_loss: tuple[float, float]
    learned_nothing: int
    runs: int
    cost: float
    evaluations: float


def standings(result: PartResult) -> list[Standing]:
    """Return every method of a part, in the order they were run in."""
    assert result.evaluation is not None
    scores = Scores(result.evaluation)
    ratios, means = scores.ratios(scores.loss), scores.mean_ratio(scores.loss)
    low, high = stratified_interval(scores.loss, scores.mean_ratio)
    logs = scores.log_ratios()
    log_means, (log_low, log_high) = interquartile_mean(logs), stratified_interval(logs, interquartile_mean)
    ranked = [n for n, name in enumerate(scores.methods) if n in scores.references or name in result.policies]
    tops = np.full((len(scores.methods), 2, 2), math.nan)  # by the metric and by the loss, of Top-1 and Top-3
    for by, array in enumerate((scores.metric, scores.loss)):
        for place, k in enumerate((1, 3)):
            tops[ranked, by, place] = top_shares(array[:, ranked], k)
    figures = {"ratio": means, "low": low, "high": high, "worst": ratios.max(axis=0)}
    figures |= {"log_ratio": log_means, "log_low": log_low, "log_high": log_high}
    made = []
    for n, name in enumerate(scores.methods):
        (lost, runs), (cost, evaluations) = scores.learned_nothing(name), scores.price(name)
        made.append(
            Standing(
                part=result.name,
                controller=name,
                top=(float(tops[n, 0, 0]), float(tops[n, 0, 1])),
                top_loss=(float(tops[n, 1, 0]), float(tops[n, 1, 1])),
                learned_nothing=lost,
                runs=runs,
                cost=cost,
                evaluations=evaluations,
                **{key: float(values[n]) for key, values in figures.items()},
            )
        )
    return made


@dataclass(frozen=True)
class Pooled:
    """One method over the parts of :func:`overall`.

    :param log_ratio: see :class:`Standing`
    :param learned_nothing: how many of the ``runs`` learned nothing
    """

    controller: str
    log_ratio: float
    low: float
    high: float
    learned_nothing: int
    runs: int


def overall(results: Sequence[PartResult]) -> list[Pooled]:
    """Return the methods that are in every part that promises something and has all the schedules there are."""
    parts = [Scores(result.evaluation) for result in results if result.part.promise and result.evaluation is not None]
    schedules = {name for part in parts for name in part.evaluation.references}
    parts = [part for part in parts if part.evaluation.references == schedules]
    if not parts:
        return []
    names = [name for name in parts[0].methods if all(name in part.methods for part in parts)]
    logs = [part.log_ratios()[:, [part.methods.index(name) for name in names]] for part in parts]
    means, low, high = pooled_interquartile_mean(logs)
    made = []
    for n, name in enumerate(names):
        lost, runs = np.sum([part.learned_nothing(name) for part in parts], axis=0)
        made.append(Pooled(name, float(means[n]), float(low[n]), float(high[n]), int(lost), int(runs)))
    return made


@dataclass(frozen=True)
class OpenLoop:
    """One control of one policy in one part: the policy's rates on a run that they were not chosen on.

    A path also holds the rates of updates that the guard undid. A replay makes these updates for good. To separate the
    effect of the guard, ``calm`` is of initial rates from which no run of the policy was rolled back.

    :param log_ratio: interquartile mean of ln(the control's test loss / the policy's from the same initial rate with
        the same seed); above 0 the policy gains by looking at the run
    """

    part: str
    policy: str
    control: str
    calm: bool
    log_ratio: float
    low: float
    high: float
    runs: int


def open_loops(result: PartResult) -> list[OpenLoop]:
    """Return the controls of a part's policies, over all initial rates and over calm ones.

    Initial rates from which a run has no control are left out: ``runs`` says how many are compared.
    """
    assert result.evaluation is not None
    runs, made = result.evaluation.runs, []
    stratum = [*SETTING, "initial_lr"]
    for policy in result.policies:
        own = runs[runs.controller == policy]
        for control in (REPLAY, MEAN_PATH):
            other = runs[runs.controller == control_name(policy, control)]
            pairs = own.merge(other, on=[*stratum, "seed"], suffixes=("", "_other")).sort_values([*stratum, "seed"])
            if pairs.empty:
                continue
            with np.errstate(invalid="ignore"):
                pairs["log_ratio"] = np.log(pairs.test_loss_other / pairs.test_loss)
            complete = pairs.groupby(stratum, sort=False).filter(lambda one: len(one) == result.protocol.seeds)
            calm_runs = complete.groupby(stratum, sort=False).filter(lambda one: one.rollbacks.sum() == 0)
            for calm, part in ((False, complete), (True, calm_runs)):
                logs = part.log_ratio.to_numpy().reshape(-1, 1, result.protocol.seeds)
                mean, (low, high) = interquartile_mean(logs), stratified_interval(logs, interquartile_mean)
                figures = float(mean[0]), float(low[0]), float(high[0])
                made.append(OpenLoop(result.name, policy, control, calm, *figures, len(part)))
    return made


@dataclass(frozen=True)
class Compute:
    """The computation of a part, or of all parts together.

    :param part: its name, or :data:`TOGETHER`
    :param seconds: of training, summed over processes
    """

    part: str
    runs: int
    updates: int
    search_updates: int
    seconds: float


@dataclass(frozen=True)
class Evidence:
    """All figures of a suite, in the order of its parts.

    :param failures: part, run and reason of every run that was lost again and again
    :param left_out: part, task and reason of every task that was not run
    """

    claims: list[Claim]
    standings: list[Standing]
    overall: list[Pooled]
    open_loops: list[OpenLoop]
    failures: list[str]
    left_out: list[tuple[str, str, str]]
    compute: list[Compute]


def evidence(results: Sequence[PartResult]) -> Evidence:
    """Return the figures of all parts of a suite."""
    run = [result for result in results if result.evaluation is not None]
    return Evidence(
        claims(results),
        [standing for result in run for standing in standings(result)],
        overall(results),
        [loop for result in run if result.part.replays for loop in open_loops(result)],
        [line for result in run for line in _failures(result)],
        [(result.name, task, why) for result in results for task, why in result.left_out.items()],
        compute(run),
    )


def _failures(result: PartResult) -> list[str]:
    assert result.evaluation is not None
    lines = []
    for row, why in result.evaluation.failures.items():
        run = result.evaluation.runs.loc[row]
        lines.append(
            f"{result.name}: {run.controller} on {run.task}, {run.optimizer}, {run.budget} updates, from "
            f"{run.initial_lr:.2g}, seed {run.seed}: {why}"
        )
    return lines


def compute(results: Sequence[PartResult]) -> list[Compute]:
    """Return the computation of each part, and of all parts together.

    A run that several parts share counts in each of them, and once in the last.
    """
    tables = {result.name: result.evaluation.runs for result in results if result.evaluation is not None}
    if not tables:
        return []
    together = pd.concat(tables.values(), ignore_index=True)
    run = ["task", "optimizer", "budget", "seed", "reward_loss", "seconds"]  # no two take equally long
    tables[TOGETHER] = together.drop_duplicates(run)
    return [
        Compute(name, len(runs), int(runs.updates.sum()), int(runs.search_updates.sum()), float(runs.seconds.sum()))
        for name, runs in tables.items()
    ]
