"""What a model that has learned nothing loses: the yardstick of collapsed runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from envs.tasks.base import Task, cross_entropy
from envs.training_run import TrainingRun

COLLAPSE = 0.98  # times the trivial loss


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


def collapsed(test_loss: float, trivial: float) -> bool:
    """Return whether a run has learned nothing: a test loss that is not finite, or at least 0.98 times the trivial."""
    return not math.isfinite(test_loss) or test_loss >= COLLAPSE * trivial


def _entropy(classes: Tensor) -> float:
    """Entropy in nats of the shares of the classes in int64 (N,)."""
    shares = torch.bincount(classes).double() / len(classes)
    return float(torch.special.entr(shares).sum())
