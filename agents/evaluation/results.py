"""The results of an evaluation. Tables, plots, reports and trackers ask here which runs a figure is of.

A setting is a task with an optimizer and a budget. What is tuned counts with its runs from the tuned initial rate. All
else counts with its runs from every initial rate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from envs.trivial import learned_nothing

COLUMNS = [
    "task",
    "controller",
    "optimizer",
    "budget",
    "initial_lr",
    "seed",
    "reward_loss",
    "test_loss",
    "metric",
    "test_metric",
    "test_metrics",
    "updates",
    "search_updates",
    "hessian_products",
    "evaluations",
    "seconds",
    "rollbacks",
]
TUNING_SEED = 10_000  # seeds from here on tune, and are not reported
FAR = 2.0  # times the test loss of the schedule chosen on the reward split: a run above it is far from the best


class Setting(NamedTuple):
    """A task with an optimizer and a budget in updates."""

    task: str
    optimizer: str
    budget: int

    @property
    def title(self) -> str:
        """The setting in words."""
        return f"{self.task}, {self.optimizer}, {self.budget:,} updates"


SETTING = list(Setting._fields)
_METHOD = [*SETTING, "controller"]


@dataclass
class Evaluation:
    """Results: a row a run in ``runs`` (:data:`COLUMNS`), tuned rates in ``tuned``, rate paths beside the rows.

    The tables are not changed after the first question.

    :param higher_is_better: direction of each task's metric
    :param references: names of the tuned fixed schedules, the best of which others are measured against
    :param own_rates: names of the controllers that ignore the initial rate
    :param percents: by task and budget, the percentage of a full run it was asked for as; empty where no budget was
    :param failures: by row, why a run was lost again and again; its losses are infinite
    :param losses: by row, the mean loss of the batches from each point of its rate path to the next; empty: not known
    :param trivial: by task, the loss of a model that has learned nothing, see :func:`envs.trivial.trivial_loss`
    """

    runs: pd.DataFrame
    tuned: pd.DataFrame
    paths: list[list[tuple[float, float]]]
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    references: frozenset[str] = frozenset()
    own_rates: frozenset[str] = frozenset()
    percents: dict[tuple[str, int], float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    trivial: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> list[Setting]:
        """The settings, in the order they were run in."""
        return list(self._by_setting)

    @cached_property
    def controllers(self) -> list[str]:
        """Names of the controllers, in the order they were run in."""
        return [str(name) for name in self.runs.controller.unique()]

    @cached_property
    def policies(self) -> list[str]:
        """Names of the controllers that start from any initial rate and are not tuned."""
        others = {*self.tuned.controller, *self.own_rates}
        return [name for name in self.controllers if name not in others]

    def tuned_rate(self, setting: Setting, controller: str) -> float:
        """Return the initial rate that was chosen on the reward split; NaN for a controller that is not tuned."""
        return self._rates.get((*setting, controller), math.nan)

    def runs_of(self, setting: Setting, controller: str | None = None) -> pd.DataFrame:
        """Return all training runs in a setting, or those of one controller there."""
        if controller is None:
            return self._by_setting[setting]
        return self._by_method.get((*setting, controller), self.runs.iloc[:0])

    def counted(self, setting: Setting, controller: str) -> pd.DataFrame:
        """Return the runs that a controller's result in a setting is of: at its tuned rate, or from all rates.

        Where it was tuned on seeds of their own, these runs are left out.
        """
        runs, rate = self.runs_of(setting, controller), self.tuned_rate(setting, controller)
        if math.isnan(rate):
            return runs
        chosen = runs[runs.initial_lr == rate]
        fresh = chosen[chosen.seed < TUNING_SEED]
        return fresh if len(fresh) else chosen

    def tuning_runs(self, setting: Setting, controller: str) -> pd.DataFrame:
        """Return the runs that a controller was tuned by: those of tuning seeds, or all where it has none."""
        runs = self.runs_of(setting, controller)
        apart = runs[runs.seed >= TUNING_SEED]
        return apart if len(apart) else runs

    def counted_everywhere(self, controller: str) -> pd.DataFrame:
        """Return the runs that a controller's results in all settings are of."""
        return pd.concat([self.counted(setting, controller) for setting in self.settings])

    def best_loss(self, setting: Setting) -> float:
        """Return the lowest mean test loss of any tuned schedule; NaN without schedules.

        It is known only after testing, so it is stricter on others than :meth:`chosen_schedule`.
        """
        means = [self.counted(setting, name).test_loss.mean() for name in self._schedules(setting).controller]
        return float(min(means, default=math.nan))

    def chosen_schedule(self, setting: Setting) -> str | None:
        """Return the name of the tuned schedule with the lowest mean loss on the reward split; None without one."""
        tuned = self._schedules(setting)
        return str(tuned.controller.loc[tuned.reward_loss.idxmin()]) if len(tuned) else None

    def far_from_best(self, setting: Setting, losses: Any) -> np.ndarray:
        """Return which test losses are above :data:`FAR` times that of the chosen schedule, or not finite."""
        chosen, losses = self.chosen_schedule(setting), np.asarray(losses, dtype=float)
        best = self.counted(setting, chosen).test_loss.mean() if chosen is not None else math.inf
        return np.asarray(~np.isfinite(losses) | (losses > FAR * best))

    def learned_nothing(self, runs: pd.DataFrame) -> np.ndarray:
        """Return which runs learned nothing; where the trivial loss is not known, which are not finite."""
        trivial = runs.task.map(lambda name: self.trivial.get(name, math.inf))
        return learned_nothing(runs.test_loss.to_numpy(dtype=float), trivial.to_numpy(dtype=float))

    def _schedules(self, setting: Setting) -> pd.DataFrame:
        """Rows of ``tuned`` of the schedules in a setting."""
        own = self.tuned[(self.tuned[SETTING] == list(setting)).all(axis=1)]
        return own[own.controller.isin(self.references)]

    @cached_property
    def _by_setting(self) -> dict[Setting, pd.DataFrame]:
        groups = self.runs.groupby(SETTING, sort=False)
        return {Setting(str(task), str(name), int(budget)): runs for (task, name, budget), runs in groups}

    @cached_property
    def _by_method(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        return dict(iter(self.runs.groupby(_METHOD, sort=False)))

    @cached_property
    def _rates(self) -> dict[tuple[Any, ...], float]:
        return {tuple(row[:-1]): float(row[-1]) for row in self.tuned[[*_METHOD, "tuned_lr"]].itertuples(index=False)}


def by_seed_and_rate(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column of the runs of one controller in one setting: seeds are rows, initial rates are columns.

    Of what is tuned, ``reward_loss`` gives the tuning curve.
    """
    return runs.groupby(["seed", "initial_lr"])[column].mean().unstack()


def mean_metrics(runs: pd.DataFrame) -> dict[str, float]:
    """Return the mean of every test metric over runs of one task; NaN where a diverged run has none."""
    means = pd.DataFrame(list(runs.test_metrics.map(json.loads))).mean(skipna=False)
    return {str(name): float(mean) for name, mean in means.items()}


def score_arrays(evaluation: Evaluation) -> tuple[list[Setting], list[str], dict[str, np.ndarray]]:
    """Return settings, methods, and ``metric`` and ``loss`` as float (settings, methods, seeds), lower is better.

    Metrics of which more is better are negated. What is not a number is infinite.
    """
    settings, methods = evaluation.settings, evaluation.controllers
    runs = pd.concat([evaluation.counted(setting, name) for setting in settings for name in methods])
    sign = runs.task.map(lambda name: -1.0 if evaluation.higher_is_better.get(name, True) else 1.0)
    runs = runs.assign(
        metric=(sign * runs.test_metric).fillna(math.inf),
        loss=runs.test_loss.fillna(math.inf),
        setting=pd.MultiIndex.from_frame(runs[SETTING]).to_flat_index(),
    )
    seeds, kinds = sorted(runs.seed.unique()), ["metric", "loss"]
    places = pd.MultiIndex.from_product([[tuple(item) for item in settings], methods, seeds])
    means = runs.groupby(["setting", "controller", "seed"])[kinds].mean().reindex(places).fillna(math.inf)
    shape = len(settings), len(methods), len(seeds)
    return settings, methods, {name: means[name].to_numpy().reshape(shape) for name in kinds}


def tune(runs: pd.DataFrame) -> pd.DataFrame:
    """Choose the initial rate of each controller, task, optimizer and budget: lowest mean loss on the reward split.

    A rate at which any run diverged loses to every rate at which none did. Never looks at the test columns.
    """
    seen = runs[[*_METHOD, "initial_lr", "reward_loss"]]
    means = seen.groupby([*_METHOD, "initial_lr"], sort=False)["reward_loss"].mean().reset_index()
    best = means.groupby(_METHOD, sort=False)["reward_loss"].idxmin()
    return means.loc[best].rename(columns={"initial_lr": "tuned_lr"}).reset_index(drop=True)


def runs_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of :func:`agents.evaluation.sweep.run_job` as a table with :data:`COLUMNS`."""
    return pd.DataFrame([{key: row[key] for key in COLUMNS} for row in rows], columns=COLUMNS)
