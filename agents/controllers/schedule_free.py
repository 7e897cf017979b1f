"""Schedule-free optimizers (Defazio et al., "The Road Less Scheduled", NeurIPS 2024), by ``schedulefree``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, cast

from agents.controllers.base import Controller, new_run, require_share
from agents.controllers.peers import AveragingSession, package
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import UnknownNameError

_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGDScheduleFree", {"momentum": 0.9}),
    "sgdm": ("SGDScheduleFree", {"momentum": 0.9}),
    "adam": ("AdamWScheduleFree", {"weight_decay": 0.0}),
    "adamw": ("AdamWScheduleFree", {"weight_decay": 0.01}),
    "nadamw": ("AdamWScheduleFree", {"weight_decay": 0.01}),
}


@dataclass(frozen=True)
class ScheduleFreeController(Controller):
    """The schedule-free counterpart of the optimizer asked for; its rate is tuned.

    Gradients are taken at one point and another, an average, is evaluated: the optimizer is switched for every
    evaluation, and batch norm's statistics are computed anew at the evaluated weights.

    :param warmup: share of the budget over which the rate climbs linearly
    :param batch_norm_batches: training batches that batch norm's statistics are computed on
    """

    kind: ClassVar[str] = "schedule-free"
    tuned: ClassVar[bool] = True

    warmup: float = 0.05
    batch_norm_batches: int = 50

    def __post_init__(self) -> None:
        require_share("warmup", self.warmup)

    def start(self, episode: Episode) -> _ScheduleFreeSession:
        """Begin a training run.

        :raises MissingPackageError: if ``schedulefree`` is not installed
        :raises UnknownNameError: if the optimizer has no schedule-free counterpart
        """
        if episode.optimizer not in _OPTIMIZERS:
            raise UnknownNameError("optimizer with a schedule-free counterpart", episode.optimizer, _OPTIMIZERS)
        name, settings = _OPTIMIZERS[episode.optimizer]
        cls = getattr(package("schedulefree"), name)
        warmup = round(self.warmup * episode.budget)
        run = new_run(episode, lambda parameters, lr: cls(parameters, lr=lr, warmup_steps=warmup, **settings))
        return _ScheduleFreeSession(run, episode.budget, warmup, self.batch_norm_batches)


@dataclass(frozen=True)
class DefaultScheduleFreeController(ScheduleFreeController):
    """The same from the rate that the package has as its default (1.0 for SGD, 2.5e-3 for AdamW): nothing is tuned."""

    kind: ClassVar[str] = "schedule-free-default"
    tuned: ClassVar[bool] = False
    own_rate: ClassVar[bool] = True

    def start(self, episode: Episode) -> _ScheduleFreeSession:
        """Begin a training run; of the episode's rate only the ratios of parameter groups' rates to it are of use."""
        session = super().start(episode)
        session.start_from(float(signature(type(session.run.optimizer)).parameters["lr"].default))
        return session


class _ScheduleFreeSession(AveragingSession):
    def __init__(self, run: TrainingRun, budget: int, warmup: int, batches: int) -> None:
        super().__init__(run, budget)
        self._optimizer = cast(Any, run.optimizer)  # has train() and eval() beside PyTorch's interface
        self._optimizer.train()
        self._initial, self._warmup = float(run.optimizer.param_groups[0]["lr"]), warmup
        self.batch_norm_batches = batches

    def start_from(self, rate: float) -> None:
        """Take another initial rate, before the first update."""
        self._initial = rate
        self.set_rate(rate)

    def before_update(self) -> None:
        """Note the rate, which the optimizer warms up by itself."""
        share = min(1.0, (self.ledger.updates + 1) / self._warmup) if self._warmup else 1.0
        self.rates.append(self._initial * share)

    def average(self) -> None:
        """Switch the optimizer to the averaged weights."""
        self._optimizer.eval()

    def resume(self) -> None:
        """Switch it back."""
        self._optimizer.train()

    def own_state(self) -> dict[str, Any]:
        """All state is the optimizer's."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""
