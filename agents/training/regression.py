"""Regressions on tuning curves: what static facts, and a range test, move the default rate by.

Their coefficients are read by :mod:`gns.schedules.static` and :mod:`gns.tools.find_rate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents.training.curve_records import RANGE, TUNING
from agents.training.tuning_curves import (
    FEWEST_TASKS,
    FIRST_GUESS,
    best_rate,
    calibrate,
    centre_of,
    effective,
    kind_of,
    rate_of,
    regrets_of,
    shifted,
)
from gns.graph.layer_graph import NODE_TYPES
from gns.schedules.calibrated import calibration
from gns.schedules.static import FACTS, MOST_DEVIATIONS, moved_by, numbers
from gns.tools.find_rate import EFFECTIVE, UPDATES, features, readings

_RIDGE = 30.0  # strength of a regression, in tasks

# ---------------------------------------------------------------------- moved by static facts


def facts_known(facts: Mapping[str, Any]) -> np.ndarray:
    """Return what a run knows of itself before its first update, see :mod:`gns.schedules.static`, (F,)."""
    shares = [facts["kinds"].get(kind, 0) / facts["layers"] for kind in NODE_TYPES]
    sizes = (facts["budget"], facts["parameters"], facts["layers"])
    settings = (facts["momentum"], facts["beta2"], facts["weight_decay"])
    return numbers(*sizes, *settings, shares, facts["batch_norm"], facts["layer_norm"], facts["recurrent"])


def static_regression(records: Sequence[Mapping[str, Any]], profile: str = "rex") -> dict[str, Any]:
    """Fit what static facts move the fixed rates by, and return plain values for ``calibrated.json``.

    A ridge regression of the middles of valleys on standardised facts, over all kinds of optimizers together; then a
    factor for each kind that costs its tasks least, since a rate too high costs more than one too low.

    :param records: tuning records of tasks that teach something, with the profile
    """
    facts = np.array([facts_known(record["facts"]) for record in records])
    regrets, kinds = regrets_of(records, profile), np.array([kind_of(record["facts"]) for record in records])
    targets = np.array([centre_of(record, curve) for record, curve in zip(records, regrets, strict=True)])
    usual = np.array([targets[kinds == kind].mean() for kind in kinds])
    known = _ridge(facts, targets - usual, 1.0)
    predicted = np.array([moved_by(line, known) for line in facts])
    rates, usual_factors = calibrate(records)[profile], {}
    for kind in FIRST_GUESS:
        some, factor = kinds == kind, 1.0
        if some.sum() >= FEWEST_TASKS:
            factor = 10.0 ** best_rate(shifted(regrets[some], predicted[some])) / rate_of(rates, kind)
        usual_factors[kind] = float(f"{factor:.4g}")
    return {"facts": list(FACTS), **known, "usual": usual_factors}


def prior_rate(facts: Mapping[str, Any]) -> float:
    """Return the rate that the prior starts a new network from, as :func:`gns.schedules.static.default_rate` does.

    :param facts: of the task
    """
    known, kind = calibration()["static"], kind_of(facts)
    rate = rate_of(calibration()["profiles"]["rex"], kind) * known["usual"][kind] / effective(facts)
    return rate * 10.0 ** moved_by(facts_known(facts), known)


def moved_rates(records: Sequence[Mapping[str, Any]], profile: str, folds: int = 20) -> np.ndarray:
    """Return log10 of the effective rate that static facts give each task, fitted to the tasks of other folds, (N,)."""
    fold: np.ndarray = np.random.default_rng(0).permutation(len(records)) % folds
    found = np.zeros(len(records))
    for number in range(folds):
        rest = [record for record, where in zip(records, fold, strict=True) if where != number]
        known, rates = static_regression(rest, profile), calibrate(rest)[profile]
        for i in np.flatnonzero(fold == number).tolist():
            facts, kind = records[i]["facts"], kind_of(records[i]["facts"])
            fixed = rate_of(rates, kind) * known["usual"][kind]
            found[i] = np.log10(fixed) + moved_by(facts_known(facts), known)
    return found


# ---------------------------------------------------------------------- and by a range test


def range_tests(records: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], np.ndarray]:
    """Return what range tests tell, by recipe and number of the task: (seeds, features).

    See :mod:`gns.tools.find_rate`.

    :param records: of all kinds
    """
    tested = [record for record in records if record["kind"] == RANGE]
    tuned = [record for record in records if record["kind"] == TUNING] if tested else []
    facts, found = {(one["recipe"], one["number"]): one["facts"] for one in tuned}, {}
    for record in tested:
        key = (record["recipe"], record["number"])
        if key in facts:
            kind = kind_of(facts[key])
            rates = np.geomspace(*EFFECTIVE[kind], UPDATES)
            tests = np.array([[math.inf if loss is None else loss for loss in line] for line in record["losses"]])
            read = [readings(rates, losses) for losses in tests]
            found[key] = np.array([features(one, facts_known(facts[key]), kind) for one in read])
    return found


def range_regression(
    records: Sequence[Mapping[str, Any]], tests: Mapping[tuple[str, int], np.ndarray], profile: str = "rex"
) -> dict[str, Any]:
    """Fit what a range test and static facts move the fixed rates by, as :func:`static_regression` does.

    :param records: tuning records of tasks that teach something, with the profile
    :param tests: what :func:`range_tests` returned
    """
    seen = [record for record in records if (record["recipe"], record["number"]) in tests]
    lines = [tests[record["recipe"], record["number"]] for record in seen]
    owner = np.repeat(np.arange(len(seen)), [len(line) for line in lines])
    regrets, kinds = regrets_of(seen, profile), np.array([kind_of(record["facts"]) for record in seen])
    targets = np.array([centre_of(record, curve) for record, curve in zip(seen, regrets, strict=True)])
    usual = np.array([targets[kinds == kind].mean() for kind in kinds])
    known = _ridge(np.concatenate(lines), (targets - usual)[owner], len(owner) / len(seen))
    predicted = np.array([moved_by(line, known) for line in np.concatenate(lines)])
    rates, factors = calibrate(seen)[profile], {}
    for kind in FIRST_GUESS:
        some, factor = kinds[owner] == kind, 1.0
        if some.sum() >= FEWEST_TASKS:
            factor = 10.0 ** best_rate(shifted(regrets[owner][some], predicted[some])) / rate_of(rates, kind)
        factors[kind] = float(f"{factor:.4g}")
    return {**known, "usual": factors}


def ranged_rates(
    records: Sequence[Mapping[str, Any]], tests: Mapping[tuple[str, int], np.ndarray], profile: str, folds: int = 20
) -> list[np.ndarray]:
    """Return log10 of the effective rates that range tests give each task, fitted to the tasks of other folds.

    :return: of each task that was tested, (seeds,)
    """
    seen = [record for record in records if (record["recipe"], record["number"]) in tests]
    fold: np.ndarray = np.random.default_rng(0).permutation(len(seen)) % folds
    found: list[np.ndarray] = [np.zeros(0)] * len(seen)
    for number in range(folds):
        rest = [record for record, where in zip(seen, fold, strict=True) if where != number]
        known, rates = range_regression(rest, tests, profile), calibrate(rest)[profile]
        for i in np.flatnonzero(fold == number).tolist():
            kind = kind_of(seen[i]["facts"])
            fixed = np.log10(rate_of(rates, kind) * known["usual"][kind])
            lines = tests[seen[i]["recipe"], seen[i]["number"]]
            found[i] = np.array([fixed + moved_by(line, known) for line in lines])
    return found


def _ridge(x: np.ndarray, targets: np.ndarray, repeats: float) -> dict[str, Any]:
    """Fit a ridge regression on standardised columns, clipped as :func:`gns.schedules.static.moved_by` clips them.

    :param repeats: lines of a task
    """
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-3
    z = np.clip((x - mean) / deviation, -MOST_DEVIATIONS, MOST_DEVIATIONS)
    weights = np.linalg.solve(z.T @ z / repeats + _RIDGE * np.eye(z.shape[1]), z.T @ targets / repeats)
    parts = {"mean": mean, "deviation": deviation, "weights": weights}
    return {name: [round(value, 5) for value in part.tolist()] for name, part in parts.items()}
