"""Jobs in lanes: each lane runs one at a time in a process of its own, so that a process that dies names its job."""

from __future__ import annotations

import logging
import multiprocessing
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from agents.ppo import single_thread
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
    def close(self, at_once: bool) -> None:
        """End it.

        :param at_once: without waiting for what is being run
        """


class _ProcessLane(Lane):
    """A process pool of one: in a larger one a process that dies breaks the work of all, and says not whose it was."""

    lost = (BrokenProcessPool,)

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[[], Any]) -> Future:
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["agents.sweep"])
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=single_thread)
        try:
            future = self._pool.submit(function)
        except BrokenProcessPool:  # by the job before, or since
            self.close(at_once=True)
            return self.submit(function)
        return future

    def close(self, at_once: bool) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=not at_once, cancel_futures=True)
            self._pool = None


class _RayLane(Lane):
    """Tasks of a Ray cluster, one at a time, on whichever machine has room."""

    def __init__(self, ray: Any, resources: Mapping[str, Any]) -> None:
        errors = ray.exceptions
        self.lost = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
        )
        self._ray: Any = ray
        self._running: Any = None
        self._task = ray.remote(_alone).options(**{"num_cpus": 1, "max_retries": 0, **resources})

    def submit(self, function: Callable[[], Any]) -> Future:
        self._running = self._task.remote(function)
        return self._running.future()

    def close(self, at_once: bool) -> None:
        if at_once and self._running is not None:
            self._ray.cancel(self._running, force=True)


def _alone(function: Callable[[], Any]) -> Any:
    single_thread()
    return function()


def make_lanes(engine: str, count: int, address: str | None, resources: Mapping[str, Any]) -> list[Lane]:
    """Return lanes of processes of this machine, or of a Ray cluster.

    :param engine: ``processes`` or ``ray``
    :param address: of the cluster, see :func:`envs.ray_cluster.start_ray`
    :param resources: of each Ray task
    """
    if engine == "ray":
        ray = start_ray(address, resources, count)
        return [_RayLane(ray, resources) for _ in range(count)]
    return [_ProcessLane() for _ in range(count)]


def run_in_lanes(
    run: Callable[[J], Any],
    jobs: Mapping[Key, J],
    lanes: Sequence[Lane],
    attempts: int,
    finished: Callable[[Key, Any], None],
    failed: Callable[[Key, str], None],
) -> None:
    """Run jobs, in their order, and hand over each result as it comes.

    A job whose process dies is run again after those that wait.

    :param attempts: at a job, before it has failed
    :param finished: called with a job's key and result
    :param failed: called with the key of a job whose process died that often, and what happened
    :raises BaseException: whatever a job raises; what is running is then given up
    """
    waiting, idle = deque(jobs), list(lanes)
    running: dict[Future, tuple[Lane, Key]] = {}
    tried = dict.fromkeys(jobs, 0)
    try:
        while waiting or running:
            while waiting and idle:
                lane, key = idle.pop(), waiting.popleft()
                tried[key] += 1
                running[lane.submit(partial(run, jobs[key]))] = lane, key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                lane, key = running.pop(future)
                idle.append(lane)
                error = future.exception()
                if isinstance(error, lane.lost):
                    why = f"its process died {tried[key]} times, last by {type(error).__name__}: {error}"
                    if tried[key] < attempts:
                        _LOGGER.warning("A job is run again: %s", why)
                        waiting.append(key)
                    else:
                        failed(key, why)
                else:
                    finished(key, future.result())
    except BaseException:
        for lane in lanes:
            lane.close(at_once=True)
        raise
    for lane in lanes:
        lane.close(at_once=False)
