"""Fixed schedules: the initial rate times a profile of progress, read at every update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.controllers.base import Stopwatch, TrainedRun
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.profiles import get_profile, onecycle_momentum


@dataclass(frozen=True)
class ScheduleController:
    """A schedule of the REX paper (Chen et al., MLSys 2022, section 3): rate at update t is ``initial * f(t / T)``.

    :param name: its name in tables
    :param profile: name of f in :mod:`gns.profiles`
    :param cycle_momentum: let momentum (Adam's beta1) run against the rate, as one-cycle does
    """

    name: str
    profile: str
    cycle_momentum: bool = False
    tuned: bool = True

    def __post_init__(self) -> None:
        get_profile(self.profile)

    def identity(self) -> dict[str, Any]:
        """Return what a result depends on: plain JSON values, without the name."""
        return {"kind": "schedule", "profile": self.profile, "cycle_momentum": self.cycle_momentum}

    def train(self, episode: Episode) -> TrainedRun:
        """Train a run; nothing watches over it, and a run that diverges stays diverged."""
        watch = Stopwatch()
        run = TrainingRun(episode.task, episode.optimizer, episode.learning_rate, episode.seed, episode.device)
        profile = get_profile(self.profile)
        groups = [(group, group["lr"] / run.optimizer.param_groups[0]["lr"]) for group in run.optimizer.param_groups]
        rates = []
        for update in range(episode.budget):
            progress = update / episode.budget
            rates.append(episode.learning_rate * profile(progress))
            for group, ratio in groups:
                group["lr"] = ratio * rates[-1]
                if self.cycle_momentum:
                    set_momentum(group, onecycle_momentum(progress))
            run.compute_gradient()
            run.apply_update()
        seconds = watch.seconds()
        loss = run.evaluate_reward_split().loss
        return TrainedRun(run.model, loss, episode.budget, 1, 0, seconds, rates)


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Set a parameter group's momentum, or the first beta of an Adam."""
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    elif group.get("momentum"):
        group["momentum"] = momentum
