"""Transfer of policies to other tasks: a matrix of what each was trained on and what it was evaluated on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from agents.evaluation.comparison import mean_metrics
from agents.evaluation.protocol import SETTING, Evaluation
from agents.evaluation.statistics import bootstrap_interval

COLLAPSE = 2.0  # times the best tuned schedule's mean test loss
LEGEND = (
    "regret: ln of the mean test loss over that of the best tuned schedule; 0: equal, 0.1: about 10 % worse; with its "
    "95 % bootstrap interval over seeds. The best is chosen on the reward split (vs best divides by the lowest test "
    "loss of any tuned schedule, which is stricter). collapsed: share of runs with a test loss above twice the best's. "
    "*: the policy was trained on this task."
)
_LARGEST_SHADE = math.log(2.0)


@dataclass(frozen=True)
class Cell:
    """One policy in one setting against the best tuned schedule there. Intervals are of 95 %, over seeds.

    Means are over initial rates and seeds for the policy, over seeds for the schedule. The best tuned schedule is the
    one with the lowest mean loss on the reward split, each at the rate chosen there: to choose among schedules is a
    choice too, and none is made on the test split. (:attr:`agents.evaluation.comparison.Line.ratio` divides by the
    lowest test loss among tuned schedules, which nobody can choose before testing and which is stricter on policies.)

    :param policy: name of the policy's controller
    :param trained_on: names of the tasks it was trained on, comma-separated, or ``unknown``
    :param home: whether the task is among them, by name
    :param seeds: training runs from each initial rate
    :param initial_rates: initial rates the policy starts from
    :param test_loss: mean test loss; infinite if any run diverged
    :param metric: name of the task's metric
    :param test_metric: its mean on the test split
    :param metrics: means of all the task's metrics on the test split
    :param best: name of the best tuned schedule
    :param best_lr: its tuned rate
    :param best_test_loss: its mean test loss
    :param best_test_metric: the mean of its metric
    :param regret: ln(test_loss / best_test_loss): 0 is equal, above 0 the policy is worse
    :param metric_regret: how much worse the policy's metric is than the schedule's; above 0 the policy is worse
    :param worst_regret: regret of the policy's worst single initial rate
    :param collapsed: share of runs with a test loss that is above :data:`COLLAPSE` times ``best_test_loss``, or not
        finite
    """

    policy: str
    trained_on: str
    home: bool
    task: str
    optimizer: str
    budget: int
    seeds: int
    initial_rates: int
    test_loss: float
    test_loss_low: float
    test_loss_high: float
    metric: str
    test_metric: float
    test_metric_low: float
    test_metric_high: float
    metrics: dict[str, float]
    best: str
    best_lr: float
    best_test_loss: float
    best_test_metric: float
    regret: float
    regret_low: float
    regret_high: float
    metric_regret: float
    metric_regret_low: float
    metric_regret_high: float
    worst_regret: float
    collapsed: float


def transfer(evaluation: Evaluation, trained_on: Mapping[str, str]) -> list[Cell]:
    """Return a cell for each policy and setting (task, optimizer, budget) in which schedules were tuned.

    :param trained_on: for each policy, by the name of its controller, the tasks it was trained on, comma-separated
    """
    cells = []
    settings = list(evaluation.runs.groupby(SETTING, sort=False))
    schedules = evaluation.tuned[evaluation.tuned.controller.isin(evaluation.references)]
    for policy, tasks in trained_on.items():
        for setting, runs in settings:
            tuned = schedules[(schedules[SETTING] == list(setting)).all(axis=1)]
            own = runs[runs.controller == policy]
            if len(tuned) and len(own):
                best = tuned.loc[tuned.reward_loss.idxmin()]
                schedule = runs[(runs.controller == best.controller) & (runs.initial_lr == best.tuned_lr)]
                higher = evaluation.higher_is_better.get(setting[0], True)
                cells.append(_cell(policy, tasks, own, schedule, higher))
    return cells


def _cell(policy: str, trained_on: str, own: pd.DataFrame, schedule: pd.DataFrame, higher_is_better: bool) -> Cell:
    losses, metrics = _by_seed_and_rate(own, "test_loss"), _by_seed_and_rate(own, "test_metric")
    best_losses = _by_seed_and_rate(schedule, "test_loss").reindex(losses.index).to_numpy()[:, 0]
    best_metrics = _by_seed_and_rate(schedule, "test_metric").reindex(losses.index).to_numpy()[:, 0]
    loss_of_seed, metric_of_seed = losses.to_numpy().mean(axis=1), metrics.to_numpy().mean(axis=1)

    def metric_regret(a: Any, b: Any, axis: int = -1) -> Any:
        gap = np.mean(b, axis=axis) - np.mean(a, axis=axis)
        return gap if higher_is_better else -gap

    figures = {
        "test_loss": (loss_of_seed.mean(), bootstrap_interval(loss_of_seed)),
        "test_metric": (metric_of_seed.mean(), bootstrap_interval(metric_of_seed)),
        "regret": (log_ratio(loss_of_seed, best_losses), paired_interval(loss_of_seed, best_losses, log_ratio)),
        "metric_regret": (
            metric_regret(metric_of_seed, best_metrics),
            paired_interval(metric_of_seed, best_metrics, metric_regret),
        ),
    }
    first, chosen = own.iloc[0], schedule.iloc[0]
    with np.errstate(invalid="ignore"):
        collapsed = ~np.isfinite(losses.to_numpy()) | (losses.to_numpy() > COLLAPSE * best_losses.mean())
    return Cell(
        policy=policy,
        trained_on=trained_on,
        home=first.task in [name.strip() for name in trained_on.split(",")],
        task=str(first.task),
        optimizer=str(first.optimizer),
        budget=int(first.budget),
        seeds=losses.shape[0],
        initial_rates=losses.shape[1],
        metric=str(first.metric),
        metrics=mean_metrics(own),
        best=str(chosen.controller),
        best_lr=float(chosen.initial_lr),
        best_test_loss=float(best_losses.mean()),
        best_test_metric=float(best_metrics.mean()),
        worst_regret=float(np.max(log_ratio(losses.to_numpy(), best_losses[:, None], axis=0))),
        collapsed=float(collapsed.mean()),
        **{
            f"{name}{end}": float(value)
            for name, (mean, (low, high)) in figures.items()
            for end, value in (("", mean), ("_low", low), ("_high", high))
        },
    )


def _by_seed_and_rate(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column as a table of seeds (rows) and initial rates (columns)."""
    return runs.groupby(["seed", "initial_lr"])[column].mean().unstack()


