"""D-Adaptation (Defazio and Mishchenko, "Learning-Rate-Free Learning by D-Adaptation", ICML 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from agents.controllers.peers import MOMENTUM, WEIGHT_DECAY, PeerController, package


@dataclass(frozen=True)
class DAdaptationController(PeerController):
    """SGD or Adam with a lower bound d of the distance to the solution as its step size, by ``dadaptation``.

    The rate reported is d times the factor, of SGD over the norm of the first gradient besides, as the paper has it
    (algorithm 4). Weight decay is decoupled and follows the optimizer asked for (``adamw``). Its authors advise the
    schedule that the problem is used to.

    :param growth_rate: most that d may grow by at an update; the authors suggest 1.02 where training is not stable
    """

    kind: ClassVar[str] = "d-adaptation"

    growth_rate: float = float("inf")

    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return the counterpart of SGD or Adam."""
        found = package("dadaptation")
        if optimizer.startswith("sgd"):
            return found.DAdaptSGD(parameters, momentum=MOMENTUM.get(optimizer, 0.0), growth_rate=self.growth_rate)
        decay = WEIGHT_DECAY.get(optimizer, 0.0)
        return found.DAdaptAdam(parameters, weight_decay=decay, decouple=True, growth_rate=self.growth_rate)

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Return d times the factor, of SGD over the norm of the first gradient."""
        group = optimizer.param_groups[0]
        return float(group["d"]) * float(group["lr"]) / float(group.get("g0_norm", 1.0))
