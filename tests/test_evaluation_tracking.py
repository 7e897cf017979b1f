"""What trackers keep of an evaluation, and what is refused before any training run."""

import builtins
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from made_evaluation import evaluation_of, rows_of, small
from wandb_files import records, run_of

import evaluate
import train_agent
from agents.controllers import PolicyController, ScheduleController
from agents.evaluation import sweep
from agents.evaluation.comparison import compare
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.results_cache import ResultsCache
from agents.reports.controller_figures import Compared, curves, figures
from agents.runtime.command import check_folder
from agents.trackers import TrackerConfig, WandbConfig, make_tracker
from agents.trackers.evaluation import EvaluationTracker
from gns import GNSPolicy
from gns.errors import InvalidSettingError, MissingPackageError, UnknownNameError

EVALUATION = [
    "name=x",
    "policy=outputs/made/policy",
    "workers=0",
    "seeds=2",
    "widen=0",
    "budgets=[40]",
    "budget_percents=[100]",
    "grids.adam={lowest: 1e-3, count: 2}",
    "initial_rates.adam={lowest: 1e-4, highest: 1e-2, count: 2}",
]
SETTING = "digits_mlp_adam_40"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    GNSPolicy().save_pretrained(tmp_path / "outputs" / "made" / "policy")
    return tmp_path


@pytest.fixture
def untrained(monkeypatch):
    """Whatever trains fails the test."""
    monkeypatch.setattr(sweep, "run_job", lambda job: pytest.fail("a run was trained"))
    monkeypatch.setattr("train_agent.train", lambda *_, **__: pytest.fail("training began"))


def runs_in(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Folders of offline runs by kind and name."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*")):
        (run,) = (r.run for r in records(next(path.glob("*.wandb"))) if r.WhichOneof("record_type") == "run")
        assert run.run_group == folder.name
        found.setdefault((run.job_type, run.display_name), []).append(path)
    return found


# ---------------------------------------------------------------------- a whole evaluation


def test_an_evaluation_leaves_a_run_a_controller_and_one_of_the_whole(here, compose, no_network, capsys, monkeypatch):
    overrides = ["controller=[rex,cosine,policy]", "tracker=[tensorboard,csv,wandb]", "report=[html,wandb]"]
    evaluation = evaluate.run(compose("evaluate", *EVALUATION, *overrides))
    folder = here / "outputs" / "x"
    assert no_network == []
    found = runs_in(folder)
    wanted = [("report", "summary"), ("evaluate", "rex"), ("evaluate", "policy")]
    assert set(found) == {*wanted, ("evaluate", "cosine")}  # folders of one second are in no order
    whole, rex, policy = (run_of(found[key][0]) for key in wanted)

    assert rex["config"]["controller"] == {**rex["config"]["controller"], "name": "rex", "kind": "schedule"}
    assert rex["config"]["protocol"]["seeds"] == 2 and "torch" in rex["config"]["versions"]
    lines = {(line.controller, line.budget): line for line in compare(evaluation)}
    assert rex["summary"]["test_loss_over_best"] == pytest.approx(lines["rex", 40].ratio)
    assert rex["summary"][f"mean_test_loss/{SETTING}"] == pytest.approx(lines["rex", 40].test_loss)
    assert rex["summary"]["cost"] == 2.0 and policy["summary"]["cost"] == 1.0
    (table,) = (row["results"] for row in rex["history"] if "results" in row)
    assert table["_type"] == "table-file" and table["nrows"] == 2 * 2
    path = [row for row in rex["history"] if f"learning_rate/{SETTING}" in row]
    assert path[0]["progress"] == 0.0 and path[0][f"learning_rate/{SETTING}"] == pytest.approx(
        lines["rex", 40].initial_lr
    )
    assert path[0][f"training_loss/{SETTING}"] > path[-1][f"training_loss/{SETTING}"] > 0
    ends = [row for row in policy["history"] if f"test_loss/{SETTING}" in row]
    assert [row["initial_lr"] for row in ends] == [pytest.approx(1e-4), pytest.approx(1e-2)]
    assert all(0 <= row[f"test_error/{SETTING}"] <= 1 for row in ends)
    assert any(f"learning_rate/{SETTING}_from_0_0001" in row for row in policy["history"])
    assert f"test_loss/{SETTING}" not in policy["summary"]  # its last value is that of one initial rate alone

    tables = {name for row in whole["history"] for name, item in row.items() if "table-file" in str(item)}
    pictures = {name for row in whole["history"] for name, item in row.items() if "image-file" in str(item)}
    assert tables == {"controllers", "comparison", "transfer", "shares"}
    assert {"picture_transfer", "picture_initial_rate", "picture_rates"} <= pictures
    assert whole["config"]["seeds"] == 2 and whole["summary"]["controllers_compared"] == 3

    progress = pd.read_csv(folder / "tracking" / "evaluate" / "policy" / "csv" / "progress.csv")
    assert f"learning_rate/{SETTING}_from_0_01" in set(progress.curve) and (progress.value > 0).all()
    assert list((folder / "tracking" / "evaluate" / "rex" / "tensorboard").glob("events*"))
    shown = capsys.readouterr().out
    for words in (
        "wandb sync outputs/x/wandb/offline-run-*",
        "tensorboard --logdir",
        "not saved, since W&B is offline",
    ):
        assert words in shown

    monkeypatch.setattr(sweep, "run_job", lambda job: pytest.fail("a run was trained twice"))
    evaluate.run(compose("evaluate", *EVALUATION, "controller=[rex,policy]", "tracker=wandb"))
    again = runs_in(folder)
    for name in ("rex", "policy"):
        first, second = again["evaluate", name]
        assert run_of(first)["ids"] == run_of(second)["ids"]
    assert len(again["evaluate", "cosine"]) == 1 and len(run_of(folder)["ids"]) == 4


