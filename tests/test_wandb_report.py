"""W&B reports without an account: what they are built of, that nothing is asked of W&B, how they are saved later."""

import json
import math

import pytest
from made_evaluation import ABOUT, evaluation_of, rows_of, small

from agents.evaluation.comparison import compare
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.shares import shares
from agents.evaluation.transfer import transfer
from agents.reports import wandb_report
from agents.reports.controller_figures import Compared
from agents.reports.wandb_blocks import PLOTTED_SETTINGS
from agents.trackers import WandbConfig
from gns.errors import InvalidSettingError, ReportError, UnknownNameError


@pytest.fixture(autouse=True)
def no_account(monkeypatch, no_network, tmp_path):
    """No account is known, and whatever asks W&B for anything fails."""
    import wandb

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(wandb, "Api", lambda *_, **__: pytest.fail("W&B was asked"))
    yield
    assert no_network == []


def part(name="", tasks=("digits", "wine")) -> Compared:
    rows = [row for task in tasks for row in small(task=task)] + rows_of("rex", 0.9, [math.inf, 1.0], task=tasks[0])
    evaluation = evaluation_of(rows)
    evaluation.percents = {(task, 100): 10.0 for task in tasks}
    lines, cells = compare(evaluation), transfer(evaluation, {"policy": "digits"})
    return Compared(name, evaluation, lines, cells, EvaluationConfig(), shares(evaluation))


def facts_of(*parts: Compared, **about):
    return wandb_report.describe(parts or [part()], WandbConfig(entity="me"), "made", {**ABOUT, **about})


