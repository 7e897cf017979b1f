"""Texts and names from files of anyone's making, in pictures, tables and names of runs; and parts that fail."""

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_evaluation import evaluation_of, page, rows_of, small
from rich.console import Console

import evaluate
from agents.controllers import make_controllers
from agents.evaluation.comparison import compare
from agents.evaluation.suite import trained_budget
from agents.evaluation.transfer import transfer
from agents.reports.files import markdown, tables
from agents.reports.html_summary import sentences
from agents.reports.parts import Parts
from agents.reports.pictures import draw_settings
from agents.reports.transfer_matrix import draw_transfer, transfer_markdown, transfer_tables
from agents.runtime.stopping import StoppedError
from agents.trackers.weights_and_biases import artifact_name
from gns import GNSPolicy, PolicyConfig
from gns.errors import ReportError
from gns.graph.layer_graph import LayerGraph
from gns.scheduler.history import DecisionConfig, DecisionRecord, RunHistory
from gns.tools.console import LISTED, print_table, printable
from gns.tools.drawing import MAX_PIXELS
from gns.tools.history_files import load_history

ESCAPES = "\x1b]0;title\x07\x1b[2J\u202e\ud800"
NAMES = ["$x^$", "$\\frac$", "[/red]", "a|b", ESCAPES, "_hidden"]


def pixels(path) -> int:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width * height


def test_text_is_made_printable_and_cut_with_its_length():
    assert printable("plain é 漢") == "plain é 漢"
    assert printable(ESCAPES) == "\\x1b]0;title\\x07\\x1b[2J\\u202e\\ud800"
    assert printable("a" * 3_000_000, 5) == "aaaaa... (3,000,000 characters)"