def test_a_policys_run_names_the_artifact_that_its_training_made(here):
    folder, config = here / "outputs" / "made" / "policy", TrackerConfig(wandb=WandbConfig())
    training = make_tracker(config, here / "outputs" / "made", "made", "train", {})
    training.policy("made", folder, {})
    training.close()
    tried = make_tracker(config, here / "tried", "policy", "evaluate", {}, here / "tried")
    tried.use_policy("made", folder, {})
    tried.close()
    artifact = run_of(here / "outputs" / "made")["artifacts"]["policy-made"]
    noted = run_of(here / "tried")["config"]
    assert (noted["policy_artifact"], noted["policy_digest"]) == ("policy-made", artifact.digest)


def test_a_suite_has_a_run_a_controller_with_all_its_parts(here, compose, monkeypatch):
    monkeypatch.setattr("evaluate.draw_settings", lambda *_: [])
    suite = (
        "++suite={parts: {home: {tasks: {digits_mlp: {budget: 20}}, controllers: [rex, policy]}, "
        "away: {tasks: {digits_mlp: {budget: 40}}, controllers: [rex], budget_percents: [100]}}}"
    )
    kept = [item for item in EVALUATION if "budget" not in item]
    overrides = ["controller=[rex,policy]", "tracker=[csv,wandb]", "report=wandb", "seeds=1", suite]
    evaluate.run(compose("evaluate", *kept, *overrides))
    folder = here / "outputs" / "x"
    assert set(runs_in(folder)) == {("report", "summary"), ("evaluate", "rex"), ("evaluate", "policy")}
    results = pd.read_csv(folder / "tracking" / "evaluate" / "rex" / "csv" / "results.csv")
    assert results.groupby("part").size().to_dict() == {"home": 2, "away": 2}
    rex = run_of(runs_in(folder)["evaluate", "rex"][0])
    assert set(rex["config"]["protocol"]) == {"home", "away"} and rex["summary"]["settings"] == 2
    assert {"learning_rate/home_digits_mlp_adam_20", "learning_rate/away_digits_mlp_adam_40"} <= {
        name for row in rex["history"] for name in row
    }
    whole = run_of(runs_in(folder)["report", "summary"][0])
    assert {"standings", "compute", "shares"} <= {name for row in whole["history"] for name in row}
    facts = json.loads((folder / "wandb-report.json").read_text())["facts"]
    assert [part["name"] for part in facts["parts"]] == ["home", "away"] and "# Evidence" in facts["evidence"]


