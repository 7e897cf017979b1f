"""Tasks: data + model + loss + metric, under one registry.

A task file registers two things that never meet: a :class:`Task`, which knows the training data and nothing else, and
a loader of the test split, which only :mod:`envs.tasks.report` hands out. Environments are given tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError, UnknownNameError, require_count


@dataclass(frozen=True)
class Split:
    """N examples, resident in memory.

    :param inputs: tensor (N, ...)
    :param targets: tensor (N, ...)
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on a device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class TrainingData:
    """What may be learned from and chosen on: the training split and the reward split carved from it."""

    train: Split
    reward: Split


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) against class indices (N,)."""
    return nn.functional.cross_entropy(outputs, targets)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of logits (N, C) whose largest entry is the target (N,)."""
    return float((outputs.argmax(dim=-1) == targets).float().mean())


def as_they_are(inputs: Tensor, training: bool) -> Tensor:
    """Return inputs unchanged."""
    return inputs


@dataclass(frozen=True)
class Task:
    """A training problem.

    :param name: its name in the registry
    :param load_training_data: returns the training and the reward split; calls are cheap after the first
    :param build_model: builds a fresh model from ``model`` settings, from torch's global random numbers
    :param model: settings for ``build_model``
    :param batch_size: examples an update
    :param budget: updates of a full run, unless a run says otherwise
    :param loss: mean loss of outputs and targets, a scalar tensor
    :param metric: reported figure of outputs and targets
    :param metric_name: its name
    :param higher_is_better: direction of the metric
    :param prepare: turns a batch of stored inputs into what the model takes (normalisation; augmentation from torch's
        global random numbers if its second argument, ``training``, is true)
    """

    name: str
    load_training_data: Callable[[], TrainingData]
    build_model: Callable[..., nn.Module]
    model: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    budget: int = 300
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    metric: Callable[[Any, Tensor], float] = accuracy
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    prepare: Callable[[Tensor, bool], Tensor] = as_they_are

    def __post_init__(self) -> None:
        require_count(f"batch_size of task {self.name}", self.batch_size)
        require_count(f"budget of task {self.name}", self.budget)

    def settings(self) -> dict[str, Any]:
        """Return what a configuration may change."""
        return {"batch_size": self.batch_size, "budget": self.budget, "model": dict(self.model)}


_TASKS: dict[str, Task] = {}
_TEST_SPLITS: dict[str, Callable[[], Split]] = {}


def register_task(task: Task, load_test_split: Callable[[], Split]) -> Task:
    """Add a task, and apart from it the loader of its test split.

    :raises InvalidSettingError: if the name is taken
    """
    if task.name in _TASKS:
        raise InvalidSettingError(f"A task named {task.name!r} exists already; expected a new name.")
    _TASKS[task.name], _TEST_SPLITS[task.name] = task, load_test_split
    return task


def known_tasks() -> list[str]:
    """Return the names of all registered tasks."""
    return sorted(_TASKS)


def get_task(name: str, **settings: Any) -> Task:
    """Return a registered task, some of its settings changed.

    :param settings: ``batch_size``, ``budget``, ``model`` (a mapping merged into the task's own)
    :raises UnknownNameError: if there is no such task or setting; the message lists those there are
    """
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    task = _TASKS[name]
    for key in settings:
        if key not in task.settings():
            raise UnknownNameError(f"setting of task {name}", key, task.settings())
    model = {**task.model, **settings.pop("model", {})}
    for key in model:
        if key not in task.model:
            raise UnknownNameError(f"model setting of task {name}", key, task.model)
    return replace(task, model=model, **settings)
