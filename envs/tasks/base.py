"""Tasks: data + model + loss + metrics, under one registry.

A task file registers two things that never meet: a :class:`Task`, which knows the training data and nothing else, and
a loader of the test split, which only :mod:`envs.tasks.report` hands out. Environments are given tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError, UnknownNameError, require_count, require_positive

PRECISIONS: tuple[str, ...] = ("float32", "bfloat16", "float16")
# Four decades of initial rates for each optimizer: for networks trained from scratch, and for pretrained ones.
FROM_SCRATCH = {name: (1e-5, 1e-1) for name in ("adam", "adamw", "nadamw")} | {"sgdm": (1e-4, 1.0), "sgd": (1e-3, 10.0)}
FINE_TUNING = {name: (1e-6, 1e-2) for name in ("adam", "adamw", "nadamw")} | {"sgdm": (1e-4, 1.0), "sgd": (1e-3, 10.0)}


@dataclass(frozen=True)
class Split:
    """N examples, resident in memory.

    :param inputs: tensor (N, ...)
    :param targets: tensor (N, ...); may be ``inputs`` itself
    :param lengths: int64 tensor (N,) on the host where inputs are padded along their last dimension: the entries of
        each example that count
    :param references: what metrics compare with beyond targets, such as the texts of answers, in any form
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    references: Any = None

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> Split:
        """Return the split with inputs and targets on a device."""
        inputs = self.inputs.to(device)
        targets = inputs if self.targets is self.inputs else self.targets.to(device)
        return Split(inputs, targets, self.lengths, self.references)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of some rows, without the padding that none of them needs.

        :param rows: int64 tensor (B,) on the host
        """
        there = rows.to(self.inputs.device, non_blocking=True)
        inputs, targets = self.inputs[there], self.targets[there]
        return (inputs if self.lengths is None else inputs[..., : int(self.lengths[rows].max())]), targets


@dataclass(frozen=True)
class TrainingData:
    """What may be learned from and chosen on: the training split and the reward split carved from it."""

    train: Split
    reward: Split


Metric = Callable[[Any, Split], float]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits (N, C) against class indices (N,)."""
    return nn.functional.cross_entropy(outputs, targets)


def accuracy(outputs: Tensor, split: Split) -> float:
    """Share of logits (N, C) whose largest entry is the target (N,)."""
    return float((outputs.argmax(dim=-1) == split.targets).float().mean())


def unchanged(inputs: Tensor, training: bool) -> Tensor:
    """Return inputs as they are."""
    return inputs


def the_same(outputs: Any) -> Any:
    """Return outputs as they are."""
    return outputs


def all_parameters(model: nn.Module) -> Iterable[Any]:
    """Return all parameters as one group."""
    return model.parameters()