# ---------------------------------------------------------------------- figures and curves


def compared(rows, own=()) -> Compared:
    evaluation = evaluation_of(rows, own=own)
    return Compared("", evaluation, compare(evaluation), [], EvaluationConfig())


def test_figures_are_of_what_counts_for_each_controller():
    rows = [*small(), *small(task="wine"), *rows_of("policy", 10.0, [math.inf, 2.1])]
    part = compared(rows)
    worse = [row | {"test_loss": 4 * row["test_loss"]} for row in rows_of("policy", 0.01, [1.0, 1.0], task="wine")]
    means = figures([compared([*small(), *rows_of("rex", 0.1, [1.0, 1.0], task="wine"), *worse])], "policy")
    assert means["test_loss_over_best"] == pytest.approx(math.sqrt(1.25 * 4.0)) and means["far_from_best"] == 2 / 6
    rex, policy = figures([part], "rex"), figures([part], "policy")
    assert rex["test_loss_over_best"] == 1.0 and rex["far_from_best"] == 0.0 and rex["runs_not_finite"] == 2
    assert rex["cost"] == 3.0 and rex["settings"] == 2
    assert policy["far_from_best"] == 2 / 10  # above twice 1.0, or not finite
    assert policy["worst_test_loss_over_best"] == math.inf and policy["rollbacks"] == pytest.approx(4 / 10)
    assert figures([compared(rows_of("policy", 0.1, [1.0]))], "policy")["far_from_best"] == 0.0  # no schedule beside it


def test_curves_of_what_ignores_the_initial_rate_are_level_and_diverged_ends_are_no_points():
    part = compared([*small(), *rows_of("prodigy", 0.1, [1.5, 1.7])], own=["prodigy"])
    (_, _), (level, x) = curves(part, "prodigy")
    assert x == "initial_lr" and level.initial_lr.tolist() == [0.01, 1.0]
    assert level["test_loss/digits_adam_100"].tolist() == pytest.approx([1.6, 1.6])
    (paths, _), (ends, _) = curves(part, "rex")
    assert list(paths) == ["progress", "learning_rate/digits_adam_100", "training_loss/digits_adam_100"]
    assert paths.iloc[0, 1:].tolist() == pytest.approx([0.1, 2.0 * math.sqrt(0.9 * 1.1)])
    assert ends["test_loss/digits_adam_100"].tolist() == [2.1, 1.0, math.inf]


def test_any_name_and_infinite_losses_are_kept_offline(here, no_network):
    name = "../a b/ü'\"<x>"
    part = compared([*small(name), *rows_of(name, 10.0, [math.inf, math.inf])])
    config = TrackerConfig(csv=True, wandb=WandbConfig())
    tracker = EvaluationTracker(config, here / "outputs" / "y", "y", {})
    methods = [ScheduleController("rex", "rex"), PolicyController(name, str(here / "outputs" / "made" / "policy"))]
    tracker.keep([part], methods, {"config": {"task": {}}, "versions": {}})
    tracker.close()
    kept = run_of(runs_in(here / "outputs" / "y")["evaluate", name][0])
    ends = [row["test_loss/digits_adam_100"] for row in kept["history"] if "test_loss/digits_adam_100" in row]
    assert len(ends) == 2 and kept["config"]["policy"]["source"].endswith("policy")
    assert len(list((here / "outputs" / "y" / "tracking" / "evaluate").iterdir())) == 3
    assert [path.name for path in here.iterdir()] == ["outputs"] and no_network == []


# ---------------------------------------------------------------------- refused before any work


