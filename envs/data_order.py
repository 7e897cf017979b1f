"""The order in which a training run passes over its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.tasks.base import Split

_MEGA_BATCH = 50  # batches whose examples are sorted by length together, as the HF Trainer does


class DataOrder:
    """Passes over a training split: each in a new order, an incomplete last batch left out.

    :param split: what is passed over; examples of similar length come together where it has lengths
    :param batch_size: rows of a batch; all of them where there are fewer
    :param seed: seed of all orders
    """

    def __init__(self, split: Split, batch_size: int, seed: int) -> None:
        self._examples, self._lengths = len(split), split.lengths
        self._size = min(batch_size, len(split))
        self._generator = torch.Generator().manual_seed(seed)
        self._random = self._generator.get_state()
        self._order, self._cursor = torch.empty(0, dtype=torch.long), 0

    def next_rows(self) -> Tensor:
        """Return the rows of the next batch, int64 (batch_size,)."""
        if self._cursor + self._size > len(self._order):
            self._order = torch.randperm(self._examples, generator=self._generator)
            if self._lengths is not None:
                self._order = group_by_length(self._order, self._lengths, self._size, self._generator)
            self._random = self._generator.get_state()
            self._cursor = 0
        rows = self._order[self._cursor : self._cursor + self._size]
        self._cursor += self._size
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands; its tensors are replaced and never changed, so that they need not be copied."""
        return {"order": self._order, "cursor": self._cursor, "order_generator": self._random}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, or from a larger one with its entries."""
        self._order, self._cursor = state["order"], state["cursor"]
        self._random = state["order_generator"]
        self._generator.set_state(self._random)


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
