"""One model being trained on a task, one update at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task
from gns.errors import UnknownNameError, require_positive

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]
_MEGA_BATCH = 50  # batches whose examples are sorted by length together, as the HF Trainer does

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgdm": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True),
}


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


class TrainingRun:
    """A training run of a task: model, optimizer, data stream and random numbers of its own.

    Every run is a function of its seed alone: runs that take turns in one process do not disturb each other.
    It holds the training and the reward split; it has no way to the test split.

    :param task: what is trained
    :param optimizer: a name in :data:`OPTIMIZERS`
    :param learning_rate: initial learning rate
    :param seed: seed of initial weights, data order and whatever the model draws
    :param device: where to train
    :raises UnknownNameError: if there is no such optimizer
    :raises InvalidSettingError: if the learning rate is not positive
    """

    def __init__(
        self, task: Task, optimizer: str, learning_rate: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
        require_positive("learning_rate", learning_rate)
        self.task, self.device = task, torch.device(device)
        data = task.training_data()
        self._train, self._reward = data.train.to(self.device), data.reward.to(self.device)
        seed = int(seed)
        self._random_state = _seeded_random_state(seed, self.device)
        with self._own_random_numbers():
            self.model = task.new_model().to(self.device).train()
        self.optimizer = OPTIMIZERS[optimizer](task.parameter_groups(self.model), learning_rate)
        held = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        self._held = [parameter for parameter in self.model.parameters() if parameter in held]
        self._order_generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)
        self._cursor = 0
        self.loss: Tensor  # of the batch whose gradient is pending

    def compute_gradient(self) -> Tensor:
        """Draw the next batch and compute its gradient, clipped if the task says so, which is then pending.

        :return: the batch's mean loss, a scalar tensor, also kept in ``loss``
        """
        task = self.task
        with self._own_random_numbers():
            rows = self._next_rows()
            self.model.zero_grad()
            losses = []
            for part in rows.tensor_split(min(task.accumulation, len(rows))):
                inputs, targets = self._train.batch(part)
                with autocast(task, self.device):
                    loss = task.loss(self.model(task.prepare(inputs, True)), targets)
                losses.append(loss if len(part) == len(rows) else loss * (len(part) / len(rows)))
                losses[-1].backward()
            self.loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
            if task.clip_norm is not None:
                nn.utils.clip_grad_norm_(self._held, task.clip_norm)
        return self.loss

    def apply_update(self) -> None:
        """Apply the pending gradient."""
        self.optimizer.step()

    def evaluate_reward_split(self) -> Figures:
        """Return loss and metrics on the reward split; whatever the model draws, the run's random numbers stay."""
        with self._own_random_numbers():
            before = self._random_state
            figures = evaluate_split(self.model, self.task, self._reward)
            _set_random_state(before, self.device)
        return figures

    def position(self) -> Callable[[], None]:
        """Remember the data position, the random numbers and the model's buffers; the call returned goes back to them.

        Buffers are part of it because a forward pass moves them (batch norm's running statistics) before any update.
        """
        order, cursor = self._order, self._cursor
        order_state, random_state = self._order_generator.get_state(), self._random_state
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]

        def go_back() -> None:
            self._order, self._cursor = order, cursor
            self._order_generator.set_state(order_state)
            self._random_state = random_state
            for buffer, value in buffers:
                buffer.copy_(value)

        return go_back

    def _next_rows(self) -> Tensor:
        """Rows of the next batch: each pass over the data in a new order, an incomplete last batch left out."""
        size = min(self.task.batch_size, len(self._train))
        if self._cursor + size > len(self._order):
            self._order = torch.randperm(len(self._train), generator=self._order_generator)
            if self._train.lengths is not None:
                self._order = group_by_length(self._order, self._train.lengths, size, self._order_generator)
            self._cursor = 0
        rows = self._order[self._cursor : self._cursor + size]
        self._cursor += size
        return rows

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        outside = _random_state(self.device)
        _set_random_state(self._random_state, self.device)
        try:
            yield
        finally:
            self._random_state = _random_state(self.device)
            _set_random_state(outside, self.device)


def group_by_length(order: Tensor, lengths: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Reorder rows so that batches hold examples of similar length, and so need little padding.

    As the HF Trainer's ``group_by_length``: rows are sorted within stretches of 50 batches of a random order. Unlike
    there, the batches of a stretch are then shuffled, so that losses do not drift with length.

    :param order: random order of all rows, int64 (N,)
    :param lengths: length of each row, (N,)
    :param size: batch size; rows beyond the last whole batch are left out
    :return: int64 (N // size * size,)
    """
    batches = []
    for stretch in order[: len(order) // size * size].split(_MEGA_BATCH * size):
        sorted_rows = stretch[lengths[stretch].argsort(descending=True, stable=True)].reshape(-1, size)
        batches.append(sorted_rows[torch.randperm(len(sorted_rows), generator=generator)])
    return torch.cat(batches).flatten()


def autocast(task: Task, device: torch.device) -> torch.autocast:
    """Return the context that forward passes of a task run under; it does nothing at precision ``float32``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=task.precision == "bfloat16")


@torch.no_grad()
def evaluate_split(model: nn.Module, task: Task, split: Split, chunk: int | None = None) -> Figures:
    """Return mean loss and metrics of a model on a split, in evaluation mode; every module's mode is put back.

    :param chunk: examples a forward pass; None: what the task says
    """
    modes = [(module, module.training) for module in model.modules()]
    rows = torch.arange(len(split)) if split.lengths is None else split.lengths.argsort(stable=True)
    collected, losses = [], []
    try:
        model.eval()
        for part in rows.split(chunk or task.evaluation_batch_size):
            inputs, targets = split.batch(part)
            with autocast(task, split.inputs.device):
                outputs = model(task.prepare(inputs, False))
                loss = task.loss(outputs, targets)
            losses.append(loss.double() * (len(part) / len(rows)))
            collected.append(task.collect(outputs))
    finally:
        for module, training in modes:
            module.training = training
    joined: Any = collected[0] if len(collected) == 1 else torch.cat(collected)
    if split.lengths is not None:
        joined = joined[rows.argsort().to(joined.device)]
    if joined.dtype == torch.bfloat16:
        joined = joined.float()
    metrics = {name: float(metric(joined, split)) for name, metric in task.metrics.items()}
    return Figures(float(torch.stack(losses).sum()), metrics, joined)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _seeded_random_state(seed: int, device: torch.device) -> list[Tensor]:
    """Random state that ``torch.manual_seed(seed)`` sets, without touching the global one."""
    states = [torch.Generator().manual_seed(seed).get_state()]
    if device.type == "cuda":
        states.append(torch.Generator(device).manual_seed(seed).get_state())
    return states
