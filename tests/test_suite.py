"""Suites: what a part may say, what is refused before any run, and a tiny one from the command to its files."""

import json
import math

import pandas as pd
import pytest

import evaluate
from agents.controllers import make_controllers
from agents.evaluation import sweep
from agents.evaluation.promises import MEASURES, NOT_MEASURED
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.suite import PROMISES, Part, Suite, available, prepare, trained_budget
from agents.runtime.command import plain
from agents.runtime.settings import build
from envs.tasks import get_task
from gns import GNSPolicy, PolicyConfig
from gns.errors import InvalidSettingError, UnknownNameError

SCHEDULES = ["constant", "step", "linear", "cosine", "exponential", "onecycle", "rex"]


def save_policy(folder, **training) -> str:
    GNSPolicy(PolicyConfig(training=training)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_policy(tmp_path / "policy", tasks="digits_mlp", budgets="20 to 40 updates, 100 to 200 updates")
    return tmp_path


def parts_of(name, compose):
    """The parts of a suite by name."""
    content = plain(compose("evaluate", f"suite={name}", "policy=policy"))
    assert content["name"] == name
    suite = build(Suite, content["suite"], "suite")
    command = build(EvaluationConfig, {k: v for k, v in content.items() if k not in evaluate._OUTSIDE_PROTOCOL})
    return {part.name: part for part in prepare(suite, command, content["task"], content["controller"])}


def test_the_yardstick_tunes_on_seeds_of_their_own_over_four_decades_and_has_every_rival(here, compose):
    parts = parts_of("yardstick", compose)
    for name, part in parts.items():
        assert part.protocol.tuning_seeds >= 2 and part.protocol.widen == 0
        for optimizer in part.protocol.optimizers:
            rates = part.protocol.grids[optimizer].rates()
            assert len(rates) == (5 if name == "fine_tuning" else 13)
            assert rates[-1] / rates[0] == pytest.approx(1e4, rel=1e-6)
        names = {controller.name for controller in part.controllers}
        assert "rex" in names or name == "fine_tuning"
        assert {"cosine", "policy", "default-rex", "default-cosine", "prodigy", "d-adaptation"} <= names
    assert not {task.name for task in parts["held_out"].tasks} & {task.name for task in parts["in_distribution"].tasks}


@pytest.mark.parametrize("name", ["evidence", "small", "quick"])
def test_each_suite_can_be_prepared_and_measures_every_promise(name, here, compose):
    parts = parts_of(name, compose)
    assert {part.part.promise for part in parts.values()} >= set(PROMISES) == set(MEASURES)
    for promise in ("in_distribution", "held_out", "rex", "long"):
        assert [c.name for c in parts[promise].controllers if c.is_schedule] == SCHEDULES
    assert parts["long"].protocol.budgets == (2000,) and parts["rex"].protocol.relative_rates == (1.0,)
    assert "linear" in [controller.name for controller in parts["fine_tuning"].controllers]
    seen = {task.name for name, part in parts.items() if not part.part.held_out for task in part.tasks}
    assert not seen & {task.name for task in parts["held_out"].tasks} or name == "quick"


def test_no_suite_is_the_default_and_one_encoder_serves_both_tasks(compose):
    assert build(Suite, plain(compose("evaluate"))["suite"]).parts == {}
    content = plain(compose("evaluate", "suite=evidence", "task.glue_mrpc.model.encoder=here"))
    assert [content["task"][name]["model"]["encoder"] for name in ("glue_mrpc", "glue_cola")] == ["here"] * 2


def part(**settings) -> Part:
    return build(Part, {"tasks": {"digits_mlp": {}}, "controllers": ["rex"], **settings})


@pytest.mark.parametrize(
    "settings,error,words",
    [
        ({"tasks": {}}, InvalidSettingError, "no tasks"),
        ({"promise": "much"}, UnknownNameError, "in_distribution"),
        ({"longer": 0}, InvalidSettingError, "longer"),
        ({"longer": 10, "budgets": [3]}, InvalidSettingError, "one of the two"),
        ({"speed": 1}, UnknownNameError, "seeds"),
        ({"tasks": {"digits_mlp": {"budget": 30, "_target_": "os.system"}}}, InvalidSettingError, "names code"),
    ],
)
def test_parts_that_make_no_sense_are_refused(settings, error, words):
    with pytest.raises(error, match=words):
        part(**settings)


def test_promises_and_names_of_parts_are_checked_together():
    with pytest.raises(InvalidSettingError, match="each once"):
        Suite({"a": part(promise="rex"), "b": part(promise="rex")})
    with pytest.raises(InvalidSettingError, match=r"\.\./a"):
        Suite({"../a": part()})
    with pytest.raises(InvalidSettingError, match="trained_budget"):
        Suite(trained_budget=0)


def test_what_a_part_leaves_out_is_as_the_command_says():
    command = EvaluationConfig(seeds=5, workers=0, budgets=(30,), widen=1)
    own = part(seeds=3, relative_rates=[1]).protocol(command, None)
    assert (own.seeds, own.relative_rates, own.budgets, own.widen, own.workers) == (3, (1.0,), (30,), 1, 0)
    assert part().protocol(command, None) == command
    assert part(longer=10).protocol(command, 400).budgets == (4000,)
    with pytest.raises(InvalidSettingError, match=r"suite\.trained_budget"):
        part(longer=10).protocol(command, None)
    with pytest.raises(InvalidSettingError, match="at least 2"):
        part(replays=True, seeds=1).protocol(command, None)


def prepared(suite: Suite, policy: str):
    tasks = {"digits_mlp": {"budget": 300, "model": {"hidden": [64, 32]}}}
    controllers = {"rex": {"kind": "schedule", "profile": "rex"}, "policy": {"kind": "policy", "policy": policy}}
    return prepare(suite, EvaluationConfig(workers=0), tasks, controllers)


def test_a_part_changes_settings_of_its_tasks_and_of_budget_and_epochs_its_own_counts(here):
    changed = Part({"digits_mlp": {"epochs": 2, "model": {"hidden": [8]}}}, ("rex",))
    task = prepared(Suite({"a": changed}), "policy")[0].tasks[0]
    assert (task.budget, task.epochs, task.model["hidden"], task.model["classes"]) == (None, 2, [8], 10)


def test_names_that_are_not_in_the_groups_and_budgets_too_small_are_refused_before_any_run(here):
    for wrong, words in (({"mnist1d_mlp": {}}, "digits_mlp"), ({"digits_mlp": {"batchsize": 3}}, "batch_size")):
        with pytest.raises(UnknownNameError, match=words):
            prepared(Suite({"a": Part(wrong, ("rex",))}), "policy")
    with pytest.raises(UnknownNameError, match="rex"):
        prepared(Suite({"a": Part({"digits_mlp": {}}, ("linear",))}), "policy")
    small = Part({"digits_mlp": {}}, ("rex", "policy"), budget_percents=(1.0, 100.0))
    with pytest.raises(InvalidSettingError, match="num_decisions"):
        prepared(Suite({"a": part(), "b": small}), "policy")


def test_the_largest_budget_is_read_from_the_policies(here):
    save_policy(here / "silent")
    both = make_controllers({"policy": {"kind": "policy", "policy": ["policy", "silent"]}})
    assert trained_budget(both) == 200
    assert trained_budget(both[1:]) is None


def test_tasks_whose_data_or_weights_are_nowhere_are_left_out_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    found, left_out = available([get_task("digits_mlp"), get_task("stl10_wrn16_8")])
    assert [task.name for task in found] == ["digits_mlp"]
    assert list(left_out) == ["stl10_wrn16_8"] and "tanganke/stl10" in left_out["stl10_wrn16_8"]


TINY = [
    "name=tiny",
    "workers=0",
    "seeds=2",
    "widen=0",
    "policy=policy",
    "task=[digits_mlp,stl10_wrn16_8]",
    "controller=[linear,rex,policy,prodigy,schedule-free-default]",
    "grids.adam={lowest: 3e-3, count: 2}",
    "suite={parts: {"
    "home: {promise: in_distribution, held_out: false, tasks: {digits_mlp: {budget: 20}}, "
    "controllers: [linear, rex, policy], relative_rates: [0.1, 1], replays: true}, "
    "away: {promise: held_out, tasks: {digits_mlp: {budget: 20, batch_size: 16}, stl10_wrn16_8: {budget: 20}}, "
    "controllers: [linear, rex, policy, prodigy, schedule-free-default], relative_rates: [1, 10000]}, "
    "nowhere: {promise: fine_tuning, tasks: {stl10_wrn16_8: {}}, controllers: [linear, policy]}, "
    "rex: {promise: rex, held_out: false, tasks: {digits_mlp: {budget: 40}}, controllers: [linear, rex, policy], "
    "budget_percents: [50, 100], relative_rates: [1]}}}",
]


@pytest.fixture
def tiny(compose, monkeypatch, here):
    """Run the tiny suite where there are no pictures; return what it says and the controllers of runs trained."""
    monkeypatch.setenv("GNS_DATA_ROOT", str(here / "empty"))
    monkeypatch.setattr("evaluate.draw_settings", lambda *_: [])  # other tests draw them
    trained, real = [], sweep.run_job
    monkeypatch.setattr(sweep, "run_job", lambda job: (trained.append(job.controller.name), real(job))[1])
    overrides = [item if not item.startswith("suite=") else "+" + item for item in TINY]
    overrides = [("++" + item[1:]) if item.startswith("+suite") else item for item in overrides]
    overrides.append("together=false")  # so that each run is seen
    return lambda: evaluate.run(compose("evaluate", *overrides)), trained


def test_one_command_leaves_the_evidence_and_says_what_it_could_not_measure(tiny, here, capsys):
    run, trained = tiny
    found = run()
    folder, shown = here / "outputs" / "tiny", capsys.readouterr().out
    assert "stl10_wrn16_8 is left out" in shown and "held out" in shown
    assert [(part, task) for part, task, _ in found.left_out] == [
        ("away", "stl10_wrn16_8"),
        ("nowhere", "stl10_wrn16_8"),
    ]
    by_promise = {promise: [claim for claim in found.claims if claim.promise == promise] for promise in PROMISES}
    assert {promise: len(own) for promise, own in by_promise.items()} == {n: len(own) for n, own in MEASURES.items()}
    assert all(math.isfinite(claim.figure) for claim in by_promise["in_distribution"] + by_promise["rex"])
    # digits_mlp is what the policy says it was trained on: nothing that is held out
    assert {claim.verdict for promise in ("held_out", "fine_tuning", "long") for claim in by_promise[promise]} == {
        NOT_MEASURED
    }
    assert "trained on digits_mlp" in by_promise["held_out"][0].note

    table = pd.read_csv(folder / "results.csv")
    assert list(table.part.unique()) == ["home", "away", "rex"]
    starts = table[(table.controller == "policy") & (table.part == "away")].initial_lr.unique()
    assert len(starts) == 2 and starts.max() == 10.0  # ten thousand times the tuned rate is beyond the policy's highest
    home = table[table.part == "home"].groupby("controller").size()
    assert dict(home) == {"linear": 4, "rex": 4, "policy": 4, "policy, replay": 4, "policy, mean path": 4}
    for name in ("home/relative_rates.png", "home/results.csv", "away/table.md", "rex/shares.md", "evidence.md"):
        assert (folder / name).stat().st_size > 100
    assert not (folder / "nowhere").exists() and not (folder / "rex" / "relative_rates.png").exists()
    text, data = (folder / "evidence.md").read_text(), json.loads((folder / "evidence.json").read_text())
    assert text.index("## Promises") < text.index("## home") < text.index("## Failures") < text.index("## Compute")
    assert "Not run: the data of none of its tasks were found." in text and "No run was lost." in text
    assert len(data["claims"]) == len(found.claims) and data["config"]["name"] == "tiny" and "torch" in data["versions"]
    assert found.compute[-1].runs == len(trained) == 56 < sum(item.runs for item in found.compute[:-1]) + 1

    before = [(folder / name).read_bytes() for name in ("results.csv", "evidence.md", "evidence.json")]
    trained.clear()
    run()
    assert trained == []
    assert [(folder / name).read_bytes() for name in ("results.csv", "evidence.md", "evidence.json")] == before
