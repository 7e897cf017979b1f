"""PyTorch Lightning: the losses of a run, which its trainer shows to callbacks, told to the run's schedulers.

A ``Trainer`` calls ``training_step``, not the module, so a scheduler on a ``LightningModule`` sees no output. It adds a
:class:`LossReporter` to the trainer's callbacks by itself; for one on a module *inside*, the user passes it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gns.errors import InvalidSettingError

PACKAGES = ("pytorch_lightning", "lightning.pytorch")  # one framework under two names


def _package() -> str:
    """Return the name under which the framework is in use, else the one under which it is installed."""
    in_use = next((name for name in PACKAGES if name in sys.modules), None)
    return in_use or (PACKAGES[0] if find_spec(PACKAGES[0]) else PACKAGES[1])


if TYPE_CHECKING:
    from pytorch_lightning import Callback

    from gns.scheduler.scheduler import GNSScheduler
else:
    Callback = import_module(_package()).Callback  # a trainer of either name takes it


class LossReporter(Callback):
    """Tells the GNSSchedulers of a trainer its losses and, the first time, the layer graph.

    An update's loss is the mean of those that went backward since the last step of any optimizer, undivided by
    ``accumulate_grad_batches`` and unscaled. A trainer needs one at most. It has nothing to keep in a checkpoint.

    :raises InvalidSettingError: as training starts, if the trainer is not to step a scheduler at every update
    """

    def __init__(self) -> None:
        self._logged: weakref.WeakSet[GNSScheduler] = weakref.WeakSet()  # whose figures the trainer's loggers get
        self._schedulers: weakref.WeakSet[GNSScheduler] = weakref.WeakSet()
        self._losses: list[Tensor] = []
        self._stepped = False  # since the last loss: the next one is another update's
        self._told: weakref.WeakSet[GNSScheduler] = weakref.WeakSet()  # of these losses

    def __reduce__(self) -> tuple[Any, ...]:
        return LossReporter, ()  # the trainer of a copy has schedulers of its own

    def add(self, scheduler: GNSScheduler) -> None:
        """Report to a scheduler from now on."""
        self._schedulers.add(scheduler)

    def discard(self, scheduler: GNSScheduler) -> None:
        """Report to it no more."""
        self._schedulers.discard(scheduler)

    # ------------------------------------------------------------------ what a trainer calls

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the schedulers that did not find this callback, and see that they will be stepped."""
        for config in trainer.lr_scheduler_configs:
            for scheduler in _inside(config.scheduler):
                self.add(scheduler)
                if pl_module.automatic_optimization and (config.interval, config.frequency) != ("step", 1):
                    raise InvalidSettingError(
                        f"The GNSScheduler has interval {config.interval!r} and frequency {config.frequency}; expected "
                        "'step' and 1, since it decides within epochs. Return from configure_optimizers "
                        '{"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}.'
                    )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin anew; a run that is at its very start begins at the rates that a learning-rate finder may have set.

        The trainer's loggers get the figures of the schedulers it was returned, see :meth:`gns.GNSScheduler.log_to`.
        """
        self._begin_update()
        for scheduler in self._schedulers:
            scheduler._begin_at_rates_found()
        returned = [scheduler for config in trainer.lr_scheduler_configs for scheduler in _inside(config.scheduler)]
        for number, scheduler in enumerate(returned if trainer.loggers else []):
            if scheduler not in self._logged:
                self._logged.add(scheduler)
                scheduler.log_to(_Loggers(trainer), f"gns_{number}/" if number else "gns/")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say of runs that ended before their budget was spent which number to give."""
        for scheduler in self._schedulers:
            scheduler._progress.tell_if_unfinished()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Take note of a loss, with its autograd graph as long as a scheduler lacks the layer graph."""
        if self._stepped:
            self._begin_update()
        known = all(scheduler.graph is not None for scheduler in self._schedulers)
        self._losses.append(_as_computed(loss.detach() if known else loss, trainer, pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Tell the losses since the last step to the schedulers of the optimizer that is stepped now."""
        self._stepped = True
        for scheduler in self._schedulers:
            if scheduler.optimizer is optimizer:
                self.tell(scheduler)

    # ------------------------------------------------------------------ inside

    def tell(self, scheduler: GNSScheduler, again: bool = True) -> None:
        """Tell a scheduler the losses since the last step; if not ``again``, only those that it does not know."""
        self._stepped = True
        if again or scheduler not in self._told:
            self._told.add(scheduler)
            for loss in self._losses:
                scheduler.report_loss(loss)

    def _begin_update(self) -> None:
        self._losses.clear()
        self._told.clear()
        self._stepped = False


class _Loggers:
    """The loggers of a trainer, as a target of :meth:`gns.GNSScheduler.log_to`; refers to the trainer weakly."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = weakref.ref(trainer)

    def log(self, figures: dict[str, float], step: int) -> None:
        """Log figures at an update."""
        trainer = self._trainer()
        for logger in trainer.loggers if trainer is not None else ():
            logger.log_metrics(figures, step)


class Subscription:
    """One scheduler's place with the reporter of its trainer; refers to both weakly."""

    def __init__(self, scheduler: weakref.ref[GNSScheduler], reporter: LossReporter, trainer: Any) -> None:
        self._scheduler, self._reporter, self._trainer = scheduler, reporter, weakref.ref(trainer)

    def ready(self, closure: bool) -> bool:
        """Say whether the scheduler is to do its work, and not the trainer without its callbacks.

        :param closure: whether the optimizer is stepped with one, which will go through the trainer; where it is
            stepped without, past the trainer perhaps, the losses are told now
        """
        trainer, scheduler = self._trainer(), self._scheduler()
        if trainer is not None and self._reporter not in trainer.callbacks:
            return False
        if not closure and scheduler is not None:
            self._reporter.tell(scheduler, again=False)
        return True

    def remove(self) -> None:
        """Report to the scheduler no more."""
        if (scheduler := self._scheduler()) is not None:
            self._reporter.discard(scheduler)


def report_to(scheduler: weakref.ref[GNSScheduler], trainer: Any) -> Subscription:
    """Let a trainer's reporter, which is added to its callbacks if there is none, report to a scheduler."""
    reporter = next((callback for callback in trainer.callbacks if isinstance(callback, LossReporter)), None)
    if reporter is None:
        reporter = LossReporter()
        trainer.callbacks.append(reporter)  # not before others: the list may be gone through just now
    if (alive := scheduler()) is not None:
        reporter.add(alive)
    return Subscription(scheduler, reporter, trainer)


def _inside(scheduler: Any) -> Iterator[GNSScheduler]:
    """Yield the GNSSchedulers in a scheduler: itself, or those that PyTorch's combinations hold."""
    if hasattr(scheduler, "report_loss"):  # not by its class, whose module imports this one
        yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _inside(part)


def _as_computed(loss: Tensor, trainer: Any, pl_module: Any) -> Tensor:
    """Undo what Lightning did to a loss before its backward pass; nothing is copied to the host."""
    value = loss.float()
    if pl_module.automatic_optimization:
        value = value * trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        value = value / scaler.scale(torch.ones((), device=value.device))
    return value
