"""The guard against divergence: what counts as one, and what becomes of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from gns.deciding.rate_control import RateControl
from gns.errors import InvalidSettingError, require_positive
from gns.features.statistics import usual_losses


class Judgement(Enum):
    """What becomes of a run after an interval."""

    GOOD = "good"  # it goes on, and is the state to go back to
    TAKE_BACK = "take back"  # it diverged: the last good state is put back, the rate cut, and it goes on
    LOST = "lost"  # it diverged once too often: it is taken back for the last time; without a guard it stays as it is


@dataclass(frozen=True)
class GuardConfig:
    """When a run is taken back, and what happens then.

    :param enabled: whether snapshots are taken at all
    :param loss_multiple: a mean interval loss above this multiple of the first loss counts as divergence
    :param cut: factor in (0, 1) on the rate after a rollback
    :param max_rollbacks: rollbacks after which a run goes on; one more, and it is lost
    :param folder: where snapshots are kept, made if it is not there; None: in memory
    """

    enabled: bool = True
    loss_multiple: float = 4.0
    cut: float = 0.1
    max_rollbacks: int = 5
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        require_positive("loss_multiple", self.loss_multiple)
        if not 0.0 < self.cut < 1.0:
            raise InvalidSettingError(f"cut is {self.cut}; expected a factor between 0 and 1.")
        if self.max_rollbacks < 0:
            raise InvalidSettingError(f"max_rollbacks is {self.max_rollbacks}; expected 0 or more.")


def judge(control: RateControl, guard: GuardConfig, rollbacks: int) -> Judgement:
    """Judge the interval that was observed last.

    Without a guard a loss that is only high is no end: the run is lost where something is not finite.

    :param control: of the run, which has just been observed
    :param rollbacks: of the run so far
    :raises OutOfOrderError: before any observation
    """
    if control.update == 0 or not diverged(control, guard.loss_multiple):
        return Judgement.GOOD
    if not guard.enabled:
        return Judgement.GOOD if control.finite else Judgement.LOST
    return Judgement.TAKE_BACK if rollbacks < guard.max_rollbacks else Judgement.LOST


def diverged(control: RateControl, loss_multiple: float) -> bool:
    """Say whether the interval that was observed last went wrong.

    :param control: of the run, which has just been observed
    :param loss_multiple: how many times its start the mean loss may reach
    :return: True if a loss, gradient, parameter or optimizer state is not finite, or the loss rose too far
    :raises OutOfOrderError: before any observation
    """
    losses = control.observed_losses
    if not control.finite:
        return True
    if not losses.size:
        return False
    start = control.memory.start_loss
    if math.isnan(start):
        usual = losses[usual_losses(losses, np.ones(len(losses), dtype=bool))]  # an outlier is no start
        start = float(usual[0] if usual.size else losses[0])
    # Of a positive start a multiple; a loss that starts at or below 0 may rise by as much.
    return bool(losses.mean() > start + (loss_multiple - 1.0) * max(abs(start), 1e-8))
