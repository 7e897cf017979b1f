"""Calibrated rates: the best one for many tasks, from their curves alone, and how it is asked for."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.training import calibration, tuning_curves
from agents.training.calibration import leave_one_out
from agents.training.curve_facts import facts_of
from agents.training.curve_records import read_records
from agents.training.regression import facts_known, range_regression, range_tests, static_regression
from agents.training.tuning_curves import calibrate, judged, learnable, log_losses, regret_curve, smoothed
from envs.pool import PoolConfig, draw_task
from envs.training_run import TrainingRun
from gns import layer_graph
from gns.errors import UnknownNameError
from gns.schedules import calibrated
from gns.schedules.calibrated import calibrated_rate
from gns.schedules.static import facts_of_run

RATES = np.geomspace(1e-4, 1.0, 13)


def facts(optimizer: str = "adam", momentum: float = 0.9, **others) -> dict:
    known = {"budget": 400, "batch_size": 32, "examples": 1000, "passes": 12.8, "parameters": 5000, "layers": 3}
    known |= {"weight_decay": 0.0, "kinds": {"linear": 3, "conv": 0}, "beta2": 0.999, "start_loss": 2.0}
    known |= dict.fromkeys(("batch_norm", "layer_norm", "recurrent", "fine_tuning", "clipped"), False)
    return {**known, "optimizer": optimizer, "momentum": momentum, **others}


def record(best: float, cliff: float = math.inf, depth: float = 1.5, **others) -> dict:
    """A valley of log loss over log10 of the rate, lost from a rate on; two seeds a little apart."""
    decades = np.log10(RATES / best)
    losses = np.exp(-depth + np.minimum(0.5 * decades**2, depth + 0.4))
    lost = cliff <= RATES
    curves = [np.where(lost, 1e6, losses * noise) for noise in (1.0, 1.02)]
    return {
        "kind": "tuning",
        "profiles": ["rex", "rex", "cosine", "cosine"],
        "seeds": [0, 1, 0, 1],
        "rates": RATES.tolist(),
        "losses": [curve.tolist() for curve in (*curves, *curves)],
        "diverged": [lost.astype(int).tolist()] * 4,
        "facts": facts(**others),
    }


def test_the_rate_with_the_least_mean_regret_is_found_and_keeps_clear_of_cliffs():
    plain = calibrate([record(10.0**power) for power in (-2.5, -2.3, -2.0, -1.7, -1.5)])["rex"]["adam"]
    assert plain["tasks"] == 5 and plain["rate"] == pytest.approx(1e-2, rel=0.2)
    cliffs = calibrate([record(10.0**p, cliff=10.0 ** (p + 0.4)) for p in (-2.5, -2.3, -2.0, -1.7, -1.5)])
    assert cliffs["rex"]["adam"]["rate"] < 0.5 * plain["rate"]


def test_momentum_counts_by_the_effective_rate_and_fine_tuning_by_a_factor():
    momenta = (0.0, 0.5, 0.8, 0.9, 0.95)
    some = [record(0.1 * (1.0 - m), optimizer="sgdm" if m else "sgd", momentum=m) for m in momenta]
    rates = calibrate(some)["rex"]
    assert rates["sgd"]["rate"] == pytest.approx(0.1, rel=0.1)
    tuned = [record(1e-2 * (1.0 - m), optimizer="sgdm", momentum=m, fine_tuning=True) for m in momenta]
    found = calibrate(some + tuned)["rex"]
    assert found["sgd"] == rates["sgd"]
    assert found["fine-tuning"]["rate"] == pytest.approx(0.1, rel=0.15)
    start = tuning_curves.starting_rate(facts("sgdm", 0.8, fine_tuning=True), found)
    assert start == pytest.approx(0.01 * 0.2, rel=0.2)
    assert tuning_curves.starting_rate(facts("adamw"), {}) == tuning_curves.FIRST_GUESS["adam"]


def test_intervals_hold_the_rate_and_come_with_resamples_only():
    some = [record(10.0**power) for power in (-2.6, -2.3, -2.0, -1.7, -1.4)]
    found = calibrate(some, resamples=50)["rex"]["adam"]
    assert found["low"] < found["rate"] < found["high"] and "low" not in calibrate(some)["rex"]["adam"]
    assert calibrate(some[:4]) == {}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"best": 1e-2}, ""),
        ({"best": 1e-2, "start_loss": 0.25}, "learns nothing"),
        ({"best": 1e-2, "cliff": 1e-9}, "learns nothing"),
        ({"best": 10.0}, "the best rate is at an end"),
    ],
)
def test_tasks_are_judged_by_their_curves(given, why):
    assert judged(record(**given)) == why


def test_a_task_on_which_every_rate_is_alike_teaches_nothing():
    flat = record(1e-2)
    flat["losses"] = [(0.3 + 0.01 * np.abs(np.arange(13) - 6.0) / 6.0).tolist()] * 4
    assert judged(flat) == "every rate is alike"


def test_smoothing_keeps_the_cliff_and_takes_out_noise():
    curve = np.array([2.0, 1.0, 0.9, 1.1, 0.8, 1.0, np.inf, np.inf])
    found = smoothed(curve)
    assert found[3] == pytest.approx(0.25 * 0.9 + 0.5 * 1.1 + 0.25 * 0.8)
    assert (found[[0, 5, 6, 7]] == curve[[0, 5, 6, 7]]).all()


def test_regrets_are_bounded_and_smallest_at_the_best_rate():
    curve = regret_curve(record(1e-2, cliff=0.1), "rex")
    assert curve.max() == 2.0 and 0.0 <= curve.min() < 0.03
    assert tuning_curves.GRID[np.argmin(curve)] == pytest.approx(-2.0, abs=0.05)
    lost = record(1e-2, cliff=0.1)
    assert np.isinf(log_losses(lost, "cosine")[:, -1]).all()


def test_what_is_chosen_without_a_task_costs_more_on_it_than_tuning_and_facts_help_where_they_tell():
    powers = [-2.5, -1.5] * 25
    some = [record(10.0**p, batch_norm=p > -2.0, budget=300 + 10 * i) for i, p in enumerate(powers)]
    regrets = {way: values.mean() for way, values in leave_one_out(some, "rex").items()}
    assert regrets["floor"] < 0.03 and regrets["tuned"] < regrets["static"] < 0.7 * regrets["fixed"]


def test_the_command_tells_regrets_and_stores_rates(tmp_path, capsys):
    path, out = tmp_path / "curves.jsonl", tmp_path / "calibrated.json"
    lines = [{"kind": "recipe", "pool": {"edition": 1}}] + [record(10.0**p) for p in (-2.4, -2.2, -2.0, -1.8, -1.6)]
    sgd = [record(10.0**p, optimizer="sgd", momentum=0.0) for p in (-2.4, -2.2, -2.0, -1.8, -1.6)]
    tuned = [record(10.0**p, fine_tuning=True) for p in (-3.4, -3.2, -3.0, -2.8, -2.6)]
    for one in tuned:
        one["profiles"] = ["rex"] * 4
    lines += sgd + tuned
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"cut')
    calibration.main([str(path), "--write", str(out), "--date", "2026-01-02"])
    printed = capsys.readouterr().out
    assert "15 tuning curves, 15 of them learnable" in printed and "rex fixed: 1." in printed
    stored = json.loads(out.read_text())
    assert stored["date"] == "2026-01-02" and stored["tasks"] == 15 and stored["pools"] == [{"edition": 1}]
    assert set(stored["profiles"]) == {"rex"}  # of cosine nothing says what fine-tuning takes


# ---------------------------------------------------------------------- the rates that are shipped


def optimizer(name: str, **settings) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(2))], lr=1.0, **settings)


def test_shipped_rates_are_sensible_and_know_momentum_and_fine_tuning():
    assert 1e-3 < calibrated_rate(optimizer("Adam")) < 0.1
    assert calibrated_rate(optimizer("AdamW")) == calibrated_rate(optimizer("Adam"))
    plain, heavy = calibrated_rate(optimizer("SGD")), calibrated_rate(optimizer("SGD", momentum=0.9))
    assert 0.03 < plain < 3.0 and heavy == pytest.approx(0.1 * plain)
    assert calibrated_rate(optimizer("SGD"), "linear") > 0.0
    assert calibrated_rate(optimizer("Adam"), fine_tuning=True) < 3.0 * calibrated_rate(optimizer("Adam"))


def test_shipped_rates_are_those_of_the_curves_that_are_kept():
    records = list(read_records(Path(__file__).parents[1] / "data" / "curves.jsonl.xz"))
    found, shipped = calibrate(records), calibrated.calibration()
    assert shipped["tasks"] == len(learnable(records)) > 60
    for profile, rates in shipped["profiles"].items():
        assert {kind: one["rate"] for kind, one in rates.items()} == {
            kind: one["rate"] for kind, one in found[profile].items()
        }
        assert all(one["low"] <= one["rate"] <= one["high"] for one in rates.values())
    seen = [record for record in learnable(records) if "rex" in record["profiles"]]
    assert shipped["static"] == static_regression(seen)
    ranged = range_regression(seen, range_tests(records))
    assert {name: value for name, value in shipped["range"].items() if name != "spread"} == ranged


def test_what_has_no_calibrated_rate_is_named():
    with pytest.raises(UnknownNameError, match="other"):
        calibrated_rate(optimizer("RMSprop"))
    with pytest.raises(UnknownNameError, match="onecycle"):
        calibrated_rate(optimizer("Adam"), "onecycle")
    assert calibrated.calibration()["date"]


def test_what_a_run_knows_of_itself_is_what_its_record_says():
    task = draw_task(PoolConfig(edition=1), 3)
    run = TrainingRun(task, task.optimizer, 1e-3, seed=0)
    graph = layer_graph(run.model, run.compute_gradient())
    seen = facts_of_run(run.optimizer, run.model, graph, task.budget)
    assert seen == pytest.approx(facts_known(facts_of(task)), abs=1e-6)


def test_static_facts_are_weighed_by_what_they_tell():
    """Tasks whose best rate falls with their number of parameters, and with nothing else."""
    records = [record(10.0 ** (-1.0 - 0.5 * (i % 5)), parameters=10 ** (2 + i % 5)) for i in range(40)]
    known = static_regression(records)
    weights = dict(zip(known["facts"], known["weights"], strict=True))
    assert weights["log_parameters"] < -0.1
    assert all(abs(weight) < 0.05 for name, weight in weights.items() if name != "log_parameters")
