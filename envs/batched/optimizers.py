"""Optimizers of N runs side by side, each run with a rate and a count of updates of its own.

A run is a row of one matrix (N, P) that holds all P parameters of its model; so are its momentum and second moment. The
arithmetic is that of ``torch.optim.SGD``, ``Adam`` (Kingma and Ba, 2015, alg. 1) and ``AdamW`` (Loshchilov and Hutter,
2019) and ``NAdam`` (Dozat, 2016), with the settings of :data:`envs.training_run.OPTIMIZERS` and of the task's parameter
groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.training_run import OPTIMIZERS, OptimizerFactory
from gns.errors import UnknownNameError
from gns.features.moments import optimizer_kind
from gns.features.update_rules import adam_scales, is_decoupled, sgd_scale


@dataclass(frozen=True)
class Settings:
    """What an optimizer does, by the names of ``torch.optim``.

    :param kind: one of :data:`gns.features.statistics.OPTIMIZER_KINDS`, or ``nadam``, whose coming update is not known
    :param weight_decay: of all parameters, or of each, (P,), where groups differ; Adam and SGD add it to the gradient
    """

    kind: str
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | Tensor = 0.0
    momentum_decay: float = 0.0
    decoupled_weight_decay: bool = False

    @property
    def decays(self) -> bool:
        """Whether there is any weight decay."""
        return isinstance(self.weight_decay, Tensor) or self.weight_decay != 0.0

    @property
    def decoupled(self) -> bool:
        """Whether weight decay shrinks the weights themselves."""
        return is_decoupled(self.kind, vars(self))

    @property
    def readable(self) -> bool:
        """Whether features can be computed of runs side by side: their coming update is known."""
        return self.kind != "nadam"

    def with_decay(self, directions: Tensor, weights: Tensor) -> Tensor:
        """Return directions (n, P) with the weights' share in them."""
        if isinstance(self.weight_decay, Tensor):
            return torch.addcmul(directions, weights, self.weight_decay)
        return torch.add(directions, weights, alpha=self.weight_decay)


def settings_in(kind: str, group: Mapping[str, Any]) -> Settings:
    """Return the settings in a parameter group, or in an optimizer's defaults."""
    known = {item.name for item in fields(Settings)} & set(group)
    return Settings(kind, **{name: group[name] for name in known})


def batched_kind(optimizer: torch.optim.Optimizer) -> str:
    """Return the kind of an optimizer as :class:`Settings` has it."""
    return "nadam" if isinstance(optimizer, torch.optim.NAdam) else optimizer_kind(optimizer)


def _settings_of(make: OptimizerFactory) -> Settings:
    """Return the settings of the optimizer that a training run alone is given."""
    optimizer = make([nn.Parameter(torch.zeros(1))], 1.0)
    return settings_in(batched_kind(optimizer), optimizer.defaults)


BATCHED_OPTIMIZERS: dict[str, Settings] = {name: _settings_of(make) for name, make in OPTIMIZERS.items()}


