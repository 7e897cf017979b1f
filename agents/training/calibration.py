"""Calibrated default rates: what one rate an optimizer would have served a set of tasks best, from tuning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEARNS_BELOW = 0.8  # of the loss at the start: a tuned run that ends above it has learned nothing
ALIKE_WITHIN = 0.15  # of a log loss between the best and the worst rate: any rate would do
# Rates before anything was measured: of Adam and its kin; of SGD as effective rate, lr / (1 - momentum).
FIRST_GUESS = {"adam": 0.011, "adamw": 0.014, "sgdm": 0.48, "sgd": 0.41}
FINE_TUNING_GUESS = 0.3  # times
FEWEST_TASKS = 8  # that a calibrated rate is computed from
_HORIZON = 2.0  # log loss over the best, at most: one lost run must not decide
GRID = np.round(np.arange(-6.0, 2.5001, 0.02), 2)  # log10 of rates, or of effective rates


def effective(optimizer: str, momentum: float) -> float:
    """Return what a rate is multiplied by to compare it between momenta: ``1 / (1 - momentum)`` for SGD, 1 for Adam."""
    return 1.0 / (1.0 - momentum) if optimizer.startswith("sgd") else 1.0


def log_losses(record: Mapping[str, Any], profile: str) -> np.ndarray:
    """Return log losses of a tuning record, (seeds, rates), NaN and lost runs as the largest that count."""
    lines = [line for line, name in enumerate(record["profiles"]) if name == profile]
    losses = np.array([record["losses"][line] for line in lines], dtype=float)
    lost = np.array([record["diverged"][line] for line in lines], dtype=bool)
    return np.where(lost | ~np.isfinite(losses), np.inf, np.log(np.maximum(losses, 1e-8)))


def smoothed(curve: np.ndarray) -> np.ndarray:
    """Smooth log losses over rates, (..., rates): weights 1/4, 1/2, 1/4 within the valley, edges kept.

    A rate beside a lost run keeps its own value, so that a cliff stays where it is.
    """
    before = np.concatenate([curve[..., :1], curve[..., :-1]], axis=-1)
    after = np.concatenate([curve[..., 1:], curve[..., -1:]], axis=-1)
    near = np.where(np.isfinite(before) & np.isfinite(after), 0.25 * before + 0.25 * after, np.inf)
    with np.errstate(invalid="ignore"):
        gap = np.abs(before - after)
        mixed = 0.5 * curve + near
    return np.where(np.isfinite(mixed) & (gap < 1.0), mixed, curve)


def judged(record: Mapping[str, Any], profile: str = "cosine") -> str:
    """Say why a task teaches nothing, from its tuning curve; an empty text if it does teach.

    :param record: of kind ``tuning``
    :param profile: whose curve is looked at, where there is one
    """
    profile = profile if profile in record["profiles"] else record["profiles"][0]
    curves = log_losses(record, profile)
    curve = smoothed(curves.mean(axis=0))
    best = float(curve.min())
    if not best < np.log(LEARNS_BELOW * record["facts"]["start_loss"]):
        return "learns nothing"
    if float(np.minimum(curve, best + _HORIZON).max()) - best < ALIKE_WITHIN:
        return "every rate is alike"
    if int(np.argmin(curve)) in (0, curve.shape[-1] - 1):
        return "the best rate is at an end"
    return ""


def regrets(record: Mapping[str, Any], profile: str) -> np.ndarray:
    """Return the log loss over the task's best at each rate of :data:`GRID`, effective for SGD; at most 2.

    Rates beyond the curve cost what its ends cost.
    """
    facts, curves = record["facts"], log_losses(record, profile)
    curve = np.minimum(smoothed(curves.mean(axis=0)), 1e3)
    curve = np.minimum(curve - curve.min(), _HORIZON)
    rates = np.log10(np.array(record["rates"]) * effective(facts["optimizer"], facts["momentum"]))
    return np.interp(GRID, rates, curve)


def calibrated_rates(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by profile and then by optimizer (and ``fine-tuning``) the rate with the least mean regret.

    Of SGD with and without momentum it is one effective rate. ``fine-tuning`` is a factor on an optimizer's own.

    :param records: of kind ``tuning``; those that teach nothing are left out
    """
    found: dict[str, dict[str, float]] = {}
    learnable = [record for record in records if judged(record) == ""]
    for profile in ("rex", "cosine", "linear"):
        rates: dict[str, float] = {}
        for kind in ("adam", "adamw", "sgd"):
            some = [r for r in learnable if kind_of(r["facts"]) == (kind, False) and profile in r["profiles"]]
            if len(some) >= FEWEST_TASKS:
                mean = np.mean([regrets(record, profile) for record in some], axis=0)
                rates[kind] = float(10.0 ** GRID[int(np.argmin(mean))])
        tuned = [r for r in learnable if r["facts"]["fine_tuning"] and profile in r["profiles"]]
        if len(tuned) >= FEWEST_TASKS:
            rates["fine-tuning"] = _factor(tuned, profile, rates)
        found[profile] = rates
    return found


def _factor(records: Sequence[Mapping[str, Any]], profile: str, rates: Mapping[str, float]) -> float:
    """Return the factor on each optimizer's rate that has the least mean regret on fine-tuning tasks."""
    shifts = np.arange(-2.0, 1.0, 0.02)
    total = np.zeros(len(shifts))
    for record in records:
        kind = kind_of(record["facts"])[0]
        rate = np.log10(rates.get(kind, FIRST_GUESS[kind]))
        total += np.interp(rate + shifts, GRID, regrets(record, profile))
    return float(10.0 ** shifts[int(np.argmin(total))])


def kind_of(facts: Mapping[str, Any]) -> tuple[str, bool]:
    """Return the kind of an optimizer, SGD with and without momentum as one, and whether the task is fine-tuning."""
    optimizer = facts["optimizer"]
    return ("sgd" if optimizer.startswith("sgd") else optimizer), facts["fine_tuning"]


def starting_rate(facts: Mapping[str, Any], profile: str, rates: Mapping[str, Mapping[str, float]]) -> float:
    """Return the default rate of a task's optimizer; a first guess where nothing was measured.

    :param facts: of the task
    :param rates: what :func:`calibrated_rates` returned
    """
    kind, fine_tuning = kind_of(facts)
    own = rates.get(profile, {})
    rate = own.get(kind, FIRST_GUESS[kind]) / effective(facts["optimizer"], facts["momentum"])
    return rate * (own.get("fine-tuning", FINE_TUNING_GUESS) if fine_tuning else 1.0)
