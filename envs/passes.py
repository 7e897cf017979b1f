"""Passes over a split that train nothing: what a model's loss and metrics are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task


@dataclass(frozen=True)
class Figures:
    """What an evaluation found.

    :param loss: mean loss over the examples
    :param metrics: the task's metrics by name, the first of them its metric
    :param predictions: the (collected) outputs of all examples, in the order of the split: tensor (N, ...). They take
        memory as long as these figures are kept
    """

    loss: float
    metrics: dict[str, float]
    predictions: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def metric(self) -> float:
        """The task's metric."""
        return next(iter(self.metrics.values()))


def autocast(task: Task, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context that forward passes of a task run under; it does nothing at precision ``float32``."""
    if task.precision == "float32":
        return nullcontext()
    dtype = torch.float16 if task.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and every module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, before in modes:
            module.training = before


@torch.no_grad()
def evaluate_split(model: nn.Module, task: Task, split: Split, chunk: int | None = None) -> Figures:
    """Return mean loss and metrics of a model on a split, in evaluation mode; every module's mode is put back.

    :param chunk: examples a forward pass; None: what the task says
    """
    rows = torch.arange(len(split)) if split.lengths is None else split.lengths.argsort(stable=True)
    collected, losses = [], []
    with in_mode(model, training=False):
        for part in rows.split(chunk or task.evaluation_batch_size):
            inputs, targets = split.batch(part)
            with autocast(task, split.inputs.device):
                outputs = model(task.prepare(inputs, False))
                loss = task.loss(outputs, targets)
            losses.append(loss.double() * (len(part) / len(rows)))
            collected.append(task.collect(outputs))
    joined: Any = collected[0] if len(collected) == 1 else torch.cat(collected)
    if split.lengths is not None:
        joined = joined[rows.argsort().to(joined.device)]
    if joined.dtype in (torch.bfloat16, torch.float16):
        joined = joined.float()
    metrics = {name: float(metric(joined, split)) for name, metric in task.metrics.items()}
    return Figures(float(torch.stack(losses).sum()), metrics, joined)
