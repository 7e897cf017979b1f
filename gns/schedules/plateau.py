"""Decay on plateau without an optimizer: PyTorch's ``ReduceLROnPlateau`` as a small state machine.

Baseline of Chen, Wolfe and Kyrillidis, MLSys 2022, section 4.1: the rate falls when the loss has stopped improving.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from gns.errors import InvalidSettingError, UnknownNameError

MODES = ("max", "min")
THRESHOLD_MODES = ("abs", "rel")
_MEMORY = ("multiplier", "best", "bad", "cooldown_left")


class Plateau:
    """Multiplier on the initial learning rate that falls when a loss stops improving.

    With an initial rate of 1 it is what ``torch.optim.lr_scheduler.ReduceLROnPlateau`` makes of the rate, but for one
    case: an infinite loss never counts as an improvement, here not even on the good side.

    :param factor: what a reduction multiplies by, in (0, 1)
    :param patience: losses without improvement that are borne; the next one reduces
    :param threshold: improvement that counts, 0 or above
    :param threshold_mode: ``rel``: a share of the best loss; ``abs``: a difference to it
    :param cooldown: losses after a reduction that do not count as bad
    :param mode: ``min``: lower is better; ``max``: higher is
    :param min_factor: the multiplier falls no lower, in [0, 1]; PyTorch's ``min_lr / initial_lr``
    :param eps: a reduction of the multiplier by this or less is not made; PyTorch's ``eps / initial_lr``
    :raises InvalidSettingError: on a value outside its domain
    :raises UnknownNameError: on an unknown mode
    """

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        mode: str = "min",
        min_factor: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        _require("factor", factor, lambda value: 0 < value < 1, "a number in (0, 1)")
        for name, count in (("patience", patience), ("cooldown", cooldown)):
            _require(name, count, lambda value: value >= 0 and value == int(value), "a whole number, 0 or above")
        for name, number in (("threshold", threshold), ("eps", eps)):
            _require(name, number, lambda value: value >= 0, "a finite number, 0 or above")
        _require("min_factor", min_factor, lambda value: 0 <= value <= 1, "a number in [0, 1]")
        if threshold_mode not in THRESHOLD_MODES:
            raise UnknownNameError("threshold mode", threshold_mode, THRESHOLD_MODES)
        if mode not in MODES:
            raise UnknownNameError("mode", mode, MODES)
        self.factor, self.patience, self.cooldown = factor, int(patience), int(cooldown)
        self.threshold, self.threshold_mode, self.mode = threshold, threshold_mode, mode
        self.min_factor, self.eps = min_factor, eps
        self.multiplier = 1.0
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = self.cooldown_left = 0

    def step(self, loss: float) -> bool:
        """Take a loss and set :attr:`multiplier`.

        :param loss: any number; NaN and infinities count as no improvement
        :return: whether the multiplier fell
        """
        loss = float(loss)
        if self._improves(loss):
            self.best, self.bad = loss, 0
        else:
            self.bad += 1
        if self.cooldown_left:
            self.cooldown_left -= 1
            self.bad = 0
        if self.bad <= self.patience:
            return False
        self.bad, self.cooldown_left = 0, self.cooldown
        reduced = max(self.multiplier * self.factor, self.min_factor)
        if self.multiplier - reduced <= self.eps:
            return False
        self.multiplier = reduced
        return True

    def _improves(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return False
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "rel":
            bound = self.best * (1.0 + sign * self.threshold)
        else:
            bound = self.best + sign * self.threshold
        return loss < bound if self.mode == "min" else loss > bound

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered between losses: four numbers. Settings are not among them."""
        return {name: getattr(self, name) for name in _MEMORY}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of a plateau of the same settings.

        :raises InvalidSettingError: if it is no state of a plateau
        """
        if set(state) != set(_MEMORY):
            raise InvalidSettingError(
                f"The state has the entries {sorted(state)}; expected {sorted(_MEMORY)}, those of Plateau.state_dict()."
            )
        for name in _MEMORY:
            setattr(self, name, state[name])


def _require(name: str, value: Any, inside: Callable[[Any], bool], expected: str) -> None:
    if isinstance(value, bool) or not (isinstance(value, Real) and math.isfinite(value) and inside(value)):
        raise InvalidSettingError(f"{name} is {value!r}; expected {expected}.")
