"""What optimizers that set their own rate share; each is one file here that subclasses :class:`PeerController`.

Their packages belong to the extra ``peers``, which the project itself does not need.
"""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.controllers.base import Controller, Session, TrainedRun, new_run, require_share
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, MissingPackageError, require_positive
from gns.schedules.schedule import Schedule

WEIGHT_DECAY = {
    "adamw": 0.01,
    "nadamw": 0.01,
}  # of the optimizers asked for, as in envs.training_run.OPTIMIZERS; 0 elsewhere
MOMENTUM = {"sgdm": 0.9}


def package(name: str) -> ModuleType:
    """Import an optional package.

    :raises MissingPackageError: if it is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"The package {name!r} is not installed ({error}); install the extra it belongs to: "
            "pip install 'gns-scheduler[peers]'."
        ) from error


@dataclass(frozen=True)
class PeerController(Controller):
    """An optimizer that estimates its own step size; it takes no initial rate and one rate for all parameter groups.

    :param profile: schedule of the factor on its estimate, see :mod:`gns.schedules.profiles`
    :param warmup: share of the budget over which the factor climbs to 1
    :param scale: constant factor on its estimate; 1 is the package's own default
    """

    own_rate: ClassVar[bool] = True

    profile: str = "cosine"
    warmup: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_share("warmup", self.warmup)
        require_positive("scale", self.scale)
        self.schedule()

    def schedule(self) -> Schedule:
        """Return the schedule of its factor.

        :raises UnknownNameError: if there is no such profile
        """
        return Schedule(self.profile, warmup=self.warmup)

    @abstractmethod
    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return the package's counterpart of an optimizer, at the rate that the package has as its default.

        :param optimizer: a name in :data:`envs.training_run.OPTIMIZERS`
        :raises MissingPackageError: if the package is not installed
        """

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the rate of the update just made: what it would be called in the optimizer that it stands in for."""
        return float(optimizer.param_groups[0]["lr"])

    def begin(self, run: TrainingRun, budget: int) -> PeerSession:
        """Return a session of the run."""
        return PeerSession(self, run, budget)

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises MissingPackageError: if the package is not installed
        :raises InvalidSettingError: if parameter groups have different rates, which no such optimizer can keep
        """
        run = new_run(episode, lambda parameters, lr: self.make(episode.optimizer, _one_rate(self.kind, parameters)))
        return self.begin(run, episode.budget)


class PeerSession(Session):
    """A run whose optimizer sets its own rate; the session writes the factor on it.

    All state is the optimizer's.
    """

    def __init__(self, controller: PeerController, run: TrainingRun, budget: int) -> None:
        super().__init__(run, budget)
        self._controller, self._schedule = controller, controller.schedule().function
        self._default = controller.scale * float(run.optimizer.param_groups[0]["lr"])

    def before_update(self) -> None:
        """Write the schedule's factor."""
        self.set_rate(self._default * self._schedule(self.progress))

    def after_update(self, loss: Tensor) -> None:
        """Note the rate that the optimizer took."""
        super().after_update(loss)
        self.rates.append(self._controller.rate(self.run.optimizer))

    def own_state(self) -> dict[str, Any]:
        """All state is the optimizer's."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to put back."""


class AveragingSession(Session):
    """A run that is evaluated at other weights than those it trains with: an average of them.

    Batch norm's statistics are computed anew at the evaluated weights.

    :cvar batch_norm_batches: training batches that they are computed on
    """

    batch_norm_batches = 50

    @abstractmethod
    def average(self) -> None:
        """Give the model the weights that are evaluated."""

    def resume(self) -> None:
        """Make the optimizer ready to go on, before the model gets back the weights it trains with."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context with the averaged weights; afterwards the run goes on as if nothing had been."""
        return self._averaged()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        tensors = [*self.run.model.parameters(), *self.run.model.buffers()]
        kept = [tensor.detach().clone() for tensor in tensors]
        self._settle()
        try:
            yield
        finally:
            with torch.no_grad():
                self.resume()
                for tensor, value in zip(tensors, kept, strict=True):
                    tensor.copy_(value)

    def _settle(self) -> None:
        self.average()
        self.run.recalibrate_batch_norm(self.batch_norm_batches)

    def finish(self) -> TrainedRun:
        """Evaluate the trained model, which keeps the averaged weights."""
        self._settle()
        self.ledger.evaluations += 1
        loss = self.run.evaluate_reward_split().loss
        return TrainedRun(self.run.model, loss, self.ledger, self.rates, self.losses)


def _one_rate(kind: str, parameters: Any) -> Any:
    """Return parameters or groups whose rates are all alike, without these rates."""
    groups = list(parameters)
    if not groups or not isinstance(groups[0], dict):
        return groups
    rates = {float(group["lr"]) for group in groups if "lr" in group}
    if len(rates) > 1 or (rates and not all("lr" in group for group in groups)):
        raise InvalidSettingError(
            f"{kind} takes one rate for all parameter groups; theirs are {[group.get('lr') for group in groups]}. Use "
            "another controller, or a task whose groups share a rate."
        )
    return [{key: value for key, value in group.items() if key != "lr"} for group in groups]
