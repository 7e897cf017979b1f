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
from gns.graph.layer_graph import NODE_TYPES
from gns.schedules.calibrated import calibration
from gns.schedules.static import FACTS, MOST_DEVIATIONS, moved_by, numbers

LEARNS_BELOW = 0.8  # of the loss at the start: a tuned run that ends above it has learned nothing
ALIKE_WITHIN = 0.15  # of a log loss between the best and the worst rate: any rate would do
# Rates before anything was measured: of Adam and its kin; of SGD as effective rate, lr / (1 - momentum).
FIRST_GUESS = {"adam": 0.012, "sgd": 0.45}
FINE_TUNING_GUESS = 0.3  # times
FEWEST_TASKS = 5  # that a calibrated rate is computed from
PROFILES = ("rex", "cosine", "linear")
GRID = np.round(np.arange(-6.0, 2.5001, 0.02), 2)  # log10 of rates, of SGD of effective ones
_LARGEST_REGRET = 2.0  # of a log loss: one lost run must not decide
_RIDGE = 100.0  # strength of the regression on static facts, in tasks
_RIDGE_KNOWN = 30.0  # likewise, on what a run knows of itself
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
    if float(np.minimum(curve, best + _LARGEST_REGRET).max()) - best < ALIKE_WITHIN:
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
    curve = np.minimum(smoothed(mean) - mean.min(), _LARGEST_REGRET)
    return np.interp(GRID, np.log10(np.array(record["rates"]) * effective(record["facts"])), curve)


# ---------------------------------------------------------------------- one rate for many tasks


