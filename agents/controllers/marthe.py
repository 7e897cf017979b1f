"""MARTHE (Donini et al., "MARTHE: Scheduling the Learning Rate Via Online Hypergradients", IJCAI 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.controllers.base import HIGHEST_RATE, LOWEST_RATE, Controller, Session, new_run, require_bounds
from agents.controllers.hypergradient import ADAPTIVE_OPTIMIZERS, HypergradientSession, require_derivative, require_step
from envs.learning_rate_env import Episode
from envs.tasks import Task
from gns.errors import InvalidSettingError
from gns.features.moments import group_of_each, read_moments


@dataclass(frozen=True)
class MARTHEController(Controller):
    """Moves the rate down the hypergradient of the validation loss, carried forward through the run.

    For SGD ``Z <- mu (Z - eta H Z) - g`` and ``eta <- eta - beta <grad E_val, Z>`` (section 4): with mu = 1, Z is the
    exact derivative of the weights by a shift of all rates so far; with mu = 0 only the last update counts, as in
    hypergradient descent. Momentum and Adam's moments are part of the state that is carried. Each update costs a
    Hessian-vector product on its batch and a gradient on a batch of the reward split, in evaluation mode.

    The paper's adaptive mu is not here.

    :param mu: share of the past that is carried on, in [0, 1]
    :param beta: step of the rate; None: 1e-4 for SGD, 1e-6 for Adam. These and mu's 0.9 were chosen on reward
        splits, see docs/controllers.md
    :param beta_rate: step of beta on its own hypergradient; 0: fixed
    :param min_lr: lowest rate of any parameter group; the paper has 0, which a run never leaves
    :param max_lr: highest rate of any parameter group
    """

    kind: ClassVar[str] = "marthe"
    tuned: ClassVar[bool] = True

    mu: float = 0.9
    beta: float | None = None
    beta_rate: float = 0.0
    min_lr: float = LOWEST_RATE
    max_lr: float = HIGHEST_RATE

    def __post_init__(self) -> None:
        if not 0.0 <= self.mu <= 1.0:
            raise InvalidSettingError(f"mu is {self.mu!r}; expected a share in [0, 1].")
        require_bounds(self.min_lr, self.max_lr)
        require_step("beta", self.beta or 0.0)
        require_step("beta_rate", self.beta_rate)

    def check(self, task: Task, optimizer: str, budget: int) -> None:
        """Pass an optimizer whose update is differentiated here.

        :raises InvalidSettingError: on another
        """
        require_derivative(self.kind, optimizer)

    def start(self, episode: Episode) -> Session:
        """Begin a training run.

        :raises InvalidSettingError: if the optimizer's update is not differentiated here
        """
        require_derivative(self.kind, episode.optimizer)
        beta = self.beta if self.beta is not None else 1e-6 if episode.optimizer in ADAPTIVE_OPTIMIZERS else 1e-4
        return _MARTHESession(new_run(episode), episode, (self.min_lr, self.max_lr), beta, self.beta_rate, mu=self.mu)


class _MARTHESession(HypergradientSession):
    keep_graph = True

    def __init__(self, *arguments: Any, mu: float) -> None:
        super().__init__(*arguments)
        self._mu = mu
        self.tangent = Tangent(self.run.optimizer, self.run.parameters, self.ratios)

    def before_update(self) -> None:
        """Move the rate by the validation gradient at the present weights, and carry the tangents on."""
        if self.ledger.updates:
            self.ledger.validation_batches += 1
            self.descend([self.tangent.derivative(self.run.reward_gradient())])
        self.write_rates()
        product = self.run.hessian_vector_product(self.tangent.weights)
        self.ledger.hessian_products += 1
        self.tangent.carry(product, self._mu)

    def own_state(self) -> dict[str, Any]:
        """Also the tangents."""
        return {**super().own_state(), "tangent": self.tangent.state_dict()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_own_state(state)
        self.tangent.load_state_dict(state["tangent"])


class Tangent:
    """Derivatives of a run's weights and optimizer state by a shift of all its rates (forward mode).

    The rate of group i is ``ratio_i * eta``; derivatives are by eta.

    :param optimizer: SGD (without Nesterov), Adam or AdamW
    :param parameters: P tensors
    :param ratios: ratio of each parameter group
    :raises InvalidSettingError: if a group is set to what is not differentiated here
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], ratios: Sequence[float]) -> None:
        self._optimizer, self._parameters = optimizer, list(parameters)
        for group in optimizer.param_groups:
            for name in ("nesterov", "dampening", "amsgrad", "maximize"):
                if group.get(name):
                    raise InvalidSettingError(f"{name} is {group[name]!r} in a parameter group; expected it off.")
        self._numbers = group_of_each(optimizer, parameters)
        self._ratios = [ratios[number] for number in self._numbers]
        self.weights = [torch.zeros_like(p) for p in self._parameters]
        self._first = [torch.zeros_like(p) for p in self._parameters]
        self._second = [torch.zeros_like(p) for p in self._parameters]
        self._steps = 0

    def derivative(self, gradients: Sequence[Tensor]) -> float:
        """Return the derivative by eta of a loss with these gradients at the present weights: ``<gradient, Z>``."""
        return float(torch.stack([(g * z).sum() for g, z in zip(gradients, self.weights, strict=True)]).sum())

    @torch.no_grad()
    def carry(self, product: Sequence[Tensor], mu: float) -> None:
        """Carry the tangents through the coming update, whose gradient is pending and whose rate is written.

        With ``u(w, s)`` the update's direction and s the optimizer's state, ``w' = w - ratio eta u`` gives
        ``Z' = mu Z - ratio (eta du + u)``, du being the derivative of u along the carried tangents.

        :param product: H Z, tensors of the parameters' shapes
        :param mu: share of the tangents that is carried on
        """
        gradients = [p.grad for p in self._parameters]
        moments = read_moments(self._optimizer, self._parameters, gradients, self._steps)
        assert moments.updates is not None
        self._steps += 1
        for i in range(len(self._parameters)):
            group = self._optimizer.param_groups[self._numbers[i]]
            change = self._adam(i, group, product[i], mu) if "betas" in group else self._sgd(i, group, product[i], mu)
            old = mu * self.weights[i]
            if group.get("decoupled_weight_decay"):
                change = change + group["weight_decay"] * old
            if gradients[i] is None:
                continue
            self.weights[i] = old - float(group["lr"]) * change - self._ratios[i] * moments.updates[i]

    def _sgd(self, i: int, group: dict[str, Any], product: Tensor, mu: float) -> Tensor:
        moved = product + group["weight_decay"] * self.weights[i]
        self._first[i] = mu * (group["momentum"] * self._first[i] + moved)
        return self._first[i]

    def _adam(self, i: int, group: dict[str, Any], product: Tensor, mu: float) -> Tensor:
        parameter, (beta1, beta2) = self._parameters[i], group["betas"]
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(parameter)
        if not group.get("decoupled_weight_decay"):
            product = product + group["weight_decay"] * self.weights[i]
            gradient = gradient + group["weight_decay"] * parameter
        state = self._optimizer.state.get(parameter, {})
        steps = float(state["step"]) + 1.0 if "step" in state else 1.0
        nothing = torch.zeros_like(parameter)
        mean = beta1 * state.get("exp_avg", nothing) + (1.0 - beta1) * gradient
        square = beta2 * state.get("exp_avg_sq", nothing) + (1.0 - beta2) * gradient.square()
        self._first[i] = mu * (beta1 * self._first[i] + (1.0 - beta1) * product)
        self._second[i] = mu * (beta2 * self._second[i] + 2.0 * (1.0 - beta2) * gradient * product)
        correction1, correction2 = 1.0 - beta1**steps, 1.0 - beta2**steps
        root = (square / correction2).sqrt()
        scale = root + group["eps"]
        # A second moment of 0 has had gradients of 0 only; its root has no derivative there, and none is needed.
        slope = torch.where(root > 0, self._second[i] / correction2 / (2.0 * root), 0.0)
        return (self._first[i] / correction1 - mean / correction1 * slope / scale) / scale

    def state_dict(self) -> dict[str, Any]:
        """Return the tangents as copies."""
        lists = {"weights": self.weights, "first": self._first, "second": self._second}
        return {"steps": self._steps, **{name: [t.clone() for t in values] for name, values in lists.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self._steps = state["steps"]
        self.weights, self._first, self._second = (
            [t.clone() for t in state[name]] for name in ("weights", "first", "second")
        )
