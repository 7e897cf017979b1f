"""The evaluation protocol: schedules at their best tuned rate, policies from any initial rate, side by side.

As in REX's protocol (Chen et al., MLSys 2022, section 4) the initial rate is all that is tuned, in multiples of 3, for
every schedule, task, optimizer and budget, budgets being shares of a full run. The rate is chosen on the reward split;
the test split is for reporting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from agents.controllers import Controller
from agents.evaluation.results import TUNING_SEED, Evaluation, Setting, runs_frame, tune
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, RunCheckpoints, run_jobs
from agents.evaluation.workload import Workload
from agents.runtime.progress import Work
from agents.training.resuming import CheckpointConfig
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import Episode
from envs.tasks import Task
from envs.training_run import OPTIMIZERS
from envs.trivial import trivial_loss
from gns.errors import InvalidSettingError, UnknownNameError, require_positive


@dataclass(frozen=True)
class Grid:
    """Initial rates a schedule is tuned over: ``lowest * factor^k``, k = 0 .. count - 1."""

    lowest: float
    count: int
    factor: float = 3.0

    def __post_init__(self) -> None:
        require_positive("the lowest rate of a grid", self.lowest)
        require_positive("the count of a grid", self.count)
        if not self.factor > 1.0:
            raise InvalidSettingError(f"the factor of a grid is {self.factor}; expected more than 1.")

    def rates(self) -> list[float]:
        """Return the rates, ascending."""
        return [self.lowest * self.factor**k for k in range(self.count)]


@dataclass(frozen=True)
class InitialRates:
    """Initial rates a policy starts from, evenly spaced in the logarithm."""

    lowest: float
    highest: float
    count: int

    def __post_init__(self) -> None:
        require_positive("the lowest initial rate", self.lowest)
        require_positive("the count of initial rates", self.count)
        if not self.lowest <= self.highest:
            raise InvalidSettingError(
                f"Initial rates from {self.lowest} to {self.highest}; expected lowest <= highest."
            )

    def rates(self) -> list[float]:
        """Return the rates, ascending."""
        return [float(rate) for rate in np.geomspace(self.lowest, self.highest, self.count)]


@dataclass(frozen=True)
class EvaluationConfig:
    """What is compared.

    :param optimizers: names in :data:`envs.training_run.OPTIMIZERS`; None: each task's own
    :param budgets: budgets in updates; None: each task's own
    :param budget_percents: budgets in percent of a full run, which is the one entry of ``budgets`` or else each task's
        own budget; at least 1 update each, and percents that come to the same budget are one. None: full runs alone
    :param seeds: training runs of each setting
    :param tuning_seeds: training runs at each rate of a grid, of seeds of their own, from :data:`TUNING_SEED` on. What
        is tuned is then measured on the same fresh seeds as everything else. 0: it is tuned on the seeds that it is
        reported on, which flatters it
    :param workers: processes; 0: none but this one
    :param grids: for each optimizer, the rates schedules are tuned over; where there is none, 8 rates from a decade
        above the lowest of the task's own range
    :param widen: how often a grid may grow at an edge where the best rate lies
    :param initial_rates: for each optimizer, the rates policies start from; where there are none, 9 rates over the
        task's own range
    :param relative_rates: the rates policies start from, as multiples of the tuned rate of the schedule that is best on
        the reward split, in each setting; they take the place of ``initial_rates``. Schedules are tuned first then
    :param device: where to train
    :param engine: what the workers are
    :param checkpoint: when the state of a run under way is written
    :param together: train runs of schedules side by side where that is faster; results are the same to float tolerance
    """

    optimizers: tuple[str, ...] | None = ("adam",)
    budgets: tuple[int, ...] | None = None
    budget_percents: tuple[float, ...] | None = None
    seeds: int = 16
    tuning_seeds: int = 0
    workers: int = 2
    grids: dict[str, Grid | None] = field(default_factory=dict)
    widen: int = 3
    initial_rates: dict[str, InitialRates | None] = field(default_factory=dict)
    relative_rates: tuple[float, ...] | None = None
    device: str = "cpu"
    engine: EngineConfig = PROCESSES
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=300.0, keep=2))
    together: bool = True

    def __post_init__(self) -> None:
        require_positive("seeds", self.seeds)
        if not self.tuning_seeds >= 0:
            raise InvalidSettingError(f"tuning_seeds is {self.tuning_seeds}; expected 0 or more.")
        for budget in self.budgets or ():
            require_positive("budget", budget)
        for percent in self.budget_percents or ():
            require_positive("a percentage of budget_percents", percent)
        for factor in self.relative_rates or ():
            require_positive("a multiple of relative_rates", factor)
        if self.budget_percents and len(self.budgets or ()) > 1:
            raise InvalidSettingError(
                f"budget_percents is given with budgets {list(self.budgets or ())}; expected one budget beside it, the "
                "full run, or null for each task's own."
            )
        for name in (*(self.optimizers or ()), *self.grids, *self.initial_rates):
            if name not in OPTIMIZERS:
                raise UnknownNameError("optimizer", name, OPTIMIZERS)

    def budgets_of(self, task: Task) -> dict[int, float]:
        """Return the budgets on a task in updates, and the percentage each was asked for as, NaN where as updates.

        Loads the task's data where its own budget is given in epochs.
        """
        full = self.budgets or (task.updates(),)
        if not self.budget_percents:
            return dict.fromkeys(full, math.nan)
        return {max(1, round(full[0] * percent / 100.0)): percent for percent in sorted(self.budget_percents)}

    def grid_factor(self, optimizer: str) -> float:
        """Return the factor from one rate of an optimizer's grid to the next."""
        grid = self.grids.get(optimizer)
        return 3.0 if grid is None else grid.factor

    def rates_of(self, controller: Controller, task: Task, optimizer: str) -> list[float]:
        """Return the initial rates of a controller: a grid to tune it over, or what it starts from.

        One that finds its own rate gets the geometric middle of the task's range.

        :raises UnknownNameError: if there are none for that optimizer, and the task has no range
        """
        if controller.own_rate:
            return [math.sqrt(math.prod(task.range_of(optimizer)))]
        given = (self.grids if controller.tuned else self.initial_rates).get(optimizer)
        if given is not None:
            return given.rates()
        low, high = task.range_of(optimizer)
        return (Grid(10.0 * low, 8) if controller.tuned else InitialRates(low, high, 9)).rates()


