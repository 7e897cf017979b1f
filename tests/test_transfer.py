"""The matrix trained-on x evaluated-on: its statistics by hand, and its files."""

import io
import json
import math
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from rich.console import Console

import evaluate as evaluate_command
from agents.controllers import PolicyController
from agents.evaluation.results import COLUMNS, Evaluation, tune
from agents.evaluation.transfer import TransferCell, log_ratio, paired_interval, transfer
from agents.reports.transfer_matrix import draw_transfer, transfer_markdown, transfer_tables, write_transfer
from gns import GNSPolicy
from gns.policy.artefact import PolicyConfig

SCHEDULES = ("rex", "cosine")


def run(controller, rate, seed, reward, test, metric=0.5, task="t", optimizer="adam", budget=10):
    row = dict.fromkeys(COLUMNS, 0)
    return row | {
        "task": task,
        "controller": controller,
        "optimizer": optimizer,
        "budget": budget,
        "initial_lr": rate,
        "seed": seed,
        "reward_loss": reward,
        "test_loss": test,
        "metric": "accuracy",
        "test_metric": metric,
        "test_metrics": json.dumps({"accuracy": metric, "f1": metric / 2}),
    }


def evaluation_of(rows, **directions) -> Evaluation:
    runs = pd.DataFrame(rows, columns=COLUMNS)
    paths = [[(0.0, 0.1), (0.5, 0.05)]] * len(runs)
    tuned = tune(runs[runs.controller.isin(SCHEDULES)])
    return Evaluation(runs, tuned, paths, directions, references=frozenset(SCHEDULES))


def rows_of(controller, rate, test, reward=None, metric=None, **setting):
    reward, metric = reward or test, metric or [0.5] * len(test)
    return [
        run(controller, rate, seed, *figures, **setting)
        for seed, figures in enumerate(zip(reward, test, metric, strict=True))
    ]


@pytest.fixture
def hand():
    """Cosine at 0.3 is best on the reward split; rex and cosine at 0.1 would win on the test split."""
    return [
        *rows_of("rex", 0.1, test=[0.1, 0.1], reward=[3.0, 3.0], metric=[0.99, 0.99]),
        *rows_of("cosine", 0.1, test=[0.2, 0.2], reward=[2.5, 2.5], metric=[0.98, 0.98]),
        *rows_of("cosine", 0.3, test=[1.0, 3.0], reward=[2.0, 2.0], metric=[0.7, 0.9]),
        *rows_of("mine", 0.01, test=[1.0, 4.0], metric=[0.6, 0.8]),
        *rows_of("mine", 1.0, test=[2.0, 5.0], metric=[0.4, 0.6]),
    ]


def test_regrets_are_against_the_schedule_chosen_on_the_reward_split(hand):
    (cell,) = transfer(evaluation_of(hand), {"mine": "t, other"})
    assert (cell.best, cell.best_lr, cell.best_test_loss, cell.best_test_metric) == ("cosine", 0.3, 2.0, 0.8)
    assert (cell.policy, cell.task, cell.optimizer, cell.budget) == ("mine", "t", "adam", 10)
    assert (cell.seeds, cell.initial_rates) == (2, 2)
    assert cell.test_loss == 3.0 and cell.test_metric == pytest.approx(0.6)
    assert cell.metrics == pytest.approx({"accuracy": 0.6, "f1": 0.3})
    assert cell.regret == pytest.approx(math.log(3.0 / 2.0))
    assert cell.metric_regret == pytest.approx(0.2)
    assert cell.worst_regret == pytest.approx(math.log(3.5 / 2.0))
    assert cell.far_from_best == 0.25  # only 5 is above twice 2


def test_intervals_resample_seeds_jointly(hand):
    (cell,) = transfer(evaluation_of(hand), {"mine": "t"})
    # The bootstrap draws seeds 0 and 0, 1 and 1, or one of each: 1.5 / 1, 4.5 / 3 and 3 / 2 are all one ratio.
    assert cell.regret_low == pytest.approx(cell.regret) == pytest.approx(cell.regret_high)
    assert (cell.metric_regret_low, cell.metric_regret_high) == pytest.approx((0.2, 0.2))
    assert (cell.test_loss_low, cell.test_loss_high) == (1.5, 4.5)
    assert (cell.test_metric_low, cell.test_metric_high) == pytest.approx((0.5, 0.7))


