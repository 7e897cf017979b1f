"""Branches of one run, trained one after the other: what :mod:`envs.batched.branches` does side by side."""

from __future__ import annotations

import numpy as np

from envs.passes import Figures
from envs.tasks import Task
from envs.training_run import TrainingRun


def train_alone(run: TrainingRun, rates: np.ndarray) -> TrainingRun:
    """Apply the pending gradient and those that follow at these rates; after the last update none is pending."""
    for update, rate in enumerate(rates.tolist()):
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        run.apply_update()
        if update < len(rates) - 1:
            run.compute_gradient()
    return run


def ends_one_by_one(task: Task, optimizer: str, run: TrainingRun, rates: np.ndarray) -> list[Figures]:
    """Return where a run, whose gradient is pending, ends at each row of rates, (N, k)."""
    state, pending, ends = run.state_dict(), run.pending_state(), []
    for row in rates:
        copy = TrainingRun(task, optimizer, 1e-3, seed=0)
        copy.load_state_dict(state)
        copy.load_pending_state(pending)
        ends.append(train_alone(copy, row).evaluate_reward_split())
    return ends
