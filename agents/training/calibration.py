"""Calibrated default rates: what one rate an optimizer would have served a set of tasks best, from tuning curves.

``python -m agents.training.calibration CURVES [--write FILE] [--date DAY]`` prints what fixed rates, and rates
predicted from static facts, cost on tasks they were not chosen on. With ``--write`` it stores the rates of those
profiles that were measured for every kind of optimizer, where :mod:`gns.schedules.calibrated` reads them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.training.curve_records import BRANCH, RECIPE, TUNING, read_records
from agents.training.regression import moved_rates, range_regression, range_tests, ranged_rates, static_regression
from agents.training.tuning_curves import (
    FIRST_GUESS,
    GRID,
    LARGEST_REGRET,
    best_rate,
    calibrate,
    calibrated_rates,
    centre_of,
    effective,
    kind_of,
    learnable,
    log_losses,
    ratio_with_interval,
    regrets_of,
    shifted,
    starting_rate,
)

_RIDGE = 100.0  # strength of the regression on all static facts, in tasks


# ---------------------------------------------------------------------- what it costs on other tasks


def static_facts(facts: Mapping[str, Any]) -> np.ndarray:
    """Return what is known before the first update as numbers, (F,)."""
    kinds, layers = facts["kinds"], facts["layers"]
    logs = ("budget", "batch_size", "examples", "passes", "parameters", "layers")
    return np.array(
        [
            *(np.log10(facts[name]) for name in logs),
            np.log10(1.0 - facts["momentum"]),
            np.log10(1.0 - facts["beta2"]) if facts["beta2"] else -1.5,
            np.log10(facts["weight_decay"] + 1e-5),
            *(kinds[name] / layers for name in sorted(kinds)),
            *(float(facts[name]) for name in ("batch_norm", "layer_norm", "recurrent", "fine_tuning", "clipped")),
        ]
    )


def predicted_rates(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return log10 of the rate that a ridge regression on static facts gives each task, fitted to all others, (N,).

    What the facts predict is the distance from the mean of the tasks with the same kind of optimizer, pretrained or
    not. A common factor is then chosen by the other tasks' regrets, since a rate too high costs more than one too low.
    """
    features = np.array([static_facts(record["facts"]) for record in records])
    regrets = regrets_of(records, profile)
    targets = np.array([centre_of(record, curve) for record, curve in zip(records, regrets, strict=True)])
    kinds = np.array([f"{kind_of(record['facts'])} {record['facts']['fine_tuning']}" for record in records])
    found = np.zeros(len(records))
    for i in range(len(records)):
        rest = np.arange(len(records)) != i
        means = {kind: targets[rest & (kinds == kind)].mean() for kind in set(kinds[rest])}
        usual = np.array([means.get(kind, targets[rest].mean()) for kind in kinds])
        x = np.clip((features - features[rest].mean(axis=0)) / (features[rest].std(axis=0) + 1e-9), -3.0, 3.0)
        gram = x[rest].T @ x[rest] + _RIDGE * np.eye(x.shape[1])
        predicted = usual + x @ np.linalg.solve(gram, x[rest].T @ (targets - usual)[rest])
        found[i] = predicted[i] + best_rate(shifted(regrets[rest], predicted[rest]))
    return found


def fixed_rates(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return log10 of the rate calibrated for each task on all other tasks, (N,)."""
    facts, regrets, found = [record["facts"] for record in records], regrets_of(records, profile), []
    for i, own in enumerate(facts):
        rates = calibrated_rates([one for j, one in enumerate(facts) if j != i], np.delete(regrets, i, axis=0))
        found.append(np.log10(starting_rate(own, rates) * effective(own)))
    return np.array(found)


def leave_one_out(records: Sequence[Mapping[str, Any]], profile: str) -> dict[str, np.ndarray]:
    """Return regrets in log loss of several ways to choose a rate, each on every task that teaches something, (N,).

    ``floor`` is the smoothed curve's own best point; ``tuned`` the best rate of one seed, measured on the other, where
    there are two; ``fixed`` and ``static`` know nothing of the task's curve.
    """
    seen = [record for record in learnable(records) if profile in record["profiles"]]
    curves = regrets_of(seen, profile)

    def at(rates: np.ndarray) -> np.ndarray:
        return np.array([np.interp(rate, GRID, curve) for rate, curve in zip(rates, curves, strict=True)])

    found = {"floor": curves.min(axis=1), "fixed": at(fixed_rates(seen, profile))}
    found["static"] = at(predicted_rates(seen, profile))
    found["prior"] = at(moved_rates(seen, profile))
    pairs = [log_losses(record, profile) for record in seen]
    found["tuned"] = np.array([_tuned_on_the_other(pair) for pair in pairs if len(pair) > 1])
    return found


def _tuned_on_the_other(curves: np.ndarray) -> float:
    best = curves.mean(axis=0).min()
    ways = [curves[1][np.argmin(curves[0])], curves[0][np.argmin(curves[1])]]
    return float(np.mean(np.minimum(np.array(ways) - best, LARGEST_REGRET)))


# ---------------------------------------------------------------------- the command


def _cost_of_range_tests(
    records: Sequence[Mapping[str, Any]], tests: Mapping[tuple[str, int], np.ndarray]
) -> tuple[np.ndarray, float]:
    """Return the mean regret of each task that was tested, (N,), and the deviation of its rates from the middles."""
    seen = [record for record in records if (record["recipe"], record["number"]) in tests]
    curves, rates = regrets_of(seen, "rex"), ranged_rates(records, tests, "rex")
    pairs = list(zip(rates, curves, strict=True))
    off = [its - centre_of(record, curve) for (its, curve), record in zip(pairs, seen, strict=True)]
    return np.array([np.interp(its, GRID, curve).mean() for its, curve in pairs]), float(np.concatenate(off).std())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m agents.training.calibration", description=__doc__.split("\n")[0])
    parser.add_argument("curves", type=Path, help="file of records, see agents.training.curves")
    parser.add_argument("--write", type=Path, help="where the rates are stored")
    parser.add_argument("--date", default="", help="the day that is stored with them")
    given = parser.parse_args(arguments)
    records = list(read_records(given.curves))
    teaching = learnable(records)
    profiles = calibrate(records, resamples=500)
    kinds = [record["kind"] for record in records]
    print(f"{kinds.count(TUNING)} tuning curves, {len(teaching)} of them learnable; {kinds.count(BRANCH)} branches")
    for profile, rates in profiles.items():
        for kind, found in rates.items():
            print(f"{profile} {kind}: " + ", ".join(f"{name} {value:g}" for name, value in found.items()))
        for way, regrets in leave_one_out(records, profile).items():
            if len(regrets):
                print(f"{profile} {way}: %.3f [%.3f, %.3f] over {len(regrets)} tasks" % ratio_with_interval(regrets))
    tests, rex = range_tests(records), [record for record in teaching if "rex" in record["profiles"]]
    ranged: dict[str, Any] = {}
    if tests:
        regrets, spread = _cost_of_range_tests(rex, tests)
        print(f"rex finder: %.3f [%.3f, %.3f] over {len(regrets)} tasks" % ratio_with_interval(regrets))
        ranged = {"range": range_regression(rex, tests) | {"spread": round(spread, 3)}}
    if given.write:
        pools = [record["pool"] for record in records if record["kind"] == RECIPE]
        whole = {name: rates for name, rates in profiles.items() if {*FIRST_GUESS, "fine-tuning"} <= set(rates)}
        static = static_regression(rex)
        known = {"date": given.date, "tasks": len(teaching), "profiles": whole, "static": static, **ranged}
        known["pools"] = pools
        given.write.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
