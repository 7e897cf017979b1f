"""What all editions of a pool draw with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from envs.tasks.base import FINE_TUNING, FROM_SCRATCH, all_parameters
from envs.tasks.glue import mean_squared_error

T = TypeVar("T")
Draws = np.random.Generator

TRIES = 50  # networks drawn before there is none cheap enough
_HIGHEST_RATE, _LOWEST_RATE = 10.0, 1e-8  # bounds of decisions


def in_turn(names: Sequence[T], seed: int, number: int, purpose: int) -> T:
    """Return what is in turn: every name once, in a random order, before any comes again."""
    lap, place = divmod(number, len(names))
    return names[int(np.random.default_rng([seed, lap, purpose]).permutation(len(names))[place])]


def log_uniform(draws: Draws, low: float, high: float) -> float:
    """Return a number of a log-uniform law."""
    return float(low * (high / low) ** draws.random())


def with_settings(settings: tuple[tuple[str, Any], ...], matrices: bool, model: nn.Module) -> list[dict[str, Any]]:
    """Return all parameters with optimizer settings.

    :param matrices: whether weight decay is left to matrices: biases, norms and other vectors are a group without
    """
    if not matrices:
        return [{"params": list(all_parameters(model)), **dict(settings)}]
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], **dict(settings)},
        {
            "params": [parameter for parameter in parameters if parameter.ndim <= 1],
            **dict(settings),
            "weight_decay": 0.0,
        },
    ]


def four_decades(
    fine_tuning: bool, settings: dict[str, Any], shift: float, steepness: float
) -> dict[str, tuple[float, float]]:
    """Return four decades of rates for every optimizer around what is sensible for it, shifted.

    :param settings: of the task's own optimizer
    :param shift: in decades
    :param steepness: how much larger gradients are than usual, which plain gradient descent takes smaller steps for
    """
    ranges = {}
    for name, (low, high) in (FINE_TUNING if fine_tuning else FROM_SCRATCH).items():
        factor = 10.0**shift
        if name in ("sgd", "sgdm"):
            factor /= steepness
        if name == "sgdm":
            factor *= 10.0 * (1.0 - settings.get("momentum", 0.9))
        factor = min(max(factor, _LOWEST_RATE / low), _HIGHEST_RATE / high)
        ranges[name] = (low * factor, min(high * factor, _HIGHEST_RATE))
    return ranges


def scaled(loss: Callable[[Any, Tensor], Tensor], factor: float, outputs: Any, targets: Tensor) -> Tensor:
    """Return a loss times a factor."""
    return factor * loss(outputs, targets)


def error(outputs: Tensor, split: Any) -> float:
    """Return the mean squared error on a split: a metric."""
    return float(mean_squared_error(outputs, split.targets))
