"""One model being trained on a task, one update at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task
from gns.errors import UnknownNameError, require_positive

OptimizerFactory = Callable[[Iterator[nn.Parameter], float], torch.optim.Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgdm": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=True),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True),
}


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
        data = task.load_training_data()
        self._train, self._reward = data.train.to(self.device), data.reward.to(self.device)
        seed = int(seed)
        self._random_state = _seeded_random_state(seed, self.device)
        with self._own_random_numbers():
            self.model = task.build_model(**task.model).to(self.device).train()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters(), learning_rate)
        self._order_generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.long)
        self._cursor = 0
        self.loss: Tensor  # of the batch whose gradient is pending

    def compute_gradient(self) -> Tensor:
        """Draw the next batch and compute its gradient, which is then pending.

        :return: the batch's loss, a scalar tensor, also kept in ``loss``
        """
        with self._own_random_numbers():
            rows = self._next_rows()
            self.optimizer.zero_grad()
            outputs = self.model(self.task.prepare(self._train.inputs[rows], True))
            self.loss = self.task.loss(outputs, self._train.targets[rows])
            self.loss.backward()
        return self.loss

    def apply_update(self) -> None:
        """Apply the pending gradient."""
        self.optimizer.step()

    def evaluate_reward_split(self) -> tuple[float, float]:
        """Return loss and metric on the reward split."""
        return evaluate_split(self.model, self.task, self._reward)

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
            self._order = torch.randperm(len(self._train), generator=self._order_generator).to(self.device)
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


@torch.no_grad()
def evaluate_split(model: nn.Module, task: Task, split: Split, chunk: int = 1024) -> tuple[float, float]:
    """Return mean loss and metric of a model on a split, in evaluation mode; every module's mode is put back.

    :param chunk: examples a forward pass
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    outputs = [model(task.prepare(split.inputs[i : i + chunk], False)) for i in range(0, len(split), chunk)]
    for module, training in modes:
        module.training = training
    joined: Any = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return float(task.loss(joined, split.targets)), task.metric(joined, split.targets)


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
