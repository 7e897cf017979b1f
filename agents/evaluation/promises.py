"""The promises of a policy, and whether the results of a suite keep them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agents.evaluation.statistics import share_interval, top_shares
from agents.evaluation.suite import PROMISES, PartResult
from agents.evaluation.suite_scores import Interval, Scores

HELD, MISSED, NOT_MEASURED = "held", "missed", "not measured"
PEERS = ("prodigy", "schedule-free-default")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_UNKNOWN: Interval = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Measure:
    """One thing that is promised.

    :param statement: what is measured
    :param comparison: how the figure has to compare with the threshold
    :param figure: computes it for a policy, with its interval
    """

    statement: str
    comparison: str
    threshold: float
    figure: Callable[[Scores, str], Interval]


def loss_ratio(scores: Scores, policy: str) -> Interval:
    """Geometric mean over settings of the policy's mean test loss over the best tuned schedule's."""
    place = scores.methods.index(policy)
    return scores.bootstrap(scores.loss, lambda drawn: float(scores.mean_ratio(drawn)[place]))


def nothing_learned(scores: Scores, policy: str) -> Interval:
    """Share of the policy's runs that learned nothing, with its exact interval."""
    lost, total = scores.learned_nothing(policy)
    return (lost / total, *share_interval(lost, total))


def better_than(peer: str) -> Callable[[Scores, str], Interval]:
    """Return the share of settings in which a policy's mean test loss is below a peer's."""

    def figure(scores: Scores, policy: str) -> Interval:
        if peer not in scores.methods:
            return _UNKNOWN
        own, other = scores.methods.index(policy), scores.methods.index(peer)

        def share(drawn: np.ndarray) -> float:
            means = drawn.mean(axis=2)
            return float((means[:, own] < means[:, other]).mean())

        return scores.bootstrap(scores.loss, share)

    return figure


def score_against(schedule: str) -> Callable[[Scores, str], Interval]:
    """Return by how many standard errors a policy's score is above a tuned schedule's, the least over settings.

    The standard error is that of the schedule's mean over seeds.
    """

    def figure(scores: Scores, policy: str) -> Interval:
        if schedule not in scores.methods:
            return _UNKNOWN
        own, other = scores.methods.index(policy), scores.methods.index(schedule)
        seeds = scores.metric.shape[2]
        if seeds < 2:
            return _UNKNOWN
        error = scores.metric[:, other].std(axis=1, ddof=1) / math.sqrt(seeds)
        if not (error > 0.0).all():  # NaN where the schedule itself diverged
            return _UNKNOWN

        def least(drawn: np.ndarray) -> float:
            return float(((drawn[:, other].mean(axis=1) - drawn[:, own].mean(axis=1)) / error).min())

        return scores.bootstrap(scores.metric, least)

    return figure


def top_share(k: int, less: str | None = None) -> Callable[[Scores, str], Interval]:
    """Return the share of settings in which a policy is among the best k of itself and the schedules, by the metric.

    :param less: a schedule whose share is subtracted
    """

    def figure(scores: Scores, policy: str) -> Interval:
        if less is not None and less not in scores.methods:
            return _UNKNOWN
        ranked = [*scores.references, scores.methods.index(policy)]
        minus = ranked.index(scores.methods.index(less)) if less is not None else None

        def share(drawn: np.ndarray) -> float:
            tops = top_shares(drawn, k)
            return float(tops[-1] - (tops[minus] if minus is not None else 0.0))

        return scores.bootstrap(scores.metric[:, ranked], share)

    return figure


_RATIO = "mean test loss over the best tuned schedule's"
_NOTHING = "share of runs that learn nothing"
MEASURES: dict[str, tuple[Measure, ...]] = {
    "in_distribution": (Measure(_RATIO, "<=", 1.02, loss_ratio), Measure(_NOTHING, "<", 0.01, nothing_learned)),
    "held_out": (
        Measure(_RATIO, "<=", 1.05, loss_ratio),
        Measure(_NOTHING, "<", 0.02, nothing_learned),
        *(
            Measure(f"share of settings with less test loss than {peer}", ">=", 0.7, better_than(peer))
            for peer in PEERS
        ),
    ),
    "fine_tuning": (
        Measure("score less tuned linear's, in standard errors of it", ">=", -1.0, score_against("linear")),
        Measure(_NOTHING, "<=", 0.0, nothing_learned),
    ),
    "rex": (
        Measure("Top-1 share less rex's", ">", 0.0, top_share(1, less="rex")),
        Measure("Top-3 share", ">=", 0.9, top_share(3)),
    ),
    "long": (Measure(_RATIO, "<=", 1.05, loss_ratio),),
}


@dataclass(frozen=True)
class Claim:
    """One promise to be held by one policy. Intervals are of 95 %.

    :param promise: one of :data:`agents.evaluation.suite.PROMISES`
    :param settings: number of settings it was measured in
    :param verdict: whether the figure (not its interval) holds the threshold, :data:`HELD`, :data:`MISSED`, or
        :data:`NOT_MEASURED`
    :param note: why it was not measured, or what it was measured without
    """

    promise: str
    policy: str
    statement: str
    figure: float
    low: float
    high: float
    comparison: str
    threshold: float
    settings: int
    verdict: str
    note: str = ""


def claims(results: Sequence[PartResult]) -> list[Claim]:
    """Return for every policy of the suite whether each promise is kept."""
    policies = list(dict.fromkeys(name for result in results for name in result.policies))
    by_promise = {result.part.promise: result for result in results if result.part.promise}
    made = []
    for promise in PROMISES:
        result = by_promise.get(promise)
        scores = Scores(result.evaluation) if result is not None and result.evaluation is not None else None
        for policy in policies:
            note, why_not = _notes(result, policy)
            for measure in MEASURES[promise]:
                figures = _UNKNOWN if scores is None or why_not else measure.figure(scores, policy)
                known = not math.isnan(figures[0])
                right = known and _COMPARE[measure.comparison](figures[0], measure.threshold)
                made.append(
                    Claim(
                        promise,
                        policy,
                        measure.statement,
                        *figures,
                        measure.comparison,
                        measure.threshold,
                        len(scores.settings) if scores is not None and known else 0,
                        (HELD if right else MISSED) if known else NOT_MEASURED,
                        why_not or (note if known else note or "no figure: too few seeds, or a method is not there"),
                    )
                )
    return made


def _notes(result: PartResult | None, policy: str) -> tuple[str, str]:
    """Return which tasks are missing from a measurement, and why there is no measurement at all."""
    if result is None:
        return "", "no part of the suite measures it"
    without = f"without {', '.join(result.left_out)} (no data)" if result.left_out else ""
    if result.evaluation is None:
        return "", without
    if policy not in result.policies:
        return "", f"the policy is not in part {result.name}"
    known = {name.strip() for name in result.policies[policy].split(",")}
    seen = sorted(known & set(result.evaluation.runs.task)) if result.part.held_out else []
    return without, f"not held out: trained on {', '.join(seen)}" if seen else ""