def _regrets(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return the regret of each of some tasks over rates, (tasks, rates of the grid)."""
    return np.array([regret_curve(record, profile) for record in records])


def _best(regrets: np.ndarray) -> float:
    """Return log10 of the rate with the least mean regret, smoothed over rates: (tasks, rates of the grid)."""
    mean = np.pad(regrets.mean(axis=0), len(_KERNEL) // 2, mode="edge")
    return float(GRID[np.argmin(np.convolve(mean, _KERNEL / _KERNEL.sum(), "valid"))])


def _shifted(regrets: np.ndarray, by: np.ndarray) -> np.ndarray:
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
        if found := _calibrated([record["facts"] for record in seen], _regrets(seen, profile), resamples):
            profiles[profile] = found
    return profiles


def _calibrated(
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
        usual = np.array([np.log10(_rate(found, kind)) for kind in kinds[tuned]])
        found["fine-tuning"] = _with_interval(_shifted(regrets[tuned], usual), resamples, draws)
    return found


def _with_interval(regrets: np.ndarray, resamples: int, draws: np.random.Generator) -> dict[str, float]:
    count = len(regrets)
    found: dict[str, float] = {"rate": _plain(_best(regrets)), "tasks": count}
    if resamples:
        again = [_best(regrets[draws.integers(count, size=count)]) for _ in range(resamples)]
        found["low"], found["high"] = (_plain(value) for value in np.quantile(again, [0.025, 0.975]))
    return found


def _plain(log_rate: float) -> float:
    return float(f"{10.0**log_rate:.3g}")


def _rate(rates: Mapping[str, Mapping[str, float]], kind: str) -> float:
    return rates[kind]["rate"] if kind in rates else FIRST_GUESS[kind]


def starting_rate(facts: Mapping[str, Any], rates: Mapping[str, Mapping[str, float]]) -> float:
    """Return the default rate of a task's optimizer; a first guess where too few tasks were measured.

    :param facts: of the task
    :param rates: what :func:`calibrate` returned for one profile
    """
    factor = rates["fine-tuning"]["rate"] if "fine-tuning" in rates else FINE_TUNING_GUESS
    return _rate(rates, kind_of(facts)) / effective(facts) * (factor if facts["fine_tuning"] else 1.0)


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
    regrets, kinds = _regrets(records, profile), np.array([kind_of(record["facts"]) for record in records])
    targets = np.array([_centre(record, curve) for record, curve in zip(records, regrets, strict=True)])
    usual = np.array([targets[kinds == kind].mean() for kind in kinds])
    mean, deviation = facts.mean(axis=0), facts.std(axis=0) + 1e-3
    x = np.clip((facts - mean) / deviation, -MOST_DEVIATIONS, MOST_DEVIATIONS)
    weights = np.linalg.solve(x.T @ x + _RIDGE_KNOWN * np.eye(x.shape[1]), x.T @ (targets - usual))
    predicted = x @ weights
    rates, usual_factors = calibrate(records)[profile], {}
    for kind in FIRST_GUESS:
        some, factor = kinds == kind, 1.0
        if some.sum() >= FEWEST_TASKS:
            factor = 10.0 ** _best(_shifted(regrets[some], predicted[some])) / _rate(rates, kind)
        usual_factors[kind] = float(f"{factor:.4g}")
    return {
        "facts": list(FACTS),
        "mean": [round(value, 5) for value in mean.tolist()],
        "deviation": [round(value, 5) for value in deviation.tolist()],
        "weights": [round(value, 5) for value in weights.tolist()],
        "usual": usual_factors,
    }


def prior_rate(facts: Mapping[str, Any]) -> float:
    """Return the rate that the prior starts a new network from, as :func:`gns.schedules.static.default_rate` does.

    :param facts: of the task
    """
    known, kind = calibration()["static"], kind_of(facts)
    rate = _rate(calibration()["profiles"]["rex"], kind) * known["usual"][kind] / effective(facts)
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
            fixed = _rate(rates, kind) * known["usual"][kind]
            found[i] = np.log10(fixed) + moved_by(facts_known(facts), known)
    return found


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


def _centre(record: Mapping[str, Any], regrets: np.ndarray) -> float:
    """Return the middle of a curve's valley, log10 of a rate: less noise than its lowest point."""
    rates = np.log10(np.array(record["rates"]) * effective(record["facts"]))
    weights = np.exp(-(regrets - regrets.min()) / 0.03) * ((rates[0] <= GRID) & (rates[-1] >= GRID))
    return float(weights @ GRID / weights.sum())


def predicted_rates(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return log10 of the rate that a ridge regression on static facts gives each task, fitted to all others, (N,).

    What the facts predict is the distance from the mean of the tasks with the same kind of optimizer, pretrained or
    not. A common factor is then chosen by the other tasks' regrets, since a rate too high costs more than one too low.
    """
    features = np.array([static_facts(record["facts"]) for record in records])
    regrets = _regrets(records, profile)
    targets = np.array([_centre(record, curve) for record, curve in zip(records, regrets, strict=True)])
    kinds = np.array([f"{kind_of(record['facts'])} {record['facts']['fine_tuning']}" for record in records])
    found = np.zeros(len(records))
    for i in range(len(records)):
        rest = np.arange(len(records)) != i
        means = {kind: targets[rest & (kinds == kind)].mean() for kind in set(kinds[rest])}
        usual = np.array([means.get(kind, targets[rest].mean()) for kind in kinds])
        x = np.clip((features - features[rest].mean(axis=0)) / (features[rest].std(axis=0) + 1e-9), -3.0, 3.0)
        gram = x[rest].T @ x[rest] + _RIDGE * np.eye(x.shape[1])
        predicted = usual + x @ np.linalg.solve(gram, x[rest].T @ (targets - usual)[rest])
        found[i] = predicted[i] + _best(_shifted(regrets[rest], predicted[rest]))
    return found


def fixed_rates(records: Sequence[Mapping[str, Any]], profile: str) -> np.ndarray:
    """Return log10 of the rate calibrated for each task on all other tasks, (N,)."""
    facts, regrets, found = [record["facts"] for record in records], _regrets(records, profile), []
    for i, own in enumerate(facts):
        rates = _calibrated([one for j, one in enumerate(facts) if j != i], np.delete(regrets, i, axis=0))
        found.append(np.log10(starting_rate(own, rates) * effective(own)))
    return np.array(found)


def leave_one_out(records: Sequence[Mapping[str, Any]], profile: str) -> dict[str, np.ndarray]:
    """Return regrets in log loss of several ways to choose a rate, each on every task that teaches something, (N,).

    ``floor`` is the smoothed curve's own best point; ``tuned`` the best rate of one seed, measured on the other, where
    there are two; ``fixed`` and ``static`` know nothing of the task's curve.
    """
    seen = [record for record in learnable(records) if profile in record["profiles"]]
    curves = _regrets(seen, profile)

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
    return float(np.mean(np.minimum(np.array(ways) - best, _LARGEST_REGRET)))


def ratio_with_interval(regrets: np.ndarray, resamples: int = 2000) -> tuple[float, float, float]:
    """Return the geometric mean of loss over the best, and its bootstrap interval over tasks (95 %)."""
    draws = np.random.default_rng(0)
    means = regrets[draws.integers(len(regrets), size=(resamples, len(regrets)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.exp(regrets.mean())), float(np.exp(low)), float(np.exp(high))


# ---------------------------------------------------------------------- the command


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
    if given.write:
        pools = [record["pool"] for record in records if record["kind"] == RECIPE]
        whole = {name: rates for name, rates in profiles.items() if {*FIRST_GUESS, "fine-tuning"} <= set(rates)}
        static = static_regression([record for record in teaching if "rex" in record["profiles"]])
        known = {"date": given.date, "tasks": len(teaching), "profiles": whole, "static": static, "pools": pools}
        given.write.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
