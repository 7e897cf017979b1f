"""Rewards of a decision, from two evaluations on the reward split. A reward is one row of :data:`REWARDS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from envs.tasks import Task
from gns.errors import UnknownNameError
from gns.features.statistics import log_loss

if TYPE_CHECKING:
    from envs.env_config import EnvConfig

_LARGEST_LOSS = 1e6


class Evaluation(NamedTuple):
    """Loss and metric on the reward split; ``metric`` is NaN where it was not asked for."""

    loss: float
    metric: float


@dataclass(frozen=True)
class Reward:
    """What a decision is given for what happened between two evaluations.

    :param name: as in configurations
    :param needs_metric: whether evaluations have to give the task's metric; the loss they always give
    :param between: of the evaluation before, the one now, the task, and the settings of the environment
    """

    name: str
    needs_metric: bool
    between: Callable[[Evaluation, Evaluation, Task, EnvConfig], float]


def fall_of_log_loss(before: Evaluation, now: Evaluation, task: Task, config: EnvConfig) -> float:
    """Return the fall of log(loss). Those of an episode add up to log(loss at its start) - log(loss at its end)."""
    return log_loss(before.loss) - log_loss(now.loss)


def gain_of_squared_metric(before: Evaluation, now: Evaluation, task: Task, config: EnvConfig) -> float:
    """Return 10 * (metric_now^2 - metric_before^2), as in the released code of Xiong et al. (ICLR 2022).

    Ten times that where the metric is above ``paper_threshold``; of a metric that is better when lower the negative,
    never tenfold; 0 where a metric is not finite. The paper's code spreads it over the decisions since the last
    evaluation afterwards; here it is given at the evaluation.
    """
    if not (math.isfinite(before.metric) and math.isfinite(now.metric)):
        return 0.0
    gain = 10.0 * (now.metric**2 - before.metric**2)
    if not task.higher_is_better:
        return -gain
    return 10.0 * gain if now.metric > config.paper_threshold else gain


REWARDS: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("log-loss", needs_metric=False, between=fall_of_log_loss),
        Reward("squared-metric", needs_metric=True, between=gain_of_squared_metric),
    )
}
_OLDER_NAMES = {"gns-paper": "squared-metric"}


def get_reward(name: str) -> Reward:
    """Return the reward of that name, or of an older name of it.

    :raises UnknownNameError: if there is none
    """
    name = _OLDER_NAMES.get(name, name)
    if name not in REWARDS:
        raise UnknownNameError("reward", name, REWARDS)
    return REWARDS[name]


def bounded_loss(loss: float) -> float:
    """Return a loss as rewards take it: one beyond 1e6, or NaN, counts as that much."""
    return min(loss, _LARGEST_LOSS) if not math.isnan(loss) else _LARGEST_LOSS
