"""Episodes: what one of them trains, and what an environment says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.plain_state import require_entries
from envs.tasks import Task
from envs.training_run import OptimizerFactory, TrainingRun
from gns.deciding.config import DecisionConfig
from gns.deciding.rate_control import RateControl


@dataclass(frozen=True)
class Episode:
    """What one episode trains."""

    task: Task
    optimizer: str
    budget: int
    learning_rate: float
    seed: int
    device: str = "cpu"

    def state_dict(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """Return it in plain values.

        :param tasks: those of its environment; which of them it is
        """
        number = next(i for i, task in enumerate(tasks) if task is self.task)
        names = ("optimizer", "budget", "learning_rate", "seed")
        return {"task": self.task.name, "number": number, **{name: getattr(self, name) for name in names}}


def episode_of(state: dict[str, Any], tasks: Sequence[Task], device: str) -> Episode:
    """Return the episode of a :meth:`Episode.state_dict`.

    :param tasks: those of its environment
    :raises StateError: if these are not the tasks it was drawn from
    """
    number = state["number"]
    require_entries(state, {"task": tasks[number].name if number < len(tasks) else [task.name for task in tasks]})
    return Episode(tasks[number], state["optimizer"], state["budget"], state["learning_rate"], state["seed"], device)


def new_run(
    episode: Episode, make_optimizer: OptimizerFactory | None = None, decision: DecisionConfig | None = None
) -> TrainingRun:
    """Return the training run of an episode, before its first update.

    :param make_optimizer: see :class:`envs.training_run.TrainingRun`
    :param decision: how its rates will be decided; None: alike for all layers
    """
    by_layer = decision is not None and decision.per_layer
    rate, seed, device = episode.learning_rate, episode.seed, episode.device
    return TrainingRun(episode.task, episode.optimizer, rate, seed, device, make_optimizer, by_layer)


def episode_info(
    episode: Episode, control: RateControl, rollbacks: int, ended: tuple[float, float, int, bool] | None
) -> dict[str, Any]:
    """Return what an environment says of an episode beside its observations.

    :param ended: loss and metric on the reward split, evaluations, and whether the run was lost; None before the end
    """
    info: dict[str, Any] = {
        "task": episode.task.name,
        "optimizer": episode.optimizer,
        "budget": episode.budget,
        "initial_lr": episode.learning_rate,
        "learning_rate": control.learning_rate,
        "update": control.update,
        "rollbacks": rollbacks,
    }
    if ended is not None:
        info |= dict(zip(("reward_loss", "reward_metric", "evaluations", "diverged"), ended, strict=True))
    return info
