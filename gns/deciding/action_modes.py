"""Action modes: what an action does to a run's rates. A mode is one row of :data:`ACTION_MODES`.

A run remembers a level. The rate of an update is the level, times a profile f(t/T) in modes that have one. A decision
with action a in [-1, 1] multiplies the level by a number that the mode's law gives.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gns.deciding.layer_multipliers import LayerMultipliers
from gns.errors import UnknownNameError
from gns.schedules.profiles import Profile, get_profile

if TYPE_CHECKING:
    from gns.deciding.config import DecisionConfig


@dataclass(frozen=True)
class Law:
    """The number that an action multiplies by.

    Both functions also take the settings, and the largest factor that these allow the decision at hand, see
    :meth:`gns.deciding.config.DecisionConfig.largest_factor`.

    :param multiplier: of an action in [-1, 1]
    :param action: its inverse: the action for a multiplier above 0, which may lie outside [-1, 1]
    :param formula: the multiplier in words, names of settings in braces
    """

    multiplier: Callable[[float, DecisionConfig, float], float]
    action: Callable[[float, DecisionConfig, float], float]
    formula: str


POWER = Law(
    multiplier=lambda action, settings, largest: largest**action,
    action=lambda ratio, settings, largest: math.log(ratio) / math.log(largest),
    formula="{base}^a",
)
EXPONENTIAL = Law(
    multiplier=lambda action, settings, largest: math.exp(settings.strength * action),
    action=lambda ratio, settings, largest: math.log(ratio) / settings.strength,
    formula="exp({strength} * a)",
)
ONE_PLUS_ACTION = Law(  # released code of Xiong et al., ICLR 2022
    multiplier=lambda action, settings, largest: 1.0 + action,
    action=lambda ratio, settings, largest: ratio - 1.0,
    formula="(1 + a)",
)


@dataclass(frozen=True)
class ActionMode:
    """What actions do to a run's rates.

    :param name: as in configurations and policy files
    :param law: what an action multiplies the level by
    :param has_profile: whether the level is multiplied by the profile of the settings; otherwise the rate is constant
        between decisions
    :param from_initial: whether it is the initial level that is multiplied, less what rollbacks cut off; otherwise that
        before the decision, within the bounds of the rate
    :param from_default: whether the initial level is the calibrated default rate of the optimizer, see
        :mod:`gns.schedules.calibrated`; otherwise it is the initial rate that was given
    :param by_layer: makes multipliers of parameter groups from an action for each layer beside the shared one; None:
        one action decides on all groups
    """

    name: str
    law: Law
    has_profile: bool = True
    from_initial: bool = False
    from_default: bool = False
    by_layer: type[LayerMultipliers] | None = None

    def multiplier(self, action: float, settings: DecisionConfig, decided_at: int) -> float:
        """Return what a decision multiplies the level by.

        :param action: in [-1, 1]
        :param decided_at: update of the decision before this one; negative: there was none
        """
        if not settings.acts(decided_at):
            return 1.0
        return self.law.multiplier(action, settings, settings.largest_factor(decided_at))

    def action(self, ratio: float, settings: DecisionConfig, decided_at: int) -> float:
        """Return the action in [-1, 1] that multiplies the level by a ratio, or comes nearest to it.

        :param ratio: 0 or more
        :param decided_at: update of the decision before this one; negative: there was none
        """
        if not settings.acts(decided_at):
            return 0.0
        action = self.law.action(max(ratio, sys.float_info.min), settings, settings.largest_factor(decided_at))
        return min(max(action, -1.0), 1.0)

    def profile(self, settings: DecisionConfig) -> Profile:
        """Return f, constant where the mode has none."""
        return get_profile(settings.profile if self.has_profile else "constant")

    def multipliers(
        self, settings: DecisionConfig, layers: int, held: Sequence[Sequence[int]]
    ) -> LayerMultipliers | None:
        """Return what makes multipliers of parameter groups; None where layers have no actions.

        :param layers: number of layers
        :param held: numbers of the layers that each group holds
        """
        return None if self.by_layer is None else self.by_layer(layers, held, settings.layer_base)

    @property
    def rate_formula(self) -> str:
        """The rate of an update in words, names of settings in braces."""
        return "level" + " * f(t/T)" * self.has_profile + " * {layer_base}^(b - mean b)" * (self.by_layer is not None)

    @property
    def decision_formula(self) -> str:
        """What a decision does to the level in words, names of settings in braces."""
        before = ("default" if self.from_default else "initial") if self.from_initial else "level"
        return f"level <- {before} * {self.law.formula}"

    def described(self, settings: DecisionConfig) -> str:
        """Return the rate, and what an action does to it, with the numbers of some settings."""
        numbers = {name: f"{value:g}" if isinstance(value, float) else value for name, value in vars(settings).items()}
        decision = self.decision_formula.format(**numbers)
        first = self.decision_formula.format(**numbers | {"base": f"{settings.first_base or settings.base:g}"})
        text = f"rate = {self.rate_formula.format(**numbers)}, {decision}"
        text += f"; f: {settings.profile}" if self.has_profile else ""
        text += f"; {first} at the first decision" if first != decision else ""
        return text if settings.decide_first else f"{text}; as it is in the first interval"


ACTION_MODES: dict[str, ActionMode] = {
    mode.name: mode
    for mode in (
        ActionMode("profile", POWER),
        ActionMode("prior", POWER, from_initial=True, from_default=True),
        ActionMode("recursive", POWER, has_profile=False),
        ActionMode("anchored", EXPONENTIAL, from_initial=True),
        ActionMode("gns-paper", ONE_PLUS_ACTION, has_profile=False),
        ActionMode("per-layer", POWER, by_layer=LayerMultipliers),
    )
}


def get_mode(name: str) -> ActionMode:
    """Return the action mode of that name.

    :raises UnknownNameError: if there is none
    """
    if name not in ACTION_MODES:
        raise UnknownNameError("action mode", name, ACTION_MODES)
    return ACTION_MODES[name]


def modes_by_layer() -> str:
    """Return the names of the modes in which layers have actions, for messages."""
    return " or ".join(repr(name) for name, mode in ACTION_MODES.items() if mode.by_layer is not None)
