"""A run's rates from the actions of a policy: the arithmetic of decisions, without model, optimizer or device.

:class:`gns.deciding.decision.DecisionCore` adds what reads one training run; runs side by side have one of these each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from gns.deciding.config import DecisionConfig
from gns.deciding.phases import Phases
from gns.errors import InvalidSettingError, OutOfOrderError, require_positive
from gns.features.statistics import usual_losses


@dataclass
class Memory:
    """What a run's decisions remember between updates, all of which is in a state dict."""

    update: int = 0
    steps: int = 0
    decided_at: int = -1
    scale: float = 1.0  # factor on the initial rates, before the profile
    anchor: float = 1.0  # what rollbacks have left of the initial scale, to which some modes return at each decision
    first_loss: float = math.nan
    start_loss: float = math.nan
    previous_loss: float = math.nan
    rolled_back: bool = False
    interval_updates: int = 0
    layer_actions: list[float] = field(default_factory=list)  # of the last decision, where layers have any


class RateControl:
    """Keeps the scale of one run's rates.

    Rates of parameter groups keep their ratios: group i has ``initial_i * factor``. A factor of 1 leaves the initial
    rates as they are, bit for bit. Where layers have actions, every decision gives each group a multiplier besides.

    :param budget: number of updates T of the run
    :param config: how actions become rates
    :param initial_lrs: initial rate of each parameter group
    :param steps: updates that the optimizer's state holds already
    :param layers: how many layers there are, and which of them each parameter group holds, by number; read in modes
        in which layers have actions. None: no layer is known, and the shared rate is all there is
    :param default_factor: ratio of the optimizer's calibrated default rate to the initial one, at which some modes
        begin; NaN: there is none
    :param phases: what comes before the profile. In a warm-up no decision is taken but the first, on the rate that it
        leads to
    :raises InvalidSettingError: if the budget is too small, or an initial rate is not positive or out of bounds
    """

    def __init__(
        self,
        budget: int,
        config: DecisionConfig,
        initial_lrs: list[Any],
        steps: int = 0,
        layers: tuple[int, Sequence[Sequence[int]]] | None = None,
        default_factor: float = math.nan,
        phases: Phases = Phases(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.config, self.phases = config, phases
        self.interval = config.interval(budget)
        self.budget = int(budget)
        self._take_initial([initial_rate(rate, config, by_ratio=True) for rate in initial_lrs])
        self._profile = config.action_mode.profile(config)
        self._hold(layers)
        self._memory = Memory(steps=steps, layer_actions=[0.0] * layers[0] if layers and self._of_layers else [])
        self._default = default_factor
        if config.action_mode.from_default and not config.trust_initial_rate and not math.isnan(default_factor):
            self._memory.scale = self._memory.anchor = min(max(default_factor, self._bounds[0]), self._bounds[1])
        self._observed_at = -1
        self._seen: np.ndarray  # losses of the interval at the last observation
        self._finite = True
        self.observed_gradient = 0.0  # norm of the pending gradient at the last observation

    # ------------------------------------------------------------------ where the run stands

    @property
    def update(self) -> int:
        """Updates done, those that a rollback undid among them."""
        return self._memory.update

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        return self._memory.update >= self.budget

    @property
    def decision_due(self) -> bool:
        """Whether the coming update waits for a decision."""
        memory = self._memory
        begins = memory.update % self.interval == 0 and not 0 < memory.update < self.phases.warmup
        return begins and memory.decided_at != memory.update and not self.finished

    @property
    def factor(self) -> float:
        """Factor on the initial rates for the coming update, within bounds; in a warm-up that which it leads to."""
        memory, (lowest, highest) = self._memory, self._bounds
        position = self.phases.position(memory.update, self.budget)
        return min(max(memory.scale * self._profile(position), lowest), highest)

    @property
    def learning_rate(self) -> float:
        """Rate of the first parameter group for the coming update, without a multiplier of its own."""
        return self._rate(self.initial_lrs[0], self.factor)

    @property
    def applied_rate(self) -> float:
        """Rate that the coming update has in the first parameter group, see :attr:`learning_rate`."""
        return self._applied(self.initial_lrs[0], self.factor)

    @property
    def level(self) -> float:
        """Level of the rate, which the profile multiplies, over the calibrated default; NaN where there is none."""
        return self._memory.scale / self._default

    @property
    def group_factors(self) -> list[float]:
        """Factor on the initial rate of each parameter group for the coming update, within bounds."""
        shared, config = self.factor, self.config
        if self._of_layers is None:
            return [shared] * len(self.initial_lrs)
        return [
            min(max(shared * multiplier, config.min_lr / initial), config.max_lr / initial)
            for multiplier, initial in zip(self.multipliers, self.initial_lrs, strict=True)
        ]

    @property
    def multipliers(self) -> list[float]:
        """Factor of each parameter group beside the shared one; 1 where layers have no actions."""
        if self._of_layers is None:
            return [1.0] * len(self.initial_lrs)
        return self._of_layers.of(self._memory.layer_actions)

    def shared_rate(self, rates: Sequence[float]) -> float:
        """Return :attr:`learning_rate` where the parameter groups have such rates."""
        if self._of_layers is None:
            return rates[0]
        return self.initial_lrs[0] * self._of_layers.shared_factor(np.array(rates) / np.array(self.initial_lrs))

    @property
    def steps(self) -> int:
        """Updates that the model's weights come from: those done less those that rollbacks undid."""
        return self._memory.steps

    @property
    def finite(self) -> bool:
        """Whether all was finite at the last observation."""
        return self._finite

    @property
    def observed_losses(self) -> np.ndarray:
        """Losses of the interval at the last observation, (k,).

        :raises OutOfOrderError: before any observation
        """
        if self._observed_at < 0:
            raise OutOfOrderError("The run is to be judged and was never observed; call observe() first.")
        return self._seen

    @property
    def memory(self) -> Memory:
        """What is remembered; not to be changed."""
        return self._memory

    def rates(self, count: int) -> np.ndarray:
        """Return :attr:`learning_rate` at each of the coming updates if no decision is taken, (count,)."""
        profile = _table(self._profile, self.budget, self.phases)[self.update : self.update + count]
        factors = np.minimum(np.maximum(self._memory.scale * profile, self._bounds[0]), self._bounds[1])
        return np.minimum(np.maximum(self.initial_lrs[0] * factors, self.config.min_lr), self.config.max_lr)

    # ------------------------------------------------------------------ decisions

    def note_observation(
        self, losses: np.ndarray, finite: bool, gradient: float = 0.0, state_finite: bool = False
    ) -> None:
        """Note what was observed of the run as it is now.

        :param losses: of the updates since the last decision or rollback, (k,)
        :param finite: whether losses, gradients, parameters and optimizer state all were
        :param gradient: norm of the pending gradient
        :param state_finite: whether all of these but the losses were, as far as it is known
        """
        self._seen, self._finite, self._observed_at = losses, finite, self.update
        self.observed_gradient, self.state_finite = gradient, state_finite

    def decide(self, action: float | np.ndarray) -> float:
        """Take a decision and begin a new interval.

        :param action: number in [-1, 1]; what lies outside is clipped. Where layers have actions, an array (1 + L,) of
            such: the shared action and that of each layer; a number alone is the shared one, and those of layers are 0
        :return: the multiplier it put on the scale of the rates
        :raises InvalidSettingError: if the action is not finite, or has another number of entries
        :raises OutOfOrderError: if no decision is due
        """
        if not self.decision_due:
            raise OutOfOrderError(
                f"No decision is due at update {self.update} of {self.budget}; ask decision_due before decide()."
            )
        memory, config = self._memory, self.config
        shared, layers = self._parts(action)
        memory.layer_actions = layers if config.acts(memory.decided_at) else [0.0] * len(layers)
        before, mode = memory.scale, config.action_mode
        multiplier = mode.multiplier(shared, config, memory.decided_at)
        if mode.from_initial:
            memory.scale = memory.anchor * multiplier
        else:
            memory.scale = min(max(before * multiplier, self._bounds[0]), self._bounds[1])
        self._close_interval()
        memory.decided_at = memory.update
        memory.rolled_back = False
        return memory.scale / before

    def count_updates(self, count: int = 1) -> None:
        """Note that updates were made."""
        memory = self._memory
        memory.interval_updates += count if self._counts else 0
        memory.update += count
        memory.steps += count

    def roll_back(self, cut: float, steps: int) -> None:
        """Note that the last interval was undone: its updates stay counted, its losses do not, the rate is cut.

        :param cut: factor in (0, 1) on the scale of the rates
        :param steps: number of updates the restored optimizer state holds
        """
        memory = self._memory
        memory.scale = min(max(memory.scale * cut, self._bounds[0]), self._bounds[1])
        memory.anchor *= cut
        memory.rolled_back, memory.steps, memory.interval_updates = True, steps, 0

    # ------------------------------------------------------------------ state

    def go_on_after(self, updates: int, rates: Sequence[float]) -> None:
        """Go on in the middle of a run of which nothing else is known.

        :param updates: updates done
        :param rates: that the parameter groups have now
        """
        memory = self._memory
        memory.update = memory.steps = updates
        memory.scale = self.shared_rate(rates) / (self.initial_lrs[0] * self.factor * self.phases.ramp(updates))

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered between updates; what was observed last is not part of it."""
        return {
            "memory": dict(vars(self._memory)),
            "initial_lrs": list(self.initial_lrs),
            "default_factor": self._default,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self._memory = Memory(**state["memory"])
        self._observed_at = -1
        self._take_initial(list(state["initial_lrs"]))
        self._default = state.get("default_factor", self._default)

    # ------------------------------------------------------------------ inside

    def _hold(self, layers: tuple[int, Sequence[Sequence[int]]] | None) -> None:
        self._of_layers = None if layers is None else self.config.action_mode.multipliers(self.config, *layers)

    def _parts(self, action: float | np.ndarray) -> tuple[float, list[float]]:
        """Return the shared action and those of the layers, clipped."""
        count = len(self._memory.layer_actions)
        values = np.asarray(action, dtype=np.float64).reshape(-1)
        if len(values) not in (1, 1 + count):
            expected = f"1, or {1 + count}: the shared one, then one a layer" if count else "1"
            raise InvalidSettingError(f"The action has {len(values)} numbers; expected {expected}.")
        if not np.isfinite(values).all():
            raise InvalidSettingError(f"The action is {action!r}; expected a finite number in [-1, 1].")
        shared, *layers = np.clip(values, -1.0, 1.0).tolist()
        return shared, layers or [0.0] * count

    def _take_initial(self, rates: list[float]) -> None:
        """Let the parameter groups have such initial rates, and the common factor the bounds that hold for all."""
        self.initial_lrs = rates
        self._bounds = self.config.min_lr / min(rates), self.config.max_lr / max(rates)

    def _rate(self, initial: float, factor: float) -> float:
        """Rate of a group; the factor is within bounds, their product may miss them by a rounding."""
        return min(max(initial * factor, self.config.min_lr), self.config.max_lr)

    def _applied(self, initial: float, factor: float) -> float:
        """Rate of a group for the coming update."""
        ramp = self.phases.ramp(self._memory.update)
        return self._rate(initial, factor) if ramp == 1.0 else max(initial * factor * ramp, self.config.min_lr)

    @property
    def _counts(self) -> bool:
        """Whether the loss of the coming update is one of an interval's: none before the last of the warm-up is."""
        return self._memory.update >= (self.phases.warmup - 1) // self.interval * self.interval

    def _interval_length(self) -> int:
        return min(self.interval, self.budget - self.update + self._memory.interval_updates)

    def _close_interval(self) -> None:
        """Fold the losses of the interval into the memory."""
        memory = self._memory
        losses = self._losses_of_interval() if memory.interval_updates else None
        if losses is not None:
            usual = losses[usual_losses(losses, np.ones(len(losses), dtype=bool), memory.first_loss)]
            memory.previous_loss = float(usual.mean()) if usual.size else math.nan
            if math.isnan(memory.first_loss) and usual.size:
                memory.first_loss, memory.start_loss = memory.previous_loss, float(usual[0])
        memory.interval_updates = 0

    def _losses_of_interval(self) -> np.ndarray | None:
        """Losses of the updates since the last decision, (k,), on the host; None if none is known."""
        return self._seen if self._observed_at == self.update else None


@lru_cache(maxsize=256)
def _table(profile: Callable[[float], float], budget: int, phases: Phases) -> np.ndarray:
    """Values of a profile at every update of a budget and at its end, (budget + 1,)."""
    return np.array([profile(phases.position(update, budget)) for update in range(budget + 1)])


def initial_rate(rate: Any, config: DecisionConfig, by_ratio: bool = False) -> float:
    """Return a group's initial rate as a float.

    :param by_ratio: whether it may be that of a group added in mid-run, known by its ratio to the others, which may
        lie as far beyond a bound as the bounds lie apart
    :raises InvalidSettingError: if it is not a positive number within the bounds
    """
    if isinstance(rate, Tensor):
        rate = float(rate)
    require_positive("the initial learning rate", rate)
    apart = config.max_lr / config.min_lr if by_ratio else 1.0
    if not config.min_lr / apart <= rate <= config.max_lr * apart:
        raise InvalidSettingError(
            f"The initial learning rate is {rate:g}; expected one within [min_lr, max_lr] = "
            f"[{config.min_lr:g}, {config.max_lr:g}]. Change the rate or the bounds."
        )
    return float(rate)
