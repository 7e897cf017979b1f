"""What callers give an environment: actions, seeds and options, each taken as it is meant or refused by name.

The errors are Gymnasium's as well as this project's, so that whoever catches either catches them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from envs.env_config import EnvConfig
from envs.tasks import Task
from envs.training_run import OPTIMIZERS
from gns.deciding.rate_control import initial_rate
from gns.errors import GNSError, InvalidSettingError, OutOfOrderError, UnknownNameError, require_count

LARGEST_SEED = 2**64 - 1  # of PyTorch's random numbers
LARGEST_BUDGET = 10**9  # updates: no array of what is remembered of an interval grows beyond memory
OPTIONS = ("task", "optimizer", "budget", "learning_rate", "seed")


class InvalidActionError(InvalidSettingError, gym.error.InvalidAction):
    """An action is no array of as many finite numbers as the action has entries."""


class InvalidSeedError(InvalidSettingError, gym.error.Error):
    """A seed is no whole number that random numbers can begin with."""


class InvalidOptionsError(InvalidSettingError, gym.error.Error):
    """Options of a reset are no dictionary, or one of them is of another kind than it has to be."""


class ResetNeededError(OutOfOrderError, gym.error.ResetNeeded):
    """A step came before a reset, or after the end of the episode."""


class NotCopyableError(GNSError, TypeError):
    """An environment cannot be copied or pickled, since something in it belongs to this process."""


def action_entries(action: Any, sizes: Iterable[int], leading: tuple[int, ...] = ()) -> np.ndarray:
    """Return an action as an array.

    :param action: numbers; what lies outside [-1, 1] is clipped later
    :param sizes: numbers of entries it may have
    :param leading: dimensions before them, of a batch of actions; without any an action may have any shape
    :return: float array, shape (*leading, a size)
    :raises InvalidActionError: if it is anything else, or an entry is not finite
    """
    expected = f"{' or '.join(map(str, sorted(set(sizes))))} finite numbers in [-1, 1]"
    if leading:
        expected += f" for each of {leading[0]} environments"
    if isinstance(action, Tensor) and action.requires_grad:
        raise InvalidActionError(
            f"The action is a tensor that requires gradients; expected {expected}. Pass action.detach().cpu().numpy()."
        )
    try:
        values = np.asarray(action)
    except Exception as problem:  # of any object's own conversion to an array
        raise InvalidActionError(
            f"The action is {_shown(action)}, which is no array ({type(problem).__name__}); expected {expected}."
        ) from problem
    if values.dtype.kind not in "fiu":
        raise InvalidActionError(f"The action is {_shown(action)}, of type {values.dtype}; expected {expected}.")
    if leading and values.shape[: len(leading)] != leading:
        raise InvalidActionError(f"The actions have shape {values.shape}; expected {expected}.")
    values = values.reshape(*leading, -1) if values.size else values
    if not values.size or values.shape[-1] not in sizes:
        raise InvalidActionError(f"The action has {values.size} numbers; expected {expected}.")
    if not np.isfinite(values).all():
        raise InvalidActionError(f"The action is {_shown(action)}; expected {expected}.")
    return values


def require_seed(name: str, seed: Any) -> int:
    """Return a seed as Python's whole number.

    :raises InvalidSeedError: if it is none from 0 to 2^64 - 1
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= LARGEST_SEED:
        raise InvalidSeedError(f"{name} is {_shown(seed)}; expected a whole number from 0 to 2^64 - 1.")
    return int(seed)


def reset_options(options: Any, tasks: Sequence[Task], config: EnvConfig) -> dict[str, Any]:
    """Return the options of a reset, each as what it stands for; none for None.

    :param options: any of ``task`` (a name, or a task itself), ``optimizer``, ``budget``, ``learning_rate``, ``seed``
    :param tasks: those that may be named
    :param config: of the environment
    :raises InvalidOptionsError, InvalidSeedError: if an option is of another kind than it has to be
    :raises InvalidSettingError: if the budget or the learning rate is one that no episode can have
    :raises UnknownNameError: if an option, task or optimizer is unknown
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidOptionsError(
            f"options is {_shown(options)}; expected a dictionary with any of {', '.join(OPTIONS)}."
        )
    checked = dict(options)
    for name in checked:
        if name not in OPTIONS:
            raise UnknownNameError("reset option", _shown(name) if not isinstance(name, str) else name, OPTIONS)
    if "task" in checked:
        checked["task"] = _task(checked["task"], tasks)
    if "optimizer" in checked:
        if not isinstance(checked["optimizer"], str):
            raise InvalidOptionsError(f"Option optimizer is {_shown(checked['optimizer'])}; expected a name.")
        if checked["optimizer"] not in OPTIMIZERS:
            raise UnknownNameError("optimizer", checked["optimizer"], OPTIMIZERS)
    if "budget" in checked:
        require_count("budget", checked["budget"])
        if checked["budget"] > LARGEST_BUDGET:
            raise InvalidOptionsError(f"Option budget is {_shown(checked['budget'])}; expected at most 10^9 updates.")
        checked["budget"] = int(checked["budget"])
        config.decision.interval(checked["budget"])
    if "learning_rate" in checked:
        checked["learning_rate"] = float(initial_rate(_number(checked["learning_rate"]), config.decision))
    if "seed" in checked:
        checked["seed"] = require_seed("Option seed", checked["seed"])
    return checked


def _number(rate: Any) -> Any:
    """Return what is no tensor as it is, and of a tensor its number."""
    try:
        return float(rate) if isinstance(rate, Tensor) else rate
    except Exception as problem:  # it has several, or none, or they are elsewhere
        raise InvalidOptionsError(f"Option learning_rate is {_shown(rate)}; expected one number.") from problem


def _task(wanted: Any, tasks: Sequence[Task]) -> Task:
    """Return the task that is meant, or that bears its name."""
    if not isinstance(wanted, str | Task):
        raise InvalidOptionsError(f"Option task is {_shown(wanted)}; expected a name, or a task of the environment.")
    name = wanted if isinstance(wanted, str) else wanted.name
    found = [task for task in tasks if task is wanted] or [task for task in tasks if task.name == name]
    if not found:
        raise UnknownNameError("task of this environment", name, [task.name for task in tasks])
    return found[0]


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # of an object's own
        return f"an object of type {type(value).__name__}"
