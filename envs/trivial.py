"""The loss of a model that has learned nothing, and which runs ended no better."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from envs.tasks.base import Task, cross_entropy
from envs.training_run import TrainingRun

NOTHING = 0.98  # times the trivial loss: a run has learned something below it


def trivial_loss(task: Task) -> float:
    """Return the loss of the best constant prediction, or the untrained network's where none is known.

    For classification by cross-entropy the best constant prediction is the shares of the classes, its loss their
    entropy in nats; both are taken from the training split. For any other loss it is that of a new network of seed 0
    on the reward split. The test split is not read.
    """
    targets = task.training_data().train.targets
    if task.loss is cross_entropy and targets.ndim == 1 and not targets.is_floating_point():
        return _entropy(targets)
    return TrainingRun(task, task.optimizer, task.range_of(task.optimizer)[0], seed=0).evaluate_reward_split().loss


def learned_nothing(test_loss: np.ndarray, trivial: np.ndarray | float) -> np.ndarray:
    """Return which runs learned nothing: the test loss is not finite, or at least :data:`NOTHING` times the trivial.

    :param test_loss: float (runs,)
    :param trivial: :func:`trivial_loss` of each run's task, float (runs,), or of the task of all
    """
    return np.asarray(~np.isfinite(test_loss) | (test_loss >= NOTHING * trivial))


def _entropy(classes: Tensor) -> float:
    """Entropy in nats of the shares of the classes in int64 (N,)."""
    shares = torch.bincount(classes).double() / len(classes)
    return float(torch.special.entr(shares).sum())