def test_a_paired_interval_is_narrower_than_the_spread_of_seeds_and_covers():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        seeds = rng.uniform(1.0, 5.0, 24)
        low, high = paired_interval(seeds * np.exp(rng.normal(0.1, 0.02, 24)), seeds, log_ratio)
        hits += low <= 0.1 <= high
        assert high - low < 0.04
    assert hits >= 51
    a, b = rng.uniform(1, 2, 5), rng.uniform(1, 2, 5)
    assert paired_interval(a, b, log_ratio) == paired_interval(a, b, log_ratio)
    assert all(math.isnan(end) for end in paired_interval(a[:1], b[:1], log_ratio))
    assert all(math.isnan(end) for end in paired_interval(np.array([1.0, np.nan]), b[:2], log_ratio))


@pytest.mark.parametrize("higher_is_better,sign", [(True, 1.0), (False, -1.0)])
def test_a_metric_regret_above_0_is_worse_in_either_direction(hand, higher_is_better, sign):
    (cell,) = transfer(evaluation_of(hand, t=higher_is_better), {"mine": "t"})
    assert cell.metric_regret == pytest.approx(0.2 * sign)
    assert cell.metric_regret_low <= cell.metric_regret_high
    assert cell.regret > 0  # a lower loss is better whatever the metric


def test_intervals_of_a_metric_enclose_its_regret_in_either_direction():
    rows = [
        *rows_of("rex", 0.1, test=[1.0] * 6, metric=[0.5, 0.6, 0.7, 0.8, 0.9, 0.4]),
        *rows_of("mine", 0.1, test=[1.0] * 6, metric=[0.1, 0.5, 0.6, 0.9, 0.2, 0.3]),
    ]
    for better in (True, False):
        (cell,) = transfer(evaluation_of(rows, t=better), {"mine": "t"})
        assert cell.metric_regret_low < cell.metric_regret < cell.metric_regret_high
    assert cell.regret == 0.0


def test_there_is_a_cell_for_each_policy_and_setting_and_home_is_by_task():
    rows = []
    for task in ("digits", "digits_cnn"):
        for budget in (10, 20):
            rows += rows_of("rex", 0.1, test=[1.0], task=task, budget=budget)
            for policy in ("a", "b", "c"):
                rows += rows_of(policy, 0.1, test=[2.0], task=task, budget=budget)
    cells = transfer(evaluation_of(rows), {"b": "digits_cnn, mnist", "a": "digits", "c": "unknown"})
    assert [(cell.policy, cell.task, cell.budget) for cell in cells] == [
        (policy, task, budget) for policy in "bac" for task in ("digits", "digits_cnn") for budget in (10, 20)
    ]
    assert {(cell.policy, cell.task) for cell in cells if cell.home} == {("b", "digits_cnn"), ("a", "digits")}
    assert all(math.isnan(cell.regret_low) and cell.regret == pytest.approx(math.log(2.0)) for cell in cells)
    assert "digits_cnn/adam/20" in transfer_markdown(cells)


def test_without_a_policy_or_a_schedule_there_is_nothing_to_compare(hand):
    assert transfer(evaluation_of(hand), {}) == []
    assert transfer(evaluation_of([row for row in hand if row["controller"] == "mine"]), {"mine": "t"}) == []


def test_only_fixed_schedules_are_what_policies_are_measured_against():
    rows = [
        *rows_of("rex", 0.1, test=[1.0], reward=[2.0]),
        *rows_of("adaptive", 0.1, test=[0.5], reward=[1.0]),
        *rows_of("mine", 0.1, test=[2.0]),
    ]
    runs = pd.DataFrame(rows, columns=COLUMNS)
    tuned = tune(runs[runs.controller != "mine"])
    (cell,) = transfer(Evaluation(runs, tuned, [], references=frozenset({"rex"})), {"mine": "t"})
    assert cell.best == "rex" and cell.regret == pytest.approx(math.log(2.0))


