"""What a scheduler remembers of its decisions, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecisionRecord:
    """One decision, or one rollback of the guard.

    :param update: updates done before it
    :param learning_rate: rate of the first parameter group for the coming update
    :param multiplier: factor it put on the scale of the rates
    :param action: what the policy answered, in [-1, 1]; None at a rollback, where no policy is asked
    :param features: global features that the policy saw, by name; at a rollback those of the undone interval
    :param rollback: whether the guard took the run back here
    :param finite: whether losses, gradients, parameters and optimizer state were all finite
    """

    update: int
    learning_rate: float
    multiplier: float
    action: float | None
    features: dict[str, float]
    rollback: bool = False
    finite: bool = True


def draw_history(history: Sequence[DecisionRecord], axis: Any = None) -> Any:
    """Draw the rate over updates with matplotlib: a dot a decision, a cross a rollback.

    :param history: records in the order they were made
    :param axis: matplotlib axes; new ones by default
    :return: the axes
    """
    from matplotlib import pyplot as plt

    if axis is None:
        _, axis = plt.subplots(figsize=(6.0, 3.0), layout="constrained")
    axis.plot([r.update for r in history], [r.learning_rate for r in history], color="#0072B2", lw=1, zorder=1)
    for rollback, marker, colour, label in ((False, "o", "#0072B2", "decision"), (True, "X", "#D55E00", "rollback")):
        chosen = [r for r in history if r.rollback is rollback]
        if chosen:
            updates, rates = [r.update for r in chosen], [r.learning_rate for r in chosen]
            axis.scatter(updates, rates, color=colour, marker=marker, s=24, label=label, zorder=2)
            axis.legend(fontsize=8)
    axis.set_yscale("log")
    axis.set_xlabel("update")
    axis.set_ylabel("learning rate")
    return axis