class BatchedOptimizer:
    """One optimizer a row of ``parameters``.

    :param name: a name in :data:`BATCHED_OPTIMIZERS`
    :param parameters: (N, P), changed in place
    :param settings: those that come with the task's parameter groups; None: the optimizer's own
    :raises UnknownNameError: if there is no such optimizer
    """

    def __init__(self, name: str, parameters: Tensor, settings: Settings | None = None) -> None:
        if name not in BATCHED_OPTIMIZERS:
            raise UnknownNameError("optimizer for runs side by side", name, BATCHED_OPTIMIZERS)
        settings = settings or BATCHED_OPTIMIZERS[name]
        if isinstance(settings.weight_decay, Tensor):
            settings = replace(settings, weight_decay=settings.weight_decay.to(parameters))
        self.name, self.settings = name, settings
        self.parameters = parameters
        has_momentum = settings.kind != "sgd" or settings.momentum > 0.0
        self.momentum = torch.zeros_like(parameters) if has_momentum else None
        self.second = torch.zeros_like(parameters) if settings.kind != "sgd" else None
        self._direction = torch.empty_like(parameters) if settings.kind != "sgd" else None
        self.steps = torch.zeros(len(parameters), dtype=torch.float64)  # updates each run's state holds, on the host

    def begin(self, rows: Tensor) -> None:
        """Forget the state of some rows: int64 (n,)."""
        for state in self.state:
            state[rows] = 0.0
        self.steps[rows.cpu()] = 0.0

    @property
    def state(self) -> list[Tensor]:
        """Momentum and second moment, (N, P) each, as far as the optimizer keeps them."""
        return [tensor for tensor in (self.momentum, self.second) if tensor is not None]

    @torch.no_grad()
    def step(self, gradients: Tensor, rates: Tensor, rows: slice | Tensor) -> None:
        """Apply an update to some rows.

        :param gradients: theirs, (n, P)
        :param rates: their learning rates, float64 (n,), on the host
        :param rows: which; int64 (n,), or a slice, whose rows are updated in place. The others stay as they are
        """
        held, on_host = [self.parameters, *self.state], rows if isinstance(rows, slice) else rows.cpu()
        self.steps[on_host] += 1.0
        chosen = [tensor[rows] for tensor in held]
        self._apply(chosen, gradients, rates, self.steps[on_host])
        if not isinstance(rows, slice):
            for tensor, changed in zip(held, chosen, strict=True):
                tensor[rows] = changed

    def _apply(self, held: list[Tensor], gradients: Tensor, rates: Tensor, steps: Tensor) -> None:
        """Update weights and state, (n, P) each, in place.

        :param steps: updates of each row with this one, (n,)
        """
        settings, weights = self.settings, held[0]
        if settings.decays and not settings.decoupled:
            gradients = settings.with_decay(gradients, weights)
        if settings.kind == "sgd":
            direction = held[1].mul_(settings.momentum).add_(gradients) if settings.momentum else gradients
            weights.addcmul_(direction, _column(rates, weights), value=-1.0)
            return
        (beta1, beta2), (momentum, second) = settings.betas, held[1:]
        if settings.decays and settings.decoupled:
            weights.mul_(_shrunk(rates, settings.weight_decay, weights))
        momentum.lerp_(gradients, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1.0 - beta2)
        assert self._direction is not None
        direction = self._denominator(second, steps, self._direction[: len(weights)])
        if settings.kind == "nadam":
            own, coming = _nesterov_shares(settings, steps)
            weights.addcdiv_(gradients * _column(rates * own, weights), direction, value=-1.0)
            weights.addcdiv_(momentum * _column(rates * coming, weights), direction, value=-1.0)
            return
        torch.div(momentum, direction, out=direction)
        weights.addcmul_(direction, _column(rates / (1.0 - beta1**steps), weights), value=-1.0)

    @torch.no_grad()
    def coming_update(self, gradients: Tensor) -> Tensor:
        """Return the update that each row would make with its gradients at a rate of 1, (N, P); nothing is changed.

        The rule is that of :mod:`gns.features.update_rules`.
        """
        settings, momentum, second = self.settings, self.momentum, self.second
        if settings.decays and not settings.decoupled:
            gradients = settings.with_decay(gradients, self.parameters)
        if momentum is None:
            return gradients
        if second is None:
            return torch.add(gradients, momentum, alpha=settings.momentum)
        (beta1, beta2), steps = settings.betas, self.steps + 1.0
        update = torch.lerp(momentum, gradients, 1.0 - beta1)
        square = second.mul(beta2).addcmul_(gradients, gradients, value=1.0 - beta2)
        update.div_(self._denominator(square, steps, square)).div_(_column(1.0 - beta1**steps, update))
        return settings.with_decay(update, self.parameters) if settings.decays and settings.decoupled else update

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Factors that make momentum a mean of gradients, and second moments free of their bias, (N,) each."""
        steps, group = self.steps.numpy(), vars(self.settings)
        if self.settings.kind == "sgd":
            return sgd_scale(group, steps), np.ones_like(steps)
        return adam_scales(group, steps)

    def _denominator(self, second: Tensor, steps: Tensor, out: Tensor) -> Tensor:
        """Return ``sqrt(second/(1 - beta2^t)) + eps``, written to ``out``."""
        # The square root as 1/(1/sqrt(v)): MKL's is slow on zeros.
        root = torch.rsqrt(second, out=out).reciprocal_()
        return root.mul_(_column((1.0 - self.settings.betas[1] ** steps).rsqrt(), root)).add_(self.settings.eps)


def _shrunk(rates: Tensor, decay: float | Tensor, weights: Tensor) -> Tensor:
    """What decoupled weight decay leaves of weights: (n, 1), or (n, P) where parameters differ."""
    if isinstance(decay, Tensor):
        return 1.0 - _column(rates, weights) * decay
    return _column(1.0 - rates * decay, weights)


def _nesterov_shares(settings: Settings, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the gradient and of the momentum in an update of ``torch.optim.NAdam``, (n,) each.

    ``(1 - mu_t) / (1 - mu_1 ... mu_t)`` and ``mu_(t+1) / (1 - mu_1 ... mu_(t+1))``, mu growing from half of beta1 to
    beta1; the products are kept in single precision, as PyTorch keeps them.

    :param steps: t of each, (n,)
    """
    momenta, products = _nesterov_momenta(
        settings.betas[0], settings.momentum_decay, 1 << int(steps.max()).bit_length()
    )
    now = steps.long() - 1
    mu, coming, product = momenta[now], momenta[now + 1], products[now]
    return (1.0 - mu) / (1.0 - product), coming / (1.0 - product * coming)


@lru_cache(maxsize=8)
def _nesterov_momenta(beta: float, decay: float, count: int) -> tuple[Tensor, Tensor]:
    """Return mu_1 ... mu_count+1 and their running products, float64."""
    momenta = beta * (1.0 - 0.5 * 0.96 ** (decay * np.arange(1, count + 2)))
    products = np.multiply.accumulate(momenta.astype(np.float32))
    return torch.from_numpy(momenta), torch.from_numpy(products.astype(np.float64))


def _column(values: Tensor, like: Tensor) -> Tensor:
    """A number a row, (n, 1), beside ``like``."""
    return values.to(device=like.device, dtype=like.dtype).unsqueeze(1)
