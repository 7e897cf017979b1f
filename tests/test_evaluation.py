import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from agents.controllers import Ledger, ScheduleController, TrainedRun
from agents.controllers.policy import PolicyController
from agents.evaluation.comparison import compare, hindsight
from agents.evaluation.protocol import EvaluationConfig, Grid, InitialRates, evaluate, wider
from agents.evaluation.results import COLUMNS, Evaluation, tune
from agents.evaluation.sweep import _path
from agents.reports.files import markdown, tables, write_results
from agents.reports.pictures import draw_settings
from agents.runtime.output_folder import prepare_folder
from envs.tasks import get_task
from gns import GNSPolicy
from gns.errors import InvalidSettingError, UnknownNameError


def frame(losses: dict[str, dict[float, list[float]]], test: dict[str, dict[float, list[float]]] | None = None):
    rows = [
        {
            "task": "t",
            "controller": name,
            "optimizer": "adam",
            "budget": 10,
            "initial_lr": rate,
            "seed": seed,
            "reward_loss": loss,
            "test_loss": (test or losses)[name][rate][seed],
            "metric": "accuracy",
            "test_metric": 0.5,
            "test_metrics": '{"accuracy": 0.5}',
            "updates": 10,
            "search_updates": 0,
            "hessian_products": 0,
            "evaluations": 1,
            "seconds": 0.1,
            "rollbacks": 0,
        }
        for name, by_rate in losses.items()
        for rate, values in by_rate.items()
        for seed, loss in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluation_of(runs, paths, references=("rex", "cosine"), tuned=None, **about) -> Evaluation:
    """An evaluation in which the references, and ``tuned`` beside them, were tuned."""
    names = [*references, *(tuned or ())]
    return Evaluation(runs, tune(runs[runs.controller.isin(names)]), paths, references=frozenset(references), **about)


LOSSES = {"rex": {0.1: [3.0, 1.0], 0.3: [1.0, 1.2], 0.9: [0.5, math.inf]}, "cosine": {0.1: [0.5, 0.5], 0.3: [2.0, 2.0]}}


def test_the_rate_with_the_lowest_mean_on_the_reward_split_is_chosen():
    tuned = tune(frame(LOSSES)).set_index("controller").tuned_lr
    assert dict(tuned) == {"rex": 0.3, "cosine": 0.1}  # one diverged run rules a rate out


def test_tuning_never_looks_at_the_test_columns():
    runs = frame(LOSSES)
    scrambled = runs.assign(test_loss=runs.test_loss.to_numpy()[::-1] * 7, test_metric=-3.0)
    pd.testing.assert_frame_equal(tune(runs), tune(scrambled))
    pd.testing.assert_frame_equal(tune(runs), tune(runs.drop(columns=["test_loss", "test_metric"])))


def test_a_grid_grows_only_where_the_best_rate_lies_on_its_edge():
    runs = frame({"a": {0.1: [3.0], 0.3: [2.0], 0.9: [1.0]}, "b": {0.1: [1.0], 0.3: [2.0]}, "c": LOSSES["rex"]})
    assert wider(runs, "a", "t", "adam", 10) == [pytest.approx(2.7)]
    assert wider(runs, "b", "t", "adam", 10) == [pytest.approx(0.1 / 3)]
    assert wider(runs, "c", "t", "adam", 10) == []


def test_lines_compare_with_the_best_tuned_schedule():
    losses = {**LOSSES, "policy": {0.01: [0.6, 0.8], 1.0: [1.0, 1.2]}}
    test = {
        "rex": {0.1: [0.0, 0.0], 0.3: [2.0, 2.2], 0.9: [0.1, 0.1]},  # 0.1 and 0.9 would win on the test split
        "cosine": {0.1: [1.0, 1.0], 0.3: [0.0, 0.0]},
        "policy": {0.01: [1.0, 1.2], 1.0: [1.4, 1.6]},
    }
    runs = frame(losses, test)
    evaluation = evaluation_of(runs, [])
    by_name = {(line.controller, line.initial_lr): line for line in compare(evaluation) if line.initial_lr > 0}
    assert by_name["rex", 0.3].test_loss == pytest.approx(2.1) and by_name["rex", 0.3].ratio == pytest.approx(2.1)
    assert by_name["cosine", 0.1].ratio == 1.0 and by_name["cosine", 0.1].runs == 2
    assert by_name["policy", 0.01].ratio == pytest.approx(1.1) and by_name["policy", 0.01].runs == 1
    mean = next(line for line in compare(evaluation) if math.isnan(line.initial_lr))
    assert mean.controller == "policy" and mean.test_loss == pytest.approx(1.3)
    assert mean.deviation == pytest.approx(np.std([1.2, 1.4], ddof=1))  # over seeds, each a mean over initial rates
    best = hindsight(evaluation)[0]
    assert (best.controller, best.initial_lr) == ("rex", 0.1)


def test_only_fixed_schedules_are_what_others_are_measured_against():
    losses = {**LOSSES, "adaptive": {0.1: [0.1, 0.1], 0.3: [0.2, 0.2]}}
    evaluation = evaluation_of(frame(losses), [], tuned=["adaptive"])
    by_name = {line.controller: line for line in compare(evaluation)}
    assert by_name["cosine"].ratio == 1.0
    assert (by_name["adaptive"].initial_lr, by_name["adaptive"].ratio) == (0.1, pytest.approx(0.2))
    assert hindsight(evaluation)[0].controller == "cosine"
    without = evaluation_of(frame({"adaptive": losses["adaptive"]}), [], references=(), tuned=["adaptive"])
    assert math.isnan(compare(without)[0].ratio) and hindsight(without) == []


def test_a_controller_with_a_rate_of_its_own_has_one_line(tmp_path):
    runs = frame({**LOSSES, "own": {0.5: [0.4, 0.6]}})
    evaluation = evaluation_of(runs, [[(0.0, 0.1), (0.5, 0.05)]] * len(runs), own_rates=frozenset({"own"}))
    lines = compare(evaluation)
    own = [line for line in lines if line.controller == "own"]
    assert len(own) == 1 and math.isnan(own[0].initial_lr) and own[0].own_rate
    assert own[0].test_loss == own[0].ratio * 0.5 == 0.5
    assert "\n| own | own | 0.5000 |" in markdown(lines)
    draw_settings(tmp_path, evaluation)
    assert (tmp_path / "initial_rate.png").stat().st_size > 1000


def test_the_cost_of_a_result_counts_the_rates_tried_and_the_updates_of_searches():
    losses = {"rex": LOSSES["rex"], "policy": {0.01: [0.6, 0.8], 1.0: [1.0, 1.2]}, "own": {0.5: [0.4, 0.6]}}
    runs = frame(losses)
    runs.loc[runs.controller == "own", "search_updates"] = [4, 8]
    runs.loc[runs.initial_lr == 1.0, "updates"] = [2, 4]  # given up early
    lines = compare(evaluation_of(runs, [], references=("rex",), own_rates=frozenset({"own"})))
    costs = [(line.controller, line.runs, line.cost) for line in lines]
    assert costs == [
        ("rex", 3, 3.0),
        ("policy", 1, 1.0),
        ("policy", 1, pytest.approx(0.3)),
        ("policy", 1, pytest.approx(0.65)),
        ("own", 1, pytest.approx(1.6)),
    ]


def test_budgets_may_be_percentages_of_a_full_run():
    percents = (50.0, 1.0, 5.0, 100.0, 12.5)
    task = get_task("digits_mlp", budget=200)
    assert EvaluationConfig(budget_percents=percents).budgets_of(task) == {2: 1, 10: 5, 25: 12.5, 100: 50, 200: 100}
    given = EvaluationConfig(budget_percents=percents, budgets=(10,)).budgets_of(task)
    assert given == {1: 12.5, 5: 50, 10: 100}  # at least one update, and one setting a budget
    plain = EvaluationConfig(budgets=(30, 20)).budgets_of(task)
    assert list(plain) == [30, 20] and all(math.isnan(percent) for percent in plain.values())
    assert list(EvaluationConfig().budgets_of(task)) == [200]
    with pytest.raises(InvalidSettingError, match="one budget beside it"):
        EvaluationConfig(budget_percents=percents, budgets=(10, 20))
    with pytest.raises(InvalidSettingError, match="percentage"):
        EvaluationConfig(budget_percents=(0.0, 100.0))


class Fixed:
    """A controller whose runs end with a loss given by the rate: nothing is trained."""

    def __init__(self, name, tuned=True, is_schedule=False, own_rate=False):
        self.name, self.tuned, self.is_schedule, self.own_rate = name, tuned, is_schedule, own_rate

    def check(self, task, optimizer, budget):
        assert budget in (2, 20)

    def train(self, episode, checkpoints=None):
        model = episode.task.new_model()
        loss = abs(math.log(episode.learning_rate / 0.01)) + 0.1 * episode.seed
        ledger = Ledger(updates=episode.budget, evaluations=1)
        return TrainedRun(model, loss, ledger, [episode.learning_rate] * episode.budget)


def test_what_a_controller_says_of_itself_decides_its_rates_and_its_part():
    controllers = [
        Fixed("schedule", is_schedule=True),
        Fixed("adaptive"),
        Fixed("own", tuned=False, own_rate=True),
        Fixed("policy", tuned=False),
    ]
    config = EvaluationConfig(
        seeds=2,
        workers=0,
        budgets=(20,),
        budget_percents=(10.0, 100.0),
        grids={"adam": Grid(1e-3, 4)},
        initial_rates={"adam": InitialRates(1e-3, 1e-2, 3)},
    )
    evaluation = evaluate(controllers, [get_task("digits_mlp")], config, report=False)
    counts = evaluation.runs.groupby(["controller", "budget"]).initial_lr.nunique()
    assert dict(counts.groupby("controller").min()) == {"schedule": 4, "adaptive": 4, "own": 1, "policy": 3}
    low, high = get_task("digits_mlp").range_of("adam")
    own = evaluation.runs[evaluation.runs.controller == "own"]
    assert own.initial_lr.tolist() == pytest.approx([math.sqrt(low * high)] * 4)
    assert set(evaluation.tuned.controller) == {"schedule", "adaptive"}
    assert evaluation.tuned.tuned_lr.tolist() == pytest.approx([0.009] * 4)
    assert evaluation.references == {"schedule"} and evaluation.own_rates == {"own"}
    assert evaluation.percents == {("digits_mlp", 2): 10.0, ("digits_mlp", 20): 100.0}


def test_settings_outside_their_domain_are_refused():
    for make in (lambda: Grid(0.0, 3), lambda: Grid(0.1, 0), lambda: InitialRates(1.0, 0.1, 3)):
        with pytest.raises(InvalidSettingError):
            make()
    grid, rates = {"adam": Grid(0.1, 2)}, {"adam": InitialRates(0.1, 1.0, 2)}
    with pytest.raises(InvalidSettingError, match="budget"):
        EvaluationConfig(budgets=(0,), grids=grid, initial_rates=rates)
    with pytest.raises(UnknownNameError, match="sgdm"):
        EvaluationConfig(optimizers=("sgdn",), grids=grid, initial_rates=rates)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    GNSPolicy().save_pretrained(folder / "policy")
    config = EvaluationConfig(
        seeds=2,
        workers=0,
        budgets=(30,),
        grids={"adam": Grid(1e-4, 2)},
        initial_rates={"adam": InitialRates(1e-3, 1e-2, 2)},
        widen=2,
    )
    calls = []
    evaluation = evaluate(
        [
            ScheduleController("rex", "rex"),
            ScheduleController("linear", "linear"),
            PolicyController("policy", str(folder / "policy")),
        ],
        [get_task("digits_mlp")],
        config,
        progress=lambda work: calls.append((work.done, work.total)),
    )
    return evaluation, calls


def test_every_setting_is_run_and_edges_are_widened(small):
    evaluation, calls = small
    counts = evaluation.runs.groupby("controller").initial_lr.nunique()
    assert dict(counts) == {"rex": 4, "linear": 4, "policy": 2}  # 1e-4, 3e-4 are far too low: widened twice
    assert (evaluation.runs.groupby(["controller", "initial_lr"]).seed.nunique() == 2).all()
    assert list(evaluation.runs.columns) == COLUMNS
    assert [done for done, _ in calls] == list(range(1, len(evaluation.runs) + 1))
    assert calls[-1][1] == len(evaluation.runs)


def test_an_evaluation_leaves_a_table_files_and_plots(small, tmp_path):
    evaluation, _ = small
    lines = compare(evaluation)
    written = {path.name: path for path in write_results(tmp_path, evaluation, lines, {"config": {"x": math.nan}})}
    assert set(written) == {"results.csv", "summary.json", "table.md"}
    pictures = {path.name: path for path in draw_settings(tmp_path, evaluation)}
    assert set(pictures) == {"rates.png", "initial_rate.png"}
    pd.testing.assert_frame_equal(pd.read_csv(written["results.csv"]), evaluation.runs, check_dtype=False)
    summary = json.loads(written["summary.json"].read_text())
    assert len(summary["lines"]) == len(lines) == 5 and summary["config"] == {"x": None}
    assert {row["controller"] for row in summary["tuned"]} == {"rex", "linear"}
    from matplotlib.image import imread

    for name in ("rates.png", "initial_rate.png"):
        image = imread(pictures[name])
        assert image.shape[0] > 300 and image.shape[1] > 800
        assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 50  # something is drawn
    assert len(tables(lines)) == 1 and tables(lines)[0].row_count == 5
    assert markdown(lines).count("\n| rex |") == 1


def test_long_names_and_seven_figures_fit_a_terminal_of_80_columns():
    losses = {"delayed_linear_75": LOSSES["rex"], "policy_of_another_run": {0.01: [0.6, 0.8], 1.0: [1.0, 1.2]}}
    console = Console(file=io.StringIO(), width=80)
    for table in tables(compare(evaluation_of(frame(losses), [], references=("delayed_linear_75",)))):
        console.print(table)
    shown = console.file.getvalue()
    assert "…" not in shown and "accuracy" in shown and "cost" in shown


def test_diverged_runs_survive_the_whole_report(tmp_path):
    runs = frame({"rex": {0.1: [1.0, 2.0], 0.3: [math.inf, math.inf]}, "policy": {0.1: [math.inf, 1.0]}})
    evaluation = evaluation_of(runs, [[(0.0, 0.1), (0.5, 0.05)]] * len(runs))
    lines = compare(evaluation)
    assert [line.test_loss for line in lines if line.controller == "policy"] == [math.inf, math.inf]
    write_results(tmp_path, evaluation, lines, {})
    draw_settings(tmp_path, evaluation)
    assert json.loads((tmp_path / "summary.json").read_text())["lines"][1]["test_loss"] is None


def test_runs_given_up_early_leave_gaps_in_the_plots(tmp_path):
    runs = frame({"rex": {0.1: [1.0, 2.0]}, "policy": {0.1: [3.0, 1.0]}})
    whole = _path([0.1] * 10, 10)
    given_up = _path([0.1] * 4, 10)
    assert [t for t, _ in given_up] == [t for t, _ in whole]
    assert [rate for _, rate in given_up[:4]] == [0.1] * 4 and all(math.isnan(rate) for _, rate in given_up[4:])
    evaluation = evaluation_of(runs, [whole, whole, given_up, given_up])
    draw_settings(tmp_path, evaluation)
    assert (tmp_path / "rates.png").stat().st_size > 1000


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidSettingError, match="Cannot write"):
        prepare_folder(tmp_path / "file" / "results")
