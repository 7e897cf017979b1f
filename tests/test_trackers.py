"""Where figures go while a policy is trained: TensorBoard, CSV files, Weights & Biases offline, several, or nowhere."""

import builtins
import json

import pandas as pd
import pytest
import wandb
from test_commands import SMALL
from wandb_files import run_of

import train_agent
from agents.runtime.stopping import StoppedError, StopRequest
from agents.trackers import Tracker, TrackerConfig, WandbConfig, make_tracker
from agents.trackers.csv_files import ProgressFile
from agents.trackers.weights_and_biases import artifact_name
from gns import GNSPolicy, NetworkConfig, PolicyConfig
from gns.errors import InvalidSettingError, MissingPackageError, PolicyFormatError, UnknownNameError

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
        return (trained(compose, "overwrite=true", *overrides) / "model.safetensors").read_bytes()

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


# ---------------------------------------------------------------------- W&B: what is kept, and under which name


@pytest.fixture
def offline(here):
    """A run of Weights & Biases in a folder of its own."""
    tracker = make_tracker(TrackerConfig(wandb=WandbConfig(tags=("a",))), here, "n", "train", {})
    yield tracker
    tracker.close()


@pytest.fixture
def policy_folder(tmp_path):
    GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=4, head=4, type_embedding=2))).save_pretrained(tmp_path / "p")
    return tmp_path / "p"


def kept(offline, here) -> dict[str, set[str]]:
    offline.close()
    artifacts = run_of(here)["artifacts"]
    return {name: {entry.path for entry in about.manifest.contents} for name, about in artifacts.items()}


@pytest.mark.parametrize("card", ["file", "link", "none"])
def test_of_a_policys_folder_its_own_files_alone_are_kept(offline, here, policy_folder, card):
    (here / "secret").write_text("token")
    (policy_folder / "notes.txt").symlink_to(here / "secret")
    (policy_folder / "stray.bin").write_bytes(b"x" * 1000)
    if card != "file":
        (policy_folder / "README.md").unlink()
    if card == "link":
        (policy_folder / "README.md").symlink_to(here / "secret")
    offline.policy("x", policy_folder, {})
    offline.use_policy("x", policy_folder, {})
    own = {"config.json", "model.safetensors", "README.md"} if card == "file" else {"config.json", "model.safetensors"}
    assert kept(offline, here) == {"policy-x": own}


def test_weights_that_are_a_link_out_of_the_folder_are_not_kept(offline, here, policy_folder):
    (policy_folder / "model.safetensors").rename(here / "elsewhere")
    (policy_folder / "model.safetensors").symlink_to(here / "elsewhere")
    with pytest.raises(PolicyFormatError, match="link out of its folder"):
        offline.policy("x", policy_folder, {})


def test_names_of_artifacts_are_what_wandb_takes_and_stay_apart(offline, here, policy_folder):
    names = ["x", "a b", "x" * 121, "x" * 122, "x" * 122 + "y", "größe", "grösse", "\N{SNOWMAN}", "\udcff", "a/b"]
    safe = [artifact_name(name) for name in names]
    assert len(set(safe)) == len(names) and safe[0] == "policy-x" and safe[2] == "policy-" + "x" * 121
    for name in names:
        offline.policy(name, policy_folder, {})
    assert set(kept(offline, here)) == set(safe)


def test_a_run_that_was_gone_on_with_is_synchronised_from_all_its_folders(here):
    lines = []
    for turn in range(2):
        tracker = make_tracker(TrackerConfig(wandb=WandbConfig()), here, "n", "train", {})
        lines = tracker.where()
        tracker.close()
        for folder in (here / "wandb").glob("offline-run-2*"):
            if turn == 0:  # as if it had begun in another second
                folder.rename(folder.with_name("offline-run-1999" + folder.name.removeprefix("offline-run-")[4:]))
    first = next((here / "wandb").glob("offline-run-1999*"))
    assert lines[0].startswith("W&B: wandb sync ") and str(first) in lines[0]


def test_a_server_out_of_reach_is_told_at_once(here, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("asked for minutes"))
    wandb.teardown()
    with pytest.raises(InvalidSettingError, match=r"server http://127\.0\.0\.1:9 cannot be reached.*mode=offline"):
        make_tracker(TrackerConfig(wandb=WandbConfig(mode="online")), here, "n", "train", {})
    wandb.teardown()


@pytest.mark.parametrize("changes", [{"tags": ("x" * 65,)}, {"tags": ("",)}, {"project": "a/b"}])
def test_what_wandb_does_not_take_is_refused_by_name(here, changes):
    with pytest.raises(InvalidSettingError, match="W&B does not take it"):
        make_tracker(TrackerConfig(wandb=WandbConfig(**changes)), here, "n", "train", {})
