"""Tuning curves of drawn tasks: which rates are good for one of them, and the one rate that is best for many.

A rate costs a task its regret: the log loss that it ends at over that of the task's best rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.training.curve_records import TUNING

LEARNS_BELOW = 0.8  # of the loss at the start: a tuned run that ends above it has learned nothing
ALIKE_WITHIN = 0.15  # of a log loss between the best and the worst rate: any rate would do
# Rates before anything was measured: of Adam and its kin; of SGD as effective rate, lr / (1 - momentum).
FIRST_GUESS = {"adam": 0.012, "sgd": 0.45}
FINE_TUNING_GUESS = 0.3  # times
FEWEST_TASKS = 5  # that a calibrated rate is computed from
PROFILES = ("rex", "cosine", "linear")
GRID = np.round(np.arange(-6.0, 2.5001, 0.02), 2)  # log10 of rates, of SGD of effective ones
LARGEST_REGRET = 2.0  # of a log loss: one lost run must not decide
_KERNEL = np.exp(-0.5 * (np.arange(-40, 41) * 0.02 / 0.15) ** 2)  # over the grid: 0.15 decades, less than between rates


# ---------------------------------------------------------------------- one curve


def kind_of(facts: Mapping[str, Any]) -> str:
    """Return the kind of a task's optimizer: SGD with and without momentum are one, and so are Adam and AdamW."""
    return "sgd" if facts["optimizer"].startswith("sgd") else "adam"


def effective(facts: Mapping[str, Any]) -> float:
    """Return what a rate is multiplied by to compare it between momenta: ``1 / (1 - momentum)`` for SGD, 1 for Adam."""
    return 1.0 / (1.0 - facts["momentum"]) if kind_of(facts) == "sgd" else 1.0


def log_losses(record: Mapping[str, Any], profile: str) -> np.ndarray:
    """Return log losses of a tuning record, (seeds, rates); of lost runs infinity."""
    lines = [line for line, name in enumerate(record["profiles"]) if name == profile]
    losses = np.array([record["losses"][line] for line in lines], dtype=float)
    lost = np.array([record["diverged"][line] for line in lines], dtype=bool)
    return np.where(lost | ~np.isfinite(losses), np.inf, np.log(np.maximum(losses, 1e-8)))


def smoothed(curve: np.ndarray) -> np.ndarray:
    """Smooth log losses over rates, (rates,), by weights 1/4, 1/2, 1/4.

    Ends, and rates beside a cliff of more than 1 or a lost run, keep their own value: a cliff stays where it is.
    """
    found = curve.copy()
    for i in range(1, len(curve) - 1):
        near = curve[i - 1 : i + 2]
        if np.isfinite(near).all() and np.ptp(near) < 1.0:
            found[i] = near @ (0.25, 0.5, 0.25)
    return found


def judged(record: Mapping[str, Any], profile: str = "cosine") -> str:
    """Say why a task teaches nothing, from its tuning curve; an empty text if it does teach.

    :param record: of kind ``tuning``
    :param profile: whose curve is looked at, where there is one
    """
    profile = profile if profile in record["profiles"] else record["profiles"][0]
    curve = smoothed(log_losses(record, profile).mean(axis=0))
    best = float(curve.min())
    if not best < np.log(LEARNS_BELOW * record["facts"]["start_loss"]):
        return "learns nothing"
    if float(np.minimum(curve, best + LARGEST_REGRET).max()) - best < ALIKE_WITHIN:
        return "every rate is alike"
    if int(np.argmin(curve)) in (0, len(curve) - 1):
        return "the best rate is at an end"
    return ""