@dataclass(frozen=True)
class Task:
    """A training problem.

    :param name: its name in the registry
    :param load_training_data: returns the training and the reward split; calls are cheap after the first
    :param build_model: builds a fresh model from ``model`` settings, from torch's global random numbers
    :param model: settings for ``build_model``
    :param data_settings: names of those model settings that the data depend on too (a tokenizer): loaders get them
    :param batch_size: examples an update
    :param accumulation: parts a batch is cut into, their gradients accumulated
    :param budget: updates of a full run, unless a run says otherwise; None: ``epochs`` says it
    :param epochs: passes over the training split of a full run; None: ``budget`` says it
    :param budgets: smallest and largest budget of episodes where a configuration leaves them to the task; None: that
        of a full run
    :param optimizer: default optimizer, a name in :data:`envs.training_run.OPTIMIZERS`
    :param learning_rates: for each optimizer the sensible range of initial rates
    :param parameter_groups: what the optimizer is given: the model's parameters, or groups of them with settings
    :param clip_norm: gradients are scaled down to this norm where theirs is larger; None: never
    :param precision: ``bfloat16`` and ``float16`` run forward passes under autocast, ``float16`` with a gradient scaler
    :param loss: mean loss of outputs and targets over their examples, a scalar tensor
    :param metrics: reported figures by name, each a function of all (collected) outputs and their split; the first
        is the task's metric
    :param higher_is_better: direction of that metric
    :param prepare: turns a batch of stored inputs into what the model takes (normalisation; augmentation from torch's
        global random numbers if its second argument, ``training``, is true)
    :param collect: what of a batch's outputs the metrics need: a tensor (B, ...) of a shape that fits every batch
    :param evaluation_batch_size: examples a forward pass in evaluation
    :param drawn: whether it is one of many drawn from a seed, in no registry
    """

    name: str
    load_training_data: Callable[..., TrainingData]
    build_model: Callable[..., nn.Module]
    model: dict[str, Any] = field(default_factory=dict)
    data_settings: Sequence[str] = ()
    batch_size: int = 32
    accumulation: int = 1
    budget: int | None = None
    epochs: float | None = None
    budgets: tuple[int, int] | None = None
    optimizer: str = "adam"
    learning_rates: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(FROM_SCRATCH))
    parameter_groups: Callable[[nn.Module], Iterable[Any]] = all_parameters
    clip_norm: float | None = None
    precision: str = "float32"
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy
    metrics: Mapping[str, Metric] = field(default_factory=lambda: {"accuracy": accuracy})
    higher_is_better: bool = True
    prepare: Callable[[Tensor, bool], Any] = unchanged
    collect: Callable[[Any], Any] = the_same
    evaluation_batch_size: int = 1024
    drawn: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "evaluation_batch_size"):
            require_count(f"{name} of task {self.name}", getattr(self, name))
        if self.accumulation > self.batch_size:
            raise InvalidSettingError(
                f"accumulation of task {self.name} is {self.accumulation}; expected at most batch_size = "
                f"{self.batch_size} parts of a batch."
            )
        if (self.budget is None) == (self.epochs is None):
            raise InvalidSettingError(
                f"Task {self.name} has budget {self.budget} and epochs {self.epochs}; expected one of the two, and "
                "null for the other."
            )
        if self.budget is not None:
            require_count(f"budget of task {self.name}", self.budget)
        else:
            require_positive(f"epochs of task {self.name}", self.epochs)  # type: ignore[arg-type]
        if self.budgets is not None:
            require_count(f"the smallest of budgets of task {self.name}", self.budgets[0])
            if not self.budgets[0] <= self.budgets[1]:
                raise InvalidSettingError(
                    f"budgets of task {self.name} are {self.budgets}; expected (smallest, largest)."
                )
        if self.clip_norm is not None:
            require_positive(f"clip_norm of task {self.name}", self.clip_norm)
        if self.precision not in PRECISIONS:
            raise UnknownNameError(f"precision of task {self.name}", self.precision, PRECISIONS)
        for name, (low, high) in self.learning_rates.items():
            require_positive(f"the lowest learning rate of {name} on task {self.name}", low)
            require_positive(f"the highest learning rate of {name} on task {self.name}", high)
            if not low <= high:
                raise InvalidSettingError(
                    f"learning_rates of {name} on task {self.name} are {(low, high)}; expected (lowest, highest)."
                )
        if not self.metrics:
            raise InvalidSettingError(f"Task {self.name} has no metrics; expected at least one.")

    @property
    def metric_name(self) -> str:
        """Name of the task's metric, the first of its metrics."""
        return next(iter(self.metrics))

    def training_data(self) -> TrainingData:
        """Return the training and the reward split for these settings."""
        return self.load_training_data(**self.for_loaders())

    def for_loaders(self) -> dict[str, Any]:
        """Return the settings that data are loaded with."""
        return {name: self.model[name] for name in self.data_settings}

    def new_model(self) -> nn.Module:
        """Return a fresh model, drawn from torch's global random numbers."""
        return self.build_model(**self.model)

    def range_of(self, optimizer: str) -> tuple[float, float]:
        """Return the sensible range of initial rates of an optimizer.

        :raises UnknownNameError: if the task has none
        """
        if optimizer not in self.learning_rates:
            raise UnknownNameError(f"optimizer with learning_rates on task {self.name}", optimizer, self.learning_rates)
        return self.learning_rates[optimizer]

    def updates(self) -> int:
        """Return the updates of a full run; loads the data where the budget is given in epochs."""
        if self.budget is not None:
            return self.budget
        assert self.epochs is not None
        examples = len(self.training_data().train)
        return max(1, round(self.epochs * (examples // min(self.batch_size, examples))))

    def settings(self) -> dict[str, Any]:
        """Return what a configuration may change."""
        names = ("batch_size", "accumulation", "budget", "epochs", "optimizer", "clip_norm", "precision")
        ranges = {name: tuple(bounds) for name, bounds in self.learning_rates.items()}
        return {
            **{name: getattr(self, name) for name in names},
            "evaluation_batch_size": self.evaluation_batch_size,
            "learning_rates": ranges,
            "model": copy.deepcopy(self.model),
        }


def _bounds(what: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidSettingError(f"{what} is {value!r}; expected (lowest, highest).")
    return tuple(value)


_TASKS: dict[str, Task] = {}
_TEST_SPLITS: dict[str, Callable[..., Split]] = {}


def register_task(task: Task, load_test_split: Callable[..., Split]) -> Task:
    """Add a task, and apart from it the loader of its test split, which is called with the task's data settings.

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

    :param settings: as in :meth:`Task.settings`. ``model`` and ``learning_rates`` are merged into the task's own; of
        ``budget`` and ``epochs`` the one that is given, or differs from the task's own, takes the other's place
    :raises UnknownNameError: if there is no such task or setting; the message lists those there are
    :raises InvalidSettingError: if a setting has a value it cannot have
    """
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    task = _TASKS[name]
    known = task.settings()
    for key in settings:
        if key not in known:
            raise UnknownNameError(f"setting of task {name}", key, known)
    for merged in ("model", "learning_rates"):
        own, changes = known[merged], settings.pop(merged, None) or {}
        if not isinstance(changes, Mapping):
            raise InvalidSettingError(f"{merged} of task {name} is {changes!r}; expected settings by name.")
        for key, value in changes.items():
            if key not in own:
                raise UnknownNameError(f"{merged.rstrip('s').replace('_', ' ')} setting of task {name}", key, own)
            if merged == "model":
                own[key] = value
            elif value is not None:
                own[key] = _bounds(f"learning_rates of {key} on task {name}", value)
        settings[merged] = own
    given = [key for key in ("budget", "epochs") if settings.get(key) is not None]
    given = [key for key in given if len(given) == 1 or settings[key] != known[key]] or given
    if len(given) == 1:
        settings = {**settings, "budget": None, "epochs": None, given[0]: settings[given[0]]}
    elif not given:
        settings = {key: value for key, value in settings.items() if key not in ("budget", "epochs")}
    return replace(task, **settings)