def test_diverged_runs_are_infinite_regrets_without_an_interval(tmp_path):
    rows = [
        *rows_of("rex", 0.1, test=[1.0, 2.0]),
        *rows_of("mine", 0.1, test=[1.0, 2.0]),
        *rows_of("mine", 1.0, test=[math.inf, 2.0], metric=[math.nan, 0.5]),
    ]
    (cell,) = transfer(evaluation_of(rows), {"mine": "t"})
    assert cell.test_loss == cell.regret == cell.worst_regret == math.inf and cell.far_from_best == 0.25
    assert math.isnan(cell.regret_low) and math.isnan(cell.regret_high) and math.isnan(cell.test_loss_low)
    assert math.isnan(cell.test_metric) and math.isnan(cell.metric_regret) and math.isnan(cell.metrics["accuracy"])
    read = pd.read_csv(write_transfer(tmp_path, [cell])[0]).iloc[0]
    assert read.regret == math.inf and math.isnan(read.regret_low)
    assert "inf\\* (nan to nan)" in (tmp_path / "transfer.md").read_text()


def test_a_schedule_that_always_diverges_makes_no_warning_and_no_number():
    rows = [
        *rows_of("rex", 0.1, test=[math.inf, math.inf]),
        *rows_of("mine", 0.1, test=[1.0, 2.0]),
        *rows_of("lost", 0.1, test=[math.inf, 2.0]),
    ]
    mine, lost = transfer(evaluation_of(rows), {"mine": "t", "lost": "t"})
    assert mine.regret == -math.inf and mine.far_from_best == 0.0
    assert math.isnan(lost.regret) and math.isnan(lost.worst_regret) and lost.far_from_best == 0.5


def cell_with(cell: TransferCell, regret: float, **changes) -> TransferCell:
    return replace(cell, regret=regret, regret_low=regret - 0.1, regret_high=regret + 0.1, **changes)


def test_the_heat_map_shows_signs_extremes_and_what_is_no_number(hand, tmp_path):
    (cell,) = transfer(evaluation_of(hand), {"mine": "t"})
    colours = {}
    for regret in (-5.0, -0.3, 0.0, 0.3, 5.0, math.inf, -math.inf, math.nan):
        draw_transfer(tmp_path / "one.png", [cell_with(cell, regret), cell_with(cell, 0.6, task="u", home=False)])
        image = imread(tmp_path / "one.png")[..., :3]
        row = image[image.shape[0] // 2 - 30]
        shades, counts = np.unique(row.round(2), axis=0, return_counts=True)
        colours[regret] = [tuple(shade) for shade in shades[counts > 100].tolist()]
    assert colours[math.inf] == colours[5.0] and colours[-math.inf] == colours[-5.0]
    assert len({tuple(found) for found in colours.values()}) == 6


def test_the_heat_map_grows_with_the_matrix_and_stands_any_name(hand, tmp_path):
    (cell,) = transfer(evaluation_of(hand), {"mine": "t"})
    names = {"$odd$_[name]": "unknown", "a_very_long_name_" * 4: ", ".join(["fashion_mnist_2c2d"] * 9)}
    cells = [
        replace(cell, policy=policy, trained_on=tasks, task=task, regret=regret)
        for policy, tasks in names.items()
        for task, regret in {"t": math.inf, "a_task_of_a_very_long_name_" * 2: 0.1, "u": math.nan}.items()
    ]
    draw_transfer(tmp_path / "one.png", cells[:1])
    draw_transfer(tmp_path / "six.png", cells)
    one, six = imread(tmp_path / "one.png").shape, imread(tmp_path / "six.png").shape
    assert six[0] > one[0] and six[1] > one[1]
    console = Console(width=80, file=io.StringIO())
    for table in transfer_tables(cells):
        console.print(table)
    assert "$odd$_[name], trained on unknown" in console.file.getvalue()


def test_a_policy_says_what_it_was_trained_on(tmp_path):
    for training, said in (({"tasks": "a, b"}, "a, b"), ({}, "unknown"), ({"tasks": ["a"]}, "unknown")):
        GNSPolicy(PolicyConfig(training=training)).save_pretrained(tmp_path / "policy")
        assert PolicyController("policy", tmp_path / "policy").trained_on == said


SMALL = [
    "seeds=2",
    "workers=0",
    "budgets=[20]",
    "optimizers=[adam]",
    "widen=0",
    "grids.adam={lowest: 1e-3, count: 2}",
    "initial_rates.adam={lowest: 1e-3, highest: 0.1, count: 2}",
    "name=x",
]


@pytest.fixture
def policies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "both"):
        tasks = {"digits": "digits_mlp", "both": "digits_mlp, mnist1d_mlp"}[name]
        GNSPolicy(PolicyConfig(training={"tasks": tasks})).save_pretrained(f"outputs/{name}/policy")
    return tmp_path


