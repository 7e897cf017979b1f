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
from gns.errors import InvalidSettingError, require_count

_logger = logging.getLogger("gns.scheduler.scheduler")  # the name that its users know


def updates_of(total_steps: Any) -> int:
    """Return a number of updates.

    :raises InvalidSettingError: if it is none; where it stands for an unknown length, with what to do then
    """
    try:
        require_count("total_steps", total_steps)
    except InvalidSettingError as problem:
        if total_steps is None or total_steps in (-1, math.inf):
            raise InvalidSettingError(
                f"{problem} The length of the run is not known, as with data that have none (an IterableDataset) or "
                "without an end (max_epochs=-1). Give the number of updates to be made, total_steps=N, and the trainer "
                "the same (max_steps=N); once another is known, set scheduler.budget to it."
            ) from None
        raise
    return int(total_steps)


def few_enough(decision: DecisionConfig, budget: int) -> DecisionConfig:
    """Return the settings with no more decisions than a short run, such as a smoke run, has updates."""
    if decision.decision_interval is None and budget < decision.num_decisions:
        return replace(decision, num_decisions=budget)
    return decision


# ---------------------------------------------------------------------- runs that end before their budget is spent


class Progress:
    """Where a run stands, for whoever sees it end: a framework, or the end of the process."""

    def __init__(self) -> None:
        self._done = self._budget = 0
        self._rate: Any = None
        self._told = False

    def note(self, done: int, budget: int, rate: Any) -> None:
        """Note updates done, updates the run was made for, and the rate of the first parameter group."""
        if not self._done:
            _last[:] = [self]
        self._done, self._budget, self._rate = done, budget, rate

    def tell_if_unfinished(self) -> None:
        """Log that the run ended early, and which number to give; once."""
        if self._told or self._done >= self._budget:
            return
        self._told = True
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
