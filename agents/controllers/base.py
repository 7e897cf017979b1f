"""What every controller of a training run's learning rate gives the evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from envs.learning_rate_env import Episode


@dataclass
class TrainedRun:
    """A finished training run and what it cost.

    :param model: the trained model
    :param reward_loss: loss on the reward split at the end
    :param updates: updates made
    :param evaluations: passes over the reward split
    :param rollbacks: times the run was taken back
    :param seconds: wall-clock time of training
    :param rates: learning rate of the first parameter group at each update
    """

    model: nn.Module
    reward_loss: float
    updates: int
    evaluations: int
    rollbacks: int
    seconds: float
    rates: list[float] = field(repr=False)


class Controller(Protocol):
    """Sets the learning rate of a training run.

    :param name: its name in tables
    :param tuned: whether its initial rate is to be tuned (a schedule) or may be anything (a learned policy)
    """

    @property
    def name(self) -> str:
        """Name in tables."""
        ...

    @property
    def tuned(self) -> bool:
        """Whether the evaluation tunes its initial rate."""
        ...

    def train(self, episode: Episode) -> TrainedRun:
        """Train a run from beginning to end."""
        ...


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._start