@pytest.mark.parametrize(
    ("package", "overrides", "words"),
    [
        ("wandb", ["tracker=wandb"], "pip install wandb, or pick another tracker"),
        ("torch.utils.tensorboard", ["tracker=[csv,tensorboard]"], "pip install tensorboard, or pick another"),
        ("wandb_workspaces.reports.v2", ["tracker=wandb", "report=wandb"], "pip install wandb-workspaces"),
    ],
)
def test_a_package_that_is_not_installed_is_told_before_any_run(
    here, compose, monkeypatch, untrained, package, overrides, words
):
    import_module = builtins.__import__

    def without(name, *arguments):
        if name == package:
            raise ImportError(name)
        return import_module(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=words):
        evaluate.run(compose("evaluate", *EVALUATION, "controller=[rex]", *overrides))


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["report=wandb"], InvalidSettingError, "no W&B among the trackers; expected tracker=wandb"),
        (["report=wandb", "tracker=csv"], InvalidSettingError, "no W&B among the trackers"),
        (["report=wandb", "tracker=wandb", "tracker.wandb.mode=disabled"], InvalidSettingError, "mode is 'disabled'"),
        (["report=wandb", "tracker=wandb", "tracker.wandb.group='a=b'"], InvalidSettingError, "which is 'a=b'"),
        (["report=weave"], UnknownNameError, "html, wandb"),
        (["tracker=wandb", "tracker.wandb.mode=on"], UnknownNameError, "tracker.wandb 'on'"),
        (["tracker=csv", "+tracker.csw=true"], UnknownNameError, "tracker.csw"),
        (["tracker=wandb", "tracker.wandb.mode=online"], InvalidSettingError, "wandb login or WANDB_API_KEY"),
    ],
)
def test_bad_settings_are_told_before_any_run(
    here, compose, monkeypatch, untrained, no_network, overrides, error, words
):
    monkeypatch.setenv("NETRC", str(here / "no-netrc"))
    with pytest.raises(error, match=words):
        evaluate.run(compose("evaluate", *EVALUATION, "controller=[rex]", *overrides))
    assert no_network == []


def test_a_folder_that_cannot_be_written_to_is_told_before_any_run(here, compose, untrained):
    (here / "outputs" / "x").write_text("a file")
    with pytest.raises(InvalidSettingError, match=r"outputs/x .*expected a folder"):
        evaluate.run(compose("evaluate", *EVALUATION, "controller=[rex]"))
    with pytest.raises(InvalidSettingError, match=r"outputs/x .*expected a folder"):
        train_agent.run(compose("train_agent", "name=x"))
    for arguments in (["name=x"], ["seeds=2", "name='x'"], ["name=x/y"]):
        with pytest.raises(InvalidSettingError, match="since outputs/x is no folder"):
            check_folder(arguments, "evaluate")  # what Hydra would stumble over before anything is called
    check_folder(["name=made"], "evaluate")
    check_folder([], "train_agent")
    (here / "outputs" / "digits").write_text("the name that a command has where none is given")
    with pytest.raises(InvalidSettingError, match="since outputs/digits is no folder"):
        check_folder(["seed=1"], "train_agent")


def test_nothing_is_tracked_unless_asked_for_and_results_without_all_columns_are_refused(here, compose):
    overrides = [*EVALUATION, "controller=[rex]", "budget_percents=[50]"]
    evaluate.run(compose("evaluate", *overrides))
    assert not (here / "outputs" / "x" / "tracking").exists() and not (here / "outputs" / "x" / "wandb").exists()
    path = here / "outputs" / "x" / "cache.jsonl"
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    cache = ResultsCache(path)
    for entry in kept:
        left_out = ("seconds", "metric", "losses")
        cache.put(entry["key"], {key: value for key, value in entry["row"].items() if key not in left_out})
    with pytest.raises(InvalidSettingError, match=r"lacks the columns losses, metric, seconds; .*cache: false"):
        evaluate.run(compose("evaluate", *overrides))
