"""How long a run is: what is taken as ``total_steps``, and what is said of runs that end elsewhere."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
from dataclasses import replace
from typing import Any

from gns.deciding.config import DecisionConfig
from gns.deciding.phases import Phases
from gns.errors import InvalidSettingError, require_count

_logger = logging.getLogger("gns.scheduler.scheduler")  # the name that its users know


_FIRST = 20  # updates from one decision to the next where a run of unknown length begins
_EITHER = (
    "Give the number of updates to be made, total_steps=N, and the trainer the same, max_steps=N; or total_steps=None, "
    "and call scheduler.cooldown(steps) once the end is known."
)
_UNKNOWN = {  # what trainers say where they do not know
    -1: "so says a trainer whose data have no length (an IterableDataset) and whose max_steps is not set, however many "
    "epochs there are",
    math.inf: "so says a trainer without an end (max_epochs=-1 and no max_steps)",
}


def updates_of(total_steps: Any, name: str = "total_steps") -> int:
    """Return a number of updates.

    :param name: by which it was given
    :raises InvalidSettingError: if it is none; where it stands for an unknown length, with what to do then
    """
    try:
        require_count(name, total_steps)
    except InvalidSettingError as problem:
        if isinstance(total_steps, int | float) and total_steps in _UNKNOWN:
            raise InvalidSettingError(f"{problem} It is not known: {_UNKNOWN[total_steps]}. {_EITHER}") from None
        raise
    return int(total_steps)


def planned(total_steps: Any, warmup_steps: Any, decision: DecisionConfig) -> tuple[int, Phases]:
    """Return the number of updates of a run that begins, or what is taken for it, and what comes before its profile.

    :param total_steps: None: not known
    :param warmup_steps: updates of the warm-up; 0: none
    :raises InvalidSettingError: if one is no number of updates; if the warm-up is all of the run; if the length is not
        known and the policy decides but once
    """
    warmup = 0 if warmup_steps == 0 and not isinstance(warmup_steps, bool) else updates_of(warmup_steps, "warmup_steps")
    if total_steps is not None:
        budget = updates_of(total_steps)
        if warmup >= budget:
            raise InvalidSettingError(
                f"warmup_steps is {warmup} and total_steps {budget}, of which it is a part; expected fewer."
            )
        return budget, Phases(warmup, warmup)
    if decision.decision_interval is None and decision.num_decisions < 2:
        raise InvalidSettingError(
            "total_steps is None, and the policy takes one decision a run; expected a policy of several. Give "
            "total_steps=N."
        )
    interval = decision.decision_interval
    first = _FIRST * decision.num_decisions if interval is None else 4 * interval
    return max(first, 2 * warmup), Phases(warmup, None)


def few_enough(decision: DecisionConfig, budget: int) -> DecisionConfig:
    """Return the settings with no more decisions than a short run, such as a smoke run, has updates."""
    if decision.decision_interval is None and budget < decision.num_decisions:
        return replace(decision, num_decisions=budget)
    return decision


# ---------------------------------------------------------------------- runs that end before their budget is spent


class Progress:
    """Where a run stands, for whoever sees it end: a framework, or the end of the process."""

    def __init__(self) -> None:
        self._done = 0
        self._budget: int | None = 0
        self._rate: Any = None
        self._told = False

    def note(self, done: int, budget: int | None, rate: Any) -> None:
        """Note updates done, updates the run was made for if they are known, and the first parameter group's rate."""
        if not self._done:
            _last[:] = [self]
        self._done, self._budget, self._rate = done, budget, rate

    def tell_if_unfinished(self) -> None:
        """Log that the run ended early, and which number to give; once."""
        if self._told or (self._budget is not None and self._done >= self._budget):
            return
        self._told = True
        if self._budget is None:
            _logger.warning(
                "The run ended after %d updates, at a rate of %.2g that was yet to come down. Call "
                "scheduler.cooldown(steps) as many updates before the end. If it will be resumed, all is well.",
                self._done,
                float(self._rate),
            )
            return
        _logger.warning(
            "The run ended after %d of total_steps=%d updates, at a rate of %.2g that was yet to come down. If this "
            "was all of it, give total_steps=%d: the updates that this process makes, which of a prepared loader of "
            "several processes are a share. If it will be resumed, all is well.",
            self._done,
            self._budget,
            float(self._rate),
            self._done,
        )


_last: list[Progress] = []  # of the run that was begun last in this process, of which its end tells


@atexit.register
def _at_exit() -> None:
    interrupted = getattr(sys, "last_value", None) is not None
    if _last and not interrupted and os.environ.get("RANK", "0") == "0":
        _last[0].tell_if_unfinished()
