"""Vectors of environments whose callers' seeds, options and actions are checked before anything is done with them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from envs.calls import InvalidOptionsError, ResetNeededError, action_entries, require_seed


class CheckedVecEnv(VecEnv, ABC):
    """An SB3 ``VecEnv`` that refuses by name what no environment can be given."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the resets to come, each environment with the next number; None: with a number drawn.

        :raises InvalidSeedError: if it is no whole number from 0 to 2^64 - 1, or the last environment's is not
        """
        if seed is not None:
            seed = require_seed("seed", seed)
            require_seed("seed of the last environment", seed + self.num_envs - 1)
        return super().seed(seed)

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """Give options to the resets to come: the same to all environments, or a dictionary each.

        :raises InvalidOptionsError: if they are neither
        """
        each = options if isinstance(options, list) else [options] * self.num_envs
        if len(each) != self.num_envs or not all(one is None or isinstance(one, dict) for one in each):
            raise InvalidOptionsError(
                f"options are of type {type(options).__name__}; expected a dictionary, or a list of {self.num_envs}."
            )
        super().set_options([one or {} for one in each])

    def checked_actions(self, actions: Any, running: bool) -> np.ndarray:
        """Return actions as an array, (N, entries): as many as the action space has, or the shared one alone.

        :param running: whether episodes are
        :raises ResetNeededError: if none is
        :raises InvalidActionError: if they are anything else, or one is not finite
        """
        if not running:
            raise ResetNeededError("step() came before reset(); call reset() first.")
        if not isinstance(self.action_space, spaces.Box):  # of environments that are not ours
            return np.asarray(actions)
        return action_entries(actions, {1, *self.action_space.shape}, (self.num_envs,))
