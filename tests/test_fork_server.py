"""How workers are started: signals to a group leave them alone, they end with their owner, and faults have a name."""

import os
import signal
import subprocess
import sys
import time

import pytest

from agents.runtime.lanes import _ProcessLane
from agents.runtime.stopping import StoppedError, StopRequest, stopping_at_once
from envs.batched.composite import make_vector
from envs.engine import PROCESSES
from envs.fork_server import fork_server, starting
from envs.learning_rate_env import EnvConfig
from envs.tasks import get_task
from gns.errors import WorkerLostError

OWNER = """
import os, signal, sys, time
from agents.runtime.lanes import _ProcessLane

def about():
    return os.getpid(), sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))

if __name__ == "__main__":
    lane = _ProcessLane()
    pid, blocked = lane.submit(about).result()
    print(pid, [int(number) for number in blocked])
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(pid, number)
    assert lane.submit(about).result()[0] == pid
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_lane_leaves_signals_to_its_owner_and_ends_with_it(tmp_path, root):
    (tmp_path / "owner.py").write_text(OWNER)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    owner = subprocess.run(
        [sys.executable, "owner.py"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    assert owner.returncode == -signal.SIGKILL
    pid, _, blocked = owner.stdout.partition(" ")
    assert blocked.strip() == f"[{int(signal.SIGINT)}, {int(signal.SIGTERM)}]"
    for _ in range(1000):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("it is still there")


@pytest.mark.parametrize("error", [EOFError("unexpected EOF"), ConnectionRefusedError(111, "no"), BrokenPipeError()])
def test_a_fork_server_that_was_killed_is_named(monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("multiprocessing.forkserver.connect_to_new_process", fail)
    lane = _ProcessLane()
    with pytest.raises(WorkerLostError, match=r"No worker can be started: .* or set workers=0"):
        lane.submit(os.getpid)
    with pytest.raises(WorkerLostError, match="No worker can be started"):
        make_vector([get_task("digits_mlp")], EnvConfig(), 2, 1, True, PROCESSES)
    monkeypatch.setattr("envs.fork_server.forkserver.ensure_running", fail)
    with pytest.raises(WorkerLostError, match="No worker can be started"):
        fork_server("envs")


def test_a_signal_waits_until_a_worker_that_is_being_started_can_be_ended():
    before, done = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(StoppedError), stopping_at_once(), starting():
        signal.raise_signal(signal.SIGTERM)
        done.append(True)
    assert done and signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_interrupt_the_ending_of_workers():
    ended = []
    with pytest.raises(StoppedError), stopping_at_once():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            ended.append(True)
    assert ended


def test_a_stop_may_be_at_once_for_a_while():
    told: list[str] = []
    with StopRequest(told.append) as stop:
        with pytest.raises(StoppedError) as stopped, stop.at_once():
            signal.raise_signal(signal.SIGINT)
        assert stopped.value.exit_code == 130 and told == []
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a second one ends it
        with pytest.raises(StoppedError), stop.at_once():
            pytest.fail("it was asked to stop before")
