"""The table of Top-1 and Top-3 shares: who is ranked by what, and the paper's figures beside it."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from agents.evaluation.results import COLUMNS, Evaluation, score_arrays, tune
from agents.evaluation.shares import shares
from agents.reports.shares_tables import PAPER, shares_markdown, shares_tables, write_shares

SETTINGS = [("t", 1), ("t", 25), ("t", 100), ("u", 1), ("u", 25), ("u", 100)]
PERCENTS = {(task, budget): float(budget) for task, budget in SETTINGS}


def rows_of(controller, test, metric=None, rate=0.1, reward=1.0, settings=SETTINGS):
    """Rows of two seeds in every setting: ``test`` and ``metric`` are a figure a setting."""
    return [
        dict.fromkeys(COLUMNS, 0)
        | {
            "task": task,
            "controller": controller,
            "optimizer": "adam",
            "budget": budget,
            "initial_lr": rate,
            "seed": seed,
            "reward_loss": reward,
            "test_loss": test[number] * (1.0 + 0.1 * seed),
            "metric": "accuracy",
            "test_metric": (metric or [0.5] * 6)[number] + 0.01 * seed,
            "test_metrics": "{}",
        }
        for number, (task, budget) in enumerate(settings)
        for seed in (0, 1)
    ]


def evaluation_of(*rows, tuned=("rex", "linear", "adaptive"), percents=PERCENTS) -> Evaluation:
    runs = pd.DataFrame([row for part in rows for row in part], columns=COLUMNS)
    return Evaluation(
        runs, tune(runs[runs.controller.isin(tuned)]), [], {"t": True, "u": False}, frozenset(tuned), percents=percents
    )


HAND = evaluation_of(
    rows_of("rex", [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], metric=[0.9, 0.9, 0.9, 0.1, 0.1, 0.3]),
    rows_of("linear", [2.0, 2.0, 0.5, 2.0, 2.0, 2.0], metric=[0.8, 0.9, 0.8, 0.2, 0.2, 0.2]),
    rows_of("mine", [3.0] * 6, metric=[0.7, 0.7, 0.7, 0.4, 0.4, 0.4]),
    rows_of("other", [4.0] * 6, metric=[0.6, 0.6, 0.6, 0.5, 0.5, 0.5]),
)


def by_name(evaluation, ranked_by="metric"):
    return {item.controller: item for item in shares(evaluation) if item.ranked_by == ranked_by}


def test_methods_are_ranked_by_the_metric_in_its_direction_and_by_the_loss_in_a_second_version():
    metric, loss = by_name(HAND), by_name(HAND, "loss")
    # low: the two settings at 1 %; of the high ones a tie at (t, 25) and a win of linear at (u, 100)
    assert metric["rex"].top == {"low": (1.0, 1.0), "high": (0.75, 1.0), "overall": (pytest.approx(5 / 6), 1.0)}
    assert metric["linear"].top == {"low": (0.0, 1.0), "high": (0.5, 1.0), "overall": (pytest.approx(2 / 6), 1.0)}
    assert metric["other"].top == {"low": (0.0, 0.0), "high": (0.0, 0.0), "overall": (0.0, 0.0)}
    assert metric["rex"].rank == pytest.approx((4 * 1 + 1.5 + 2) / 6) and metric["mine"].rank == 3.0
    assert metric["rex"].settings == {"low": 2, "high": 4, "overall": 6}
    assert loss["rex"].top["overall"][0] == pytest.approx(5 / 6)
    assert loss["linear"].top["high"] == (0.25, 1.0)
    assert [item.controller for item in shares(HAND)] == ["rex", "linear", "mine", "other"] * 2


def test_regret_is_an_interquartile_mean_over_settings_and_seeds_with_an_interval():
    item = by_name(HAND)["mine"]
    ratios = sorted(
        math.log(3.0 * (1 + 0.1 * seed) / (best * 1.05)) for best in (1, 1, 0.5, 1, 1, 1) for seed in (0, 1)
    )
    assert item.regret == pytest.approx(np.mean(ratios[3:-3]))
    assert item.regret_low < item.regret < item.regret_high


def test_what_is_tuned_counts_at_the_rate_chosen_on_the_reward_split_and_a_policy_with_its_mean():
    evaluation = evaluation_of(
        rows_of("rex", [2.0] * 6, rate=0.1, reward=1.0),
        rows_of("rex", [1.0] * 6, rate=0.3, reward=2.0),  # better on the test split, which nobody knows
        rows_of("policy", [1.0] * 6, rate=0.1),
        rows_of("policy", [4.0] * 6, rate=0.3),
    )
    settings, methods, scores = score_arrays(evaluation)
    assert methods == ["rex", "policy"] and len(settings) == 6 and settings[1] == ("t", "adam", 25)
    np.testing.assert_allclose(scores["loss"], np.tile([[2.0, 2.2], [2.5, 2.75]], (6, 1, 1)))
    np.testing.assert_allclose(scores["metric"][:3], np.tile([-0.5, -0.51], (3, 2, 1)))
    np.testing.assert_allclose(scores["metric"][3:], np.tile([0.5, 0.51], (3, 2, 1)))


def test_diverged_methods_and_methods_without_a_metric_are_last():
    evaluation = evaluation_of(
        rows_of("rex", [1.0] * 6),
        rows_of("linear", [1.0] * 5 + [math.inf], metric=[0.9] * 5 + [math.nan]),
        rows_of("mine", [1.0] * 6, rate=0.2, metric=[0.4] * 6),
    )
    metric, loss = by_name(evaluation), by_name(evaluation, "loss")
    assert metric["linear"].top["overall"][1] == loss["linear"].top["overall"][1] == pytest.approx(5 / 6)
    assert all(math.isfinite(item.regret) for item in loss.values())


def test_policies_alone_have_shares_too(tmp_path):
    evaluation = evaluation_of(rows_of("a", [1.0] * 6), rows_of("b", [2.0] * 6))
    assert by_name(evaluation, "loss")["a"].top["overall"] == (1.0, 1.0)
    assert len(write_shares(tmp_path, shares(evaluation))) == 2


def test_without_low_budgets_their_shares_are_left_blank():
    full = evaluation_of(rows_of("rex", [1.0], settings=[("t", 100)]), percents={("t", 100): 100.0})
    item = by_name(full)["rex"]
    assert all(math.isnan(share) for share in item.top["low"]) and item.top["high"] == (1.0, 1.0)
    assert "| rex | -/- | 73/95 | 100/100 | 67/88 |" in shares_markdown(shares(full))


def test_the_papers_figures_stand_beside_the_methods_it_has_alone(tmp_path):
    table = shares(HAND)
    csv = pd.read_csv(write_shares(tmp_path, table)[0])
    rex, mine = csv[csv.controller == "rex"].iloc[0], csv[csv.controller == "mine"].iloc[0]
    assert (rex.low_top1_paper, rex.high_top3_paper, rex.overall_top1_paper) == (0.73, 0.88, 0.70)
    assert math.isnan(mine.low_top1_paper) and (mine.low_top3, rex.low_top3) == (1.0, 1.0)
    text = (tmp_path / "shares.md").read_text()
    assert "| rex | 100/100 | 73/95 | 75/100 | 67/88 | 83/100 | 70/92 | 1.25 |" in text
    assert "| mine | 0/100 |  | 0/100 |  | 0/100 |  | 3.00 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 4) and len({line.count("|") for line in lines}) == 1


def test_the_papers_shares_are_those_of_its_table():
    assert len(PAPER) == 7 and all(0 <= best <= best_3 <= 100 for columns in PAPER.values() for best, best_3 in columns)
    assert [sum(columns[2][0] for columns in PAPER.values()), sum(columns[2][1] for columns in PAPER.values())] == [
        111,
        312,
    ]


def test_the_tables_fit_a_terminal_of_80_columns():
    rows = [rows_of(name, [1.0 + number] * 6) for number, name in enumerate(PAPER)]
    console = Console(file=io.StringIO(), width=80)
    for table in shares_tables(shares(evaluation_of(*rows, tuned=tuple(PAPER)))):
        console.print(table)
    shown = console.file.getvalue()
    assert all(name in shown for name in PAPER) and "…" not in shown
