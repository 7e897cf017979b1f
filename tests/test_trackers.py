"""Where figures go while a policy is trained: TensorBoard, CSV files, Weights & Biases offline, several, or nowhere."""

import builtins
import json

import pandas as pd
import pytest
from test_commands import SMALL
from wandb_files import run_of

import train_agent
from agents.runtime.stopping import StoppedError, StopRequest
from agents.trackers import Tracker, TrackerConfig, WandbConfig, make_tracker
from agents.trackers.csv_files import ProgressFile
from gns import GNSPolicy
from gns.errors import MissingPackageError, UnknownNameError

TRAINING = [*SMALL, "workers=0", "task=[digits_mlp]", "baseline.controllers=[]", "env.budgets=[20,30]"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tmp_path


def trained(compose, *overrides: str):
    return train_agent.run(compose("train_agent", "name=x", *TRAINING, *overrides))


# ---------------------------------------------------------------------- a whole training


def test_a_training_leaves_an_offline_run_with_config_history_tables_and_the_policy(here, compose, no_network, capsys):
    folder = trained(compose, "tracker=[csv,wandb]", "tracker.wandb.tags=[a,b]", "seed=7")
    run = run_of(here / "outputs" / "x")
    assert no_network == []
    assert run["config"]["seed"] == 7 and run["config"]["env"]["budgets"] == [20, 30]
    assert run["config"]["algo"] == "PPO"  # noted by the callback for Stable-Baselines3
    figures = [row for row in run["history"] if "episodes/count" in row]
    assert [row["episodes/count"] for row in figures] == sorted(row["episodes/count"] for row in figures)
    assert {"episodes/return", "episodes/rollbacks", "actions/mean", "cost/updates", "train/loss"} <= figures[-1].keys()
    tables = [row["rate_paths"] for row in run["history"] if "rate_paths" in row]
    assert tables[0]["_type"] == "table-file" and tables[0]["nrows"] > 0
    artifact = run["artifacts"]["policy-x"]
    names = {entry.path for entry in artifact.manifest.contents}
    assert artifact.type == "policy" and {"config.json", "model.safetensors", "README.md"} <= names
    card = GNSPolicy.from_pretrained(folder).config.training
    assert json.loads(artifact.metadata)["episodes"] == card["episodes"] == run["summary"]["episodes"]
    assert "wandb sync" in capsys.readouterr().out

    progress = pd.read_csv(here / "outputs" / "x" / "csv" / "progress.csv")
    assert list(progress["episodes/count"]) == [row["episodes/count"] for row in figures]
    assert progress["cost/updates"].iloc[-1] >= 20 * progress["episodes/count"].iloc[-1]
    paths = pd.read_csv(here / "outputs" / "x" / "csv" / "rate_paths.csv")
    whole = paths[paths.episode == paths.episode.max()]
    assert len(whole) == 5 and whole.progress.iloc[-1] == 1.0 and whole.progress.is_monotonic_increasing


def test_trackers_change_nothing_of_the_policy(here, compose):
    def weights(*overrides: str) -> bytes:
        return (trained(compose, *overrides) / "model.safetensors").read_bytes()

    assert weights("tracker=none") == weights("tracker=[tensorboard,csv,wandb]")


def test_an_interrupted_training_goes_on_in_the_same_run_and_the_same_file(here, compose, monkeypatch):
    init = StopRequest.__init__

    def stopping(self, noted):
        init(self, noted)
        self.number = 15

    for _ in range(30):
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "__init__", stopping)
            try:
                trained(compose, "tracker=[csv,wandb]", "episodes=32")
                break
            except StoppedError:
                continue
    whole = pd.read_csv(here / "outputs" / "x" / "csv" / "progress.csv")
    assert whole.decisions.is_monotonic_increasing and whole.decisions.is_unique
    run = run_of(here / "outputs" / "x")
    assert len(run["ids"]) == 1
    assert [row["episodes/count"] for row in run["history"] if "episodes/count" in row] == list(whole["episodes/count"])
    train_agent.run(compose("train_agent", "name=y", *TRAINING, "tracker=csv", "episodes=32"))
    straight = pd.read_csv(here / "outputs" / "y" / "csv" / "progress.csv")
    assert len(straight) > 2
    learned = ["decisions", "episodes/return", "actions/mean", "cost/updates", "cost/evaluations", "train/loss"]
    pd.testing.assert_frame_equal(whole[learned], straight[learned])


# ---------------------------------------------------------------------- parts


def test_rows_that_are_made_again_are_replaced_and_new_figures_get_a_column(tmp_path):
    first = ProgressFile(tmp_path / "progress.csv")
    for step in (10, 20, 30):
        first.write({"a": step / 10}, {"a": ()}, step)
    again = ProgressFile(tmp_path / "progress.csv")
    again.write({"a": 5.0, "b": 1.0, "text": "x, y"}, {"a": (), "b": (), "text": ()}, 20)
    rows = pd.read_csv(tmp_path / "progress.csv")
    assert rows.decisions.tolist() == [10, 20] and rows.a.tolist() == [1.0, 5.0]
    assert pd.isna(rows.b[0]) and rows.b[1] == 1.0 and rows.text[1] == "x, y"


def test_figures_that_are_not_for_a_file_are_left_out(tmp_path):
    ProgressFile(tmp_path / "progress.csv").write({"a": 1.0, "b": 2.0}, {"a": (), "b": ("csv",)}, 1)
    assert list(pd.read_csv(tmp_path / "progress.csv")) == ["decisions", "a"]


def test_no_tracker_is_one_that_does_nothing(tmp_path):
    tracker = make_tracker(TrackerConfig(), tmp_path, "x", "train", {})
    tracker.table("a", pd.DataFrame({"b": [1]}))
    tracker.policy("x", tmp_path, {})
    assert tracker.writers() == [] and tracker.callbacks() == [] and tracker.where() == []
    assert Tracker().writers() == [] and list(tmp_path.iterdir()) == []


def test_a_client_that_is_not_installed_is_told_before_any_work(here, compose, monkeypatch):
    import_module = builtins.__import__

    def without(name, *arguments):
        if name == "wandb":
            raise ImportError(name)
        return import_module(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("train_agent.train", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(MissingPackageError, match=r"pip install wandb, or pick another tracker: tensorboard, csv"):
        trained(compose, "tracker=wandb")


def test_an_unknown_mode_is_refused(here, compose, monkeypatch):
    with pytest.raises(UnknownNameError, match=r"tracker\.wandb.*on.*offline"):
        WandbConfig(mode="on")
    monkeypatch.setenv("WANDB_MODE", "everywhere")
    with pytest.raises(UnknownNameError, match="everywhere"):
        trained(compose, "tracker=wandb")
    with pytest.raises(UnknownNameError, match=r"tracker\.projekt"):
        trained(compose, "+tracker.projekt=x")


def test_disabled_writes_nothing(here, compose, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trained(compose, "tracker=wandb")
    assert run_of(here / "outputs" / "x")["history"] == []
