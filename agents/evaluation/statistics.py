"""Statistics over many settings: interquartile mean, stratified bootstrap, Top-k shares, ranks, regret.

Everywhere ``scores`` is float (settings, methods, seeds), lower is better, NaN is worst; a setting is a task with an
optimizer and a budget, and runs of one seed share initial weights and the order of the data across methods.

The interquartile mean and its stratified bootstrap are those of Agarwal et al. ("Deep Reinforcement Learning at the
Edge of the Statistical Precipice", NeurIPS 2021). Their package rliable requires a version of arch that does not import
beside pandas 3, so both are built on scipy and numpy here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

TIE = 1e-6  # relative; metrics are means in float32, so equal counts differ by some 1e-7, and one example by 3e-5


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return each method's mean over the middle half of its settings x seeds: float (methods,).

    A quarter is cut off at either end, so that up to a quarter of the runs may diverge without making it infinite.
    Settings that are NaN throughout tell nothing and are left out.
    """
    known = scores[~np.isnan(scores).all(axis=(1, 2))]
    if not known.size:
        return np.full(scores.shape[1], math.nan)
    return _middle_mean(_by_method(known))


def stratified_interval(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic: seeds are drawn anew within each setting, settings are kept.

    All methods get the same draw, as their runs of one seed are paired.

    :param scores: float (settings, methods, seeds)
    :param statistic: from such scores to float (methods,)
    :param seed: of the draws
    :return: lower and upper ends, float (methods,) each; NaN for fewer than 2 seeds
    """
    settings, methods, seeds = scores.shape
    if settings == 0 or seeds < 2:
        return np.full(methods, math.nan), np.full(methods, math.nan)
    draws = np.random.default_rng(seed).integers(seeds, size=(resamples, settings, 1, seeds))
    values = np.stack([statistic(np.take_along_axis(scores, draw, axis=2)) for draw in draws])
    tail = (1.0 - confidence) / 2.0
    # inverted_cdf interpolates nothing, so infinite values among the resamples give no NaN
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0, method="inverted_cdf")
    return low, high


def pooled_interquartile_mean(
    parts: Sequence[np.ndarray], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each method's interquartile mean over parts of different numbers of seeds, and its interval.

    Seeds are drawn anew within each setting, as in :func:`stratified_interval`.

    :param parts: float (settings, methods, seeds) each, of the same methods
    :return: means, lower and upper ends, float (methods,) each; ends are NaN where a part has fewer than 2 seeds
    """

    def statistic(drawn: Sequence[np.ndarray]) -> np.ndarray:
        return _middle_mean(np.concatenate([_by_method(part) for part in drawn], axis=1))

    def draw(rng: np.random.Generator) -> list[np.ndarray]:
        return [np.take_along_axis(p, rng.integers(p.shape[2], size=(len(p), 1, p.shape[2])), axis=2) for p in parts]

    means = statistic(parts)
    if min(part.shape[2] for part in parts) < 2:
        return means, np.full_like(means, math.nan), np.full_like(means, math.nan)
    rng, tail = np.random.default_rng(seed), (1.0 - confidence) / 2.0
    values = [statistic(draw(rng)) for _ in range(resamples)]
    low, high = np.quantile(values, [tail, 1.0 - tail], axis=0, method="inverted_cdf")
    return means, low, high


def share_interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a share (Clopper and Pearson, 1934), which is not empty for a count of 0.

    Runs count as independent of each other.
    """
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def top_shares(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the share of settings in which each method is among the best k by its mean over seeds: float (methods,).

    Fewer than k methods are better than it. Ties count for every method, so shares of Top-1 may add up to more than 1,
    as those in Table 1 of the REX paper do. A method that diverged is in no Top-k. NaN where there are no settings.
    """
    means = _means(scores)
    better, _ = _comparisons(means)
    inside = (better < k) & np.isfinite(means)
    return inside.mean(axis=0) if len(inside) else np.full(scores.shape[1], math.nan)


def mean_ranks(scores: np.ndarray) -> np.ndarray:
    """Return each method's rank by its mean over seeds, averaged over settings: float (methods,), 1 is best.

    Methods that tie share the mean of their ranks. NaN where there are no settings.
    """
    better, equal = _comparisons(_means(scores))
    ranks = 1.0 + better + (equal - 1.0) / 2.0
    return ranks.mean(axis=0) if len(ranks) else np.full(scores.shape[1], math.nan)


def regret(losses: np.ndarray) -> np.ndarray:
    """Return ln(loss / mean loss of the setting's best method), which makes losses of different tasks comparable.

    0: as good as the best method of that setting, 0.1: about 10 % worse. The best method is the one with the lowest
    mean over seeds, so a method's regret averages at least about 0; single runs may lie below.

    :param losses: float (settings, methods, seeds), above 0
    :return: of the same shape; NaN throughout a setting in which no method's mean is finite and above 0
    """
    losses = _worst_if_nan(losses)
    best = losses.mean(axis=2, keepdims=True).min(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(losses / np.where(np.isfinite(best) & (best > 0), best, math.nan))


def bootstrap_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over seeds (``scipy.stats.bootstrap``); NaN for fewer than 2."""
    from scipy.stats import bootstrap

    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan, math.nan
    interval = bootstrap(
        (values,), np.mean, confidence_level=confidence, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _means(scores: np.ndarray) -> np.ndarray:
    """Means over seeds: float (settings, methods)."""
    return _worst_if_nan(scores).mean(axis=2)


def _by_method(scores: np.ndarray) -> np.ndarray:
    """Return float (methods, settings x seeds), in which NaN is infinite."""
    return _worst_if_nan(scores).swapaxes(0, 1).reshape(scores.shape[1], -1)


def _middle_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean of each row without its lowest and highest quarter, rounded down.

    What ``scipy.stats.trim_mean`` gives, which checks its input for milliseconds at each of a bootstrap's draws.
    """
    cut = values.shape[1] // 4
    return np.sort(values, axis=1)[:, cut : values.shape[1] - cut].mean(axis=1)


def _worst_if_nan(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), math.inf, scores)


def _comparisons(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Methods better than each and methods that tie with it, itself among these: int (settings, methods) each."""
    own, others = means[:, :, None], means[:, None, :]
    tie = np.isclose(others, own, rtol=TIE, atol=0.0)
    return ((others < own) & ~tie).sum(axis=2), tie.sum(axis=2)
