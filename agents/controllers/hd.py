"""Hypergradient descent (Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent", ICLR 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten  # joins in one call; of a single tensor it is a view

from agents.controllers.base import HIGHEST_RATE, LOWEST_RATE, Controller, Session, new_run, require_bounds
from agents.controllers.hypergradient import ADAPTIVE_OPTIMIZERS, HypergradientSession, require_step
from envs.learning_rate_env import Episode


@dataclass(frozen=True)
class HDController(Controller):
    """Moves the rate along the inner product of the gradient and the last update's direction.

    ``eta <- eta + beta <g_t, u_{t-1}>``, since ``w_t = w_{t-1} - eta u_{t-1}`` makes the loss's derivative by eta
    ``-<g_t, u_{t-1}>`` (section 2, eq. 5 and 8). u is the gradient for SGD, the velocity with momentum, and Adam's
    direction for Adam. One rate for all parameter groups, which keep their ratios, unless ``per_group``.

    :param beta: step of the rate; None: 1e-3 for SGD, 1e-7 for Adam, as in section 4 of the paper
    :param beta_rate: step of beta on its own hypergradient; 0: beta is fixed, as in the paper
    :param min_lr: lowest rate of any parameter group
    :param max_lr: highest rate of any parameter group
    :param per_group: a rate of its own for each parameter group
    """

    kind: ClassVar[str] = "hd"
    tuned: ClassVar[bool] = True

    beta: float | None = None
    beta_rate: float = 0.0
    min_lr: float = LOWEST_RATE
    max_lr: float = HIGHEST_RATE
    per_group: bool = False

    def __post_init__(self) -> None:
        require_bounds(self.min_lr, self.max_lr)
        require_step("beta", self.beta or 0.0)
        require_step("beta_rate", self.beta_rate)

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        beta = self.beta if self.beta is not None else 1e-7 if episode.optimizer in ADAPTIVE_OPTIMIZERS else 1e-3
        return _HDSession(new_run(episode), episode, (self.min_lr, self.max_lr), beta, self.beta_rate, self.per_group)


Gradients = list[list[Tensor | None]]  # by parameter group


class _HDSession(HypergradientSession):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._last_gradients: Gradients | None = None
        self._regular = True  # so far every parameter had a gradient at every update

    def before_update(self) -> None:
        """Move the rate by the pending gradient and the direction of the last update."""
        pending: Gradients = [[p.grad for p in group["params"]] for group in self.run.optimizer.param_groups]
        self._regular = self._regular and not any(g is None for gradients in pending for g in gradients)
        if self._last_gradients is not None:
            by_group = self._hypergradients(pending, self._last_gradients)
            if self.per_group:
                self.descend(by_group)
            else:
                self.descend([sum(ratio * h for ratio, h in zip(self.ratios, by_group, strict=True))])
        self.write_rates()
        self._last_gradients = pending

    def _hypergradients(self, pending: Gradients, last: Gradients) -> list[float]:
        optimizer = self.run.optimizer
        function: Callable[..., float] = hypergradient if self._regular else hypergradient_by_tensor
        return [function(optimizer, *parts) for parts in zip(optimizer.param_groups, pending, last, strict=True)]

    def own_state(self) -> dict[str, Any]:
        """Also the last gradients, which plain SGD does not keep."""
        last = self._last_gradients
        copies = None if last is None else [[None if g is None else g.clone() for g in group] for group in last]
        return {**super().own_state(), "gradients": copies, "regular": self._regular}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_own_state(state)
        self._last_gradients, self._regular = copy.deepcopy(state["gradients"]), state["regular"]


def hypergradient(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], gradients: Sequence[Tensor], last: Sequence[Tensor]
) -> float:
    """Return the loss's derivative by a group's rate, ``-<g_t, u_{t-1}>``, where all was updated last time.

    One copy to the host. Tensors are joined to one, so that their number hardly matters;
    :func:`hypergradient_by_tensor` is the readable twin.

    :param group: parameter group, its rate still that of the last update
    :param gradients: pending gradients of its parameters
    :param last: gradients of the last update, for optimizers that do not keep what they made of them
    """
    kept = optimizer.state
    states = [kept[p] for p in group["params"]] if "betas" in group or group["momentum"] else []
    decay, scale, decoupled = group["weight_decay"], 1.0, True
    if "betas" in group:
        beta1, beta2 = group["betas"]
        steps = float(states[0]["step"])
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        root = (1.0 - beta2**steps) ** 0.5  # m / (sqrt(v) / root + eps) = root m / (sqrt(v) + root eps)
        denominator = flatten([state[second] for state in states]).sqrt().add_(root * group["eps"])
        direction = flatten([state["exp_avg"] for state in states]) / denominator
        scale = root / (1.0 - beta1**steps)
        decoupled = group.get("decoupled_weight_decay", False)
    elif group["momentum"] and not group["nesterov"]:
        direction, decoupled = flatten([state["momentum_buffer"] for state in states]), False
    else:
        direction = flatten(last)
        if group["nesterov"]:
            velocity = flatten([state["momentum_buffer"] for state in states])
            direction = torch.add(direction, velocity, alpha=group["momentum"])
    gradient = flatten(gradients)
    product = scale * torch.dot(gradient, direction).item()
    if decay and decoupled:  # u = d + decay w_{t-1}, and w_{t-1} = (w_t + eta d) / (1 - eta decay)
        weights = flatten([p.detach() for p in group["params"]])
        share = decay / (1.0 - group["lr"] * decay)
        product = (1.0 + share * group["lr"]) * product + share * torch.dot(gradient, weights).item()
    return -product


def _decoupled(direction: Tensor, weights: Tensor, rate: float, decay: float) -> Tensor:
    """Add the decay of the weights before the update, ``w_{t-1} = (w_t + eta u) / (1 - eta decay)``."""
    return direction + decay * (weights + rate * direction) / (1.0 - rate * decay)


def hypergradient_by_tensor(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    gradients: Sequence[Tensor | None],
    last: Sequence[Tensor | None],
) -> float:
    """Return the loss's derivative by a group's rate, tensor by tensor; a tensor without an update counts 0."""
    total = 0.0
    for parameter, gradient, before in zip(group["params"], gradients, last, strict=True):
        if gradient is not None and before is not None:
            direction = last_direction(group, parameter.detach(), optimizer.state.get(parameter, {}), before)
            total -= float((gradient * direction).sum())
    return total


def last_direction(group: dict[str, Any], weight: Tensor, state: Mapping[str, Any], gradient: Tensor) -> Tensor:
    """Return u of the last update ``w_t = w_{t-1} - eta u`` of one tensor, from what it left behind.

    :param group: parameter group, its rate still that of the last update
    :param weight: w_t
    :param state: the optimizer's state after the update
    :param gradient: gradient of the last update
    """
    decay, rate = group["weight_decay"], group["lr"]
    if "betas" in group:
        beta1, beta2 = group["betas"]
        steps = float(state["step"])
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        mean = state["exp_avg"] / (1.0 - beta1**steps)
        direction = mean / ((second / (1.0 - beta2**steps)).sqrt() + group["eps"])
        return _decoupled(direction, weight, rate, decay) if group.get("decoupled_weight_decay") else direction
    velocity = state.get("momentum_buffer")
    if group["momentum"] and not group["nesterov"]:
        return velocity  # type: ignore[return-value]
    direction = gradient + group["momentum"] * velocity if group["nesterov"] else gradient
    return _decoupled(direction, weight, rate, decay) if decay else direction
