"""Jobs in lanes: each lane runs one at a time in a process of its own, so that a process that dies names its job."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

from agents.training.ppo import single_thread
from envs.engine import EngineConfig
from envs.fork_server import fork_server, starting
from envs.memory import out_of_memory
from envs.ray_cluster import start_ray

_LOGGER = logging.getLogger(__name__)
Key = TypeVar("Key")
J = TypeVar("J")


class Lane(ABC):
    """Runs one function at a time, elsewhere, in one thread.

    :cvar lost: errors of a future that say its process is gone
    """

    lost: tuple[type[BaseException], ...]

    @abstractmethod
    def submit(self, function: Callable[[], Any]) -> Future:
        """Run a function."""

    @abstractmethod
    def kill(self) -> None:
        """End what is being run; another function may be submitted then."""

    def close(self) -> None:  # noqa: B027  (a task that has ended leaves nothing)
        """End it when nothing is being run."""


class _ProcessLane(Lane):
    """A process pool of one: in a larger one a process that dies breaks the work of all, and says not whose it was."""

    lost = (BrokenProcessPool,)

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[[], Any]) -> Future:
        if self._pool is None:
            context = fork_server("agents.evaluation.sweep")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin_lane)
        try:
            with starting():
                return self._pool.submit(function)
        except BrokenProcessPool:  # by the job before, or since
            self.close()
            return self.submit(function)

    def kill(self) -> None:
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _begin_lane() -> None:
    """Prepare a process for jobs: it ends with the one that it works for, however that ends."""
    single_thread()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _RayLane(Lane):
    """Tasks of a Ray cluster, one at a time, on whichever machine has room."""

    def __init__(self, ray: Any, engine: EngineConfig) -> None:
        errors = ray.exceptions
        self.lost = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.TaskCancelledError,
        )
        self._ray: Any = ray
        self._running: Any = None
        self._task = ray.remote(_alone).options(**{"num_cpus": 1, "max_retries": 0, **engine.resources})

    def submit(self, function: Callable[[], Any]) -> Future:
        self._running = self._task.remote(function)
        return self._running.future()

    def kill(self) -> None:
        if self._running is not None:
            self._ray.cancel(self._running, force=True)


def _alone(function: Callable[[], Any]) -> Any:
    single_thread()
    return function()


def make_lanes(engine: EngineConfig, count: int) -> list[Lane]:
    """Return lanes of processes of this machine, or of a Ray cluster.

    :raises MissingPackageError: if the engine is not installed
    """
    if engine.name == "ray":
        ray = start_ray(engine, count)
        return [_RayLane(ray, engine) for _ in range(count)]
    return [_ProcessLane() for _ in range(count)]


def run_in_lanes(
    run: Callable[[J], Any],
    jobs: Mapping[Key, J],
    lanes: Sequence[Lane],
    attempts: int,
    finished: Callable[[Key, Any], None],
    failed: Callable[[Key, str], None],
    timeout: float | None = None,
) -> None:
    """Run jobs, in their order, and hand over each result as it comes.

    A job that is lost (its process dies, it runs out of memory or out of time) is run again after those that wait.

    :param attempts: at a job, before it has failed
    :param finished: called with a job's key and result
    :param failed: called with the key of a job that was lost that often, and what happened
    :param timeout: seconds a job may take; None: for ever
    :raises BaseException: whatever else a job raises; what is running is then given up
    """
    waiting, idle = deque(jobs), list(lanes)
    running: dict[Future, tuple[Lane, Key, float]] = {}
    tried = dict.fromkeys(jobs, 0)

    def lose(key: Key, why: str) -> None:
        why = f"{why} ({tried[key]} of {attempts} attempts)"
        if tried[key] < attempts:
            _LOGGER.warning("A job is run again: %s.", why)
            waiting.append(key)
        else:
            failed(key, why)

    try:
        while waiting or running:
            while waiting and idle:
                lane, key = idle.pop(), waiting.popleft()
                tried[key] += 1
                end = math.inf if timeout is None else time.monotonic() + timeout
                running[lane.submit(partial(run, jobs[key]))] = lane, key, end
            first = min(end for _, _, end in running.values())
            left = None if first == math.inf else max(first - time.monotonic(), 0.0)
            for future in wait(running, left, return_when=FIRST_COMPLETED).done:
                lane, key, _ = running.pop(future)
                idle.append(lane)
                error = future.exception()
                if isinstance(error, lane.lost):
                    lose(key, f"its process died, {type(error).__name__}: {error}")
                elif out_of_memory(error):
                    lose(key, f"it ran out of memory, {error}")
                else:
                    finished(key, future.result())
            for future in [future for future, (_, _, end) in running.items() if end <= time.monotonic()]:
                lane, key, _ = running.pop(future)
                lane.kill()
                idle.append(lane)
                lose(key, f"it took more than {timeout:g} seconds")
    except BaseException:
        for lane in lanes:
            lane.kill()
        raise
    for lane in lanes:
        lane.close()
