"""The two commands, from configuration to files."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

import evaluate
import train_agent
from agents.evaluation import sweep
from agents.evaluation.results import COLUMNS
from agents.runtime.command import use_data_root
from gns import GNSPolicy
from gns.errors import InvalidSettingError, PolicyFormatError, UnknownNameError

SMALL = [
    "env.budgets=[20,30]",
    "env.decision.num_decisions=5",
    "agent.num_envs=4",
    "agent.episodes_per_rollout=8",
    "agent.batch_size=20",
    "agent.n_epochs=2",
    "agent.network.hidden=16",
    "episodes=16",
    "baseline.rates=2",
    "baseline.seeds=1",
]
ONE_RATE = ["grids.adam={lowest: 1e-3, count: 1}", "widen=0", "seeds=2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder) -> bytes:
    return (folder / "policy" / "model.safetensors").read_bytes()


def test_training_then_evaluating_leaves_what_the_readme_says(here, compose, capsys):
    train_agent.run(compose("train_agent", "name=x", "workers=0", "task=[digits_mlp,digits_cnn]", *SMALL))
    folder = here / "outputs" / "x"
    assert (folder / "train_config.yaml").is_file() and "torch" in json.loads((folder / "versions.json").read_text())
    policy = GNSPolicy.from_pretrained(folder / "policy")
    assert policy.config.training["tasks"] == "digits_mlp, digits_cnn" and policy.config.decision.num_decisions == 5
    events = list((folder / "tensorboard").rglob("events*"))
    assert events and events[0].stat().st_size > 500

    small = ["seeds=2", "workers=0", "budgets=[30]", "widen=0"]
    small += ["grids.adam={lowest: 1e-4, count: 2}", "initial_rates.adam={lowest: 1e-5, highest: 0.1, count: 2}"]
    evaluate.run(compose("evaluate", "name=x", "controller=[rex,cosine,policy]", *small))
    results = pd.read_csv(folder / "results.csv")
    assert list(results.columns) == COLUMNS and len(results) == 2 * 2 * 2 + 2 * 2
    shown = capsys.readouterr().out
    for word in ("rex", "cosine", "policy", "vs best", "results.csv", "training", "evaluating"):
        assert word in shown
    for name in ("summary.json", "table.md", "rates.png", "initial_rate.png"):
        assert (folder / name).stat().st_size > 100
    assert not (folder / "shares.md").exists()


SWEEP = [
    "name=x",
    "controller=[constant,linear,rex]",
    "optimizers=[sgdm,adam]",
    "budgets=[40]",
    "budget_percents=[5,25,100]",
    "seeds=3",
    "workers=0",
    "widen=1",
    "grids={adam: {lowest: 1e-3, count: 2}, sgdm: {lowest: 1e-2, count: 2}}",
]


def test_percentages_of_a_full_run_give_the_shares_of_the_rex_paper(here, compose, capsys):
    evaluation = evaluate.run(compose("evaluate", *SWEEP))
    folder = here / "outputs" / "x"
    assert sorted(evaluation.runs.budget.unique()) == [2, 10, 40]
    table = pd.read_csv(folder / "shares.csv")
    assert table.ranked_by.tolist() == ["metric"] * 3 + ["loss"] * 3
    assert table.controller.tolist() == ["constant", "linear", "rex"] * 2
    assert set(zip(table.low_settings, table.high_settings, table.overall_settings, strict=True)) == {(2, 4, 6)}
    assert (table.overall_top3 == 1.0).all() and (table.groupby("ranked_by").overall_top1.sum() >= 1.0).all()
    assert table.overall_top1_paper.tolist() == [0.01, 0.11, 0.70] * 2
    shown, text = capsys.readouterr().out, (folder / "shares.md").read_text()
    for words in ("by the task's metric in 6 settings (2 low, 4 high budgets)", "by the test loss", "70/92"):
        assert words in shown and words in text
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["controller"] for row in summary["shares"]] == table.controller.tolist()


def test_an_evaluation_that_is_repeated_or_extended_trains_nothing_twice(here, compose, monkeypatch):
    trained, real = [], sweep.run_job
    monkeypatch.setattr(sweep, "run_job", lambda job: (trained.append(job.controller.name), real(job))[1])
    small = [*SWEEP, "optimizers=[adam]", "budget_percents=[5,100]", "together=false"]
    first = evaluate.run(compose("evaluate", *small))
    assert len(trained) == len(first.runs) > 0
    files = ("results.csv", "table.md", "shares.csv", "shares.md")
    before = [(here / "outputs" / "x" / name).read_bytes() for name in files]
    evaluate.run(compose("evaluate", *small))
    assert len(trained) == len(first.runs)
    assert [(here / "outputs" / "x" / name).read_bytes() for name in files] == before
    evaluate.run(compose("evaluate", *small, "controller=[rex,linear,constant,cosine]"))
    assert set(trained[len(first.runs) :]) == {"cosine"}
    trained.clear()
    evaluate.run(compose("evaluate", *small, "cache=false"))
    assert len(trained) == len(first.runs)


def test_the_same_seed_gives_the_same_policy_bit_for_bit_and_so_do_worker_processes(here, compose):
    for name, extra in {
        "a": ["workers=0"],
        "b": ["workers=0"],
        "c": ["workers=2"],
        "d": ["workers=0", "seed=1"],
    }.items():
        train_agent.run(compose("train_agent", f"name={name}", "tracker=none", *SMALL, *extra))
    a, b, c, d = (weights(here / "outputs" / name) for name in "abcd")
    assert a == b == c
    assert a != d


def test_the_paper_configuration_trains(here, compose):
    overrides = ["env=gns-paper", "agent=gns-paper", "tracker=none", "workers=0", "name=p", "episodes=2"]
    small = ["env.budgets=[40,40]", "agent.batch_size=4", "agent.n_epochs=2", "baseline.controllers=[]"]
    train_agent.run(compose("train_agent", *overrides, *small))
    policy = GNSPolicy.from_pretrained(here / "outputs" / "p" / "policy")
    assert policy.config.decision.mode == "gns-paper" and policy.config.network.features == "gns-paper"


@pytest.mark.parametrize(
    "overrides,error,words",
    [
        (["env.budgets=[10,400]"], InvalidSettingError, "num_decisions"),
        (["env.budgets=[0,400]"], InvalidSettingError, "budget"),
        (["env.learning_rates.adam=[0.0,0.1]"], InvalidSettingError, "learning rate"),
        (["env.optimizers=[adamm]"], UnknownNameError, "adam"),
        (["+env.budgett=3"], UnknownNameError, "env.budgets"),
        (["agent.learning_rate=fast"], InvalidSettingError, "agent.learning_rate"),
        (["episodes=0"], InvalidSettingError, "episodes"),
        (["workers=-1"], InvalidSettingError, "workers"),
        (["task.digits_mlp.batch_size=0"], InvalidSettingError, "batch_size"),
        (["+task.digits_mlp.batchsize=3"], UnknownNameError, "batch_size"),
        (["baseline.controllers=[rexx]"], UnknownNameError, "rex"),
    ],
)
def test_bad_training_settings_are_refused_before_any_work(here, compose, overrides, error, words):
    with pytest.raises(error, match=words):
        train_agent.run(compose("train_agent", "name=x", *overrides))
    assert not (here / "outputs").exists()


@pytest.mark.parametrize(
    "overrides,error,words",
    [
        ([], PolicyFormatError, r"outputs/x/policy.*train the policy first: python train_agent\.py name="),
        (["optimizers=adam", "controller=[rex]"], InvalidSettingError, r"expected a list, as in optimizers=\[adam\]"),
        (["policy=[outputs/a/policy,outputs/b/policy]"], PolicyFormatError, "outputs/a/policy"),
        (["policy={a: outputs/a/policy}"], PolicyFormatError, "outputs/a/policy"),
        (["policy=[]"], InvalidSettingError, r"controller\.policy\.policy"),
        (["policy=null"], InvalidSettingError, r"controller\.policy\.policy"),
        (["policy=[3]"], InvalidSettingError, r"controller\.policy\.policy"),
        (["controller=[rex]", "seeds=0"], InvalidSettingError, "seeds"),
        (["controller=[rex]", "budgets=[-5]"], InvalidSettingError, "budget"),
        (["controller=[rex]", "budget_percents=[0,100]"], InvalidSettingError, "budget_percents"),
        (["controller=[rex]", "budget_percents=[5]", "budgets=[10,20]"], InvalidSettingError, "one budget"),
        (["controller=[rex]", "optimizers=[adm]"], UnknownNameError, "adam"),
        (["controller=[rex]", "grids.adam={lowest: 0, count: 2}"], InvalidSettingError, "lowest"),
        (["controller=[rex]", "controller.rex.profile=rx"], UnknownNameError, "rex"),
    ],
)
def test_bad_evaluation_settings_are_refused_before_any_work(here, compose, overrides, error, words):
    with pytest.raises(error, match=words):
        evaluate.run(compose("evaluate", "name=x", *overrides))
    assert not (here / "outputs").exists()


@pytest.mark.parametrize("command,run", [("train_agent", train_agent.run), ("evaluate", evaluate.run)])
def test_a_data_root_that_is_no_folder_is_refused_before_any_work(here, compose, command, run):
    (here / "file").write_text("x")
    for wrong in ("nowhere", "file"):
        with pytest.raises(InvalidSettingError, match=f"data_root is '{wrong}'"):
            run(compose(command, "name=x", f"data_root={wrong}"))
    assert not (here / "outputs").exists()


def test_a_data_root_may_be_relative_and_null_leaves_the_environment_alone(here, monkeypatch):
    monkeypatch.setenv("GNS_DATA_ROOT", "as it was")
    use_data_root(None)
    assert os.environ["GNS_DATA_ROOT"] == "as it was"
    (here / "data").mkdir()
    use_data_root("data")
    assert os.environ["GNS_DATA_ROOT"] == str(here / "data")


@pytest.mark.parametrize(
    "script,overrides",
    [
        ("train_agent.py", [*SMALL, "env.optimizers=[adam]", "env.budgets=[10,10]", "episodes=8"]),
        (
            "evaluate.py",
            ["controller=[rex]", "seeds=2", "budgets=[5]", "grids.adam={lowest: 1e-3, count: 1}", "widen=0"],
        ),
    ],
)
def test_worker_processes_read_data_from_the_data_root(here, root, hub, script, overrides):
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_DATASETS_CACHE": str(here / "cache")}
    environment.pop("GNS_DATA_ROOT")
    arguments = ["name=x", "workers=2", "task=[mnist_lenet]", "task.mnist_lenet.batch_size=16", f"data_root={hub}"]
    done = subprocess.run(
        [sys.executable, str(root / script), *arguments, *overrides],
        capture_output=True,
        text=True,
        cwd=here,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    product = "policy/model.safetensors" if script == "train_agent.py" else "results.csv"
    assert (here / "outputs" / "x" / product).is_file()


@pytest.mark.parametrize(
    "script,override,words",
    [
        ("train_agent.py", "task=[digits_mpl]", ["digits_mpl", "digits_mlp", "mnist1d_cnn"]),
        ("evaluate.py", "controller=[rexx]", ["rexx", "rex", "cosine"]),
        ("train_agent.py", "episodes=-3", ["InvalidSettingError", "episodes is -3", "above 0"]),
    ],
)
def test_on_the_command_line_an_error_is_a_message_and_not_a_stack_trace(here, root, script, override, words):
    done = subprocess.run(
        [sys.executable, str(root / script), override, "name=x"],
        capture_output=True,
        text=True,
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