def test_a_table_prints_so_many_rows_and_says_how_many_it_leaves_out(capsys):
    print_table("t", ("n",), [(k,) for k in range(LISTED + 5)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "5 further rows are left out." and len(lines) == LISTED + 4


def test_any_name_is_drawn_and_listed_as_it_is(tmp_path):
    names = [printable(name) for name in NAMES]
    evaluation = evaluation_of([row for name in names for row in small(name, metric=name)] + small("last"))
    lines, cells = compare(evaluation), transfer(evaluation, dict.fromkeys(names, ESCAPES))
    assert all(path.stat().st_size > 1000 for path in draw_settings(tmp_path, evaluation))
    draw_transfer(tmp_path / "transfer.png", cells)
    console = Console(width=200, file=io.StringIO())
    for table in [*tables(lines), *transfer_tables(cells)]:
        console.print(table)
    shown = console.file.getvalue() + markdown(lines) + transfer_markdown(cells)
    assert "\x1b" not in shown and "\u202e" not in shown and "[/red]" in shown and "\\x1b]0;title" in shown
    assert all(line.count("|") == 9 for line in markdown(lines).splitlines() if line.startswith("| "))


def test_a_policy_that_says_much_of_its_training_costs_no_more_to_draw_than_another(tmp_path, monkeypatch):
    rows = [*rows_of("rex", 0.1, [1.0, 1.0]), *rows_of("policy", 0.1, [1.0, 2.0])]
    evaluation, said = evaluation_of(rows, ["rex"]), ", ".join(["digits", *(f"task{k}" for k in range(70_000))])
    (cell,) = transfer(evaluation, {"policy": said})
    assert cell.home and len(cell.trained_on) < 500 and cell.trained_on.endswith(f"... ({len(said):,} characters)")
    assert transfer(evaluation, {"policy": said.replace("digits, ", "") + ", digits"})[0].home  # beyond what is shown
    draw_transfer(tmp_path / "one.png", [cell])
    assert pixels(tmp_path / "one.png") < 1_000_000
    monkeypatch.setattr("agents.reports.transfer_matrix._POLICIES", 2)
    monkeypatch.setattr("agents.reports.transfer_matrix._SETTINGS", 3)
    draw_transfer(
        tmp_path / "six.png", [replace(cell, policy=f"p{k}", task=f"t{n}") for k in range(2) for n in range(3)]
    )
    draw_transfer(
        tmp_path / "more.png", [replace(cell, policy=f"p{k}", task=f"t{n}") for k in range(9) for n in range(9)]
    )
    assert pixels(tmp_path / "more.png") < 1.1 * pixels(tmp_path / "six.png")


def test_a_budget_of_thousands_of_digits_is_no_budget(tmp_path):
    training = {"budgets": f"{'9' * 5000} updates, 100 to 200 updates", "tasks": "a"}
    GNSPolicy(PolicyConfig(training=training)).save_pretrained(tmp_path / "policy")
    made = make_controllers({"policy": {"kind": "policy", "policy": str(tmp_path / "policy")}})
    assert trained_budget(made) != 200 or len(str(trained_budget(made))) < 13


@pytest.mark.parametrize("name", ["$x^$", "\x1b[2J", "é" * 100])
def test_controllers_are_named_safely_before_any_work(tmp_path, name):
    GNSPolicy().save_pretrained(tmp_path / name / "policy")
    (made,) = make_controllers({"policy": {"kind": "policy", "policy": [str(tmp_path / name / "policy")]}})
    assert made.name.isprintable() and len(made.name) < 110 and made.policy == str(tmp_path / name / "policy")


def test_names_of_artifacts_are_those_that_w_and_b_takes():
    assert artifact_name("my run.1").startswith("policy-my_run.1-") and artifact_name("é漢").startswith("policy-__-")
    first, second = (artifact_name("a" * 300 + end) for end in "xy")
    assert len(first) == len(second) == 128 and first != second
    import wandb

    for name in (*NAMES, "a" * 300, "漢" * 200):
        assert wandb.Artifact(artifact_name(name), type="policy").name == artifact_name(name)


def history_of(count: int, name: str) -> RunHistory:
    """A run whose graph has one row of layers."""
    graph = LayerGraph(
        names=tuple(f"{name}{k}" for k in range(count)),
        types=("linear",) * count,
        edges=np.array([range(count - 1), range(1, count)]),
        parameters=(("weight",),) * count,
        tensor_sizes=(1,) * count,
        depths=np.zeros(count),
    )
    records = tuple(DecisionRecord(5 * k, 0.1, 1.0, 0.0, {}, scale=1.0, loss=1.0) for k in range(2))
    return RunHistory(
        10, DecisionConfig(num_decisions=2), (0.1,), records, graph, {0: np.zeros((count, 7), np.float32)}
    )


@pytest.mark.parametrize(("count", "name"), [(2520, "layer"), (2, "\x1b[2J$x^$" * 300_000)])
def test_pictures_of_a_history_are_of_bounded_size_whatever_it_names(tmp_path, count, name):
    history = load_history(history_of(count, name).save(tmp_path / "run.json"))
    for kind in ("layers", "graph"):
        history.plot(tmp_path / f"{kind}.png", kind)
        assert pixels(tmp_path / f"{kind}.png") <= 1.01 * MAX_PIXELS


# ---------------------------------------------------------------------- what learned nothing


def nothing() -> tuple:
    rows = [*rows_of("rex", 0.1, [2.3, 2.3]), *rows_of("policy", 0.1, [2.4, 2.3]), *rows_of("policy", 1.0, [2.3, 2.5])]
    evaluation = evaluation_of([*rows, *small(task="wine", budget=50)])
    evaluation.trivial |= {"digits": 2.3, "wine": 1.35}
    return evaluation, compare(evaluation), transfer(evaluation, {"policy": "x"})


def test_runs_that_learned_nothing_are_marked_wherever_they_are_counted():
    evaluation, lines, cells = nothing()
    shares = {(line.setting.task, line.controller): line.learned_nothing for line in lines}
    assert shares == {**shares, ("digits", "rex"): 1.0, ("wine", "rex"): 0.0, ("wine", "policy"): 0.25}
    assert "| rex | 0.1 | 2.3000† |" in markdown(lines) and "| rex | 0.1 | 1.0000 |" in markdown(lines)
    assert markdown(lines).count("some of its runs learned nothing") == 2
    assert "100% learned nothing" in transfer_markdown(cells) and "25% learned nothing" in transfer_markdown(cells)
    text = page(evaluation)
    assert "100%" in text and "some learned nothing" in text and "learned nothing: 2.3000" in text


def test_where_nothing_learned_no_difference_is_judged_and_settings_are_named_in_full():
    evaluation, lines, cells = nothing()
    said = " ".join(sentences(evaluation, lines, cells))
    assert "No controller learned anything on digits with adam, 100 updates" in said
    assert "25% of policy on wine with adam, 50 updates" in said and "33% of cosine" not in said
    only = evaluation_of([row for row in evaluation.runs.to_dict("records") if row["task"] == "digits"])
    only.trivial["digits"] = 2.3
    said = sentences(only, compare(only), transfer(only, {"policy": "x"}))
    assert any("nothing to compare: neither learned anything" in sentence for sentence in said)
    assert not any("no difference is shown" in sentence for sentence in said)


# ---------------------------------------------------------------------- parts that fail


def test_a_part_that_fails_is_named_and_the_others_are_written(tmp_path):
    def fail(text):
        raise ValueError(f"no {text}")

    parts = Parts()
    assert parts.write("first", lambda: [tmp_path / "a"]) == [tmp_path / "a"]
    assert parts.write("second", fail, ESCAPES) == [] and parts.write("third", lambda: None) == []
    assert parts.written == [tmp_path / "a"]
    with pytest.raises(ReportError, match=r"Not written: second \(ValueError: no \\x1b.*All other parts are in"):
        parts.require_all(tmp_path)
    with pytest.raises(StoppedError):
        parts.write("stopped", lambda: (_ for _ in ()).throw(StoppedError(15)))


def test_the_command_writes_its_results_though_its_pictures_fail(tmp_path, monkeypatch, compose, capsys):
    monkeypatch.chdir(tmp_path)
    GNSPolicy().save_pretrained(tmp_path / "$x^$" / "policy")
    monkeypatch.setattr("evaluate.draw_settings", lambda *_: 1 / 0)
    settings = ["policy=['$x^$/policy']", "seeds=1", "workers=0", "budgets=[20]", "widen=0", "report=html", "name=x"]
    settings += ["grids.adam={lowest: 1e-2, count: 1}", "initial_rates.adam={lowest: 1e-3, highest: 1e-3, count: 1}"]
    with pytest.raises(ReportError, match=r"Not written: pictures \(ZeroDivisionError"):
        evaluate.run(compose("evaluate", "controller=[rex,policy]", *settings))
    names = {path.name for path in (tmp_path / "outputs" / "x").iterdir()}
    assert {"results.csv", "summary.json", "table.md", "transfer.png", "transfer.md", "report.html"} <= names
    assert "$x^$" in capsys.readouterr().out
    assert set(pd.read_csv(tmp_path / "outputs" / "x" / "results.csv").controller) == {"rex", "$x^$"}
    assert json.loads((tmp_path / "outputs" / "x" / "summary.json").read_text())["lines"]
