"""The yardstick: schedules tuned on seeds of their own, everything measured on fresh ones, the worth of each method."""

import numpy as np
import pandas as pd
import pytest
from made_evaluation import rows_of

from agents.controllers import make_controller
from agents.evaluation.protocol import EvaluationConfig, Grid, evaluate
from agents.evaluation.results import COLUMNS, TUNING_SEED, Evaluation, Setting, tune
from agents.evaluation.yardstick import ERROR, LOSS, yardstick
from agents.reports.worth_tables import worth_markdown, write_worth
from envs.tasks import get_task

RATES = np.geomspace(1e-5, 1e-1, 13)
HOME = Setting("digits", "adam", 100)


def tuned_rows(shift: float = 0.0, **setting):
    """Log losses that fall evenly from 0 to -1 over the grid on two tuning seeds; two fresh ones at the best rate."""
    rows = []
    for rate, log_loss in zip(RATES, np.linspace(0.0, -1.0, 13) + shift, strict=True):
        own = rows_of("cosine", rate, np.exp([log_loss, log_loss + 1e-12]), test_metric=-log_loss / 2, **setting)
        rows += [{**row, "seed": row["seed"] + TUNING_SEED} for row in own]
    return rows + rows_of("cosine", RATES[-1], np.exp([shift - 0.9, shift - 0.9]), test_metric=0.45, **setting)


def made(*more, trivial=1.5):
    runs = pd.DataFrame([*tuned_rows(), *more], columns=COLUMNS)
    tuning = runs[(runs.controller == "cosine") & (runs.seed >= TUNING_SEED)]
    names = frozenset(runs.controller.unique())
    return Evaluation(
        runs,
        tune(tuning),
        paths=[],
        higher_is_better={"digits": True, "hard": True},
        references=frozenset({"cosine"}),
        own_rates=names - {"cosine", "policy"},
        trivial={"digits": trivial, "hard": 1.0},
    )


def row(found, method, quantity=LOSS):
    return next(one for one in found.rows if (one.method, one.quantity) == (method, quantity))


def test_what_is_tuned_counts_with_its_fresh_seeds_alone():
    evaluation = made()
    counted = evaluation.counted(HOME, "cosine")
    assert sorted(counted.seed) == [0, 1] and len(evaluation.tuning_runs(HOME, "cosine")) == 26
    assert (evaluation.tuning_runs(HOME, "cosine").seed >= TUNING_SEED).all()


def test_each_method_is_worth_the_tries_that_the_schedule_would_need():
    # the best of k uniform draws of a straight curve from 0 to -1 is -k / (k + 1)
    found = yardstick(made(*rows_of("default", 1e-3, np.exp([-0.75, -0.75]))), resamples=20)
    assert row(found, "default").worth.pooled == pytest.approx(3.0, rel=0.02)
    assert row(found, "cosine").worth.pooled == pytest.approx(9.0, rel=0.02)  # the floor: its own fresh runs, -0.9
    assert row(found, "default").ratio == pytest.approx(np.exp(0.15))
    assert row(found, "default").cost == 1.0 and row(found, "cosine").cost == 27.0
    assert [one.method for one in found.rows if one.quantity == LOSS] == ["cosine", "default"]


def test_accuracy_is_valued_beside_the_loss():
    found = yardstick(made(*rows_of("default", 1e-3, [1.0, 1.0], test_metric=0.5)), resamples=20)
    assert row(found, "default", ERROR).worth.pooled == 100.0  # better than any rate of the curve
    assert row(found, "default").worth.pooled < 0.2  # though its loss is the worst


def test_settings_in_which_nothing_tuned_learned_are_left_out_and_named():
    hard = [one for one in tuned_rows(shift=1.5, task="hard")]
    found = yardstick(made(*hard, *rows_of("default", 1e-3, np.exp([-0.75, -0.75]))), resamples=20)
    assert [setting.task for setting in found.left_out] == ["hard"] and row(found, "cosine").settings == 1
    assert "hard, adam, 100 updates" in worth_markdown(found)


def test_files_say_what_was_found(tmp_path):
    found = yardstick(made(*rows_of("default", 1e-3, np.exp([-0.75, -0.75]))), resamples=20)
    markdown, table = write_worth(tmp_path, found)
    assert "Tries with cosine, by test loss, over 1 setting" in markdown.read_text()
    assert "| default | 3 |" in markdown.read_text()
    assert list(pd.read_csv(table).method[:2]) == ["cosine", "default"]


def test_tuning_seeds_are_apart_from_those_that_are_reported():
    config = EvaluationConfig(
        seeds=2, tuning_seeds=3, workers=0, widen=1, grids={"adam": Grid(1e-3, 2, factor=4.0)}, relative_rates=None
    )
    schedule = make_controller("cosine", {"kind": "schedule", "profile": "cosine"})
    default = make_controller("default", {"kind": "default"})
    result = evaluate([schedule, default], [get_task("digits_mlp", budget=10)], config)
    runs, setting = result.runs, result.settings[0]
    assert set(runs[runs.controller == "default"].seed) == {0, 1}
    tuning = result.tuning_runs(setting, "cosine")
    assert set(tuning.seed) == {TUNING_SEED, TUNING_SEED + 1, TUNING_SEED + 2}
    assert sorted(tuning.initial_lr.unique()) == pytest.approx([1e-3, 4e-3, 1.6e-2])  # widened by the grid's factor
    counted = result.counted(setting, "cosine")
    assert list(counted.seed) == [0, 1] and set(counted.initial_lr) == {result.tuned_rate(setting, "cosine")}
    assert {one.method for one in yardstick(result, resamples=10).rows} == {"cosine", "default"}