def evaluate(
    controllers: Sequence[Controller],
    tasks: Sequence[Task],
    config: EvaluationConfig,
    progress: Callable[[Work], None] = lambda work: None,
    report: bool = True,
    cache: ResultsCache | None = None,
    checkpoints: RunCheckpoints | None = None,
) -> Evaluation:
    """Run every controller on every task, optimizer and budget.

    With ``relative_rates`` schedules are tuned first, and what starts from any rate is run after them.

    :param progress: called after every run, with the runs done and the runs known to be needed
    :param report: measure the test split too
    :param cache: results of earlier runs, which are not run again
    :param checkpoints: where runs under way are kept, see :func:`agents.evaluation.sweep.run_jobs`
    :raises InvalidSettingError: before any run, if a controller cannot run a setting, or ``relative_rates`` are given
        and no schedule is
    """
    later = [item for item in controllers if config.relative_rates and starts_anywhere(item)]
    percents, settings = _checked(controllers, tasks, config)
    rows: list[dict[str, Any]] = []

    workload = Workload(progress)
    several = config.seeds * len(set(config.relative_rates or ()))
    workload.expect((task.name, item.name, budget) for task, _, budget in settings for item in later * several)

    def run(jobs: Sequence[Job], in_place: bool = False) -> None:
        workload.add(jobs, in_place=in_place)
        rows.extend(run_jobs(jobs, config.workers, workload.done, cache, config.engine, checkpoints, config.together))

    fresh = range(config.seeds)
    apart = range(TUNING_SEED, TUNING_SEED + config.tuning_seeds) or fresh

    def jobs_of(
        controller: Controller, setting: tuple[Task, str, int], rates: Sequence[float], seeds: range = fresh
    ) -> list[Job]:
        episodes = [Episode(*setting, rate, seed, config.device) for rate in rates for seed in seeds]
        return [Job(controller, episode, report) for episode in episodes]

    jobs: list[Job] = []
    for setting in settings:
        for controller in controllers:
            if controller not in later:
                seeds = apart if controller.tuned else fresh
                jobs += jobs_of(controller, setting, config.rates_of(controller, *setting[:2]), seeds)
    run(jobs)
    tuned = [controller for controller in controllers if controller.tuned]
    for _ in range(config.widen):
        table, jobs = runs_frame(rows), []
        for setting in settings:
            for controller in tuned:
                more = wider(table, controller.name, setting[0].name, *setting[1:], config.grid_factor(setting[1]))
                jobs += jobs_of(controller, setting, more, apart)
        if not jobs:
            break
        run(jobs)
    evaluation = _tuned(runs_frame(rows), controllers, tasks, percents)
    jobs = []
    for setting in settings if apart is not fresh else ():
        for controller in tuned:
            rate = evaluation.tuned_rate(Setting(setting[0].name, *setting[1:]), controller.name)
            jobs += jobs_of(controller, setting, [rate])
    for task, optimizer, budget in settings if later else ():
        known = Setting(task.name, optimizer, budget)
        rate = evaluation.tuned_rate(known, str(evaluation.chosen_schedule(known)))
        for controller in later:
            rates = relative_to(rate, config.relative_rates or (), controller)
            jobs += jobs_of(controller, (task, optimizer, budget), rates)
    run(jobs, in_place=True)
    return replace(
        evaluation,
        runs=runs_frame(rows),
        paths=[row["path"] for row in rows],
        losses=[row["losses"] for row in rows],
        failures={number: row["failed"] for number, row in enumerate(rows) if "failed" in row},
        trivial={task.name: trivial_loss(task) for task in tasks} if report else {},
    )


