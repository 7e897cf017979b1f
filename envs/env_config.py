"""What episodes of an environment are drawn from, and how they are rewarded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from envs.rewards import get_reward
from envs.tasks import Task
from envs.training_run import OPTIMIZERS
from gns.deciding.config import DecisionConfig
from gns.deciding.guard import GuardConfig
from gns.errors import InvalidSettingError, UnknownNameError, require_positive

_QUANTILES = 101  # of budgets, where a mean over them is taken


@dataclass(frozen=True)
class Curriculum:
    """Short budgets first: budgets as drawn, times a factor that rises geometrically from ``start`` to 1.

    :param episodes: of one environment, over which it rises; 0: budgets are as drawn from the first on
    :param start: the factor of an environment's first episode
    """

    episodes: int = 0
    start: float = 0.25

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise InvalidSettingError(f"curriculum.episodes is {self.episodes}; expected 0 or more.")
        if not 0.0 < self.start <= 1.0:
            raise InvalidSettingError(f"curriculum.start is {self.start}; expected a factor in (0, 1].")

    def factor(self, begun: int) -> float:
        """Return the factor of a budget.

        :param begun: episodes that the environment began before
        """
        return float(self.start ** (1.0 - begun / self.episodes)) if begun < self.episodes else 1.0


@dataclass(frozen=True)
class EnvConfig:
    """What episodes are drawn from, and how they are rewarded.

    :param optimizers: names in :data:`envs.training_run.OPTIMIZERS`; None: each task's own
    :param budgets: smallest and largest budget T in updates; drawn log-uniformly. None: each task's own
    :param learning_rates: for each optimizer the prior of the initial rate (D_alpha): bounds of a log-uniform law;
        each task's own range where there is none, or None
    :param decision: how actions become rates
    :param guard: when a run is taken back
    :param reward: a name in :data:`envs.rewards.REWARDS`
    :param reward_probability: share of decisions that are evaluated; the last one always is, and so are all of them
        where the features need it (``srls``), which then costs no pass beyond those of the features
    :param paper_threshold: metric above which ``squared-metric`` counts tenfold
    :param divergence_penalty: subtracted from the reward when a run ends because it diverged
    :param curriculum: how budgets grow; a budget that a reset is told stays as it is, and none falls below the smallest
        that allows all decisions
    :param device: where to train
    """

    optimizers: tuple[str, ...] | None = ("adam", "sgdm")
    budgets: tuple[int, int] | None = (100, 400)
    learning_rates: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    reward: str = "log-loss"
    reward_probability: float = 0.2
    paper_threshold: float = 0.9
    divergence_penalty: float = 2.0
    curriculum: Curriculum = field(default_factory=Curriculum)
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (*(self.optimizers or ()), *self.learning_rates):
            if name not in OPTIMIZERS:
                raise UnknownNameError("optimizer", name, OPTIMIZERS)
        for name, bounds in self.learning_rates.items():
            if bounds is not None:
                self._check_range(name, bounds)
        if self.optimizers is not None and not self.optimizers:
            raise InvalidSettingError("optimizers is empty; expected at least one, or None for each task's own.")
        get_reward(self.reward)
        if not 0.0 <= self.reward_probability <= 1.0:
            raise InvalidSettingError(f"reward_probability is {self.reward_probability}; expected one in [0, 1].")
        if not self.divergence_penalty >= 0.0 or math.isinf(self.divergence_penalty):
            raise InvalidSettingError(
                f"divergence_penalty is {self.divergence_penalty}; expected a finite number >= 0."
            )
        if self.budgets is not None:
            low, high = self.budgets
            self.decision.interval(low)  # raises on a budget too small
            if not low <= high:
                raise InvalidSettingError(f"budgets is {self.budgets}; expected (smallest, largest).")

    def _check_range(self, optimizer: str, bounds: tuple[float, float]) -> None:
        low, high = bounds
        require_positive(f"the lowest initial learning rate of {optimizer}", low)
        require_positive(f"the highest initial learning rate of {optimizer}", high)
        if not self.decision.min_lr <= low <= high <= self.decision.max_lr:
            raise InvalidSettingError(
                f"learning_rates of {optimizer} are {(low, high)}; expected (lowest, highest) within [min_lr, max_lr] "
                f"= [{self.decision.min_lr:g}, {self.decision.max_lr:g}]."
            )

    def check(self, task: Task) -> None:
        """Pass a task that episodes can be drawn on.

        :raises UnknownNameError: if an optimizer is unknown, or has no range of rates
        :raises InvalidSettingError: if a range lies outside the decision's bounds, or a budget allows too few updates
        """
        for optimizer in self.optimizers_of(task):
            if optimizer not in OPTIMIZERS:
                raise UnknownNameError(f"optimizer of task {task.name}", str(optimizer), OPTIMIZERS)
            self.learning_rates_of(task, optimizer)
        self.decision.interval(self.budgets_of(task)[0])

    def optimizers_of(self, task: Task) -> tuple[str, ...]:
        """Return the optimizers that episodes on a task draw from."""
        return self.optimizers or (task.optimizer,)

    def budgets_of(self, task: Task) -> tuple[int, int]:
        """Return the smallest and largest budget of episodes on a task."""
        return self.budgets or task.budgets or (task.updates(),) * 2

    def usual_decisions(self, tasks: Sequence[Task]) -> int:
        """Return the mean number of decisions of episodes on some tasks, budgets as drawn, rounded up.

        With ``num_decisions`` it is that number, though budgets that it does not divide allow fewer.
        """
        interval = self.decision.decision_interval
        if interval is None:
            return self.decision.num_decisions
        low, high = np.transpose([self.budgets_of(task) for task in tasks])
        return math.ceil(np.ceil(np.round(np.geomspace(low, high, _QUANTILES)) / interval).mean())

    def shortened(self, budget: float, begun: int) -> int:
        """Return a budget as the curriculum has it.

        :param budget: as drawn, in updates
        :param begun: episodes that the environment began before
        """
        smallest = 1 if self.decision.decision_interval else self.decision.num_decisions
        return max(round(budget * self.curriculum.factor(begun)), min(round(budget), smallest))

    def learning_rates_of(self, task: Task, optimizer: str) -> tuple[float, float]:
        """Return the range that the initial rate of episodes on a task is drawn from.

        :raises UnknownNameError: if neither the configuration nor the task has a range for this optimizer
        :raises InvalidSettingError: if it does not lie within the decision's bounds
        """
        bounds = self.learning_rates.get(optimizer) or task.range_of(optimizer)
        self._check_range(optimizer, bounds)
        return bounds
