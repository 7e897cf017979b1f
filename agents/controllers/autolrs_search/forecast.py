"""Forecasts of a loss from the beginning of its series (Jin et al., "AutoLRS", ICLR 2021, section 4.3).

The series is smoothed by a quadratic spline that drops outliers, and an exponential is fitted to what is left. The
functions take any series: non-finite entries are left out of the fits, and nothing raises or warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import make_lsq_spline

_PASSES, _DROPPED = 10, 0.03  # passes over the series, and the share of it that each of them may drop
_POINTS_A_PIECE = 4
_SCANNED, _REFINED = 60, 40
_FLATTEST = 0.1  # smallest |b| times the length of the series: a candidate trains a tenth of its stage


def denoise(losses: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float]:
    """Return a series smoothed by a least-squares quadratic spline, and the standard deviation of its noise.

    Outliers of the first half are left out: ten passes each drop those of the 3 % of entries furthest from the spline
    that lie there; of a series too short for 3 % of it to be an entry, one pass drops one. The second half, where the
    forecast starts, stays whole. The knots halve the series, then its first half, and so on, as losses bend most at the
    start.

    :param losses: series (n,); non-finite entries are replaced by the spline
    :return: float64 (n,), NaN throughout if no entry is finite, and the deviation
    """
    values = _finite_or_nan(losses)
    positions = np.flatnonzero(~np.isnan(values))
    if len(positions) == 0:
        return values, 0.0
    kept, series = positions.astype(float), values[positions]
    scale = float(np.abs(series).max()) or 1.0
    series = series / scale
    share, middle = round(_DROPPED * len(kept)), (len(values) - 1) / 2
    for _ in range(_PASSES if share else 1):
        distance = np.abs(series - _spline(kept, series, kept))
        drop = np.argsort(distance, kind="stable")[-max(share, 1) :]
        drop = drop[kept[drop] < middle]
        if len(kept) - len(drop) < _POINTS_A_PIECE:
            break
        kept, series = np.delete(kept, drop), np.delete(series, drop)
    squares = float(np.square(series - _spline(kept, series, kept)).sum())
    free = len(kept) - 3 - len(_knots(kept))
    noise = math.sqrt(squares / free) if free > 0 else 0.0
    return _spline(kept, series, np.arange(len(values), dtype=float)) * scale, noise * scale


def fit_exponential(losses: Sequence[float] | np.ndarray, tolerance: float = 0.0) -> tuple[float, float, float]:
    """Return (a, b, c), b < 0, that minimise the squared distance of a e^{bt} + c from a series, t = 0, 1, ...

    Variable projection: for each b the best a and c are a linear least-squares problem; b is scanned over time scales
    1 / |b| from half a step to ten times the length of the series, and refined. Slower than that a series looks
    straight, and how far it goes on falling is a guess.

    :param losses: series (n,); non-finite entries are left out
    :param tolerance: of all b whose squared distance is within it of the smallest one the steepest is taken
    :return: (0, b, last entry) for a series of fewer than three finite entries, NaN if there is none
    """
    values = _finite_or_nan(losses)
    steps = np.flatnonzero(~np.isnan(values)).astype(float)
    series = values[steps.astype(int)]
    if len(series) < 3:
        return 0.0, -1.0, float(series[-1]) if len(series) else math.nan
    scale = float(np.abs(series).max()) or 1.0
    series, tolerance = series / scale, tolerance / scale / scale
    lowest, highest = math.log(_FLATTEST / len(values)), math.log(2.0)
    low, high = lowest, highest
    for count in (_SCANNED, _REFINED, _REFINED):
        logs = np.linspace(low, high, count)
        errors = [_projection(-math.exp(log), steps, series)[2] for log in logs]
        best, step = float(logs[int(np.argmin(errors))]), (high - low) / (count - 1)
        low, high = max(best - step, lowest), min(best + step, highest)
    if tolerance > 0.0:
        allowed = _projection(-math.exp(best), steps, series)[2] + tolerance
        steeper = np.linspace(best, highest, _SCANNED)
        best = max(float(log) for log in steeper if _projection(-math.exp(log), steps, series)[2] <= allowed)
    b = -math.exp(best)
    a, c, _ = _projection(b, steps, series)
    return a * scale, b, c * scale


def forecast(losses: Sequence[float] | np.ndarray, horizon: float, caution: float = 0.0) -> float:
    """Return the loss that a series will have reached at a later step.

    :param losses: series of steps 0, 1, ..., n - 1
    :param horizon: step to forecast
    :param caution: how many standard errors b may lie from the best fit, towards a series that soon levels off. A fit
        to a noisy series that has hardly moved may promise any fall; 0, the paper's, believes it
    :return: a finite number, or infinity if the series ends in, or for the most part is, no number
    """
    values = _finite_or_nan(losses)
    if len(values) == 0 or math.isnan(values[-1]) or np.isnan(values).mean() > 0.5:
        return math.inf
    smooth, noise = denoise(values)
    a, b, c = fit_exponential(smooth, (caution * noise) * (caution * noise))
    loss = a * math.exp(b * horizon) + c
    return loss if math.isfinite(loss) else math.inf


def _finite_or_nan(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.array(losses, dtype=float).reshape(-1)
    values[~np.isfinite(values)] = np.nan
    return values


def _knots(x: np.ndarray) -> list[float]:
    """Return inner knots, rising: in the middle of x, of its first half, and so on."""
    inner, points = [], len(x) // 2
    while points >= _POINTS_A_PIECE:
        inner.append(float(x[points - 1] + x[points]) / 2)
        points //= 2
    return inner[::-1]


def _spline(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the least-squares quadratic spline through (x, y), read at some positions; a line or less if it must."""
    degree = min(2, len(x) - 1)
    if degree == 0:
        return np.full(len(at), y[0])
    knots = np.concatenate([[x[0]] * (degree + 1), _knots(x), [x[-1]] * (degree + 1)])
    return make_lsq_spline(x, y, knots, degree)(np.clip(at, x[0], x[-1]))


def _projection(b: float, steps: np.ndarray, series: np.ndarray) -> tuple[float, float, float]:
    """Return the best a and c for a b, and the squared error that is left."""
    curve = np.exp(b * steps)
    centred = curve - curve.mean()
    mean = series.mean()
    power = float(centred @ centred)
    a = float(centred @ (series - mean)) / power if power > 0.0 else 0.0
    c = float(mean - a * curve.mean())
    error = a * curve + c - series
    return a, c, float(error @ error)
