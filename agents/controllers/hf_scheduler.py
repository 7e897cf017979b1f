"""The schedules of transformers, by its own ``get_scheduler``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from agents.controllers.base import Controller, Session, new_run, require_share
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, UnknownNameError


@dataclass(frozen=True)
class HFSchedulerController(Controller):
    """A schedule by its name in ``transformers.SchedulerType``, as the HF Trainer would run it; its rate is tuned.

    With a warm-up the first update has a rate of 0, as there.

    :param scheduler: name, such as ``cosine_with_restarts``
    :param warmup: share of the budget that is warm-up
    :param settings: ``scheduler_specific_kwargs``, such as ``num_cycles``
    """

    kind: ClassVar[str] = "hf-scheduler"
    is_schedule: ClassVar[bool] = True
    tuned: ClassVar[bool] = True

    scheduler: str = "linear"
    warmup: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import SchedulerType

        names = [item.value for item in SchedulerType]
        if self.scheduler not in names:
            raise UnknownNameError("scheduler of transformers", self.scheduler, names)
        if self.scheduler in ("reduce_lr_on_plateau", "greedy"):
            raise InvalidSettingError(
                f"scheduler is {self.scheduler!r}, which waits for a metric; expected a function of progress. Use the "
                "controller plateau."
            )
        require_share("warmup", self.warmup)

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises InvalidSettingError: if the schedule does not take one of the settings
        """
        return _HFSession(new_run(episode), episode.budget, self)


class _HFSession(Session):
    def __init__(self, run: TrainingRun, budget: int, controller: HFSchedulerController) -> None:
        from transformers import get_scheduler

        super().__init__(run, budget)
        name, settings = controller.scheduler, dict(controller.settings)
        if name == "warmup_stable_decay":
            settings.setdefault("num_decay_steps", max(1, budget // 5))
        try:
            self._scheduler = get_scheduler(name, run.optimizer, round(controller.warmup * budget), budget, settings)
        except (TypeError, ValueError) as error:
            raise InvalidSettingError(f"settings of scheduler {name!r} are {settings}: {error}") from error

    def before_update(self) -> None:
        """Note the rate, which the schedule wrote after the last update."""
        self.rates.append(float(self.run.optimizer.param_groups[0]["lr"]))

    def after_update(self, loss: Tensor) -> None:
        """Let the schedule write the next rate."""
        super().after_update(loss)
        self._scheduler.step()

    def own_state(self) -> dict[str, Any]:
        """The scheduler's state."""
        return dict(self._scheduler.state_dict())

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        self._scheduler.load_state_dict(dict(state))
