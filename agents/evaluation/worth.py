"""Worth k tries: how many rates somebody would have to try with a plain schedule to end as well as a method does.

A practitioner with k runs to spend draws k initial rates at random over four decades, trains a schedule from each, and
keeps the one with the lowest loss on the reward split. The result is the loss of another run at that rate, of another
seed. :func:`expected_log_loss` is its mean over draws and seeds. A method is *worth k tries* in a setting where its own
mean log loss equals that. ``docs/worth.md`` shows the definition in a picture.

With M rates in a row from best to worst on the reward split, the best of k independent draws is the j-th of them with
probability ``((M - j + 1) / M)^k - ((M - j) / M)^k``. This holds for every real k > 0, so worth is a number and not a
count: a single draw is worth 1, a method below 1 does worse than a rate drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gns.errors import InvalidSettingError

FEWEST, MOST = 0.1, 100.0  # what worth is cut off at: outside, a curve of a dozen rates says nothing any more
_TRIES = np.geomspace(FEWEST, MOST, 301)
_BETWEEN = 40  # points from one rate of a curve to the next


@dataclass(frozen=True)
class TuningCurve:
    """What a schedule came to from each initial rate of a setting.

    :param rates: (G,), ascending; they span the range that tries are drawn from, evenly in the logarithm
    :param tuning: (S, G), loss on the reward split of each seed, by which a rate is chosen; may be infinite
    :param measured: (S, G), loss that is reported; row s of both is one seed, and what is tuned on one row is measured
        on the others
    :param ceiling: loss of a model that has learned nothing, which a diverged run counts as
    :raises InvalidSettingError: if the shapes do not fit, there is one seed alone, or rates do not ascend
    """

    rates: np.ndarray
    tuning: np.ndarray
    measured: np.ndarray
    ceiling: float

    def __post_init__(self) -> None:
        seeds = self.tuning.shape[0]
        if self.tuning.shape != self.measured.shape or self.tuning.shape[1:] != self.rates.shape or len(self.rates) < 2:
            raise InvalidSettingError(
                f"A tuning curve has rates {self.rates.shape}, losses for tuning {self.tuning.shape} and for reporting "
                f"{self.measured.shape}; expected (G,) and twice (S, G), with G of 2 or more."
            )
        if seeds < 2:
            raise InvalidSettingError(
                "A tuning curve has one seed; expected 2 or more, since a rate is tuned on one seed and measured on "
                "another. Raise seeds."
            )
        if not (np.diff(self.rates) > 0).all():
            raise InvalidSettingError(f"A tuning curve has the rates {self.rates}; expected ascending ones.")

    def log_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both arrays as log losses on a fine grid of rates, (S, M) each, linear between the curve's rates."""
        cells = _BETWEEN * (len(self.rates) - 1)
        places = (np.arange(cells) + 0.5) / _BETWEEN  # the middle of each cell, all equally likely to be drawn
        at = np.interp(places, np.arange(len(self.rates)), np.log(self.rates))

        def fine(losses: np.ndarray) -> np.ndarray:
            return np.stack([np.interp(at, np.log(self.rates), row) for row in log_loss(losses, self.ceiling)])

        return fine(self.tuning), fine(self.measured)

    def drawn(self, seeds: Sequence[int]) -> TuningCurve:
        """Return the curve of some of its seeds, as a bootstrap draws them; at least two different ones.

        A seed drawn twice is still never measured on itself, see :func:`expected_log_loss`.
        """
        return TuningCurve(self.rates, self.tuning[list(seeds)], self.measured[list(seeds)], self.ceiling)


def log_loss(losses: np.ndarray, ceiling: float) -> np.ndarray:
    """Return log losses; what is not finite, or above the loss of a model that learned nothing, counts as that.

    :param losses: positive; any shape
    """
    losses = np.asarray(losses, dtype=np.float64)
    return np.log(np.minimum(np.where(np.isnan(losses), np.inf, losses), ceiling))


def expected_log_loss(curve: TuningCurve, tries: np.ndarray) -> np.ndarray:
    """Return the expected log loss of the best of k tries, tuned on one seed and measured on another.

    It never rises with k: somebody to whom more tries bring nothing stops earlier.

    :param tries: (K,), numbers k > 0, ascending
    :return: (K,)
    """
    tuning, measured = curve.log_losses()
    weights = _best_of(tuning.shape[1], np.asarray(tries, dtype=np.float64))
    order = np.argsort(tuning, axis=1, kind="stable")
    others = _different(curve)
    total = sum(weights @ measured[others[seed]].mean(axis=0)[order[seed]] for seed in range(len(order)))
    return np.minimum.accumulate(total / len(order))


