"""The folder of a command's results: one command at a time, and a finished policy that stays."""

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_commands import ONE_RATE, SMALL

import evaluate
import train_agent
from agents.runtime.command import check_folder, require_device
from agents.runtime.output_folder import folder_of, output_folder
from agents.training.saving import require_unfinished, save_policy
from envs.engine import EngineConfig
from gns import GNSPolicy, NetworkConfig, PolicyConfig
from gns.errors import CheckpointError, FolderInUseError, InvalidSettingError

TRAINING = ["name=x", "workers=0", "tracker=none", "task=[digits_mlp]", *SMALL, "env.budgets=[20,30]"]
EVALUATION = ["name=x", "workers=0", "controller=[rex]", "budgets=[5]", *ONE_RATE]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file, but of the locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["a/../c", "..", "/tmp/x", "a//b", "a/", ".", "", "x" * 300, "a\nb", None, True, ["a"]]
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(InvalidSettingError, match="within outputs"):
        folder_of(name)
    if isinstance(name, str):
        with pytest.raises(InvalidSettingError, match="within outputs"):
            check_folder([f"++name='{name}'"], "train_agent")  # before Hydra makes it


def test_a_name_may_have_parts_and_be_a_number(monkeypatch):
    assert folder_of("sweep/first") == Path("outputs/sweep/first") and folder_of(5) == Path("outputs/5")
    monkeypatch.setenv("ELSEWHERE", "../../x")
    with pytest.raises(InvalidSettingError, match="within outputs"):
        check_folder(["name=${oc.env:ELSEWHERE}"], "evaluate")


# ---------------------------------------------------------------------- locks


HOLDER = """
import sys, time
from agents.runtime.output_folder import output_folder
with output_folder("x", sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(here, root):
    """Starts a process that works in outputs/x."""
    started = []

    def start(command: str) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, command], cwd=here, env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_commands_of_one_name_at_once_are_not(here, compose, holder):
    training, evaluating = holder("train_agent"), holder("evaluate")  # these two may
    with pytest.raises(FolderInUseError, match=rf"outputs/x is in use: train_agent .*process {training.pid} on \S+ si"):
        train_agent.run(compose("train_agent", *TRAINING))
    with pytest.raises(FolderInUseError, match=rf"evaluate works there, process {evaluating.pid} on"):
        evaluate.run(compose("evaluate", *EVALUATION))
    assert contents(here / "outputs") == {}


def test_a_dead_owner_holds_nothing(holder):
    process = holder("evaluate")
    process.kill()
    process.wait()
    with output_folder("x", "evaluate"), pytest.raises(FolderInUseError, match=f"process {os.getpid()} on"):
        output_folder("x", "evaluate").__enter__()
    with output_folder("x", "evaluate"):  # nor does one that ended
        pass


# ---------------------------------------------------------------------- a finished policy


def test_a_finished_training_is_left_as_it_is_unless_it_is_told_to_overwrite(here, compose, capsys):
    folder = train_agent.run(compose("train_agent", *TRAINING))
    before = contents(here)
    capsys.readouterr()
    assert train_agent.run(compose("train_agent", *TRAINING, "checkpoint.every=9")) == folder
    assert contents(here) == before
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("All is done: outputs/x/policy") and "another name or set overwrite=true" in shown
    for other in ("seed=1", "resume=never"):
        with pytest.raises(InvalidSettingError, match=r"outputs/x/policy holds a finished .* name, or set overwrite"):
            train_agent.run(compose("train_agent", *TRAINING, other, "env.budgets=[20,20]"))
    assert contents(here) == before
    train_agent.run(compose("train_agent", *TRAINING, "seed=1", "overwrite=true"))
    assert GNSPolicy.from_pretrained(folder).config.training["seed"] == 1
    assert "| seed | 1 |" in (folder / "README.md").read_text()
    assert train_agent.run(compose("train_agent", *TRAINING, "seed=1")) == folder  # and this one is finished now


def test_an_interrupted_overwriting_goes_on_by_the_command_without_the_word(here, compose, monkeypatch):
    train_agent.run(compose("train_agent", *TRAINING))
    other = [*TRAINING, "seed=1", "checkpoint.every=0"]

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(train_agent, "save_policy", fail)
        train_agent.run(compose("train_agent", *other, "overwrite=true"))
    folder = train_agent.run(compose("train_agent", *other))
    assert GNSPolicy.from_pretrained(folder).config.training["seed"] == 1


# ---------------------------------------------------------------------- saving


@pytest.fixture
def policy():
    return GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=4, head=4, type_embedding=2)))


def test_a_policy_that_cannot_be_saved_is_kept_elsewhere_and_the_one_there_stays(tmp_path, policy, monkeypatch):
    place, temporary = tmp_path / "x", tmp_path / "tmp"
    for folder in (place, temporary):
        folder.mkdir()
    save_policy(policy, place, "first")
    before = contents(place)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    save = GNSPolicy._save_pretrained

    def full(self, folder):
        save(self, folder)
        if place in folder.parents:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(GNSPolicy, "_save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left") as told:
        save_policy(policy, place, "second")
    assert contents(place) == before
    (kept,) = temporary.iterdir()
    assert str(kept) in str(told.value)
    GNSPolicy.from_pretrained(kept)


def test_what_a_killed_save_left_goes_with_the_next_and_a_note_is_whole_or_not_there(tmp_path, policy, monkeypatch):
    place = tmp_path / "x"
    (place / ".policy.1234.tmp").mkdir(parents=True)
    (place / ".policy.1234.tmp" / "config.json").write_text("{")
    save_policy(policy, place, "first")
    real = Path.write_text

    def full(path, text, **settings):
        real(path, text[:5] if "finished" in path.name else text, **settings)
        if "finished" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_policy(policy, place, "first")
    assert require_unfinished(place, "first") is False
    assert sorted(path.name for path in place.iterdir()) == ["finished.json", "policy"]


def test_what_lies_beside_a_policy_stays_when_it_is_replaced(tmp_path, policy):
    folder = save_policy(policy, tmp_path, "first")
    (folder / "notes.txt").write_text("mine")
    save_policy(policy, tmp_path, "second")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finished.json", "policy"]


# ---------------------------------------------------------------------- devices


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense", "meta", 3.5, ""])
def test_a_device_that_is_not_there_is_refused_before_any_work(here, compose, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(InvalidSettingError, match=r"env\.device is .*expected"):
        train_agent.run(compose("train_agent", *TRAINING, f"+env.device='{device}'"))
    with pytest.raises(InvalidSettingError, match=r"^device is .*expected"):
        evaluate.run(compose("evaluate", *EVALUATION, f"device='{device}'"))
    assert not (here / "outputs").exists()


def test_of_the_workers_of_a_cluster_the_name_of_a_device_is_all_that_is_checked(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:1"):
        require_device(device, "device", EngineConfig())
    require_device("cuda:5", "device", EngineConfig("ray"))
    with pytest.raises(InvalidSettingError, match="finds 2 of that kind"):
        require_device("cuda:2", "device", EngineConfig())