def log_ratio(a: Any, b: Any, axis: int = -1) -> Any:
    """Return ln(mean of ``a`` / mean of ``b``) along an axis; NaN where both are 0 or infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.mean(a, axis=axis)) - np.log(np.mean(b, axis=axis))


def paired_interval(
    a: np.ndarray, b: np.ndarray, statistic: Callable[..., Any], confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of two samples (``scipy.stats.bootstrap``).

    Runs of one seed share initial weights and the order of the data, so the two are resampled jointly.

    :param a: figures of one controller, float (S,), a seed each
    :param b: figures of the other, float (S,), of the same seeds
    :param statistic: function of the two samples and ``axis``
    :return: the ends; NaN for fewer than 2 seeds or where a figure is not finite
    """
    from scipy.stats import bootstrap

    if len(a) < 2 or not np.isfinite([a, b]).all():
        return math.nan, math.nan
    interval = bootstrap(
        (a, b),
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def write_transfer(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Write transfer.csv (a row a cell), transfer.md and transfer.png; return their paths."""
    rows, matrix, picture = (folder / f"transfer.{ending}" for ending in ("csv", "md", "png"))
    frame = pd.DataFrame([asdict(cell) for cell in cells])
    frame.assign(metrics=frame.metrics.map(json.dumps)).to_csv(rows, index=False)
    matrix.write_text(transfer_markdown(cells), encoding="utf-8")
    draw_transfer(picture, cells)
    return [rows, matrix, picture]


def transfer_tables(cells: Sequence[Cell]) -> list[Table]:
    """Return a rich table for each policy: its row of the matrix, from top to bottom."""
    tables, several = [], _several(cells)
    for policy, trained_on in _policies(cells).items():
        title = f"{escape(policy)}, trained on {escape(trained_on)}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("task", overflow="fold")
        for column in ("metric", "", "test loss", "regret", "95 % interval", "collapsed"):
            table.add_column(column, justify="right", no_wrap=True)
        for cell in cells:
            if cell.policy == policy:
                table.add_row(
                    cell.task + "*" * cell.home + f"\n{cell.optimizer}, {cell.budget}" * several,
                    cell.metric,
                    f"{cell.test_metric:.4f}",
                    f"{cell.test_loss:.4f}",
                    _signed(cell.regret),
                    _interval(cell),
                    f"{cell.collapsed:.0%}",
                )
        tables.append(table)
    return tables


def transfer_markdown(cells: Sequence[Cell]) -> str:
    """Return the matrix in Markdown: a row a policy, a column a setting."""
    settings, by_place = _settings(cells), {(cell.policy, _setting(cell)): cell for cell in cells}
    labels = ["/".join(map(str, setting)) if _several(cells) else setting[0] for setting in settings]
    lines = [f"| policy | trained on | {' | '.join(labels)} |", f"| --- | --- |{' --- |' * len(labels)}"]
    for policy, trained_on in _policies(cells).items():
        parts = []
        for cell in (by_place[policy, setting] for setting in settings):
            regret = _signed(cell.regret) + r"\*" * cell.home
            collapsed = f", {cell.collapsed:.0%} collapsed" if cell.collapsed else ""
            parts.append(f"{regret} ({_interval(cell)}), {cell.metric} {cell.test_metric:.4f}{collapsed}")
        lines.append(f"| {policy} | {trained_on} | {' | '.join(parts)} |")
    best = {_setting(cell): cell for cell in cells}
    parts = [
        f"{cell.best} from {cell.best_lr:.2g}: test loss {cell.best_test_loss:.4f}, {cell.metric} "
        f"{cell.best_test_metric:.4f}"
        for cell in (best[setting] for setting in settings)
    ]
    lines.append(f"| best tuned schedule | | {' | '.join(parts)} |")
    return "\n".join([*lines, "", LEGEND.replace("*", r"\*"), ""])


def draw_transfer(path: Path, cells: Sequence[Cell]) -> None:
    """Draw the regret in loss of each policy (rows) in each setting (columns) as a heat map.

    Regrets beyond ln 2 either way have the colour of ln 2. A frame marks the tasks a policy was trained on.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    settings, metrics = _settings(cells), {_setting(cell): cell.metric for cell in cells}
    rows = [_wrapped(name, f"(trained on {tasks})", width=36) for name, tasks in _policies(cells).items()]
    columns = [_wrapped(s[0], f"{s[1]}, {s[2]} updates", metrics[s], width=22) for s in settings]
    width, height = max(1.4, *map(_inches, columns)), max(0.8, *(0.25 + 0.16 * text.count("\n") for text in rows))
    inches = (max(map(_inches, rows)) + width * len(columns) + 1.2, max(height * len(rows), 1.6) + 1.5)
    figure, axis = plt.subplots(figsize=inches, layout="constrained")

    largest = max([0.1, *(abs(cell.regret) for cell in cells if not math.isnan(cell.regret))])
    limit = min(largest, _LARGEST_SHADE)
    values = np.full((len(rows), len(columns)), np.nan)
    places = [(list(_policies(cells)).index(cell.policy), settings.index(_setting(cell))) for cell in cells]
    for place, cell in zip(places, cells, strict=True):
        values[place] = np.clip(cell.regret, -limit, limit)
    shades = plt.get_cmap("PuOr_r").with_extremes(bad="lightgrey")
    image = axis.imshow(values, cmap=shades, vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), cell in zip(places, cells, strict=True):
        ink = "white" if abs(values[row, column]) > 0.6 * limit else "black"
        for shift, text, size, weight in (
            (8, _signed(cell.regret), 11, "bold"),
            (-8, f"{cell.test_metric:.3f}", 9, "normal"),
        ):
            axis.annotate(
                text,
                (column, row),
                (0, shift),
                textcoords="offset points",
                ha="center",
                va="center",
                color=ink,
                fontsize=size,
                weight=weight,
            )
        if cell.home:
            for shade, line in (("white", 5.0), ("black", 2.5)):
                frame = Rectangle((column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=shade, linewidth=line)
                axis.add_patch(frame)
    axis.set_xticks(range(len(columns)), columns, fontsize=9, parse_math=False)
    axis.set_yticks(range(len(rows)), rows, fontsize=9, parse_math=False)
    axis.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
    axis.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    title = "Regret against the best tuned schedule (bold), and the metric. Framed: trained on this task."
    figure.suptitle(_wrapped(title, width=int(inches[0] / 0.09)), fontsize=10)
    extend = "both" if largest > limit else "neither"
    bar = figure.colorbar(image, extend=extend, fraction=0.6 / inches[0], pad=0.2 / inches[0], aspect=6 * inches[1])
    bar.set_label("ln(test loss / best tuned schedule's)", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _setting(cell: Cell) -> tuple[str, str, int]:
    return cell.task, cell.optimizer, cell.budget


def _settings(cells: Sequence[Cell]) -> list[tuple[str, str, int]]:
    return list(dict.fromkeys(_setting(cell) for cell in cells))


def _several(cells: Sequence[Cell]) -> bool:
    """Whether a task comes with more than one optimizer or budget."""
    settings = _settings(cells)
    return len({task for task, *_ in settings}) < len(settings)


def _policies(cells: Sequence[Cell]) -> dict[str, str]:
    """Return what each policy was trained on."""
    return {cell.policy: cell.trained_on for cell in cells}


def _signed(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else f"{value:.0f}"


def _interval(cell: Cell) -> str:
    return f"{_signed(cell.regret_low)} to {_signed(cell.regret_high)}"


def _wrapped(*texts: str, width: int) -> str:
    return "\n".join(line for text in texts for line in wrap(text, width))


def _inches(text: str) -> float:
    """Return about the room that lines of 9 points need."""
    return 0.3 + 0.08 * max(map(len, text.split("\n")))
