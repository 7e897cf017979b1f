"""Many environments in a few processes, as an SB3 ``VecEnv``.

SB3's ``SubprocVecEnv`` has a process for every environment. On a machine of few cores, a few processes that each step
several environments collect faster and start sooner. What an environment does depends on its seed alone, so the number
of processes changes no result (of runs that are trained side by side, as long as those of a group stay together).
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.memory import keep_freed_memory
from gns.errors import GNSError


class WorkerError(GNSError, RuntimeError):
    """A worker process raised or died."""


def _work(connection: Connection, pickled_block: bytes) -> None:
    """Serve calls on a block of environments until told to close."""
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # diverged runs fill with denormals, which are slow tenfold
    try:
        block = cloudpickle.loads(pickled_block)()
        connection.send((True, (block.observation_space, block.action_space, block.get_attr("render_mode")[0])))
    except BaseException as error:
        connection.send((False, _named(error)))
        return
    try:
        while True:
            name, arguments = connection.recv()
            if name == "close":
                block.close()
                return
            try:
                answer = True, _CALLS[name](block, *arguments)
            except Exception as error:  # the parent raises it
                answer = False, _named(error)
            connection.send(answer)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _reset(block: VecEnv, seeds: list[int | None], options: list[dict[str, Any]]) -> Any:
    block._seeds, block._options = seeds, options
    return block.reset(), block.reset_infos


def _step(block: VecEnv, actions: np.ndarray) -> Any:
    return *block.step(actions), block.reset_infos


_CALLS: dict[str, Callable[..., Any]] = {
    "reset": _reset,
    "step": _step,
    "get_attr": lambda block, name, indices: block.get_attr(name, indices),
    "set_attr": lambda block, name, value, indices: block.set_attr(name, value, indices),
    "env_method": lambda block, name, indices, args, kwargs: block.env_method(name, *args, indices=indices, **kwargs),
    "env_is_wrapped": lambda block, wrapper, indices: block.env_is_wrapped(wrapper, indices),
}


class WorkersVecEnv(VecEnv):
    """Steps blocks of environments, each in a process of one thread.

    :param blocks: functions that make a vector of environments each; their observations must be of one shape
    :param places: numbers that the environments of each block have in this vector, every number once
    :raises WorkerError: if a worker cannot make its environments, or later raises or dies
    """

    def __init__(self, blocks: Sequence[Callable[[], VecEnv]], places: Sequence[Sequence[int]]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["envs"])
        self._blocks = [list(block) for block in places]
        order = [i for block in self._blocks for i in block]
        self._positions = np.argsort(order)  # of every number in the answers of all blocks, one after the other
        self._connections: list[Connection] = []
        self._processes = []
        for make in blocks:
            here, there = context.Pipe()
            payload = cloudpickle.dumps(make)
            process = context.Process(target=_work, args=(there, payload), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self._processes.append(process)
        observation_space, action_space, self._render = self._receive()[0]
        super().__init__(len(order), observation_space, action_space)

    def reset(self) -> Any:
        """Reset every environment."""
        for connection, block in zip(self._connections, self._blocks, strict=True):
            connection.send(("reset", ([self._seeds[i] for i in block], [self._options[i] for i in block])))
        answers = self._receive()
        self.reset_infos = self._in_order([info for _, infos in answers for info in infos])
        self._reset_seeds()
        self._reset_options()
        return join([observation for observation, _ in answers], self._positions)

    def step_async(self, actions: np.ndarray) -> None:
        """Send every worker its actions."""
        for connection, block in zip(self._connections, self._blocks, strict=True):
            connection.send(("step", (actions[block],)))

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all workers."""
        observations, rewards, dones, infos, reset_infos = zip(*self._receive(), strict=True)
        self.reset_infos = self._in_order([info for part in reset_infos for info in part])
        return (
            join(observations, self._positions),
            np.concatenate(rewards)[self._positions],
            np.concatenate(dones)[self._positions],
            self._in_order([info for part in infos for info in part]),
        )

    def close(self) -> None:
        """End the worker processes."""
        for connection in self._connections:
            try:
                connection.send(("close", ()))
            except (BrokenPipeError, OSError):
                continue
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
        for connection in self._connections:
            connection.close()
        self._connections, self._processes = [], []

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments chosen."""
        if attr_name == "render_mode":
            return [self._render for _ in self._get_indices(indices)]
        return self._call("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments chosen."""
        self._call("set_attr", indices, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environments chosen."""
        return self._call("env_method", indices, method_name, after=(args, kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say of each environment chosen whether a wrapper is around it."""
        return self._call("env_is_wrapped", indices, wrapper_class)

    def _call(self, name: str, indices: VecEnvIndices, *before: Any, after: tuple[Any, ...] = ()) -> list[Any]:
        chosen = [range(self.num_envs)[i] for i in self._get_indices(indices)]
        results: dict[int, Any] = {}
        for number, block in enumerate(self._blocks):
            local = [i for i in chosen if i in block]
            if local:
                self._connections[number].send((name, (*before, [block.index(i) for i in local], *after)))
                answer = self._receive([number])[0]
                results |= dict(zip(local, answer or [None] * len(local), strict=True))
        return [results[i] for i in chosen]

    def _in_order(self, values: list[Any]) -> list[Any]:
        return [values[i] for i in self._positions]

    def _receive(self, numbers: Sequence[int] | None = None) -> list[Any]:
        """Wait for the workers' answers, all of them before any error is raised."""
        answers, failures = [], []
        for number in numbers if numbers is not None else range(len(self._connections)):
            try:
                good, answer = self._connections[number].recv()
            except (EOFError, ConnectionError):
                failures.append(f"Worker process {number} died; see its error above, if any.")
                continue
            if good:
                answers.append(answer)
            else:
                failures.append(f"Worker process {number} raised {answer}")
        if failures:
            raise WorkerError(" ".join(failures))
        return answers


def join(observations: Sequence[Any], positions: np.ndarray | slice = slice(None)) -> Any:
    """Return the observations of several vectors of environments as one.

    :param positions: order of places in them all; as they come by default
    """
    if isinstance(observations[0], dict):
        return {key: np.concatenate([o[key] for o in observations])[positions] for key in observations[0]}
    return np.concatenate(list(observations))[positions]
