"""A schedule from a calibrated default rate: what somebody does who tunes nothing and knows what usually works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from agents.controllers.base import Session, new_run
from agents.controllers.schedule import ScheduleController, ScheduleSession
from envs.learning_rate_env import Episode
from envs.tasks import Task
from envs.tasks.base import FINE_TUNING
from envs.training_run import TrainingRun
from gns.schedules.calibrated import ENCODER_RATE, calibrated_rate


@dataclass(frozen=True)
class DefaultController(ScheduleController):
    """A schedule whose initial rate is the calibrated one of the optimizer, see :mod:`gns.schedules.calibrated`.

    It takes no initial rate, sees nothing of the task, and is the first rival of everything that learns. Pretrained
    encoders get :data:`gns.schedules.calibrated.ENCODER_RATE`.
    """

    kind: ClassVar[str] = "default"
    is_schedule: ClassVar[bool] = False
    tuned: ClassVar[bool] = False
    own_rate: ClassVar[bool] = True

    def planned_rates(self, episode: Episode) -> list[float] | None:
        """Return the schedule's rates from the calibrated one."""
        return super().planned_rates(replace(episode, learning_rate=self.rate(new_run(episode))))

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises UnknownNameError: if no rate was calibrated for the optimizer or the profile
        """
        run = new_run(episode)  # whose parameter groups keep the ratios that the task gave them
        return ScheduleSession(
            run, replace(episode, learning_rate=self.rate(run)), self.schedule(), self.cycle_momentum
        )

    def rate(self, run: TrainingRun) -> float:
        """Return the rate that a run starts from."""
        adaptive = not isinstance(run.optimizer, torch.optim.SGD)
        return ENCODER_RATE if adaptive and _fine_tunes(run.task) else calibrated_rate(run.optimizer, self.profile)


def _fine_tunes(task: Task) -> bool:
    """Whether a task trains a pretrained encoder: its range of rates says so."""
    return task.learning_rates.get("adamw") == FINE_TUNING["adamw"]