def _tuned(
    runs: pd.DataFrame, controllers: Sequence[Controller], tasks: Sequence[Task], percents: dict[tuple[str, int], float]
) -> Evaluation:
    """Return what is known once rates are tuned, but for paths and losses."""
    return Evaluation(
        runs,
        tune(rows_of(runs, [controller for controller in controllers if controller.tuned])),
        paths=[],
        higher_is_better={task.name: task.higher_is_better for task in tasks},
        references=frozenset(controller.name for controller in controllers if controller.is_schedule),
        own_rates=frozenset(controller.name for controller in controllers if controller.own_rate),
        percents=percents,
    )


def _checked(
    controllers: Sequence[Controller], tasks: Sequence[Task], config: EvaluationConfig
) -> tuple[dict[tuple[str, int], float], list[tuple[Task, str, int]]]:
    """Return percentages by task and budget, and settings that every controller can run; see :func:`evaluate`."""
    require_different_names(tasks)
    schedules = any(controller.is_schedule for controller in controllers)
    if config.relative_rates and not schedules and any(map(starts_anywhere, controllers)):
        raise InvalidSettingError(
            f"relative_rates are {list(config.relative_rates)} and no controller is a schedule; expected at "
            "least one, whose tuned rate they multiply, or relative_rates: null."
        )
    budgets = {task.name: config.budgets_of(task) for task in tasks}
    settings = [
        (task, optimizer, budget)
        for task in tasks
        for optimizer in (config.optimizers or (task.optimizer,))
        for budget in budgets[task.name]
    ]
    for controller in controllers:
        for setting in settings:
            controller.check(*setting)
    asked = [(name, budget, percent) for name, own in budgets.items() for budget, percent in own.items()]
    return {(name, budget): percent for name, budget, percent in asked if not math.isnan(percent)}, settings


def starts_anywhere(controller: Controller) -> bool:
    """Return whether a controller is run from each of several initial rates, as policies are."""
    return not (controller.tuned or controller.own_rate)


def rows_of(table: pd.DataFrame, controllers: Sequence[Controller]) -> pd.DataFrame:
    """Return the rows of some controllers."""
    return table[table.controller.isin([controller.name for controller in controllers])]


def relative_to(rate: float, factors: Sequence[float], controller: Controller) -> list[float]:
    """Return multiples of a rate, ascending, each within the bounds of what a controller can start from."""
    low, high = controller.rate_bounds
    return sorted({min(max(factor * rate, low), high) for factor in factors})


def require_different_names(tasks: Sequence[Task]) -> None:
    """Pass tasks that results can tell apart.

    :raises InvalidSettingError: if two have one name
    """
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidSettingError(
            f"There are several tasks named {', '.join(twice)}; expected a name each, as from dataclasses.replace."
        )


def wider(
    runs: pd.DataFrame, controller: str, task: str, optimizer: str, budget: int, factor: float = 3.0
) -> list[float]:
    """Return the rate beyond the edge of a grid on which the best rate lies, or nothing.

    :param factor: of the grid, from one rate to the next
    """
    own = runs[
        (runs.controller == controller) & (runs.task == task) & (runs.optimizer == optimizer) & (runs.budget == budget)
    ]
    rates = sorted(own.initial_lr.unique())
    best = float(tune(own).tuned_lr.iloc[0])
    if best == rates[-1]:
        return [best * factor]
    return [best / factor] if best == rates[0] else []
