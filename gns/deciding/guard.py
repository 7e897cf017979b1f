"""The guard against divergence: what counts as one, and what becomes of the run."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from torch import nn

from gns.deciding.rate_control import RateControl
from gns.errors import InvalidSettingError, require_positive
from gns.features.statistics import usual_losses

# What a run that stays where it began is told by; measured, see docs/scheduler.md.
_DOUBTS, _FEWEST, _CALM, _RISE, _DEVIATIONS, _NO_BETTER, _LEARNED = 2, 4, 0.1, 0.2, 4.0, 0.02, 0.2
_STEEPER = 20.0
_LARGEST_SNAPSHOT = 2**30  # bytes
_logger = logging.getLogger("gns.scheduler.scheduler")  # the name that its users know


class Judgement(Enum):
    """What becomes of a run after an interval."""

    GOOD = "good"  # it goes on, and is the state to go back to
    DOUBTFUL = "doubtful"  # it goes on, but is no state to go back to: its loss is too high, or rose and stays
    TAKE_BACK = "take back"  # it diverged: the last good state is put back, the rate cut, and it goes on
    LOST = "lost"  # it diverged once too often: it is taken back for the last time; without a guard it stays as it is

    @property
    def goes_on(self) -> bool:
        """Whether the run goes on from where it is."""
        return self in (Judgement.GOOD, Judgement.DOUBTFUL)


@dataclass(frozen=True)
class GuardConfig:
    """When a run is taken back, and what happens then.

    :param enabled: whether snapshots are taken at all
    :param loss_multiple: a mean interval loss above this multiple of the first loss counts as divergence; so does what
        :class:`Watch` names besides
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


