"""What sets the learning rate of a training run: the interface of every method, and what it cost.

A :class:`Controller` is a method with its settings; it can be sent to another process. :meth:`Controller.start` begins
a :class:`Session`, one run under that method. Per update the order is::

    session.before_gradient()
    run.compute_gradient()         # the gradient of the coming update is pending
    session.before_update()        # writes the rate of this update into every parameter group
    run.apply_update()
    session.after_update(run.loss)

A search that tries rates is part of the same order: its updates are made on the run and then undone, and the ledger
counts them apart.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.training.resuming import Resuming
from envs.episode import Episode
from envs.episode import new_run as new_run  # what a controller's session begins with
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError, OutOfOrderError

LOWEST_RATE, HIGHEST_RATE = 1e-8, 10.0  # bounds of adaptive methods unless they say otherwise


@dataclass
class Ledger:
    """What a run cost.

    :param updates: updates of training, which count towards the budget
    :param search_updates: updates made to find a rate, and undone
    :param evaluations: passes over the whole reward split, the one at the end among them
    :param validation_batches: batches of the reward split that a gradient was taken on
    :param hessian_products: Hessian-vector products
    :param rollbacks: times the run was taken back because it diverged
    :param seconds: wall-clock time of all of that but the evaluation at the end
    """

    updates: int = 0
    search_updates: int = 0
    evaluations: int = 0
    validation_batches: int = 0
    hessian_products: int = 0
    rollbacks: int = 0
    seconds: float = 0.0


@dataclass
class TrainedRun:
    """A finished training run.

    :param model: the trained model
    :param reward_loss: loss on the reward split at the end
    :param ledger: what it cost
    :param rates: learning rate of the first parameter group at each update of training
    :param losses: loss of the batch of each update
    """

    model: nn.Module
    reward_loss: float
    ledger: Ledger
    rates: list[float] = field(repr=False)
    losses: list[float] = field(default_factory=list, repr=False)


class Session(ABC):
    """One training run under a controller.

    Rates of parameter groups keep the ratios that the task gave them: the first group gets the rate, group i gets
    ``rate * initial_i / initial_0``.

    :param run: the training run, before its first update
    :param budget: updates of training
    """

    keep_graph: ClassVar[bool] = False  # whether Hessian-vector products are needed

    def __init__(self, run: TrainingRun, budget: int) -> None:
        self.run, self.budget = run, int(budget)
        self.ledger = Ledger()
        self.rates: list[float] = []
        self._losses: list[float] = []
        self._unread: list[Tensor] = []  # losses left on the device: to read one is to wait for its update
        first = float(run.optimizer.param_groups[0]["lr"])
        self.ratios = [float(group["lr"]) / first for group in run.optimizer.param_groups]

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        return self.ledger.updates >= self.budget

    @property
    def progress(self) -> float:
        """Updates of training done over budget."""
        return self.ledger.updates / self.budget

    def before_gradient(self) -> None:  # noqa: B027  (most methods have nothing to do here)
        """Get ready for the coming gradient: the last moment at which the run holds none."""

    @abstractmethod
    def before_update(self) -> None:
        """Write the rate of the coming update into every parameter group; its gradient is pending."""

    def after_update(self, loss: Tensor) -> None:
        """Note the update just done.

        :param loss: its loss, a scalar tensor; may be anything, NaN and infinity too
        """
        self.ledger.updates += 1
        self._unread.append(loss.detach())

    @property
    def losses(self) -> list[float]:
        """Loss of the batch of each update of training so far."""
        if self._unread:
            self._losses += torch.stack(self._unread).tolist()
            self._unread = []
        return list(self._losses)

    def update(self) -> None:
        """Make one update.

        :raises OutOfOrderError: if the run is over
        """
        if self.finished:
            raise OutOfOrderError(f"The run is over after {self.ledger.updates} updates; start another session.")
        start = time.perf_counter()
        self.before_gradient()
        self.run.compute_gradient(keep_graph=self.keep_graph)
        self.before_update()
        if not self.finished:  # a diverging run may have been given up
            self.run.apply_update()
            self.after_update(self.run.loss)
        self.ledger.seconds += time.perf_counter() - start

    def set_rate(self, rate: float) -> None:
        """Write a rate into the first parameter group, and in proportion into the others."""
        for group, ratio in zip(self.run.optimizer.param_groups, self.ratios, strict=True):
            own = rate * ratio
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(own)
            else:
                group["lr"] = own

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights that are to be evaluated."""
        return nullcontext()

    def reward_loss(self) -> float:
        """Return the loss on the whole reward split; the ledger counts it."""
        self.ledger.evaluations += 1
        with self.evaluating():
            return self.run.evaluate_reward_split().loss

    def finish(self) -> TrainedRun:
        """Evaluate the trained model, which from here on has the weights to evaluate."""
        return TrainedRun(self.run.model, self.reward_loss(), self.ledger, self.rates, self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, between updates: the session's state and the run's."""
        return {
            "run": self.run.state_dict(),
            "ledger": asdict(self.ledger),
            "rates": list(self.rates),
            "losses": self.losses,
            "ratios": list(self.ratios),
            "own": self.own_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a session of the same controller, task and optimizer."""
        self.run.load_state_dict(state["run"])
        self.ledger = Ledger(**state["ledger"])
        self.rates, self.ratios = list(state["rates"]), list(state["ratios"])
        self._losses, self._unread = list(state["losses"]), []
        self.load_own_state(state["own"])

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """Return what the method remembers beside the run, as copies: plain values, tensors, dictionaries."""

    @abstractmethod
    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`own_state` returned."""


@dataclass(frozen=True)
class Controller(ABC):
    """A method with its settings, which are the fields of the dataclass.

    A subclass with a ``kind`` is known to configurations by that name.

    :param name: its name in tables
    """

    kind: ClassVar[str] = ""
    tuned: ClassVar[bool] = False  # its initial rate is to be tuned, or else may be anything
    is_schedule: ClassVar[bool] = False  # tuned, and fixed: the best of these is what others are compared with
    own_rate: ClassVar[bool] = False  # takes no initial rate: it finds its own, and is not tuned

    name: str

    @property
    def rate_bounds(self) -> tuple[float, float]:
        """Lowest and highest rate that a run may start from."""
        return 0.0, math.inf

    @abstractmethod
    def start(self, episode: Episode) -> Session:
        """Begin a training run under this controller."""

    def planned_rates(self, episode: Episode) -> list[float] | None:
        """Return the rate of each update of a run, where these alone are what the method does to it, else None.

        Such runs may be trained side by side, without a session.
        """
        return None

    def check(self, task: Task, optimizer: str, budget: int) -> None:  # noqa: B027  (most can run anything)
        """Pass a setting that this controller can run.

        :raises InvalidSettingError: if it cannot
        """

    def train(self, episode: Episode, checkpoints: Resuming | None = None) -> TrainedRun:
        """Train a run from beginning to end.

        :param checkpoints: where its state is written, and gone on from if there is one
        """
        session = self.start(episode)
        state = checkpoints.newest() if checkpoints is not None else None
        if state is not None:
            session.load_state_dict(state)
        while not session.finished:
            session.update()
            if checkpoints is not None and checkpoints.due:
                checkpoints.write(session.state_dict, session.ledger.updates)
        return session.finish()

    def identity(self) -> dict[str, Any]:
        """Return what decides its results, as plain values: the kind and every setting, not the name."""
        settings = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "name"}
        return {"kind": self.kind, **{key: _plain(value) for key, value in settings.items()}}


def require_bounds(min_lr: float, max_lr: float) -> None:
    """Pass bounds of a rate.

    :raises InvalidSettingError: unless 0 < min_lr < max_lr < infinity
    """
    if not 0.0 < min_lr < max_lr < math.inf:
        raise InvalidSettingError(f"min_lr is {min_lr} and max_lr {max_lr}; expected 0 < min_lr < max_lr, both finite.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {"type": type(value).__name__, **{key: _plain(item) for key, item in asdict(value).items()}}
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def require_share(name: str, value: float) -> None:
    """Pass a share in [0, 1).

    :raises InvalidSettingError: on anything else
    """
    if not 0.0 <= value < 1.0:
        raise InvalidSettingError(f"{name} is {value!r}; expected a share in [0, 1).")
