"""Learning rates as they stand in an optimizer's parameter groups: numbers, NumPy's, or tensors on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

_ENTRIES = ("lr", "initial_lr")


def make_own(optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter group a rate of its own: a tensor shared among groups is copied, NumPy's becomes a float.

    PyTorch gives all groups that name no rate the same tensor; NumPy's numbers are refused by ``torch.load`` with
    ``weights_only=True``.
    """
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for name in _ENTRIES:
            rate = group.get(name)
            if isinstance(rate, Tensor) and id(rate) in seen:
                rate = group[name] = rate.clone()
            if isinstance(rate, np.generic | np.ndarray):
                group[name] = plain(rate)
            seen.add(id(group.get(name)))


def plain(value: Any) -> Any:
    """Return a NumPy number as Python's, anything else as it is."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and value.size == 1 else value


def rates_of(optimizer: torch.optim.Optimizer) -> list[float | Tensor]:
    """Return the rate of each parameter group, tensors as copies."""
    rates = (group["lr"] for group in optimizer.param_groups)
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


class WrittenRates:
    """The rates that a scheduler wrote last, to see whether anyone else changed them; without reading a device.

    Both calls come at every update, and mostly meet one or two numbers.
    """

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def note(self, optimizer: torch.optim.Optimizer) -> list[float | Tensor]:
        """Note the rates as they are now; return that of each parameter group, tensors as copies."""
        rates: list[float | Tensor] = []
        for group in optimizer.param_groups:
            rate = group["lr"]
            if isinstance(rate, Tensor):
                self._marks = [_mark(group["lr"]) for group in optimizer.param_groups]
                return rates_of(optimizer)
            rates.append(rate)
        self._marks = rates
        return rates

    def forget(self) -> None:
        """Let no rate count as changed until the next are noted."""
        self._marks = []

    def changed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Say whether a group has another rate than was noted."""
        for group, mark in zip(optimizer.param_groups, self._marks, strict=False):  # a group may have been added
            rate = group["lr"]
            if rate is not mark and _mark(rate) != mark:
                return True
        return False


def _mark(rate: Any) -> Any:
    if not isinstance(rate, Tensor):
        return float(rate)
    return id(rate), None if rate.is_inference() else rate._version
