"""Snapshots of a training run in memory, and when to go back to one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError, OutOfOrderError, require_positive


@dataclass(frozen=True)
class GuardConfig:
    """When a run is taken back, and what happens then.

    :param enabled: whether snapshots are taken at all
    :param loss_multiple: a mean interval loss above this multiple of the first loss counts as divergence
    :param cut: factor in (0, 1) on the rate after a rollback
    :param max_rollbacks: rollbacks allowed in a run; one more ends it
    """

    enabled: bool = True
    loss_multiple: float = 4.0
    cut: float = 0.1
    max_rollbacks: int = 5

    def __post_init__(self) -> None:
        require_positive("loss_multiple", self.loss_multiple)
        if not 0.0 < self.cut < 1.0:
            raise InvalidSettingError(f"cut is {self.cut}; expected a factor between 0 and 1.")
        if self.max_rollbacks < 0:
            raise InvalidSettingError(f"max_rollbacks is {self.max_rollbacks}; expected 0 or more.")


class Snapshot:
    """The last good state of a run: parameters, buffers, optimizer state, and what the caller adds.

    Memory is allocated at the first :meth:`take` and reused. Learning rates are not part of it: they belong to
    whatever controls them.

    :param model: the model being trained
    :param optimizer: its optimizer
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._copies: list[Tensor] = []
        self._states: dict[Tensor, dict[str, Any]] = {}
        self._put_back: list[Callable[[], None]] = []
        self.steps = 0

    @torch.no_grad()
    def take(self, steps: int, *put_back: Callable[[], None]) -> None:
        """Copy the state.

        :param steps: updates the state holds
        :param put_back: calls that restore what lies outside model and optimizer (random numbers, data position, AMP)
        """
        if self._copies:
            torch._foreach_copy_(self._copies, self._tensors)
        else:
            self._copies = [tensor.detach().clone() for tensor in self._tensors]
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        states: dict[Tensor, dict[str, Any]] = {}
        for parameter, state in self._optimizer.state.items():
            old, new = self._states.get(parameter, {}), {}
            for key, value in state.items():
                if isinstance(value, Tensor) and isinstance(old.get(key), Tensor) and old[key].shape == value.shape:
                    new[key] = old[key]
                    targets.append(old[key])
                    sources.append(value)
                else:
                    new[key] = value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            states[parameter] = new
        if targets:
            torch._foreach_copy_(targets, sources)
        self._states, self._put_back, self.steps = states, list(put_back), steps

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state back, in place. May be called again for the same snapshot.

        :raises OutOfOrderError: if no snapshot was taken
        """
        if not self._copies:
            raise OutOfOrderError("restore() came before any take(); take a snapshot first.")
        torch._foreach_copy_(self._tensors, self._copies)
        for parameter in list(self._optimizer.state):
            if parameter not in self._states:
                del self._optimizer.state[parameter]
        for parameter, saved in self._states.items():
            state = self._optimizer.state[parameter]
            for key in set(state) - set(saved):
                del state[key]
            for key, value in saved.items():
                if isinstance(value, Tensor) and isinstance(state.get(key), Tensor):
                    state[key].copy_(value)
                else:
                    state[key] = value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for call in self._put_back:
            call()
