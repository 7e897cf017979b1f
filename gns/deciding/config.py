"""How actions become rates, and what a policy sees: the data that pass between a policy and the decision core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gns.deciding.action_modes import ActionMode, get_mode
from gns.errors import InvalidSettingError, require_count, require_positive
from gns.features.schemas import get_schema
from gns.schedules.profiles import get_profile


@dataclass(frozen=True)
class DecisionConfig:
    """How actions become rates. Part of every policy file.

    :param mode: a name in :data:`gns.deciding.action_modes.ACTION_MODES`, which says what an action does in each
    :param profile: name of f in modes that have a profile, see :mod:`gns.schedules.profiles`
    :param base: largest factor of one decision in modes whose action a multiplies the rate by base^a
    :param first_base: that of the first decision, which may have decades of wrong initial rate to undo; None: ``base``
    :param decide_first: whether the decision before the first update does anything; False: the first interval has the
        initial rate, as in methods that look at a run before they decide, and the next decision is the first
    :param trust_initial_rate: in mode ``prior``, begin at the initial rates that are given, not at the default
    :param strength: largest deviation of ``anchored``, in units of ln(rate)
    :param layer_base: what a layer's action of 1 multiplies its rate by in ``per-layer``, before the multipliers are
        centred: they lie within layer_base^-2 and layer_base^2, and their geometric mean over layers is 1
    :param min_lr: lowest rate any parameter group may get
    :param max_lr: highest rate any parameter group may get
    :param num_decisions: decisions over a budget; the interval follows as K = ceil(T / n)
    :param decision_interval: updates between decisions; if given, it takes the place of ``num_decisions``
    :param features: name of the feature schema, see :data:`gns.features.schemas.SCHEMAS`
    :raises InvalidSettingError, UnknownNameError: on a value outside its domain
    """

    mode: str = "profile"
    profile: str = "rex"
    base: float = 10.0
    first_base: float | None = None
    decide_first: bool = True
    trust_initial_rate: bool = False
    strength: float = 2.3
    layer_base: float = 3.0
    min_lr: float = 1e-8
    max_lr: float = 10.0
    num_decisions: int = 20
    decision_interval: int | None = None
    features: str = "gns-1"

    def __post_init__(self) -> None:
        get_mode(self.mode)
        get_profile(self.profile)
        if not get_schema(self.features).node and self.per_layer:
            raise InvalidSettingError(
                f"mode is {self.mode!r} and features {self.features!r} have none of layers; expected a schema with "
                "features of layers, such as 'gns-1', or another mode."
            )
        for name in ("base", "strength", "layer_base", "min_lr", "max_lr"):
            require_positive(name, getattr(self, name))
        require_count("num_decisions", self.num_decisions)
        if self.decision_interval is not None:
            require_count("decision_interval", self.decision_interval)
        if self.first_base is not None:
            require_positive("first_base", self.first_base)
        for name in ("base", "first_base", "layer_base"):
            if (getattr(self, name) or math.inf) <= 1.0:
                raise InvalidSettingError(
                    f"{name} is {getattr(self, name)}; expected more than 1, since an action multiplies by {name}^a."
                )
        for name in ("decide_first", "trust_initial_rate"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidSettingError(f"{name} is {getattr(self, name)!r}; expected true or false.")
        if self.min_lr >= self.max_lr:
            raise InvalidSettingError(f"min_lr is {self.min_lr} and max_lr {self.max_lr}; expected min_lr < max_lr.")

    @property
    def action_mode(self) -> ActionMode:
        """What an action does."""
        return get_mode(self.mode)

    @property
    def per_layer(self) -> bool:
        """Whether each layer has an action besides the shared one."""
        return self.action_mode.by_layer is not None

    def acts(self, decided_at: int) -> bool:
        """Return whether a decision does anything.

        :param decided_at: update of the decision before this one; negative: there was none
        """
        return decided_at >= 0 or self.decide_first

    def largest_factor(self, decided_at: int) -> float:
        """Return what an action of 1 multiplies the rate by, in modes whose action a multiplies it by base^a.

        :param decided_at: update of the decision before this one; negative: there was none
        """
        if not self.acts(decided_at):
            return 1.0
        first = decided_at < 0 or (decided_at == 0 and not self.decide_first)
        return self.first_base or self.base if first else self.base

    def interval(self, budget: int) -> int:
        """Updates between decisions, K, for a budget of T updates.

        :raises InvalidSettingError: if the budget is not a positive whole number or allows fewer updates than decisions
        """
        require_count("budget", budget)
        if self.decision_interval is not None:
            return self.decision_interval
        if budget < self.num_decisions:
            raise InvalidSettingError(
                f"A budget of {budget} updates is smaller than num_decisions = {self.num_decisions}; expected at least "
                "one update a decision. Raise the budget or lower num_decisions."
            )
        return math.ceil(budget / self.num_decisions)


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a decision: L layers, E edges.

    :param nodes: float32 (L, F), columns as in the feature schema
    :param node_types: int64 (L,), index into :data:`gns.graph.layer_graph.NODE_TYPES`
    :param blocks: int64 (L,), block of each layer
    :param edges: int64 (2, E)
    :param globals: float32 (G,)
    """

    nodes: np.ndarray
    node_types: np.ndarray
    blocks: np.ndarray
    edges: np.ndarray
    globals: np.ndarray
