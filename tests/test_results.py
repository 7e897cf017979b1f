"""Which runs a figure is of: what tables, plots, reports and trackers ask the results of an evaluation."""

import math

import numpy as np
import pytest
from made_evaluation import evaluation_of, rows_of, small

from agents.evaluation.results import Setting, by_seed_and_rate, score_arrays

HERE = Setting("digits", "adam", 100)


def test_what_is_tuned_counts_at_its_tuned_rate_and_all_else_from_every_rate():
    evaluation = evaluation_of([*small(), *rows_of("prodigy", 0.5, [1.5])], own=["prodigy"])
    assert evaluation.settings == [HERE] and HERE.title == "digits, adam, 100 updates"
    assert evaluation.controllers == ["rex", "cosine", "policy", "prodigy"] and evaluation.policies == ["policy"]
    assert evaluation.tuned_rate(HERE, "cosine") == 0.3 and math.isnan(evaluation.tuned_rate(HERE, "policy"))
    counted = {name: sorted(set(evaluation.counted(HERE, name).initial_lr)) for name in evaluation.controllers}
    assert counted == {"rex": [0.1], "cosine": [0.3], "policy": [0.01, 1.0], "prodigy": [0.5]}
    assert len(evaluation.runs_of(HERE, "rex")) == 6 and evaluation.runs_of(HERE, "nobody").empty
    assert evaluation.counted(HERE, "rex").index.tolist() == [2, 3]  # rows of the table, by which paths are found


def test_a_tuning_curve_is_a_table_of_seeds_and_rates():
    curve = by_seed_and_rate(evaluation_of(small()).runs_of(HERE, "rex"), "reward_loss")
    assert curve.columns.tolist() == [0.03, 0.1, 0.3] and curve.loc[1].tolist() == [2.2, 1.1, math.inf]


def test_the_best_loss_is_seen_on_the_test_split_and_the_chosen_schedule_on_the_reward_split():
    rows = [*rows_of("rex", 0.1, [1.0, 1.0], test_loss=3.0), *rows_of("cosine", 0.1, [2.0, 2.0], test_loss=0.5)]
    evaluation = evaluation_of([*rows, *rows_of("adaptive", 0.1, [0.1, 0.1])])
    assert evaluation.chosen_schedule(HERE) == "rex" and evaluation.best_loss(HERE) == 0.5
    assert evaluation.far_from_best(HERE, [6.0, 6.1, math.nan, math.inf]).tolist() == [False, True, True, True]
    alone = evaluation_of(rows_of("policy", 0.1, [1.0]))
    assert alone.chosen_schedule(HERE) is None and math.isnan(alone.best_loss(HERE))
    assert alone.far_from_best(HERE, [1e9, math.inf]).tolist() == [False, True]


def test_far_from_the_best_and_learned_nothing_are_two_things():
    evaluation = evaluation_of([*rows_of("rex", 0.1, [0.1]), *rows_of("policy", 0.1, [0.5, 2.0, math.nan])])
    evaluation.trivial["digits"] = 2.0
    runs = evaluation.runs_of(HERE, "policy")
    assert evaluation.far_from_best(HERE, runs.test_loss).tolist() == [True, True, True]
    assert evaluation.learned_nothing(runs).tolist() == [False, True, True]
    evaluation.trivial.clear()  # not known: only a loss that is not finite says so
    assert evaluation.learned_nothing(runs).tolist() == [False, False, True]


def test_scores_are_of_the_runs_that_count_and_what_is_no_number_is_worst():
    rows = [*small(), *rows_of("rex", 0.1, [1.0, math.nan], task="wine"), *rows_of("policy", 0.1, [2.0], task="wine")]
    settings, methods, scores = score_arrays(evaluation_of(rows))
    assert [item.task for item in settings] == ["digits", "wine"] and methods == ["rex", "cosine", "policy"]
    np.testing.assert_allclose(scores["loss"][0], [[0.9, 1.1], [1.2, 1.4], [1.15, 1.35]])
    assert scores["loss"][1].tolist() == [[1.0, math.inf], [math.inf] * 2, [2.0, math.inf]]
    assert scores["metric"][0, 0].tolist() == pytest.approx([-0.5, -0.5])
