"""The curves and figures of one controller of an evaluation, for trackers."""

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
from agents.evaluation.protocol import EvaluationConfig
from agents.evaluation.results import Evaluation, Setting
from agents.evaluation.shares import Shares
from agents.evaluation.transfer import TransferCell
from agents.reports.plots import ERROR, metric_words


@dataclass(frozen=True)
class Compared:
    """One comparison: an evaluation alone, or a part of a suite.

    :param name: of the part; empty where there is but one
    :param pictures: PNG files that were drawn of it
    """

    name: str
    evaluation: Evaluation
    lines: Sequence[Line]
    cells: Sequence[TransferCell]
    protocol: EvaluationConfig
    shares: Sequence[Shares] = ()
    pictures: Sequence[Path] = field(default_factory=tuple)

    def key(self, setting: Setting) -> str:
        """Return a name of a setting: letters, digits and underscores, as trackers want."""
        return word("_".join(map(str, [self.name, *setting] if self.name else setting)))

    def error(self, setting: Setting) -> str:
        """Return under which name the task's metric is kept: ``test_error`` for an accuracy, else ``test_metric``."""
        return "test_error" if metric_words(self.evaluation, setting) == ERROR else "test_metric"

    def line(self, setting: Setting, controller: str) -> Line:
        """Return the line of a controller in a setting; of a policy that of its mean over initial rates."""
        own = [line for line in self.lines if line.setting == setting and line.controller == controller]
        return next((line for line in own if line.is_mean), own[0])


def controllers(parts: Sequence[Compared]) -> list[str]:
    """Return the names of all controllers, in the order they were run in."""
    return list(dict.fromkeys(name for part in parts for name in part.evaluation.controllers))


def curves(part: Compared, controller: str) -> Iterator[tuple[pd.DataFrame, str]]:
    """Give the curves of a controller in each setting, and the column each is drawn against.

    Over ``progress`` rates and training losses, geometric means over seeds: at the tuned rate, or of all initial rates
    together, and of the rates from each alone (``..._from_RATE``). Over ``initial_lr`` the mean test loss and error at
    the end.
    """
    for setting in part.evaluation.settings:
        own = part.evaluation.runs_of(setting, controller)
        if own.empty:
            continue
        key, shown = part.key(setting), part.evaluation.counted(setting, controller)
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
            rates_of_all = part.evaluation.runs_of(setting).initial_lr
            ends = [rates_of_all.min(), rates_of_all.max()]
            means = pd.DataFrame([means.mean()] * 2, index=pd.Index(ends, name="initial_lr"))
        error = part.error(setting)
        figure = 1.0 - means.test_metric if error == "test_error" else means.test_metric
        ends_of = {f"test_loss/{key}": means.test_loss, f"{error}/{key}": figure}
        yield pd.DataFrame(ends_of).reset_index(), "initial_lr"


def start_name(key: str, start: float) -> str:
    """Return the name of the curve of rates from one initial rate."""
    return f"learning_rate/{key}_from_{word(f'{start:.3g}')}"


def figures(parts: Sequence[Compared], controller: str) -> dict[str, Any]:
    """Return the figures of a controller over all settings of all parts.

    - ``test_loss_over_best``: geometric mean of its mean test loss over the best tuned schedule's; and the worst;
    - ``far_from_best``, ``learned_nothing``: shares of the runs that count, see
      :class:`agents.evaluation.results.Evaluation`;
    - ``cost``: updates that one result takes, over the budget;
    - ``rollbacks``, ``evaluations``: a run, the latter being passes over the reward split;
    - ``time_over_schedules``: geometric mean of seconds an update, the median over runs, over the schedules';
    - numbers of all its runs, with what they took, and its means in each setting.
    """
    ratios, far, nothing, costs, times = [], [], [], [], []
    shown: list[pd.DataFrame] = []
    means: dict[str, float] = {}
    own = pd.concat([part.evaluation.runs[part.evaluation.runs.controller == controller] for part in parts])
    for part in parts:
        evaluation = part.evaluation
        for setting in evaluation.settings:
            runs, mine = evaluation.runs_of(setting), evaluation.runs_of(setting, controller)
            if mine.empty:
                continue
            line, counted = part.line(setting, controller), evaluation.counted(setting, controller)
            ratios.append(line.ratio)
            far.append(evaluation.far_from_best(setting, counted.test_loss))
            nothing.append(evaluation.learned_nothing(counted))
            costs.append(line.cost)
            shown.append(counted)
            times.append(_seconds(mine) / _seconds(runs[runs.controller.isin(evaluation.references)]))
            key = part.key(setting)
            means |= {f"mean_test_loss/{key}": line.test_loss, f"mean_{part.error(setting)}/{key}": _error(part, line)}
    together = pd.concat(shown)
    return {
        "controller": controller,
        "settings": len(costs),
        "test_loss_over_best": _geometric(ratios),
        "worst_test_loss_over_best": max((ratio for ratio in ratios if not math.isnan(ratio)), default=math.nan),
        "far_from_best": float(np.concatenate(far).mean()),
        "learned_nothing": float(np.concatenate(nothing).mean()),
        "cost": float(np.mean(costs)),
        "rollbacks": float(together.rollbacks.mean()),
        "evaluations": float(together.evaluations.mean()),
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
    accuracy = part.error(line.setting) == "test_error"
    return 1.0 - line.test_metric if accuracy else line.test_metric


def _seconds(runs: pd.DataFrame) -> float:
    """Return the seconds of an update, the median over runs."""
    made = runs.updates + runs.search_updates
    return float((runs.seconds / made)[made > 0].median())


def _geometric(values: Sequence[float]) -> float:
    known = np.array([value for value in values if not math.isnan(value)])
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(known).mean())) if len(known) else math.nan
