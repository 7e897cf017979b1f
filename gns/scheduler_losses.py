"""The loss of an update, from whoever tells it."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gns.errors import InvalidSettingError

SOURCES = ("reported", "closure", "output")  # the first that told a loss is believed


class Losses:
    """Losses told since the last update, by source; they stay on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, source: str, loss: Any) -> None:
        """Add one of :data:`SOURCES`'.

        :raises InvalidSettingError: see :func:`scalar`
        """
        value = scalar(loss).float()
        if source in self._sums:
            total, count = self._sums[source]
            self._sums[source] = total + value, count + 1
        else:
            self._sums[source] = value, 1

    def mean(self) -> Tensor | None:
        """Return the mean of the first source that told any; None if none did."""
        for source in SOURCES:
            if source in self._sums:
                total, count = self._sums[source]
                return total / count if count > 1 else total
        return None

    def clear(self) -> None:
        """Forget all."""
        self._sums.clear()


def scalar(loss: Any) -> Tensor:
    """Return a loss as a detached tensor without dimensions, on its device.

    :raises InvalidSettingError: if it is neither a tensor of one element nor a float
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach() if loss.dim() == 0 else loss.detach().reshape(())
    if isinstance(loss, Real) and not isinstance(loss, Integral):
        return torch.tensor(float(loss), dtype=torch.float32, device="cpu")
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise InvalidSettingError(
        f"The loss is {given}; expected a tensor of one element or a float. Pass the loss of the update; an epoch or a "
        "number of updates is not taken, since the scheduler counts by itself."
    )
