"""Mechanic (Cutkosky, Defazio and Mehta, "Mechanic: A Learning Rate Tuner", NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.controllers.peers import MOMENTUM, WEIGHT_DECAY, PeerController, package

_STATE = "_mechanic"  # the package's own entry in the state of an optimizer, by parameter


@dataclass(frozen=True)
class MechanicController(PeerController):
    """The optimizer asked for, its displacement from the start scaled by a factor tuned online: ``mechanic-pytorch``.

    The base optimizer runs at rate 1 under the schedule, as its authors do, and the rate reported is the tuned factor
    times the schedule's.

    :param s_decay: their lambda, 0.01 in the paper
    """

    kind: ClassVar[str] = "mechanic"

    s_decay: float = 0.01

    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimizer asked for, mechanized."""
        found = package("mechanic_pytorch")
        if optimizer.startswith("sgd"):
            base: Any = torch.optim.SGD
            settings = {"momentum": MOMENTUM.get(optimizer, 0.0)}
        else:
            base = torch.optim.AdamW if optimizer in WEIGHT_DECAY else torch.optim.Adam
            settings = {"weight_decay": WEIGHT_DECAY.get(optimizer, 0.0)}
        if optimizer == "nadamw":
            base, settings["decoupled_weight_decay"] = torch.optim.NAdam, True
        return _mechanized(found.mechanize, base, self.s_decay)(parameters, lr=1.0, **settings)

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the tuned factor times the schedule's."""
        return float(optimizer.state[_STATE]["s"].sum()) * float(optimizer.param_groups[0]["lr"])  # type: ignore[index]


@lru_cache(maxsize=8)
def _mechanized(mechanize: Any, base: type[torch.optim.Optimizer], s_decay: float) -> Any:
    """Return a mechanized optimizer whose state can be saved: in it, parameters stand as their numbers."""

    class Mechanized(mechanize(base, s_decay=s_decay)):  # type: ignore[misc]
        def state_dict(self) -> dict[str, Any]:
            state = super().state_dict()
            own = state["state"].get(_STATE)
            if own is None:
                return state
            numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
            plain = {numbers[key] if isinstance(key, Tensor) else key: value for key, value in own.items()}
            return {**state, "state": {**state["state"], _STATE: plain}}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state)
            own = self.state.get(_STATE)
            if own is not None:
                held = self._parameters()
                self.state[_STATE] = {held[key] if isinstance(key, int) else key: own[key] for key in own}

        def _parameters(self) -> list[Tensor]:
            return [parameter for group in self.param_groups for parameter in group["params"]]

    return Mechanized
