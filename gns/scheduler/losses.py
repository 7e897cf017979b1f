"""The loss of an update, from whoever tells it."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gns.errors import InvalidSettingError

# The first that told a loss is believed; "evaluation" is an output of a model that is not in training mode.
SOURCES = ("reported", "closure", "output", "evaluation")


class Losses:
    """Losses told since the last update, by source; they stay on their device.

    Under gradient accumulation a source tells either losses of the parts of an update, whose mean is the update's, or
    shares of it, whose sum is.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, bool], tuple[Tensor, int]] = {}

    def add(self, source: str, loss: Any, share: bool = False) -> None:
        """Add one of :data:`SOURCES`'.

        :param share: whether it is a share of the update's loss
        :raises InvalidSettingError: see :func:`scalar`
        """
        value = scalar(loss).float()
        total, count = self._sums.get((source, share), (None, 0))
        self._sums[source, share] = value if total is None else total + value, count + 1

    def of_update(self) -> Tensor | None:
        """Return the loss of the update as the first source has it that told any; None if none did.

        :raises InvalidSettingError: if that source told both shares and losses that are none
        """
        for source in SOURCES:
            whole, shares = self._sums.get((source, False)), self._sums.get((source, True))
            if whole is not None and shares is not None:
                raise InvalidSettingError(
                    f"Of the losses told for the last update (source {source!r}), {shares[1]} are shares of it and "
                    f"{whole[1]} are not; expected all of a kind. Call report_loss with share=True for all or none."
                )
            if shares is not None:
                return shares[0]
            if whole is not None:
                return whole[0] / whole[1] if whole[1] > 1 else whole[0]
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
