"""What kinds of runs a policy was trained on, and what it makes of a run of another kind."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gns.errors import PolicyFormatError
from gns.features.statistics import OPTIMIZER_KINDS
from gns.graph.layer_graph import NODE_TYPES, LayerGraph
from gns.policy.files import shown

_LOSS_SLACK = 3.0  # a start so many times the highest that training had is still taken for a usual one
_ASSUMED = "linear"  # the type that every policy so far has seen, and that most unknown layers are like


@dataclass(frozen=True)
class TrainedOn:
    """Kinds of runs that a policy was trained on; part of its file. Empty: not recorded.

    :param layer_types: types of layers that its tasks' networks have, of :data:`gns.graph.layer_graph.NODE_TYPES`
    :param optimizers: kinds of optimizers, of :data:`gns.features.statistics.OPTIMIZER_KINDS`
    :param budgets: smallest and largest number of updates of an episode
    :param losses: smallest and largest loss of a network that has not been trained: a loss that is a sum is larger
    :param fine_tuning: whether networks began with weights of another training
    """

    layer_types: tuple[str, ...] = ()
    optimizers: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    fine_tuning: bool | None = None

    def __bool__(self) -> bool:
        return self != TrainedOn()

    @classmethod
    def from_dict(cls, data: Any) -> TrainedOn:
        """Build from parsed JSON.

        :raises PolicyFormatError: on anything else than a record with known keys and kinds of values
        """
        known = [item.name for item in fields(cls)]
        if not isinstance(data, dict) or (unknown := sorted(set(data) - set(known))):
            given = unknown if isinstance(data, dict) else data
            raise PolicyFormatError(f"trained_on has no keys {shown(given)}; expected {known}.")
        parts: dict[str, Any] = {}
        for name, allowed in (("layer_types", NODE_TYPES), ("optimizers", OPTIMIZER_KINDS)):
            value = data.get(name, [])
            if not isinstance(value, list) or not all(isinstance(item, str) and item in allowed for item in value):
                raise PolicyFormatError(f"{name} is {shown(value)}; expected a list of {', '.join(allowed)}.")
            parts[name] = tuple(value)
        for name in ("budgets", "losses"):
            value = data.get(name, [])
            if not isinstance(value, list) or len(value) not in (0, 2) or not all(map(_is_number, value)):
                raise PolicyFormatError(f"{name} is {shown(value)}; expected a list of two numbers.")
            parts[name] = tuple(value)
        fine_tuning = data.get("fine_tuning")
        if fine_tuning not in (None, True, False) or isinstance(fine_tuning, float):
            raise PolicyFormatError(f"fine_tuning is {shown(fine_tuning)}; expected true, false or null.")
        return cls(**parts, fine_tuning=fine_tuning)

    def read_as(self, kind: str) -> str:
        """Return the type as which a layer of some type is read: its own, or of an untrained one the nearest trained.

        The row of an untrained type in the network's embedding is as it was drawn. It says nothing, and steers.
        """
        if not self.layer_types or kind in self.layer_types:
            return kind
        return _ASSUMED if _ASSUMED in self.layer_types else self.layer_types[0]

    def type_ids(self) -> np.ndarray | None:
        """Return the number of the type as which each of :data:`NODE_TYPES` is read, int64; None: each as itself."""
        if set(self.layer_types) >= set(NODE_TYPES) or not self.layer_types:
            return None
        return np.array([NODE_TYPES.index(self.read_as(kind)) for kind in NODE_TYPES], dtype=np.int64)

    def outside(self, graph: LayerGraph, optimizer: str, budget: int) -> list[str]:
        """Say in what a run is unlike those of the training; nothing where that is not known.

        :param graph: layer graph of its model
        :param optimizer: kind of its optimizer
        :param budget: its updates
        """
        found = []
        unknown = [kind for kind in dict.fromkeys(graph.types) if self.layer_types and kind not in self.layer_types]
        if unknown:
            found.append(f"layers of type {', '.join(unknown)} (read as {self.read_as(unknown[0])})")
        if self.optimizers and optimizer not in self.optimizers:
            found.append(f"an optimizer other than {', '.join(self.optimizers)}")
        if self.budgets and not self.budgets[0] <= budget <= self.budgets[1]:
            found.append(f"{budget:,} updates (trained on {self.budgets[0]:,g} to {self.budgets[1]:,g})")
        return found

    def unusual_loss(self, loss: float) -> str:
        """Say that the loss of a run's first interval is none that the training had; empty if it is, or not known."""
        if not self.losses or not loss > _LOSS_SLACK * self.losses[1]:
            return ""
        return f"a loss of {loss:.3g} at the start (trained on at most {self.losses[1]:.3g}); is it a sum, not a mean?"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1e12
