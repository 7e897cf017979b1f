"""MoMo (Schaipp et al., "MoMo: Momentum Models for Adaptive Learning Rates", ICML 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.controllers.peers import MOMENTUM, WEIGHT_DECAY, PeerController, PeerSession, package
from envs.training_run import TrainingRun


@dataclass(frozen=True)
class MoMoController(PeerController):
    """Polyak's step size for SGD with momentum and for Adam, from a running model of the loss, by ``momo-opt``.

    Its step is capped by a rate, the package's default of 1 for SGD and 0.01 for Adam; ``scale`` moves that cap. The
    authors use no schedule. The rate reported is the cap: the package does not tell the step.

    :param lower_bound: of the loss
    """

    kind: ClassVar[str] = "momo"

    profile: str = "constant"
    lower_bound: float = 0.0

    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return the counterpart of SGD or Adam."""
        found = package("momo")
        if optimizer.startswith("sgd"):
            return _with_loss(found.Momo)(parameters, beta=MOMENTUM.get(optimizer, 0.0), lb=self.lower_bound)
        return _with_loss(found.MomoAdam)(
            parameters, weight_decay=WEIGHT_DECAY.get(optimizer, 0.0), lb=self.lower_bound
        )

    def begin(self, run: TrainingRun, budget: int) -> PeerSession:
        """Return a session that tells the optimizer the loss of each update."""
        return _MoMoSession(self, run, budget)


class _MoMoSession(PeerSession):
    def before_update(self) -> None:
        """Write the factor, and tell the loss."""
        super().before_update()
        self.run.optimizer.loss = self.run.loss.detach()  # type: ignore[attr-defined]


@lru_cache(maxsize=2)
def _with_loss(found: type[torch.optim.Optimizer]) -> Any:
    """Return an optimizer of the package that is told its loss beforehand, and whose state is saved as a whole."""
    kept = ("lb", "loss_avg", "_number_steps")

    class WithLoss(found):  # type: ignore[misc, valid-type]
        loss: Tensor

        def step(self, closure: Any = None) -> Any:
            return super().step(loss=self.loss)

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "momo": {key: getattr(self, key) for key in kept}}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict({key: value for key, value in state.items() if key != "momo"})
            for key, value in state["momo"].items():
                setattr(self, key, value)

    return WithLoss
