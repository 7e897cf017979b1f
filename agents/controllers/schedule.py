"""Fixed schedules: the initial rate times a function of progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from agents.controllers.base import Controller, Session, new_run
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.schedules.profiles import onecycle_momentum
from gns.schedules.schedule import Schedule


@dataclass(frozen=True)
class ScheduleController(Controller):
    """A schedule of the REX paper (Chen et al., MLSys 2022, section 3): rate at update t is ``initial * f(t / T)``.

    Nothing watches over its runs: one that diverges stays diverged.

    :param profile: name of the profile in :mod:`gns.schedules.profiles`
    :param cycle_momentum: let momentum (Adam's beta1) run against the rate, as one-cycle does
    :param sampling: how often the profile is read, see :data:`gns.schedules.schedule.SAMPLING_RATES`
    :param warmup: share of the budget over which the rate first climbs to the profile's start
    :param warmup_start: share of that start which the first update has
    :param settings: settings of the profile
    """

    kind: ClassVar[str] = "schedule"
    is_schedule: ClassVar[bool] = True
    tuned: ClassVar[bool] = True

    profile: str = "rex"
    cycle_momentum: bool = False
    sampling: str = "every-update"
    warmup: float = 0.0
    warmup_start: float = 0.01
    settings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.schedule()

    def schedule(self) -> Schedule:
        """Return its function of progress.

        :raises UnknownNameError, InvalidSettingError: if there is no such profile, sampling rate or setting
        """
        return Schedule(self.profile, self.sampling, self.warmup, self.warmup_start, self.settings)

    def planned_rates(self, episode: Episode) -> list[float] | None:
        """Return the schedule's rates, unless momentum cycles too."""
        function, budget = self.schedule().function, episode.budget
        rate = episode.learning_rate
        return None if self.cycle_momentum else [rate * function(update / budget) for update in range(budget)]

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return ScheduleSession(new_run(episode), episode, self.schedule(), self.cycle_momentum)


class ScheduleSession(Session):
    """A run under a schedule, from the episode's rate."""

    def __init__(self, run: TrainingRun, episode: Episode, schedule: Schedule, cycle_momentum: bool) -> None:
        super().__init__(run, episode.budget)
        self._initial, self._schedule, self._cycle = episode.learning_rate, schedule, cycle_momentum
        self._function = schedule.function

    def before_update(self) -> None:
        """Write the schedule's rate."""
        self.rates.append(self._initial * self._function(self.progress))
        self.set_rate(self.rates[-1])
        if self._cycle:
            momentum = onecycle_momentum(self._schedule.position(self.progress))
            for group in self.run.optimizer.param_groups:
                set_momentum(group, momentum)

    def own_state(self) -> dict[str, Any]:
        """A schedule remembers nothing: its rate is a function of progress."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set a parameter group's momentum, or the first beta of an Adam."""
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    elif group.get("momentum"):
        group["momentum"] = momentum
