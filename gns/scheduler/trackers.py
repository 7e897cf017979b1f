"""A scheduler's figures, told at every decision and rollback to whatever keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gns.errors import InvalidSettingError

if TYPE_CHECKING:
    from gns.scheduler.history import DecisionRecord
    from gns.scheduler.run import ScheduledRun

Listener = Callable[[dict[str, float], int], None]


def figures(run: ScheduledRun) -> dict[str, float]:
    """Return how often was decided and taken back, and the multiplier of the last decision if there was one."""
    decisions = [record for record in run.history if not record.rollback]
    found: dict[str, float] = {"decisions": len(decisions), "rollbacks": run.rollbacks}
    return found | ({"multiplier": decisions[-1].multiplier} if decisions else {})


def tell(run: ScheduledRun, record: DecisionRecord, learning_rate: float) -> None:
    """Tell a run's listeners of its last record.

    :param learning_rate: of the coming update
    """
    if run.listeners:
        told = {"learning_rate": learning_rate, **figures(run), "multiplier": record.multiplier}
        for listener in run.listeners:
            listener(told, record.update)


def listener_for(target: Any, prefix: str) -> Listener:
    """Return what tells a target figures, named with a prefix, and the update that they are of.

    :param target: see :meth:`gns.GNSScheduler.log_to`
    :raises InvalidSettingError: if it is none
    """
    if hasattr(target, "add_scalar"):

        def tell(figures: dict[str, float], update: int) -> None:
            for name, value in figures.items():
                target.add_scalar(prefix + name, value, update)

    elif hasattr(target, "log") and hasattr(target, "define_metric"):
        target.define_metric(f"{prefix}*", step_metric=f"{prefix}update")  # its own steps are counted otherwise

        def tell(figures: dict[str, float], update: int) -> None:
            target.log(_named({**figures, "update": update}, prefix))

    elif hasattr(target, "log"):

        def tell(figures: dict[str, float], update: int) -> None:
            target.log(_named(figures, prefix), step=update)

    elif callable(target):

        def tell(figures: dict[str, float], update: int) -> None:
            target(_named(figures, prefix), update)

    else:
        raise InvalidSettingError(
            f"The target is a {type(target).__name__}; expected a run of W&B, a SummaryWriter of TensorBoard, an "
            "Accelerator, or a function of figures (a dictionary) and an update."
        )
    return tell


def _named(figures: dict[str, float], prefix: str) -> dict[str, float]:
    return {prefix + name: value for name, value in figures.items()}
