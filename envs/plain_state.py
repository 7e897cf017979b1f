"""States of environments, in the middle of episodes: what they consist of, and when one is refused.

A state is made of dictionaries, lists, tuples, text, numbers, None and tensors on the host, so that
``torch.load(..., weights_only=True)`` reads it from a file. Nothing that goes on changing is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from gns.errors import StateError

FORMAT = 1
_HINT = (
    "Load it into what is built as that was which it was saved from: the same tasks and settings, the same number of "
    "environments."
)


def header(kind: str, **said: Any) -> dict[str, Any]:
    """Return the entries that tell one state from another.

    :param said: what must be the same where it is loaded
    """
    return {"format": FORMAT, "kind": kind, **said}


def require_header(state: Any, expected: Mapping[str, Any]) -> None:
    """Pass a state with the :func:`header` expected.

    :raises StateError: on any other
    """
    if not isinstance(state, Mapping) or "kind" not in state:
        raise StateError(
            f"The state is {type(state).__name__} without a kind; expected a dictionary that state_dict() of an "
            f"environment returned, of kind {expected['kind']!r}. {_HINT}"
        )
    require_entries(state, expected)


def require_entries(state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Pass a state that says of itself what is expected.

    :raises StateError: on any other
    """
    for name, value in expected.items():
        if state.get(name) != value:
            raise StateError(f"The state has {name} {state.get(name)!r}; expected {value!r}. {_HINT}")


@contextmanager
def loading() -> Iterator[None]:
    """Name the cause where a state does not fit, or is damaged.

    :raises StateError: in place of what went wrong
    """
    try:
        yield
    except StateError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as problem:
        raise StateError(
            f"The state does not fit ({type(problem).__name__}: {problem}); expected one of this task, model and "
            f"optimizer, as state_dict() returned it. {_HINT}"
        ) from problem


def plain(value: Any) -> Any:
    """Return a state with containers of its own, tensors on the host, and numbers of Python's in place of NumPy's."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value


def random_state(env: gym.Env) -> dict[str, Any]:
    """Return the state of an environment's random numbers."""
    return {"generator": env.np_random.bit_generator.state, "seed": env.np_random_seed}


def load_random_state(env: gym.Env, state: dict[str, Any]) -> None:
    """Let an environment draw on from a :func:`random_state`."""
    env.np_random.bit_generator.state = state["generator"]
    env._np_random_seed = state["seed"]
