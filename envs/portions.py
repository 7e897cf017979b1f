"""A worker's portion of the environments of a vector: how it is made, and what it is asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from envs.memory import keep_freed_memory, out_of_memory
from envs.vector_state import load_portion_state, packed, portion_state, unpacked
from gns.errors import StateError

Call = tuple[str, tuple[Any, ...]]  # what a portion is asked: a name in _CALLS, and arguments
# Whether all went well, None where memory ran out; what was asked for, or the error's type and message.
Answer = tuple[bool | None, Any]


def make_portion(pickled: bytes) -> tuple[VecEnv | None, Answer]:
    """Make a portion in this process, from now on of one thread.

    :param pickled: a function without arguments that returns it, by cloudpickle
    :return: the portion, or None if that raised; for whom asked (observation space, action space, render mode, process)
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # diverged runs fill with denormals, which are slow tenfold
    try:
        portion = cloudpickle.loads(pickled)()
        about = portion.observation_space, portion.action_space, portion.get_attr("render_mode")[0], os.getpid()
        return portion, (True, about)
    except BaseException as error:
        return None, _failure(error)


def ask_portion(portion: VecEnv, name: str, arguments: tuple[Any, ...]) -> Answer:
    """Answer a call."""
    try:
        return True, _CALLS[name](portion, *arguments)
    except Exception as error:  # whoever asked raises it
        return _failure(error)


def _failure(error: BaseException) -> Answer:
    return None if out_of_memory(error) else False, f"{type(error).__name__}: {error}"


def _reset(portion: VecEnv, seeds: list[int | None], options: list[dict[str, Any]]) -> Any:
    portion._seeds, portion._options = seeds, options
    return portion.reset(), portion.reset_infos


def _step(portion: VecEnv, actions: np.ndarray) -> Any:
    return *portion.step(actions), portion.reset_infos


def _load_state(portion: VecEnv, data: bytes) -> tuple[str | None, list[dict[str, Any]]]:
    """Let a portion go on from a state; return why it is refused, if it is, and what was said at the last resets."""
    try:
        load_portion_state(portion, unpacked(data))
    except StateError as refused:
        return str(refused), []
    return None, portion.reset_infos


_CALLS: dict[str, Callable[..., Any]] = {
    "reset": _reset,
    "step": _step,
    "state": lambda portion: packed(portion_state(portion)),
    "load_state": _load_state,
    "get_attr": lambda portion, name, indices: portion.get_attr(name, indices),
    "set_attr": lambda portion, name, value, indices: portion.set_attr(name, value, indices),
    "set_attrs": lambda portion, values: [portion.set_attr(name, value, [i]) for (name, i), value in values.items()],
    "env_method": lambda portion, name, indices, args, kwargs: portion.env_method(
        name, *args, indices=indices, **kwargs
    ),
    "env_is_wrapped": lambda portion, wrapper, indices: portion.env_is_wrapped(wrapper, indices),
}