def grids(content) -> list[dict]:
    return [block["metadata"] for block in content["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(content, kind: str) -> list[dict]:
    found = [panel for grid in grids(content) for panel in grid["panelBankSectionConfig"]["panels"]]
    return [panel["config"] for panel in found if panel["viewType"] == kind]


def test_a_report_has_text_and_panels_of_the_evaluations_own_runs(tmp_path):
    path = wandb_report.write(tmp_path, facts_of(command="python evaluate.py name=made"))
    content = json.loads(path.read_text())["report"]
    assert content["project"] == {"name": "gns-scheduler", "entityName": ""} and "made" in content["displayName"]
    for grid in grids(content):
        (runs,) = grid["runSets"]
        wanted = [(rule["key"]["name"], rule["op"], rule["value"]) for rule in runs["filters"]["filters"]]
        assert wanted[0] == ("group", "=", "made") and wanted[1] in [
            ("jobType", "=", "evaluate"),
            ("jobType", "=", "report"),
        ]
        assert "project" not in runs  # which W&B would have to be asked for
    lines = {(plot["xAxis"], *plot["metrics"]): plot for plot in panels(content, "Run History Line Plot")}
    for task in ("digits", "wine"):
        key = f"{task}_adam_100"
        assert lines["progress", f"learning_rate/{key}"]["yLogScale"]
        assert ("progress", f"training_loss/{key}") in lines
        starts = [f"learning_rate/{key}_from_0_01", f"learning_rate/{key}_from_1"]
        assert ("progress", *starts) in lines
        assert lines["initial_lr", f"test_loss/{key}"]["xLogScale"] and ("initial_lr", f"test_error/{key}") in lines
    bars = {plot["metrics"][0] for plot in panels(content, "Bar Chart")}
    assert {f"summary_metrics.{name}" for name in ("cost", "time_over_schedules", "test_loss_over_best")} <= bars
    text = json.dumps(content)
    for words in ("3 controllers were run on digits and wine", "Top-1/Top-3", "| best tuned schedule |", "evaluate.py"):
        assert words in text
    tables = json.dumps(panels(content, "Weave"))
    assert '"shares"' in tables and '"transfer"' in tables


def test_a_report_leaves_out_what_there_is_not_and_draws_only_so_many_settings():
    rows = [row for task in range(PLOTTED_SETTINGS + 3) for row in rows_of("rex", 0.1, [1.0], task=f"t{task}")]
    evaluation = evaluation_of(rows)
    facts = facts_of(Compared("", evaluation, compare(evaluation), [], EvaluationConfig()))
    content = wandb_report.report_of(facts)._to_model().model_dump(by_alias=True, exclude_none=True)
    assert len(panels(content, "Run History Line Plot")) == 4 * PLOTTED_SETTINGS and panels(content, "Weave") == []
    assert f"first {PLOTTED_SETTINGS} of {PLOTTED_SETTINGS + 3} settings" in str(content)
    suite = wandb_report.describe(
        [part("home"), part("away")], WandbConfig(), "made", ABOUT, evidence="# Evidence\n\nheld"
    )
    text = str(wandb_report.report_of(suite)._to_model())
    assert "learning_rate/home_wine_adam_100" in text and "learning_rate/away_wine_adam_100" in text
    assert "# Evidence\\n\\nheld" in text


def test_what_is_written_is_read_again_and_what_lacks_entries_is_refused_by_their_names(tmp_path):
    facts = facts_of(part("home"))
    path = wandb_report.write(tmp_path, facts)
    assert wandb_report.read(tmp_path) == facts
    whole = json.loads(path.read_text())

    def refused(change, error, words):
        changed = json.loads(json.dumps(whole))
        change(changed["facts"])
        path.write_text(json.dumps(changed))
        with pytest.raises(error, match=words):
            wandb_report.read(tmp_path)

    refused(lambda f: [f.pop("project"), f.pop("group")], InvalidSettingError, "lacks project, group of a ReportFacts")
    refused(lambda f: f["parts"][0].pop("comparison"), InvalidSettingError, "lacks comparison of a ReportPart")
    refused(lambda f: f["parts"][0]["settings"][1].pop("key"), InvalidSettingError, "lacks key of a ReportSetting")
    refused(lambda f: f.update(parts=3), InvalidSettingError, "parts is 3")
    refused(lambda f: f.update(colour="red"), UnknownNameError, "colour")
    path.write_text("{")
    with pytest.raises(InvalidSettingError, match="is damaged"):
        wandb_report.read(tmp_path)
    with pytest.raises(InvalidSettingError, match=r"none.wandb-report\.json .*expected a folder that evaluate\.py"):
        wandb_report.read(tmp_path / "none")


def test_offline_it_is_said_how_it_is_saved_later(tmp_path):
    said = wandb_report.publish(tmp_path, "offline")
    assert "W&B is offline" in said and f"python -m agents.reports.wandb_report {tmp_path}" in said and "\n" not in said


def test_it_is_saved_to_the_accounts_own_project_and_saved_again_replaces_it(tmp_path, monkeypatch, capsys):
    import wandb
    import wandb_workspaces.reports.v2 as reports

    saved = []

    def save(report):
        saved.append((report.entity, report.id, {grid.runsets[0].entity for grid in report.blocks if grid_like(grid)}))
        report.id = report.id or "Vmlldzo1"

    def grid_like(block):
        return isinstance(block, reports.PanelGrid)

    class Account:
        default_entity = "somebody"

    monkeypatch.setattr(wandb, "Api", Account)
    monkeypatch.setattr(reports.Report, "save", save)
    monkeypatch.setattr(reports.Report, "url", property(lambda report: f"https://example.org/{report.id}"))
    wandb_report.write(tmp_path, wandb_report.describe([part()], WandbConfig(), "made", ABOUT))
    wandb_report.main([str(tmp_path)])
    assert wandb_report.publish(tmp_path, "online") == "W&B report: https://example.org/Vmlldzo1"
    assert saved == [("somebody", "", {"somebody"}), ("somebody", "Vmlldzo1", {"somebody"})]
    assert capsys.readouterr().out == "W&B report: https://example.org/Vmlldzo1\n"


def test_what_w_and_b_refuses_is_told_with_what_to_do(tmp_path, monkeypatch):
    import wandb

    def refuse():
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "Api", refuse)
    wandb_report.write(tmp_path, wandb_report.describe([part()], WandbConfig(), "made", ABOUT))
    with pytest.raises(
        ReportError, match=r"No API key.*wandb login.*wandb sync .*python -m agents\.reports\.wandb_report"
    ):
        wandb_report.save(tmp_path)
    assert "No API key" in wandb_report.publish(tmp_path, "online")
    with pytest.raises(SystemExit, match="ReportError"):
        wandb_report.main([str(tmp_path)])