def learnable(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the tuning records, of all, whose tasks teach something."""
    return [record for record in records if record["kind"] == TUNING and judged(record) == ""]


def regret_curve(record: Mapping[str, Any], profile: str) -> np.ndarray:
    """Return the smoothed log loss over the curve's best point at each rate of :data:`GRID`; at most 2.

    Beyond its ends a curve costs what they cost. The best point is that of the mean over seeds, not smoothed, so that
    even the best rate costs a little: the floor of this measure.
    """
    mean = log_losses(record, profile).mean(axis=0)
    curve = np.minimum(smoothed(mean) - mean.min(), LARGEST_REGRET)
    return np.interp(GRID, np.log10(np.array(record["rates"]) * effective(record["facts"])), curve)


# ---------------------------------------------------------------------- one rate for many tasks


def regrets_of(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return the regret of each of some tasks over rates, (tasks, rates of the grid)."""
    return np.array([regret_curve(record, profile) for record in records])


def best_rate(regrets: np.ndarray) -> float:
    """Return log10 of the rate with the least mean regret, smoothed over rates: (tasks, rates of the grid)."""
    mean = np.pad(regrets.mean(axis=0), len(_KERNEL) // 2, mode="edge")
    return float(GRID[np.argmin(np.convolve(mean, _KERNEL / _KERNEL.sum(), "valid"))])


def shifted(regrets: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return regrets over the ratio to a rate of each task, log10 of it (tasks,)."""
    return np.array([np.interp(GRID, GRID - rate, line) for rate, line in zip(by, regrets, strict=True)])


def calibrate(records: Sequence[Mapping[str, Any]], resamples: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Return by profile, then by kind of optimizer and ``fine-tuning``, the rate with the least mean regret.

    ``fine-tuning`` is a factor on the rates of all kinds. What fewer than five tasks speak for is left out.

    :param records: of any kind; tuning records of tasks that teach something count
    :param resamples: bootstrap samples of the tasks that ``low`` and ``high`` (95 %) come from; 0: neither is given
    """
    teaching, profiles = learnable(records), {}
    for profile in PROFILES:
        seen = [record for record in teaching if profile in record["profiles"]]
        if found := calibrated_rates([record["facts"] for record in seen], regrets_of(seen, profile), resamples):
            profiles[profile] = found
    return profiles


def calibrated_rates(
    facts: Sequence[Mapping[str, Any]], regrets: np.ndarray, resamples: int = 0
) -> dict[str, dict[str, float]]:
    """Return the rates of one profile, see :func:`calibrate`.

    :param facts: of each task that teaches something
    :param regrets: of each over rates, (tasks, rates of the grid)
    """
    kinds = np.array([kind_of(one) for one in facts])
    tuned, draws = np.array([one["fine_tuning"] for one in facts], dtype=bool), np.random.default_rng(0)
    found: dict[str, dict[str, float]] = {}
    for kind in FIRST_GUESS:
        some = (kinds == kind) & ~tuned
        if some.sum() >= FEWEST_TASKS:
            found[kind] = _with_interval(regrets[some], resamples, draws)
    if tuned.sum() >= FEWEST_TASKS:
        usual = np.array([np.log10(rate_of(found, kind)) for kind in kinds[tuned]])
        found["fine-tuning"] = _with_interval(shifted(regrets[tuned], usual), resamples, draws)
    return found


def _with_interval(regrets: np.ndarray, resamples: int, draws: np.random.Generator) -> dict[str, float]:
    count = len(regrets)
    found: dict[str, float] = {"rate": _plain(best_rate(regrets)), "tasks": count}
    if resamples:
        again = [best_rate(regrets[draws.integers(count, size=count)]) for _ in range(resamples)]
        found["low"], found["high"] = (_plain(value) for value in np.quantile(again, [0.025, 0.975]))
    return found


def _plain(log_rate: float) -> float:
    return float(f"{10.0**log_rate:.3g}")


def rate_of(rates: Mapping[str, Mapping[str, float]], kind: str) -> float:
    """Return the calibrated rate of a kind of optimizer, or a first guess."""
    return rates[kind]["rate"] if kind in rates else FIRST_GUESS[kind]


def starting_rate(facts: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]]) -> float:
    """Return the default rate of a task's optimizer; a first guess where too few tasks were measured.

    :param facts: of the task
    :param rates: what :func:`calibrate` returned for one profile
    """
    factor = rates["fine-tuning"]["rate"] if "fine-tuning" in rates else FINE_TUNING_GUESS
    return rate_of(rates, kind_of(facts)) / effective(facts) * (factor if facts["fine_tuning"] else 1.0)


def centre_of(record: Mapping[str, Any], regrets: np.ndarray) -> float:
    """Return the middle of a curve's valley, log10 of a rate: less noise than its lowest point."""
    rates = np.log10(np.array(record["rates"]) * effective(record["facts"]))
    weights = np.exp(-(regrets - regrets.min()) / 0.03) * ((rates[0] <= GRID) & (rates[-1] >= GRID))
    return float(weights @ GRID / weights.sum())


def ratio_with_interval(regrets: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Return the geometric mean of loss over the best, and its bootstrap interval over tasks (95 %)."""
    draws = np.random.default_rng(0)
    means = regrets[draws.integers(len(regrets), size=(resamples, len(regrets)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.exp(regrets.mean())), float(np.exp(low)), float(np.exp(high))
