"""What an evaluation says of one controller alone: its curves and figures, for trackers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.evaluation.comparison import Line
from agents.evaluation.mean_paths import mean_losses, mean_path
from agents.evaluation.protocol import SETTING, Evaluation, EvaluationConfig
from agents.evaluation.shares import Shares
from agents.evaluation.transfer import COLLAPSE, Cell

Setting = tuple[str, str, int]


@dataclass(frozen=True)
class Compared:
    """One comparison: an evaluation alone, or a part of a suite.

    :param name: of the part; empty where there is but one
    :param pictures: PNG files that were drawn of it
    """

    name: str
    evaluation: Evaluation
    lines: Sequence[Line]
    cells: Sequence[Cell]
    protocol: EvaluationConfig
    shares: Sequence[Shares] = ()
    pictures: Sequence[Path] = field(default_factory=tuple)

    def key(self, setting: Setting) -> str:
        """Return a name of a setting (task, optimizer, budget): letters, digits and underscores, as trackers want."""
        return word("_".join(map(str, [self.name, *setting] if self.name else setting)))

    def settings(self) -> list[Setting]:
        """Return the settings, in the order they were run in."""
        rows = self.evaluation.runs[SETTING].drop_duplicates()
        return [(str(task), str(optimizer), int(budget)) for task, optimizer, budget in rows.itertuples(index=False)]

    def runs(self, setting: Setting) -> pd.DataFrame:
        """Return the training runs of a setting."""
        runs = self.evaluation.runs
        return runs[(runs[SETTING] == list(setting)).all(axis=1)]

    def shown(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return those of a controller's runs in one setting that its result is of: at the tuned rate, or all."""
        tuned = self.evaluation.tuned
        same = tuned[[*SETTING, "controller"]] == list(runs[[*SETTING, "controller"]].iloc[0])
        rates = tuned[same.all(axis=1)].tuned_lr
        return runs[runs.initial_lr == rates.iloc[0]] if len(rates) else runs

    def error(self, setting: Setting) -> str:
        """Return what is drawn of the task's metric: ``test_error`` for an accuracy, else ``test_metric``."""
        return "test_error" if str(self.runs(setting).metric.iloc[0]).startswith("accuracy") else "test_metric"

    def line(self, setting: Setting, controller: str) -> Line:
        """Return the line of a controller in a setting; of a policy that of its mean over initial rates."""
        own = [
            line
            for line in self.lines
            if (line.task, line.optimizer, line.budget) == setting and line.controller == controller
        ]
        return next((line for line in own if math.isnan(line.initial_lr)), own[0])

    def best_loss(self, setting: Setting) -> float:
        """Return the mean test loss of the best tuned schedule; infinite without schedules."""
        schedules = [line for line in self.lines if line.controller in self.evaluation.references]
        return min(
            (line.test_loss for line in schedules if (line.task, line.optimizer, line.budget) == setting),
            default=math.inf,
        )


def controllers(parts: Sequence[Compared]) -> list[str]:
    """Return the names of all controllers, in the order they were run in."""
    return list(dict.fromkeys(str(name) for part in parts for name in part.evaluation.runs.controller.unique()))


def curves(part: Compared, controller: str) -> Iterator[tuple[pd.DataFrame, str]]:
    """Give the curves of a controller in each setting, and the column each is drawn against.

    Over ``progress`` rates and training losses, geometric means over seeds: at the tuned rate, or of all initial rates
    together, and of the rates from each alone (``..._from_RATE``). Over ``initial_lr`` the mean test loss and error at
    the end.
    """
    for setting in part.settings():
        runs = part.runs(setting)
        own = runs[runs.controller == controller]
        if own.empty:
            continue
        key, shown = part.key(setting), part.shown(own)
        progress, rates = mean_path(part.evaluation, shown)
        paths = {"progress": progress, f"learning_rate/{key}": rates}
        losses = mean_losses(part.evaluation, shown)
        if losses is not None:
            paths[f"training_loss/{key}"] = losses
        starts = sorted(shown.initial_lr.unique())
        for start in starts if len(starts) > 1 else ():
            paths[start_name(key, start)] = mean_path(part.evaluation, shown[shown.initial_lr == start])[1]
        yield pd.DataFrame(paths), "progress"
        means = own.groupby("initial_lr")[["test_loss", "test_metric"]].mean()
        if controller in part.evaluation.own_rates:  # a level line
            ends = [runs.initial_lr.min(), runs.initial_lr.max()]
            means = pd.DataFrame([means.mean()] * 2, index=pd.Index(ends, name="initial_lr"))
        error = part.error(setting)
        figure = 1.0 - means.test_metric if error == "test_error" else means.test_metric
        ends_of = {f"test_loss/{key}": means.test_loss, f"{error}/{key}": figure}
        yield pd.DataFrame(ends_of).reset_index(), "initial_lr"


