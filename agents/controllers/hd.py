"""Hypergradient descent (Baydin et al., "Online Learning Rate Adaptation with Hypergradient Descent", ICLR 2018)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import mul
from typing import Any, ClassVar

from torch import Tensor

from agents.controllers.base import HIGHEST_RATE, LOWEST_RATE, Controller, Session, new_run, require_bounds
from agents.controllers.directions import hypergradient, hypergradient_by_tensor
from agents.controllers.hypergradient import ADAPTIVE_OPTIMIZERS, HypergradientSession, require_derivative, require_step
from envs.learning_rate_env import Episode
from envs.tasks import Task


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
        if self.run.left_out:  # no update comes, and so none to learn from next time
            self._last_gradients = None
            self.write_rates()
            return
        optimizer, last = self.run.optimizer, self._last_gradients
        pending: Gradients = [[p.grad for p in group["params"]] for group in optimizer.param_groups]
        if self._regular and None in [g if g is None else 0 for gradients in pending for g in gradients]:
            self._regular = False
        if last is not None:
            function: Callable[..., float] = hypergradient if self._regular else hypergradient_by_tensor
            groups = enumerate(optimizer.param_groups)
            by_group = [function(optimizer, group, pending[number], last[number]) for number, group in groups]
            if not self.per_group:
                by_group = [sum(map(mul, self.ratios, by_group))]
            self.descend(by_group)
        self.write_rates()
        self._last_gradients = pending

    def own_state(self) -> dict[str, Any]:
        """Also the last gradients, which plain SGD does not keep."""
        last = self._last_gradients
        copies = None if last is None else [[None if g is None else g.clone() for g in group] for group in last]
        return {**super().own_state(), "gradients": copies, "regular": self._regular}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        super().load_own_state(state)
        self._last_gradients, self._regular = copy.deepcopy(state["gradients"]), state["regular"]
