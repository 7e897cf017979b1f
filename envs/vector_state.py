"""States of vectors of environments, the same whatever processes the environments are shared out to."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from envs.plain_state import header, loading, plain, require_header
from gns.errors import StateError

Placed = tuple[Sequence[int], dict[str, Any]]  # places of a group, and its state


def state_of(venv: VecEnv) -> dict[str, Any]:
    """Return the state of a vector that has a ``state_dict``, or of SB3's ``DummyVecEnv`` that of its environments.

    :raises StateError: if it has none
    :raises OutOfOrderError: before a reset
    """
    if not isinstance(venv, DummyVecEnv):
        if not hasattr(venv, "state_dict"):
            raise StateError(
                f"{type(venv).__name__} has no state; expected a vector with state_dict(), or a DummyVecEnv of "
                "environments with one."
            )
        return venv.state_dict()
    environments = [env.get_wrapper_attr("state_dict")() for env in venv.envs]
    return {**_one_by_one(venv), "environments": environments, "reset_infos": plain(venv.reset_infos)}


def load_state_of(venv: VecEnv, state: dict[str, Any]) -> None:
    """Let a vector go on from a :func:`state_of`.

    :raises StateError: if the state is of something else, or damaged
    """
    if not isinstance(venv, DummyVecEnv):
        venv.load_state_dict(state)  # type: ignore[attr-defined]
        return
    require_header(state, _one_by_one(venv))
    with loading():
        for env, its_state in zip(venv.envs, state["environments"], strict=True):
            env.get_wrapper_attr("load_state_dict")(its_state)
        venv.reset_infos = plain(state["reset_infos"])


def _one_by_one(venv: VecEnv) -> dict[str, Any]:
    return header("environments one by one", num_envs=venv.num_envs)


@dataclass
class Seen:
    """The last observations and infos of a vector's environments; they stand in for the answer of a lost worker.

    :param seeds: that each was last reset with
    :param observations: None: no episode is running
    :param infos: of the last step, or of the reset if an episode began there
    """

    seeds: list[int | None]
    observations: Any = None
    infos: list[dict[str, Any]] = field(default_factory=list)

    def reset_with(self, seeds: Sequence[int | None]) -> None:
        """Take note of a reset to come; a seed of None leaves an environment's random numbers as they are."""
        self.seeds = [old if new is None else new for old, new in zip(self.seeds, seeds, strict=True)]
        self.observations, self.infos = None, []

    def begun(self, observations: Any, reset_infos: Sequence[dict[str, Any]]) -> None:
        """Take note of what a reset returned."""
        self.observations, self.infos = observations, list(reset_infos)

    def stepped(
        self,
        observations: Any,
        dones: np.ndarray,
        infos: Sequence[dict[str, Any]],
        reset_infos: Sequence[dict[str, Any]],
    ) -> None:
        """Take note of what a step returned."""
        told = zip(dones, infos, reset_infos, strict=True)
        self.observations, self.infos = observations, [new if done else info for done, info, new in told]

    def state_dict(self) -> dict[str, Any]:
        """Return it in plain values and tensors."""
        return plain(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put it back."""
        self.observations = {name: value.numpy().copy() for name, value in state["observations"].items()}
        self.infos, self.seeds = list(state["infos"]), list(state["seeds"])


def vector_state(num_envs: int, groups: Sequence[Placed], seen: Seen | None = None) -> dict[str, Any]:
    """Return the state of a vector from those of its groups.

    :param seen: of all; None for a portion that a worker holds, whose vector knows
    """
    ordered = sorted(groups, key=lambda group: group[0][0])
    return {
        **header("vector", num_envs=num_envs),
        "groups": [{"places": list(places), "state": state} for places, state in ordered],
        "seen": None if seen is None else seen.state_dict(),
    }


def states_for(state: dict[str, Any], num_envs: int, portions: Sequence[Sequence[int]]) -> list[list[Placed]]:
    """Share the groups of a :func:`vector_state` out to portions.

    :param portions: places of each portion in the vector
    :return: of each portion its groups, with their places in the portion
    :raises StateError: if it is of another number of environments, or a group does not lie in one portion
    """
    require_header(state, header("vector", num_envs=num_envs))
    shares: list[list[Placed]] = [[] for _ in portions]
    with loading():
        for group in state["groups"]:
            places = group["places"]
            found = [number for number, portion in enumerate(portions) if set(places) <= set(portion)]
            if not found:
                raise StateError(
                    f"The state has environments {places} in one group, which stand apart here; expected them "
                    "together. Load it into a vector of the same tasks, configuration and number of environments."
                )
            portion = list(portions[found[0]])
            shares[found[0]].append(([portion.index(place) for place in places], group["state"]))
    return shares


def only_group(share: Sequence[Placed], size: int) -> dict[str, Any]:
    """Return the state of the one group that fills a portion of ``size`` places.

    :raises StateError: if several do, or none
    """
    if len(share) != 1 or list(share[0][0]) != list(range(size)):
        raise StateError(
            f"The state has groups of {[len(places) for places, _ in share]} environments where {size} stand together "
            "here; expected the same. Load it into a vector of the same tasks, configuration and number of "
            "environments."
        )
    return share[0][1]


def portion_state(portion: VecEnv) -> list[Placed]:
    """Return the groups of a portion of environments, with their places in it; one that is no vector of groups is one.

    :raises StateError, OutOfOrderError: see :func:`state_of`
    """
    state = state_of(portion)
    if state["kind"] != "vector":
        return [(list(range(portion.num_envs)), state)]
    return [(group["places"], group["state"]) for group in state["groups"]]


def load_portion_state(portion: VecEnv, share: Sequence[Placed]) -> None:
    """Let a portion go on from a :func:`portion_state`.

    :raises StateError: if it is of something else, or damaged
    """
    if hasattr(portion, "groups"):
        load_state_of(portion, vector_state(portion.num_envs, share))
    else:
        load_state_of(portion, only_group(share, portion.num_envs))


def packed(state: Any) -> bytes:
    """Return states as bytes: sent to another process as they are, each tensor would take a file descriptor."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """Return the states of :func:`packed`."""
    return torch.load(io.BytesIO(data), weights_only=True)