def worth(curve: TuningCurve, mean_log_loss: float) -> float:
    """Return how many tries a method is worth, from :data:`FEWEST` (or fewer) to :data:`MOST` (or more).

    :param mean_log_loss: of the method in the setting of the curve, by :func:`log_loss`
    """
    return _tries_for(expected_log_loss(curve, _TRIES), mean_log_loss)


@dataclass(frozen=True)
class Worth:
    """What a method is worth over several settings, in tries.

    :param median: of the settings' own
    :param mean: geometric mean of the settings' own
    :param pooled: tries at which log losses averaged over settings are equal: hard settings count by what they cost
    :param by_setting: the settings' own
    :param intervals: of median, mean and pooled: lower and upper end by name
    """

    median: float
    mean: float
    pooled: float
    by_setting: tuple[float, ...]
    intervals: dict[str, tuple[float, float]]


def worth_over_settings(
    curves: Sequence[TuningCurve],
    losses: Sequence[np.ndarray],
    confidence: float = 0.95,
    resamples: int = 500,
    seed: int = 0,
) -> Worth:
    """Return what a method is worth over settings, with percentile bootstrap intervals.

    A resample draws settings anew, and within each the seeds of the method and those of the curve. With one setting
    only seeds are drawn.

    :param curves: of one schedule, a setting each
    :param losses: of the method, a setting each: (runs,), of any seeds and initial rates; not their logarithms
    :param seed: of the draws
    :raises InvalidSettingError: if there is no setting, or a setting without runs
    """
    if not curves or len(curves) != len(losses) or not all(np.size(own) for own in losses):
        raise InvalidSettingError(
            f"Worth of {len(losses)} settings' losses by {len(curves)} tuning curves; expected as many of both, at "
            "least one, and at least one run in each setting."
        )
    logs = [log_loss(own, curve.ceiling).ravel() for curve, own in zip(curves, losses, strict=True)]
    expected = [expected_log_loss(curve, _TRIES) for curve in curves]
    figures = _figures(expected, [own.mean() for own in logs])
    draws = np.random.default_rng(seed)
    redrawn = []
    spare = [_redrawn_curves(curve, draws) for curve in curves]
    for _ in range(resamples):
        chosen = draws.integers(len(curves), size=len(curves))
        own = [logs[i][draws.integers(len(logs[i]), size=len(logs[i]))].mean() for i in chosen]
        redrawn.append(_figures([spare[i][draws.integers(len(spare[i]))] for i in chosen], own)[:3])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.array(redrawn), [tail, 1.0 - tail], axis=0)
    names = ("median", "mean", "pooled")
    intervals = {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
    return Worth(*figures[:3], by_setting=figures[3], intervals=intervals)


def _figures(expected: Sequence[np.ndarray], means: Sequence[float]) -> tuple[float, float, float, tuple[float, ...]]:
    own = tuple(_tries_for(curve, mean) for curve, mean in zip(expected, means, strict=True))
    pooled = _tries_for(np.mean(expected, axis=0), float(np.mean(means)))
    return float(np.median(own)), math.exp(float(np.mean(np.log(own)))), pooled, own


def _redrawn_curves(curve: TuningCurve, draws: np.random.Generator, count: int = 40) -> list[np.ndarray]:
    """Return expected log losses of curves whose seeds were drawn anew; a draw of one seed alone is left out."""
    seeds = len(curve.tuning)
    drawn = [draws.integers(seeds, size=seeds).tolist() for _ in range(count)]
    several = [curve.drawn(own) for own in drawn if len(set(own)) > 1]
    return [expected_log_loss(own, _TRIES) for own in several or [curve]]


def _best_of(count: int, tries: np.ndarray) -> np.ndarray:
    """Return the probabilities that the best of k draws is the j-th of M: (K, M), best first."""
    left = np.arange(count, -1, -1) / count  # share of what is no better, from all to none
    powers = left[None, :] ** tries[:, None]
    return powers[:, :-1] - powers[:, 1:]


def _different(curve: TuningCurve) -> np.ndarray:
    """Return which pairs of rows are of different seeds, bool (S, S); rows that a bootstrap drew twice are the same."""
    rows = np.nan_to_num(np.concatenate([curve.tuning, curve.measured], axis=1), nan=np.inf)
    return (rows[:, None, :] != rows[None, :, :]).any(axis=2)


def _tries_for(expected: np.ndarray, mean: float) -> float:
    """Return the fewest tries at which the expected log loss is as low as a mean; linear in log tries between them."""
    if mean >= expected[0]:
        return FEWEST
    if mean < expected[-1]:
        return MOST
    place = int(np.argmax(expected <= mean))
    high, low = expected[place - 1], expected[place]
    share = (high - mean) / (high - low)
    return math.exp((1.0 - share) * math.log(_TRIES[place - 1]) + share * math.log(_TRIES[place]))
