"""A rate path applied open loop: nothing of the run is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agents.controllers.base import Controller, Session, new_run
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError


@dataclass(frozen=True)
class ReplayController(Controller):
    """The rates of another run, or of a mean of runs, whatever happens on this one.

    Between points the logarithm of the rate is linear in progress; before the first and after the last it is constant.
    The initial rate changes nothing.

    :param path: (progress, learning rate) pairs, progress ascending within [0, 1]
    :raises InvalidSettingError: if there are none, progress does not ascend, or a rate is not positive and finite
    """

    kind: ClassVar[str] = "replay"
    own_rate: ClassVar[bool] = True

    path: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        progress = [t for t, _ in self.path]
        within = all(0.0 <= t <= 1.0 for t in progress) and all(np.diff(progress) > 0.0)
        if not (self.path and within and all(0.0 < rate < math.inf for _, rate in self.path)):
            raise InvalidSettingError(
                f"path of controller {self.name} is {str(self.path)[:100]}; expected at least one (progress, learning "
                "rate), progress ascending within [0, 1], rates above 0 and finite."
            )

    def rates(self, budget: int) -> np.ndarray:
        """Return the rate of every update of a run, float (budget,)."""
        progress, rates = np.array(self.path, dtype=float).T
        return np.exp(np.interp(np.arange(budget) / budget, progress, np.log(rates)))

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return _ReplaySession(new_run(episode), episode.budget, self.rates(episode.budget))


class _ReplaySession(Session):
    def __init__(self, run: TrainingRun, budget: int, path: np.ndarray) -> None:
        super().__init__(run, budget)
        self._path = path

    def before_update(self) -> None:
        """Write the path's rate."""
        self.rates.append(float(self._path[self.ledger.updates]))
        self.set_rate(self.rates[-1])

    def own_state(self) -> dict[str, Any]:
        """A path is a function of progress: nothing is remembered."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""
