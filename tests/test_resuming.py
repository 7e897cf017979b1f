"""A training that was interrupted, however often and however hard, ends with the policy it would have ended with."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_commands import SMALL

import train_agent
from agents.runtime.stopping import StoppedError, StopRequest, stopping_at_once
from agents.training.resuming import CheckpointConfig, Resuming, identity_of, load_random_state, random_state
from gns.errors import CheckpointMismatchError, InvalidSettingError

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("GNS_KILLS", "4"))
# Two tasks; actions and rates so wild that runs are lost and episodes stand askew where rollouts end.
TRAINING = [
    *SMALL,
    "name=x",
    "workers=0",
    "task=[digits_mlp,digits_cnn]",
    "env.optimizers=[sgdm]",
    "env.learning_rates.sgdm=[0.1,10]",
    "env.guard.max_rollbacks=0",
    "agent.log_std=0",
    f"episodes={max(40, 20 * KILLS)}",
    "checkpoint.every=0",
    "baseline.controllers=[]",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path) -> bytes:
    return (folder / "outputs" / "x" / "policy" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> bytes:
    """The policy of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = command(folder, "checkpoint.every=1e6").communicate()[0]
    assert not list((folder / "outputs" / "x" / "checkpoints").glob("*")), done
    return weights(folder)


def tuned(folder: Path) -> list[str]:
    """Keys of the runs of schedules that are kept."""
    path = folder / "outputs" / "x" / "tuning.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["key"] for line in lines if line.endswith("\n")]


def test_ctrl_c_while_schedules_are_tuned_ends_in_one_line_and_goes_on(tmp_path):
    overrides = ["workers=2", "baseline.controllers=[rex]", "baseline.rates=6", "baseline.seeds=20"]
    kept: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        process = command(tmp_path, *overrides)
        while len(tuned(tmp_path)) <= len(kept):
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        os.killpg(process.pid, number)  # as a terminal does
        shown = process.communicate()[0].splitlines()  # ends when all workers have
        assert process.returncode == 128 + number, shown
        assert shown[-1] == f"Stopped; the same command goes on from here (exit code {128 + number})."
        assert not any(word in "\n".join(shown) for word in ("Traceback", "leaked", "Warning"))
        now = tuned(tmp_path)
        assert len(set(now)) == len(now) > len(kept)  # none was trained twice
        kept = now


def command(
    folder: Path, *overrides: str, script: str = "train_agent.py", settings: Sequence[str] = TRAINING
) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *settings, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def checkpoints(folder: Path) -> set[Path]:
    return set((folder / "outputs" / "x" / "checkpoints").glob("*"))


def wait_for_checkpoint(folder: Path, process: subprocess.Popen, known: Collection[Path] = ()) -> None:
    """Wait for one that is not among those known."""
    while checkpoints(folder) <= set(known):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_killed_at_any_moment_and_gone_on_with_it_ends_with_the_same_policy(tmp_path, uninterrupted):
    rng, killed = random.Random(0), 0
    while True:
        known = checkpoints(tmp_path)
        process = command(tmp_path)
        if killed < KILLS:
            if killed == 0 or rng.random() < 0.8:  # else while it starts
                wait_for_checkpoint(tmp_path, process, known)
                time.sleep(rng.uniform(0.0, 0.3))
            else:
                time.sleep(rng.uniform(0.0, 3.0))
            process.kill()
        shown = process.communicate()[0]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, shown
        killed += 1
    assert killed >= 3 * KILLS / 4
    assert weights(tmp_path) == uninterrupted
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_a_checkpoint_with_a_code_of_its_own(tmp_path, uninterrupted, number, code):
    process = command(tmp_path, "workers=1", "checkpoint.every=0", "episodes=4000")
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(number)
    shown = process.communicate()[0]
    assert process.returncode == code, shown
    assert number.name in shown and "the same command goes on from here" in shown
    assert checkpoints(tmp_path)


def test_an_evaluation_killed_and_started_again_ends_with_the_same_results(tmp_path):
    settings = ["name=x", "workers=0", "controller=[rex,cosine,constant]", "budgets=[60]", "seeds=4", "widen=0"]
    settings += ["grids.adam={lowest: 1e-3, count: 4}"]
    rng, found = random.Random(1), []
    for kills in (0, 3):
        folder = tmp_path / str(kills)
        folder.mkdir()
        cache = folder / "outputs" / "x" / "cache.jsonl"
        while True:
            process = command(folder, script="evaluate.py", settings=settings)
            if kills:
                known = cache.stat().st_size if cache.exists() else 0
                while process.poll() is None and (cache.stat().st_size if cache.exists() else 0) == known:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0.0, 0.5))
                process.kill()
                kills -= 1
            shown = process.communicate()[0]
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, shown
        found.append(pd.read_csv(folder / "outputs" / "x" / "results.csv").drop(columns="seconds"))
    pd.testing.assert_frame_equal(*found)
    assert len(found[0]) == 3 * 4 * 4 and not found[0].duplicated().any()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_evaluation_that_is_stopped_leaves_no_worker_behind(tmp_path, number, code):
    settings = ["name=x", "workers=2", "controller=[rex]", "budgets=[1000000]", "seeds=2", "widen=0"]
    settings += ["grids.adam={lowest: 1e-3, count: 1}", "checkpoint.every=0.2"]
    process = command(tmp_path, script="evaluate.py", settings=settings)
    while len(list((tmp_path / "outputs" / "x" / "runs").glob("*/*.checkpoint"))) < 2:  # both are at work
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(number)
    shown = process.communicate()[0]  # ends when nobody holds the pipe any more: all workers are gone
    assert process.returncode == code, shown
    assert "the same command goes on from here" in shown


