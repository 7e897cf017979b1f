"""What a scheduler warns of: what would otherwise go wrong without a sign. Each is said once."""

from __future__ import annotations

import sys
import warnings
from typing import Any

NO_UPDATE_YET = (
    "scheduler.step() came before any optimizer.step(), and counts as nothing. Call it after optimizer.step(); if a "
    "GradScaler left that one out, all is well. Of an optimizer whose updates other methods make, no update is seen: "
    "call its step(closure), or give the scheduler its base optimizer, if it has one."
)
NOT_STEPPED = (
    "optimizer.step() came twice with no scheduler.step() between; the rates stay as they are until it is called. Call "
    "it after every optimizer.step(), not once an epoch."
)
PAST_END = (
    "optimizer.step() came after the last of total_steps={budget} updates; the rate stays as it is. If the run is "
    "longer, give total_steps= the whole number of updates, or set scheduler.budget to it."
)
OTHER_LENGTH = (
    "The scheduler was made with total_steps={given} and its state is of a run of {budget} updates, {done} of them "
    "done; the state's number stands, and past it the rate stays. To go on to {given}, give load_state_dict(state, "
    "total_steps={given}), or set scheduler.budget = {given} now."
)
CLOSURE_LEFT = (
    "optimizer.step(closure) never called its closure, so that no rate was set and the update counts as nothing. Call "
    "optimizer.step() without a closure after loss.backward()."
)
ANOTHER_SCHEDULER = (
    "Another GNSScheduler is at work on this optimizer, and each overwrites the other's rates. Make one scheduler for "
    "one optimizer; take a former one off by its remove()."
)
CHANGED_RATES = (
    "A rate of the optimizer was changed by hand or by another scheduler since GNSScheduler wrote or read it; it is "
    "overwritten at every update. Let one of them set the rates: leave the other out, put both into a SequentialLR, or "
    "call scheduler.remove()."
)
NO_EFFECT = (
    "TrainingArguments({given}) has no effect: the GNSScheduler that the Trainer was given sets the rate. For a "
    "warm-up make it with GNSScheduler(..., warmup_steps=N); leave the other settings out."
)


def warn_once(told: set[str], message: str, **numbers: Any) -> None:
    """Warn at the line that called PyTorch or us, unless it was told.

    :param told: what was told so far
    :param numbers: to fill in, or text
    """
    if message in told:
        return
    told.add(message)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("gns", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message.format(**numbers), UserWarning, stacklevel=level)
