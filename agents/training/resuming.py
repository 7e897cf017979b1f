"""Going on with a training that was interrupted, to the same policy bit for bit.

A checkpoint of a policy's training is taken between two rollouts, right after PPO's update. It holds the agent
(weights, Adam's state, counts, last observations), every environment in the middle of its episode, the moments returns
are scaled by, the random numbers of Python, NumPy and PyTorch, and what progress is reported from. Stable-Baselines3
saves neither random numbers nor environments; the rollout buffer is empty between rollouts and needs no saving.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import gns
from agents.runtime.checkpoints import CheckpointStore
from gns.errors import InvalidSettingError, require_count

if TYPE_CHECKING:
    from stable_baselines3 import PPO

_PAUSE = 100.0  # times what a checkpoint took: they cost at most a hundredth


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints of a training, of a policy or under a controller, are written.

    :param every: seconds from one to the next, at least, and at least a hundred times what the last one took; 0: after
        every rollout, or every update of a run. Changes no result
    :param keep: newest ones kept
    """

    every: float = 60.0
    keep: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.every < math.inf:
            raise InvalidSettingError(f"checkpoint.every is {self.every!r}; expected seconds, 0 or more.")
        require_count("checkpoint.keep", self.keep)


class Resuming:
    """Checkpoints of one training in its folder.

    :param folder: where they are; made when the first is written
    :param config: when they are written
    :param identity: what the training's result depends on, see :func:`identity_of`
    """

    def __init__(self, folder: Path, config: CheckpointConfig, identity: str) -> None:
        self._store, self._config, self.identity = CheckpointStore(folder, config.keep), config, identity
        self._written, self._cost = time.perf_counter(), 0.0
        self.seconds = 0.0  # spent on checkpoints

    def newest(self) -> dict[str, Any] | None:
        """Return the newest good checkpoint, or None where there is none.

        :raises CheckpointMismatchError: if it is of a training with other settings
        :raises CheckpointError: if the folder cannot be read
        """
        found = self._store.newest(self.identity)
        return None if found is None else found[0]

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint, good or not, of these settings or of others."""
        return any(self._store.folder.glob("*.checkpoint"))

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        pause = max(self._config.every, _PAUSE * self._cost) if self._config.every else 0.0
        return time.perf_counter() - self._written >= pause

    def write(self, state: Callable[[], dict[str, Any]], step: int) -> None:
        """Write a checkpoint.

        :param state: returns what is written; its time counts
        :param step: decisions, or updates of a run, made so far
        :raises CheckpointError: if it cannot be written
        """
        start = time.perf_counter()
        self._store.save(state(), step, self.identity)
        self._written = time.perf_counter()
        self._cost = self._written - start
        self.seconds += self._cost

    def clear(self) -> None:
        """Delete all checkpoints: the training is over."""
        if self._store.folder.exists():
            shutil.rmtree(self._store.folder)


def identity_of(settings: Mapping[str, Any]) -> str:
    """Return a name for all that a training's result depends on: 64 hex digits (sha256 over canonical JSON).

    :param settings: plain settings, those left out that change no result
    """
    content = {"gns": gns.__version__, "torch": torch.__version__, "settings": settings}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def agent_state(model: PPO) -> dict[str, Any]:
    """Return what SB3's PPO needs to go on with its next rollout, as tensors and plain values."""
    observations: Any = model._last_obs
    return {
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
        "num_timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "progress_remaining": model._current_progress_remaining,
        "observations": {name: torch.from_numpy(value.copy()) for name, value in observations.items()},
        "episode_starts": torch.from_numpy(np.array(model._last_episode_starts)),
    }


def load_agent_state(model: PPO, state: Mapping[str, Any]) -> None:
    """Put an :func:`agent_state` into a PPO of the same settings; ``learn(reset_num_timesteps=False)`` goes on."""
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps, model._n_updates = state["num_timesteps"], state["updates"]
    model._current_progress_remaining = state["progress_remaining"]
    model._last_obs = {name: value.numpy().copy() for name, value in state["observations"].items()}
    model._last_episode_starts = state["episode_starts"].numpy().copy()


def random_state() -> dict[str, Any]:
    """Return the state of the global random numbers of Python, NumPy and PyTorch."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def load_random_state(state: Mapping[str, Any]) -> None:
    """Put a :func:`random_state` back."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