def test_a_run_of_an_evaluation_goes_on_where_it_was_killed(tmp_path):
    settings = ["name=x", "workers=0", "controller=[rex]", "budgets=[300]", "seeds=1", "widen=0"]
    settings += ["grids.adam={lowest: 1e-3, count: 1}", "checkpoint.every=0", "task=[digits_cnn]"]
    runs, found = tmp_path / "1" / "outputs" / "x" / "runs", []
    for kills in (0, 1):
        folder = tmp_path / str(kills)
        folder.mkdir()
        process = command(folder, script="evaluate.py", settings=settings)
        if kills:
            while not list(runs.glob("*/*-step-1[0-9][0-9].checkpoint")):
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.01)
            process.kill()
            process.communicate()
            kept = max(int(path.stem.rpartition("-")[2]) for path in runs.glob("*/*.checkpoint"))
            process = command(folder, "checkpoint.every=1e6", script="evaluate.py", settings=settings)
        shown = process.communicate()[0]
        assert process.returncode == 0, shown
        found.append(pd.read_csv(folder / "outputs" / "x" / "results.csv"))
    assert kept >= 100 and not runs.exists()
    pd.testing.assert_frame_equal(*(frame.drop(columns="seconds") for frame in found))


class EnoughError(Exception):
    pass


def test_in_one_process_it_goes_on_from_the_newest_checkpoint(here, compose, uninterrupted, monkeypatch):
    write, written = Resuming.write, []

    def write_and_fail(self, state, step):
        write(self, state, step)
        written.append(step)
        if len(written) in (1, 3):
            raise EnoughError

    monkeypatch.setattr(Resuming, "write", write_and_fail)
    for _ in range(2):
        with pytest.raises(EnoughError):
            train_agent.run(compose("train_agent", *TRAINING))
    train_agent.run(compose("train_agent", *TRAINING))
    assert written == sorted(set(written)) and len(written) >= 4  # none made twice
    assert weights(here) == uninterrupted


def test_a_checkpoint_of_other_settings_is_refused_and_never_starts_anew(here, compose, uninterrupted, monkeypatch):
    write = Resuming.write

    def write_and_fail(self, state, step):
        write(self, state, step)
        raise EnoughError

    with monkeypatch.context() as patch, pytest.raises(EnoughError):
        patch.setattr(Resuming, "write", write_and_fail)
        train_agent.run(compose("train_agent", *TRAINING))
    with pytest.raises(CheckpointMismatchError, match="resume=never"):
        train_agent.run(compose("train_agent", *TRAINING, "seed=1"))
    train_agent.run(compose("train_agent", *TRAINING, "resume=never"))
    assert weights(here) == uninterrupted
    with pytest.raises(InvalidSettingError, match="resume is 'always'; expected auto or never"):
        train_agent.run(compose("train_agent", *TRAINING, "resume=always"))


def test_settings_that_change_no_result_may_change_between(here, compose):
    names = ("name=y", "workers=2", "checkpoint.every=5", "checkpoint.keep=1", "tracker=none")
    configs = [compose("train_agent", *TRAINING), compose("train_agent", *TRAINING, *names)]
    settings = [train_agent.part_of_the_result(config) for config in configs]
    assert identity_of(settings[0]) == identity_of(settings[1])
    other = train_agent.part_of_the_result(compose("train_agent", *TRAINING, "agent.gamma=0.5"))
    assert identity_of(other) != identity_of(settings[0])


def test_random_numbers_go_on_where_they_stood():
    import numpy as np

    state = random_state()
    first = random.random(), np.random.random(), torch.rand(()).item()
    load_random_state(state)
    assert (random.random(), np.random.random(), torch.rand(()).item()) == first


def test_a_stop_is_noted_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    heard: list[str] = []
    with StopRequest(heard.append) as stop:
        stop.check()
        signal.raise_signal(signal.SIGTERM)
        assert heard == ["SIGTERM"] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with pytest.raises(StoppedError) as stopped:
            stop.check()
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_is_kept_piece_by_piece_stops_where_it_stands():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError) as stopped, stopping_at_once():
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("changes", "message"), [({"every": -1.0}, "every is -1.0"), ({"keep": 0}, "keep is 0")])
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(InvalidSettingError, match=message):
        CheckpointConfig(**changes)


def test_checkpoints_take_at_most_a_hundredth_of_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("agents.training.resuming.time.perf_counter", lambda: now[0])
    checkpoints = Resuming(tmp_path, CheckpointConfig(every=60.0), "x")

    def state():
        now[0] += 3.0
        return {"a": 1}

    while now[0] < 3600.0:
        now[0] += 7.0
        if checkpoints.due:
            checkpoints.write(state, int(now[0]))
    assert 0.0 < checkpoints.seconds <= 0.01 * now[0] + 3.0
    often = Resuming(tmp_path / "often", CheckpointConfig(every=0.0), "x")
    often.write(state, 1)
    assert often.due