def guard_for(model: nn.Module) -> GuardConfig | None:
    """Return the guard of a run that was given none: one in memory, unless its snapshot might take more than 1 GiB."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    # Of trained parameters two momenta besides, as Adam has; a sharded one is counted whole, alike on all ranks.
    size = sum(t.numel() * t.element_size() * (3 if t.requires_grad else 1) for t in held)
    if size <= _LARGEST_SNAPSHOT:
        return GuardConfig()
    _logger.warning(
        "No guard against divergence: a snapshot of %s might take %.1f GiB. Give guard=GuardConfig() to keep it in "
        "memory all the same, guard=GuardConfig(folder=...) to keep it on disk, or guard=None to do without.",
        type(model).__name__,
        size / 2**30,
    )
    return None


@dataclass
class Watch:
    """What the guard remembers of one run, and judges it by.

    :param rollbacks: how often it was taken back
    :param peak: highest level that three losses in a row have reached, since the start or the last rollback
    :param best: lowest mean loss of an interval, since the start or the last rollback
    :param doubts: intervals in a row, up to the last, in which it stayed where it began
    :param gradient: norm of the gradient that was pending when it was judged last, and went on
    """

    rollbacks: int = 0
    peak: float = -math.inf
    best: float = math.inf
    doubts: int = 0
    gradient: float = 0.0

    def judge(self, control: RateControl, guard: GuardConfig, last: bool = False) -> Judgement:
        """Judge the interval that was observed last; once an interval, since it counts.

        A run has diverged if a loss (unless the run has come back from it), gradient, parameter or optimizer state is
        not finite, if its mean loss rose above ``loss_multiple`` times the first one (at its end: that of the last
        quarter of the interval), or if it learned or rose and then stayed where it began for two intervals, as a
        network does whose units are dead: see
        :func:`stays_where_it_began`. It is doubtful if it stayed there for one, if a loss of the last quarter is as
        high, or if the pending gradient is twenty times as large as at the last decision: to go back to such a state
        would be to diverge again at any rate.

        Without a guard a loss that is only high is no end: the run is lost where something is not finite.

        :param control: of the run, which has just been observed
        :param last: whether no update follows, the budget spent or not
        :raises OutOfOrderError: before any observation
        """
        if control.update == 0:
            self.gradient = control.observed_gradient
            return Judgement.GOOD
        if not guard.enabled:
            return Judgement.GOOD if control.finite else Judgement.LOST
        end = control.observed_losses[-math.ceil(len(control.observed_losses) / 4) :]
        limit = guard.loss_multiple - 1.0
        bad = diverged(control, guard.loss_multiple) or ((last or control.finished) and _too_high(control, end, limit))
        if bad and _came_back(control, limit):
            return Judgement.DOUBTFUL
        if not bad and control.observed_losses.size:
            self.peak = max(self.peak, lasting_peak(control.observed_losses))
            self.best = min(self.best, float(control.observed_losses.mean()))
            self.doubts = self.doubts + 1 if stays_where_it_began(control, self.peak, self.best) else 0
        if not bad and self.doubts < _DOUBTS:
            steeper = control.observed_gradient > _STEEPER * self.gradient > 0.0
            self.gradient = control.observed_gradient
            doubtful = self.doubts or steeper or any(_too_high(control, loss, limit) for loss in end)
            return Judgement.DOUBTFUL if doubtful else Judgement.GOOD
        self.rollbacks, self.peak, self.best, self.doubts = self.rollbacks + 1, -math.inf, math.inf, 0
        return Judgement.TAKE_BACK if self.rollbacks <= guard.max_rollbacks else Judgement.LOST


def diverged(control: RateControl, loss_multiple: float) -> bool:
    """Say whether the interval that was observed last is not finite, or its loss rose too far.

    :param control: of the run, which has just been observed
    :param loss_multiple: how many times its start the mean loss may reach
    :raises OutOfOrderError: before any observation
    """
    return not control.finite or _too_high(control, control.observed_losses, loss_multiple - 1.0)


def _came_back(control: RateControl, limit: float) -> bool:
    """Say whether outliers are all that is wrong, and the run has come back from them: one bad batch is no divergence.

    An outlier is a loss that is not finite, or a thousand times the others. The last loss is none, the mean of the
    others is not too high, and parameters, gradients and optimizer state are finite.
    """
    losses = control.observed_losses
    usual = usual_losses(losses, np.ones(len(losses), dtype=bool), control.memory.first_loss)
    if usual.all() or not usual[-1] or not control.state_finite:
        return False
    return not _too_high(control, losses[usual], limit)


def stays_where_it_began(control: RateControl, peak: float, best: float) -> bool:
    """Say whether the interval observed last is calmly no better than the first loss, though it learned or rose.

    No better: its mean is at most 2 % below the first loss. Calm: the standard deviation of its losses, four or more,
    is at most a tenth of the first. Learned: an interval's mean was 20 % below the first loss. Rose: three losses in a
    row were 20 % above it, and four standard deviations above the mean. A run that learns slowly did neither; one whose
    losses are noisy is not calm.

    :param control: of the run, which has just been observed
    :param peak: see :class:`Watch`
    :param best: likewise
    """
    losses = control.observed_losses
    if len(losses) < _FEWEST:
        return False
    mean, spread = float(losses.mean()), float(losses.std())
    calm = spread <= _above_start(control, _CALM) - _above_start(control, 0.0)
    rose = peak > _above_start(control, _RISE) and peak - mean >= _DEVIATIONS * spread
    learned = best <= _above_start(control, -_LEARNED)
    return calm and (rose or learned) and mean >= _above_start(control, -_NO_BETTER)


def lasting_peak(losses: np.ndarray) -> float:
    """Return the highest level that three losses in a row reach; minus infinity of fewer."""
    if len(losses) < 3:
        return -math.inf
    return float(np.minimum(np.minimum(losses[:-2], losses[1:-1]), losses[2:]).max())


def _too_high(control: RateControl, losses: np.ndarray, share: float) -> bool:
    """Say whether the mean of losses lies above the first by more than a share of its size; of none it does not."""
    return bool(losses.size) and bool(losses.mean() > _above_start(control, share))


def _above_start(control: RateControl, share: float) -> float:
    """Return the first loss of a run plus a share of its size: a multiple of it, where it is positive."""
    start = control.memory.start_loss
    if math.isnan(start):
        losses = control.observed_losses
        usual = losses[usual_losses(losses, np.ones(len(losses), dtype=bool))]  # an outlier is no start
        start = float(usual[0] if usual.size else losses[0])
    return start + share * max(abs(start), 1e-8)
