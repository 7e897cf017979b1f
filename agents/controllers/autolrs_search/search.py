"""Searches for a learning rate: which to try next, and which to take (Jin et al., "AutoLRS", ICLR 2021, section 4.2).

A score is the forecast loss of a rate, lower is better; NaN and infinity stand for a rate that failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

_GRID = 401  # rates among which the next is picked, evenly spaced in the logarithm
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_SPREAD = 3  # rates that are spread out before the model is asked
_LENGTH = 0.2  # of the Gaussian process, in shares of the logarithmic interval: too few scores to learn it from
_NOISE = 1e-3  # variance of scaled scores about it
_FAR = 30.0  # a scaled score beyond it is that of a rate that diverged

Tried = Sequence[tuple[float, float]]


def propose(tried: Tried, low: float, high: float, kappa: float, rng: np.random.Generator) -> float:
    """Return the next rate to try: where the lower confidence bound ``mean - kappa * deviation`` is lowest.

    Mean and deviation are those of a Gaussian process on log rate and scaled scores. The first rate is random; two more
    follow it in steps of the golden section, which leave no wide gap wherever the first one is.

    Rates that failed have no part in the mean, as no smooth curve follows a loss over the edge of stability. Instead
    the next rate is at most halfway, in the logarithm, from the highest good rate to the lowest failed one above the
    best.

    :param tried: rates tried so far and their scores
    :param low: lowest rate
    :param high: highest rate
    :param kappa: weight of exploring
    :param rng: draws the first rate
    """
    if not tried:
        return propose_random(low, high, rng)
    if len(tried) < _SPREAD:
        return _rate((_place(tried[-1][0], low, high) + _GOLDEN) % 1.0, low, high)
    places = np.linspace(0.0, 1.0, _GRID)
    own = np.array([_place(rate, low, high) for rate, _ in tried])
    scores = scaled([score for _, score in tried])
    bound = _mean(own, scores, places) - kappa * _deviation(own, places)
    fresh = np.abs(places[:, None] - own).min(axis=1) > 0.5 / (_GRID - 1)  # the same rate again would tell nothing
    below = fresh & (places <= _edge(own, scores))
    bound[~(below if below.any() else fresh)] = np.inf
    return _rate(float(places[int(np.argmin(bound))]), low, high)


def propose_random(low: float, high: float, rng: np.random.Generator) -> float:
    """Return a rate drawn log-uniformly."""
    return _rate(float(rng.random()), low, high)


def grid(low: float, high: float, count: int) -> list[float]:
    """Return rates evenly spaced in the logarithm, both ends among them; of one the middle."""
    places = np.linspace(0.0, 1.0, count) if count > 1 else [0.5]
    return [_rate(float(place), low, high) for place in places]


def best_tried(tried: Tried) -> float:
    """Return the rate with the lowest score, the lower one of equals.

    Where all failed it is the lowest rate: what fails in so few updates has diverged, and a lower rate is the remedy.
    """
    return min((score if math.isfinite(score) else math.inf, rate) for rate, score in tried)[1]


def scaled(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return scores with the best at 0 and the median one at 1; those of failed rates are infinite.

    A rate has failed if its score is no number, or lies 30 times as far above the best one as the median does.

    :param scores: scores (n,); NaN and infinity stand for failed rates
    :return: float64 (n,), from 0 to 30 or infinite
    """
    values = np.array(scores, dtype=float)
    good = np.isfinite(values)
    result = np.full(len(values), np.inf)
    if good.any():
        values = values[good] / (np.abs(values[good]).max() or 1.0)
        above = values - values.min()
        above /= float(np.median(above)) or float(above.max()) or 1.0
        result[good] = np.where(above <= _FAR, above, np.inf)
    return result


def _model() -> GaussianProcessRegressor:
    return GaussianProcessRegressor(Matern(_LENGTH, "fixed", nu=2.5) + WhiteKernel(_NOISE, "fixed"))


def _mean(own: np.ndarray, scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the mean of the Gaussian process through the finite scores, in units of their standard deviation."""
    good = np.isfinite(scores)
    if not good.any():
        return np.zeros(len(places))
    spread = float(scores[good].std()) or 1.0
    return _model().fit(own[good, None], (scores[good] - scores[good].mean()) / spread).predict(places[:, None])


def _deviation(own: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the deviation of the Gaussian process, which depends on where was tried alone.

    It is that of the function, without the noise of another score; with it rates right beside tried ones look worth a
    try.
    """
    deviation = _model().fit(own[:, None], np.zeros(len(own))).predict(places[:, None], return_std=True)[1]
    return np.sqrt(np.maximum(np.square(deviation) - _NOISE, 0.0))


def _edge(own: np.ndarray, scores: np.ndarray) -> float:
    """Return the place up to which rates may be tried: see :func:`propose`."""
    good = np.isfinite(scores)
    best = own[int(np.argmin(scores))] if good.any() else -1.0
    failed = own[~good & (own > best)]
    if not len(failed):
        return 1.0
    return float(failed.min() + own[good & (own < failed.min())].max(initial=0.0)) / 2


def _place(rate: float, low: float, high: float) -> float:
    return math.log(rate / low) / math.log(high / low)


def _rate(place: float, low: float, high: float) -> float:
    return min(max(low * (high / low) ** place, low), high)
