"""Tuned schedules that the training of a policy is compared with while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.controllers import ScheduleController
from agents.evaluation.protocol import Grid
from agents.evaluation.results import SETTING, runs_frame, tune
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, run_jobs
from envs.engine import PROCESSES, EngineConfig
from envs.env_config import EnvConfig
from envs.episode import Episode
from envs.tasks import Task
from gns.errors import require_positive
from gns.features.statistics import log_loss
from gns.schedules.profiles import get_profile


@dataclass(frozen=True)
class BaselineConfig:
    """Tuned schedules that training is compared with while it runs, on the reward split.

    :param controllers: names of profiles; empty: no comparison
    :param rates: initial rates tried, over the range the environment draws from
    :param seeds: runs of each
    """

    controllers: tuple[str, ...] = ("linear", "onecycle", "rex")
    rates: int = 6
    seeds: int = 2

    def __post_init__(self) -> None:
        for name in self.controllers:
            get_profile(name)
        require_positive("rates", self.rates)
        require_positive("seeds", self.seeds)


class ScheduleReference:
    """Log loss on the reward split that tuned schedules reach, for any budget, by task and optimizer.

    Measured at the smallest, middle and largest budget, and interpolated linearly in log(budget) between them.
    Rates are tried in multiples of 3 down from the top of each prior, where tuned rates lie.

    :param known: the :meth:`state_dict` of one measured before; then nothing is measured
    :param cache: runs done before, and where they are kept
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        env: EnvConfig,
        config: BaselineConfig,
        workers: int,
        engine: EngineConfig = PROCESSES,
        known: list[list[Any]] | None = None,
        cache: ResultsCache | None = None,
    ) -> None:
        self._points: dict[tuple[str, str], dict[int, float]] = {}  # log loss by budget
        for name, optimizer, budget, loss in known or []:
            self._points.setdefault((name, optimizer), {})[budget] = loss
        if not config.controllers or known is not None:
            return
        controllers = [ScheduleController(name, name, cycle_momentum=name == "onecycle") for name in config.controllers]
        jobs = []
        for task in tasks:
            low, high = env.budgets_of(task)
            for optimizer in env.optimizers_of(task):
                _, top = env.learning_rates_of(task, optimizer)
                for budget in sorted({low, round(math.sqrt(low * high)), high}):
                    for rate in Grid(top / 3.0 ** (config.rates - 1), config.rates).rates():
                        for seed in range(config.seeds):
                            episode = Episode(task, optimizer, budget, rate, seed, env.device)
                            jobs += [Job(controller, episode, report=False) for controller in controllers]
        best = tune(runs_frame(run_jobs(jobs, workers, cache=cache, engine=engine))).groupby(SETTING).reward_loss.min()
        for (name, optimizer, budget), loss in best.items():
            self._points.setdefault((name, optimizer), {})[int(budget)] = log_loss(float(loss))

    def state_dict(self) -> list[list[Any]]:
        """Return what was measured: task, optimizer, budget and log loss."""
        return [[*pair, budget, loss] for pair, points in self._points.items() for budget, loss in points.items()]

    def log_loss(self, task: str, optimizer: str, budget: int) -> float:
        """Return the log loss of the best tuned schedule, NaN if none was measured."""
        points = self._points.get((task, optimizer))
        if not points:
            return math.nan
        return float(np.interp(math.log(budget), np.log(list(points)), list(points.values())))
