"""Many environments in a few processes, as an SB3 ``VecEnv``.

SB3's ``SubprocVecEnv`` has a process for every environment. On a machine of few cores, a few processes that each step
several environments collect faster and start sooner. What an environment does depends on its seed alone, so the number
of processes changes no result (of runs that are trained side by side, as long as those of a group stay together).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv

from envs.engine import PROCESSES, EngineConfig
from envs.fork_server import fork_server, starting
from envs.portions import Answer, Call, ask_portion, make_portion
from envs.restarting import RestartingVecEnv, Worker
from gns.errors import WorkerLostError

_CLOSE = 10.0  # seconds a process may take to end


def _work(connection: Connection, pickled: bytes) -> None:
    """Serve calls on a portion of environments until told to close."""
    try:
        portion, answer = make_portion(pickled)
        connection.send(answer)
        while portion is not None:
            name, arguments = connection.recv()
            if name == "close":
                portion.close()
                return
            connection.send(ask_portion(portion, name, arguments))
    except (EOFError, ConnectionError, KeyboardInterrupt):
        return


class _Process(Worker):
    """A process that is asked by a pipe."""

    def __init__(self, pickled: bytes, timeout: float | None) -> None:
        self._pickled, self._timeout = pickled, timeout
        self._process: Any = None

    def start(self) -> None:
        context = fork_server("envs")
        self._connection, there = context.Pipe()
        if self._timeout is not None:
            _bound_reads(self._connection, self._timeout)
        process = context.Process(target=_work, args=(there, self._pickled), daemon=True)
        with starting():
            process.start()
        self._process = process
        weakref.finalize(self, self._process.kill)  # at exit, where multiprocessing itself would send SIGTERM and wait
        there.close()

    def send(self, call: Call) -> None:
        try:
            self._connection.send(call)
        except OSError as error:
            raise self._died() from error

    def receive(self, seconds: float | None) -> Answer:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except BlockingIOError:  # it stopped in the middle of an answer
            pass
        except (EOFError, OSError) as error:
            raise self._died() from error
        raise WorkerLostError(f"(process {self._process.pid}) did not answer in time")

    def _died(self) -> WorkerLostError:
        self._process.join(timeout=1.0)
        code = self._process.exitcode
        return WorkerLostError(
            f"(process {self._process.pid}) died with exit code {code}"
            + ", killed from outside, as for want of memory" * (code == -signal.SIGKILL)
        )

    def kill(self) -> None:
        self._process.kill()
        self._process.join(timeout=_CLOSE)
        self._connection.close()

    def close(self) -> None:
        if self._process is None:
            return
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._connection.send(("close", ()))
            self._process.join(timeout=_CLOSE)
        self.kill()


def _bound_reads(connection: Connection, seconds: float) -> None:
    """Let reads on a pipe fail that wait longer: a worker may stop when half its answer is through."""
    pipe = socket.socket(fileno=connection.fileno())
    try:
        bound = struct.pack("ll", int(seconds), max(int(seconds % 1 * 1e6), 1))
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
    finally:
        pipe.detach()


class WorkersVecEnv(RestartingVecEnv):
    """Steps portions of environments, each in a process of one thread.

    Processes that die or hang are started again, see :class:`envs.restarting.RestartingVecEnv`.

    :param portions: functions that make a vector of environments each; their observations must be of one shape
    :param places: numbers that the environments of each portion have in this vector, every number once
    :param engine: when a process is lost, and how often it may be
    :raises WorkerError: if a process cannot make its environments, later raises, or is lost once too often
    """

    def __init__(
        self,
        portions: Sequence[Callable[[], VecEnv]],
        places: Sequence[Sequence[int]],
        engine: EngineConfig = PROCESSES,
    ) -> None:
        processes = [_Process(cloudpickle.dumps(make), engine.timeout) for make in portions]
        super().__init__(processes, places, engine)
