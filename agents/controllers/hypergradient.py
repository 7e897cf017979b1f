"""What methods share that move the learning rate by gradient descent on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from agents.controllers.base import Session
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError

ADAPTIVE_OPTIMIZERS = ("adam", "adamw")  # their updates do not scale with the gradient, so neither does beta


class HypergradientSession(Session):
    """Descends on the rate: ``eta <- eta - beta * h``, h being the derivative of a loss by the rate.

    A rate stays within bounds for every parameter group; where h is not finite the rate stays as it is.

    :param beta: step of the rate
    :param beta_rate: step of beta on its own hypergradient, 0: fixed. As ``eta_t = eta_{t-1} - beta h_{t-1}``, the
        derivative of the loss by beta is ``-h_t h_{t-1}``, and ``beta <- max(beta + beta_rate h_t h_{t-1}, 0)``
    :param per_group: a rate for each parameter group, whose ratios then change; or else one for all
    """

    def __init__(
        self,
        run: TrainingRun,
        episode: Episode,
        bounds: tuple[float, float],
        beta: float,
        beta_rate: float = 0.0,
        per_group: bool = False,
    ) -> None:
        super().__init__(run, episode.budget)
        self._bounds, self._beta_rate, self.per_group = bounds, beta_rate, per_group
        count = len(self.ratios) if per_group else 1
        self.betas = [beta] * count
        self._last = [math.nan] * count
        ratios = self.ratios if per_group else [1.0]
        self._etas = [self._bounded(episode.learning_rate * ratio) for ratio in ratios]

    def descend(self, hypergradients: Sequence[float]) -> None:
        """Move the rates, and the betas where they adapt.

        :param hypergradients: derivative of a loss by each rate: by that of each parameter group if ``per_group``, or
            else one, by the rate of the first group along with which the others move
        """
        for i, h in enumerate(hypergradients):
            if not math.isfinite(h):
                continue
            if self._beta_rate and math.isfinite(self._last[i]):
                beta = max(self.betas[i] + self._beta_rate * h * self._last[i], 0.0)
                self.betas[i] = beta if math.isfinite(beta) else self.betas[i]
            self._last[i] = h
            self._etas[i] = self._bounded(self._etas[i] - self.betas[i] * h)

    def write_rates(self) -> None:
        """Write the rates into the parameter groups."""
        self.rates.append(self._etas[0])
        if not self.per_group:
            self.set_rate(self._etas[0])
            return
        for group, eta in zip(self.run.optimizer.param_groups, self._etas, strict=True):
            group["lr"] = eta

    def _bounded(self, rate: float) -> float:
        lowest, highest = self._bounds
        if not self.per_group:  # the bounds hold for every group
            lowest, highest = lowest / min(self.ratios), highest / max(self.ratios)
        return min(max(rate, lowest), highest)

    def own_state(self) -> dict[str, Any]:
        """Rates, betas and last hypergradients."""
        return {"etas": list(self._etas), "betas": list(self.betas), "last": list(self._last)}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self._etas, self.betas, self._last = list(state["etas"]), list(state["betas"]), list(state["last"])


def require_step(name: str, value: float) -> None:
    """Pass a step of 0 or more.

    :raises InvalidSettingError: on anything else
    """
    if not 0.0 <= value < math.inf:
        raise InvalidSettingError(f"{name} is {value!r}; expected a finite number of 0 or more.")


def require_derivative(kind: str, optimizer: str) -> None:
    """Pass an optimizer whose update is differentiated by the rate here.

    :param kind: of the controller
    :param optimizer: a name in :data:`envs.training_run.OPTIMIZERS`
    :raises InvalidSettingError: on another
    """
    if optimizer not in (*ADAPTIVE_OPTIMIZERS, "sgd", "sgdm"):
        raise InvalidSettingError(
            f"{kind} has no derivative of the update of {optimizer}; expected sgd, sgdm, adam or adamw."
        )