def test_the_command_compares_policies_across_tasks(policies, compose, capsys):
    picks = ["task=[digits_mlp,mnist1d_mlp]", "policy=[outputs/digits/policy,outputs/both/policy]"]
    evaluation = evaluate_command.run(compose("evaluate", "controller=[rex,cosine,policy]", *picks, *SMALL))
    folder = policies / "outputs" / "x"
    cells = transfer(evaluation, {"digits": "digits_mlp", "both": "digits_mlp, mnist1d_mlp"})
    assert evaluation.higher_is_better == {"digits_mlp": True, "mnist1d_mlp": True}

    table = pd.read_csv(folder / "transfer.csv")
    assert list(zip(table.policy, table.task, table.home, strict=True)) == [
        ("digits", "digits_mlp", True),
        ("digits", "mnist1d_mlp", False),
        ("both", "digits_mlp", True),
        ("both", "mnist1d_mlp", True),
    ]
    assert table.regret.tolist() == pytest.approx([cell.regret for cell in cells])
    assert [json.loads(text) for text in table.metrics] == [pytest.approx(cell.metrics) for cell in cells]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["transfer"] == [asdict(cell) for cell in cells]
    lines = (folder / "transfer.md").read_text().splitlines()
    assert lines[0] == "| policy | trained on | digits_mlp | mnist1d_mlp |"
    starts = ("| digits | digits_mlp | ", "| both | digits_mlp, mnist1d_mlp | ", "| best tuned schedule |  | ")
    assert all(line.startswith(start) for line, start in zip(lines[2:5], starts, strict=True))
    assert {line.count("|") for line in lines[:5]} == {5}
    assert imread(folder / "transfer.png").shape[0] > 200
    shown = capsys.readouterr().out
    for words in ("digits, trained on digits_mlp", "both, trained on digits_mlp, mnist1d_mlp", "regret"):
        assert words in shown


def test_one_policy_on_one_task_prints_no_matrix_and_writes_the_files(policies, compose, capsys):
    evaluate_command.run(compose("evaluate", "controller=[rex,policy]", "policy=outputs/both/policy", *SMALL))
    assert "trained on" not in capsys.readouterr().out
    assert {path.name for path in (policies / "outputs" / "x").glob("transfer.*")} == {
        "transfer.csv",
        "transfer.md",
        "transfer.png",
    }


@pytest.mark.parametrize("pick", ["[rex]", "[policy]"])
def test_without_policy_or_without_schedule_no_transfer_files_are_written(policies, compose, pick):
    settings = ["task=[digits_mlp,mnist1d_mlp]", "policy=[outputs/both/policy]", *SMALL]
    evaluate_command.run(compose("evaluate", f"controller={pick}", *settings))
    folder = policies / "outputs" / "x"
    assert list(folder.glob("transfer.*")) == [] and (folder / "results.csv").is_file()
    assert json.loads((folder / "summary.json").read_text())["transfer"] == []
