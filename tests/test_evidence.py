"""Figures, promises and pictures of suites whose runs are made up."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from agents.evaluation.evidence import TOGETHER, evidence, open_loops, overall, standings
from agents.evaluation.promises import HELD, MEASURES, MISSED, NOT_MEASURED, claims
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.replays import MEAN_PATH, REPLAY, control_name
from agents.evaluation.results import COLUMNS, Evaluation, tune
from agents.evaluation.statistics import (
    interquartile_mean,
    pooled_interquartile_mean,
    share_interval,
    stratified_interval,
)
from agents.evaluation.suite import Part, PartResult
from agents.reports.evidence_report import evidence_markdown, write_evidence
from agents.reports.pictures import draw_relative_rates

Losses = dict[str, dict[float, list[float]]]  # by controller and initial rate, a loss a seed
SCHEDULES = ("linear", "rex")


def result(
    losses: dict[str, Losses],
    promise: str | None = "in_distribution",
    metric: dict[str, Losses] | None = None,
    trained_on: str = "elsewhere",
    trivial: float = 2.0,
    rollbacks: tuple[float, ...] = (),
    left_out: dict[str, str] | None = None,
    **about,
) -> PartResult:
    """A part in which each task had these losses on both splits; schedules are ``linear`` and ``rex``."""
    rows = [
        dict.fromkeys(COLUMNS, 0)
        | {"task": task, "controller": name, "optimizer": "adam", "budget": 10, "initial_lr": rate, "seed": seed}
        | {"reward_loss": loss, "test_loss": loss, "metric": "accuracy", "test_metrics": "{}", "updates": 10}
        | {"test_metric": (metric or losses)[task][name][rate][seed], "evaluations": 1}
        | {"seconds": 0.5 + 0.001 * seed + rate, "rollbacks": int(rate in rollbacks and name == "policy")}
        for task, by_name in losses.items()
        for name, by_rate in by_name.items()
        for rate, values in by_rate.items()
        for seed, loss in enumerate(values)
    ]
    runs = pd.DataFrame(rows, columns=COLUMNS)
    names = {name for by_name in losses.values() for name in by_name}
    own = frozenset(names - {*SCHEDULES, "policy"})
    evaluation = Evaluation(
        runs,
        tune(runs[runs.controller.isin(SCHEDULES)]),
        [[(0.0, 0.1)]] * len(runs),
        dict.fromkeys(losses, metric is not None),
        references=frozenset(SCHEDULES) & frozenset(names),
        own_rates=own,
        trivial=dict.fromkeys(losses, trivial),
    )
    seeds = len(next(iter(next(iter(next(iter(losses.values())).values())).values())))
    part = Part({task: {} for task in losses}, tuple(names), promise=promise, **about)
    return PartResult(
        str(promise),
        part,
        EvaluationConfig(seeds=seeds),
        evaluation,
        {"policy": trained_on},
        left_out or {},
    )


ONE: dict[str, Losses] = {
    "digits_mlp": {
        "linear": {0.1: [1.2, 1.4], 0.3: [1.0, 1.0]},
        "rex": {0.1: [0.8, 1.0], 0.3: [3.0, 3.0]},
        "policy": {0.001: [0.9, 0.9], 0.1: [0.9, 0.918]},
    }
}


def claim(results, promise, place=0):
    return [item for item in claims(results) if item.promise == promise][place]


def test_a_promise_is_held_or_missed_by_its_figure_and_measured_only_where_it_can_be():
    held = claim([result(ONE)], "in_distribution")
    assert held.figure == pytest.approx(0.9045 / 0.9) and held.verdict == HELD and held.settings == 1
    worse = {"digits_mlp": ONE["digits_mlp"] | {"policy": {0.1: [0.9, 0.95]}}}
    missed = claim([result(worse)], "in_distribution")
    assert missed.figure == pytest.approx(0.925 / 0.9) and missed.verdict == MISSED
    assert missed.low <= missed.figure <= missed.high
    nothing = claim([result(ONE)], "long")
    assert nothing.verdict == NOT_MEASURED and math.isnan(nothing.figure) and "no part" in nothing.note


def test_every_promise_is_answered_for_every_policy_once():
    made = claims([result(ONE)])
    wanted = [(promise, measure.statement) for promise, own in MEASURES.items() for measure in own]
    assert [(item.promise, item.statement) for item in made] == wanted


def test_the_ratio_is_to_the_best_schedule_at_the_rate_tuned_on_the_reward_split():
    two = {"digits_mlp": ONE["digits_mlp"], "other": {n: {r: [2 * v for v in values] for r, values in by_rate.items()}
           for n, by_rate in ONE["digits_mlp"].items()}}  # fmt: skip
    two["other"]["policy"] = {0.1: [7.2, 7.2]}
    lines = {line.controller: line for line in standings(result(two, trivial=5.0))}
    assert (lines["rex"].ratio, lines["linear"].ratio) == (pytest.approx(1.0), pytest.approx(1.0 / 0.9))
    assert lines["policy"].ratio == pytest.approx(math.sqrt(0.9045 / 0.9 * 4.0)) and lines[
        "policy"
    ].worst == pytest.approx(4)
    assert lines["rex"].top == lines["rex"].top_loss == (1.0, 1.0)
    assert (lines["policy"].cost, lines["rex"].cost) == (1.0, 2.0)
    assert (lines["policy"].learned_nothing, lines["policy"].runs) == (2, 6)


def test_a_diverged_run_is_a_collapse_and_an_infinite_ratio():
    lost = {"digits_mlp": ONE["digits_mlp"] | {"policy": {0.1: [0.9, math.inf], 1.0: [1.99, math.nan]}}}
    ratio, collapse = (claim([result(lost)], "in_distribution", place) for place in (0, 1))
    assert ratio.figure == math.inf and ratio.verdict == MISSED
    assert collapse.figure == 0.75 and collapse.verdict == MISSED and 0.75 > collapse.low > 0.1 and collapse.high > 0.9


def test_no_collapse_among_few_runs_leaves_a_wide_interval():
    assert share_interval(0, 60) == (0.0, pytest.approx(1 - 0.025 ** (1 / 60)))
    none = claim([result(ONE)], "in_distribution", 1)
    assert (none.figure, none.low, none.verdict) == (0.0, 0.0, HELD) and none.high > 0.5


def test_peers_are_compared_setting_by_setting():
    tasks = {
        f"task{n}": ONE["digits_mlp"] | {"prodigy": {0.5: [loss, loss]}, "schedule-free-default": {0.5: [0.1, 0.1]}}
        for n, loss in enumerate((0.8, 1.0, 1.1, 1.2))
    }
    part = result(tasks, "held_out")
    prodigy, schedule_free = (claim([part], "held_out", place) for place in (2, 3))
    assert (prodigy.figure, prodigy.verdict) == (0.75, HELD)
    assert (schedule_free.figure, schedule_free.verdict) == (0.0, MISSED)
    assert claim([result(ONE, "held_out", trained_on="mnist1d_mlp")], "held_out", 2).verdict == NOT_MEASURED


def test_a_policy_has_no_verdict_on_a_held_out_task_it_was_trained_on():
    seen = claim([result(ONE, "held_out", trained_on="mnist1d_mlp, digits_mlp")], "held_out")
    assert seen.verdict == NOT_MEASURED and "trained on digits_mlp" in seen.note
    home = result(ONE, "long", trained_on="digits_mlp", held_out=False)
    assert claim([home], "long").verdict == HELD


def test_fine_tuning_is_measured_in_standard_errors_of_tuned_linear():
    losses = {"digits_mlp": {n: {0.1: [0.5, 0.5, 0.5]} for n in ("linear", "rex", "policy")}}
    scores = {"linear": {0.1: [0.7, 0.8, 0.9]}, "rex": {0.1: [0.7, 0.7, 0.7]}, "policy": {0.1: [0.7, 0.75, 0.8]}}
    part = result(losses, "fine_tuning", {"digits_mlp": scores}, trained_on="x")
    item = claim([part], "fine_tuning")
    assert item.figure == pytest.approx(-0.05 / (0.1 / math.sqrt(3))) and item.verdict == HELD
    scores["policy"] = {0.1: [0.7, 0.7, 0.7]}
    assert (
        claim([result(losses, "fine_tuning", {"digits_mlp": scores}, trained_on="x")], "fine_tuning").verdict == MISSED
    )
    single = {"digits_mlp": {name: {0.1: [0.5]} for name in losses["digits_mlp"]}}
    assert claim([result(single, "fine_tuning", trained_on="x")], "fine_tuning").verdict == NOT_MEASURED


def test_top_shares_of_the_rex_protocol_are_among_schedules_and_that_policy_by_the_metric():
    scores = {f"task{n}": {"linear": {0.1: [0.1] * 2}, "rex": {0.1: [0.5] * 2}, "policy": {0.1: [own] * 2}}
              for n, own in enumerate((0.9, 0.9, 0.4))}  # fmt: skip
    for task in scores.values():
        task["prodigy"] = {0.1: [1.0, 1.0]}  # the best everywhere, and not among the ranked
    losses = {task: {name: {0.1: [1.0, 1.0]} for name in by_name} for task, by_name in scores.items()}
    top_1, top_3 = (claim([result(losses, "rex", scores)], "rex", place) for place in (0, 1))
    assert top_1.figure == pytest.approx(1 / 3) and top_1.verdict == HELD
    assert top_3.figure == 1.0 and top_3.verdict == HELD


def test_open_loops_tell_calm_rates_from_those_with_rollbacks():
    losses = {"digits_mlp": dict(ONE["digits_mlp"])}
    losses["digits_mlp"]["policy"] = {0.1: [1.0, 1.0], 9.0: [1.0, 1.0]}
    losses["digits_mlp"][control_name("policy", REPLAY)] = {0.1: [1.1, 1.1], 9.0: [math.e, math.e]}
    losses["digits_mlp"][control_name("policy", MEAN_PATH)] = {0.1: [1.0, 1.0]}
    everything, calm, *mean = open_loops(result(losses, rollbacks=(9.0,)))
    assert (everything.control, everything.calm, everything.runs) == (REPLAY, False, 4)
    assert everything.log_ratio == pytest.approx((math.log(1.1) + 1) / 2)
    assert (calm.calm, calm.runs, calm.log_ratio) == (True, 2, pytest.approx(math.log(1.1)))
    assert [(item.runs, item.log_ratio) for item in mean] == [(2, 0.0)] * 2


def test_what_was_left_out_and_what_failed_is_in_the_report(tmp_path):
    part = result(ONE, left_out={"stl10_wrn16_8": "No data for 'tanganke/stl10'."})
    part.evaluation.failures[0] = "its process died"
    nowhere = PartResult(
        "away", Part({"x": {}}, ("rex",), promise="held_out"), EvaluationConfig(), None, {}, {"x": "No"}
    )
    found = evidence([part, nowhere])
    assert found.left_out == [
        ("in_distribution", "stl10_wrn16_8", "No data for 'tanganke/stl10'."),
        ("away", "x", "No"),
    ]
    assert found.failures == [
        "in_distribution: linear on digits_mlp, adam, 10 updates, from 0.1, seed 0: its process died"
    ]
    text = evidence_markdown([part, nowhere], found)
    assert "tanganke/stl10" in text and "its process died" in text and "Not run" in text
    assert (
        "without stl10_wrn16_8 (no data)" in text and claim([nowhere, part], "held_out").note == "without x (no data)"
    )
    paths = write_evidence(tmp_path, [part, nowhere], found, {"config": {"name": "x"}})
    assert [path.name for path in paths] == ["results.csv", "evidence.md", "evidence.json"]
    content = json.loads(paths[2].read_text())
    assert [item["verdict"] for item in content["claims"]] == [item.verdict for item in found.claims]
    assert content["claims"][2]["figure"] is None and content["config"] == {"name": "x"}


def test_a_run_that_parts_share_is_paid_for_once():
    once = result(ONE)
    compute = {item.part: item for item in evidence([once, result(ONE, None)]).compute}
    runs = len(once.evaluation.runs)
    assert compute[TOGETHER].runs == compute["None"].runs == runs == 12
    assert compute[TOGETHER].updates == 120
    assert compute[TOGETHER].seconds == pytest.approx(once.evaluation.runs.seconds.sum())


def test_overall_is_of_parts_with_all_schedules_whatever_their_numbers_of_seeds():
    more = {"digits_mlp": {n: {r: [*v, v[0]] for r, v in rates.items()} for n, rates in ONE["digits_mlp"].items()}}
    without = {"digits_mlp": {name: own for name, own in ONE["digits_mlp"].items() if name != "rex"}}
    pooled = overall([result(ONE), result(more, "long"), result(without, "fine_tuning")])
    assert [item.controller for item in pooled] == ["linear", "rex", "policy"]
    by_name = {item.controller: item for item in pooled}
    assert by_name["rex"].log_ratio == 0.0 and by_name["policy"].runs == 4 + 6


def test_pooling_one_part_is_the_stratified_interval_of_its_interquartile_mean():
    scores = np.random.default_rng(0).normal(size=(3, 2, 8))
    mean, low, high = pooled_interquartile_mean([scores])
    assert mean == pytest.approx(interquartile_mean(scores))
    for ours, theirs in zip((low, high), stratified_interval(scores, interquartile_mean), strict=True):
        assert ours == pytest.approx(theirs, abs=0.05)
    assert np.isnan(pooled_interquartile_mean([scores, scores[:, :, :1]])[1]).all()


def test_the_plot_has_a_panel_a_setting_and_survives_diverged_runs(tmp_path):
    from matplotlib.image import imread

    many = {f"task{n}": ONE["digits_mlp"] | {"policy": {0.001: [0.9, math.inf], 0.1: [0.9, 0.9]}} for n in range(4)}
    paths = (
        draw_relative_rates(tmp_path / "one.png", result(ONE).evaluation),
        draw_relative_rates(tmp_path / "x.png", result(many).evaluation),
    )
    one, four = (imread(path[0]) for path in paths)
    assert four.shape[0] > one.shape[0] > 300 and len(np.unique(four.reshape(-1, four.shape[2]), axis=0)) > 50
    single = {"digits_mlp": ONE["digits_mlp"] | {"policy": {0.1: [0.9, 0.9]}}}
    assert (
        draw_relative_rates(tmp_path / "no.png", result(single).evaluation) == [] and not (tmp_path / "no.png").exists()
    )