def start_name(key: str, start: float) -> str:
    """Return the name of the curve of rates from one initial rate."""
    return f"learning_rate/{key}_from_{word(f'{start:.3g}')}"


def figures(parts: Sequence[Compared], controller: str) -> dict[str, Any]:
    """Return what a controller came to over all settings of all parts.

    ``test_loss_over_best``: geometric mean of its mean test loss over the best tuned schedule's, and the worst;
    ``collapsed``: share of the runs that its result is of whose test loss is above
    :data:`agents.evaluation.transfer.COLLAPSE` times that schedule's, or not finite; ``cost``: updates one result takes
    over the budget; ``rollbacks`` and ``evaluations`` (passes over the reward split) a run; ``time_over_schedules``:
    geometric mean of seconds an update, the median over runs, over the schedules'; then what all its runs took.
    """
    ratios, collapsed, costs, times, rollbacks, evaluations = [], [], [], [], [], []
    means: dict[str, float] = {}
    own = pd.concat([part.evaluation.runs[part.evaluation.runs.controller == controller] for part in parts])
    for part in parts:
        for setting in part.settings():
            runs = part.runs(setting)
            mine = runs[runs.controller == controller]
            if mine.empty:
                continue
            line, shown = part.line(setting, controller), part.shown(mine)
            ratios.append(line.ratio)
            ended = shown.test_loss.to_numpy()
            collapsed.append(~np.isfinite(ended) | (ended > COLLAPSE * part.best_loss(setting)))
            costs.append(line.cost)
            rollbacks.append(shown.rollbacks.to_numpy())
            evaluations.append(shown.evaluations.to_numpy())
            times.append(_seconds(mine) / _seconds(runs[runs.controller.isin(part.evaluation.references)]))
            key = part.key(setting)
            means |= {f"mean_test_loss/{key}": line.test_loss, f"mean_{part.error(setting)}/{key}": _error(part, line)}
    return {
        "controller": controller,
        "settings": len(costs),
        "test_loss_over_best": _geometric(ratios),
        "worst_test_loss_over_best": max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan),
        "collapsed": float(np.concatenate(collapsed).mean()),
        "cost": float(np.mean(costs)),
        "rollbacks": float(np.concatenate(rollbacks).mean()),
        "evaluations": float(np.concatenate(evaluations).mean()),
        "time_over_schedules": _geometric(times),
        "runs": len(own),
        "runs_not_finite": int((~np.isfinite(own.test_loss)).sum()),
        "updates": int(own.updates.sum()),
        "search_updates": int(own.search_updates.sum()),
        "seconds": float(own.seconds.sum()),
        **means,
    }


def word(text: str) -> str:
    """Return a text with underscores for all but letters and digits."""
    return re.sub(r"[^A-Za-z0-9]", "_", text)


def _error(part: Compared, line: Line) -> float:
    accuracy = part.error((line.task, line.optimizer, line.budget)) == "test_error"
    return 1.0 - line.test_metric if accuracy else line.test_metric


def _seconds(runs: pd.DataFrame) -> float:
    """Return the seconds of an update, the median over runs."""
    made = runs.updates + runs.search_updates
    return float((runs.seconds / made)[made > 0].median())


def _geometric(values: Sequence[float]) -> float:
    known = np.array([value for value in values if not math.isnan(value)])
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(known).mean())) if len(known) else math.nan
