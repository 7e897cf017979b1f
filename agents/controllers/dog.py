"""DoG and LDoG (Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend", ICML 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.controllers.peers import WEIGHT_DECAY, AveragingSession, PeerController, PeerSession, package
from envs.training_run import TrainingRun


@dataclass(frozen=True)
class DoGController(PeerController):
    """SGD with the distance from the start over the root of the summed squared gradients as its rate.

    By the package ``dog-optimizer``. It stands in for every optimizer alike, since it is SGD. Its authors use no
    schedule and evaluate an average of the iterates (polynomial decay, their gamma = 8), which belongs to the method;
    the first step is 1e-6 of the weights' norm, 1e-4 where there is batch norm.

    :param by_layer: a rate a tensor, LDoG
    """

    kind: ClassVar[str] = "dog"

    profile: str = "constant"
    by_layer: bool = False

    def make(self, optimizer: str, parameters: Any) -> torch.optim.Optimizer:
        """Return DoG or LDoG."""
        found = package("dog")
        decay = WEIGHT_DECAY.get(optimizer, 0.0)
        return (found.LDoG if self.by_layer else found.DoG)(parameters, weight_decay=decay)

    def begin(self, run: TrainingRun, budget: int) -> PeerSession:
        """Return a session that averages."""
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in run.model.modules()):
            for group in run.optimizer.param_groups:
                group["reps_rel"] = 1e-4
        return _DoGSession(self, run, budget)

    def rate(self, optimizer: torch.optim.Optimizer) -> float:
        """Return the rate of the first tensor."""
        return float(optimizer.param_groups[0]["eta"][0])


class _DoGSession(AveragingSession, PeerSession):
    def __init__(self, controller: PeerController, run: TrainingRun, budget: int) -> None:
        super().__init__(controller, run, budget)
        self._averager = package("dog").PolynomialDecayAverager(run.model)

    def after_update(self, loss: Tensor) -> None:
        """Add the weights to the average."""
        super().after_update(loss)
        with torch.no_grad():
            self._averager.step()

    def average(self) -> None:
        """Give the model the averaged weights."""
        self.run.model.load_state_dict(self._averager.averaged_model.state_dict())

    def own_state(self) -> dict[str, Any]:
        """The average, and of how many updates it is."""
        state = self._averager.averaged_model.state_dict()
        return {"average": {key: value.clone() for key, value in state.items()}, "averaged": self._averager.t}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put the average back."""
        self._averager.averaged_model.load_state_dict(state["average"])
        self._averager.t = state["averaged"]
