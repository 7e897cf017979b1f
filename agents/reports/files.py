"""What an evaluation leaves behind: a table on the terminal, results.csv, summary.json and plots."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agents.evaluation.comparison import Line, hindsight
from agents.evaluation.mean_paths import geometric_deviation, log_rates, mean_path
from agents.evaluation.protocol import SETTING, Evaluation
from gns.errors import InvalidSettingError

# Okabe and Ito's colours, told apart in every common form of colour blindness.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#000000"]
MARKERS = ["o", "s", "^", "v", "D", "P", "X", "*"]


def prepare_folder(folder: Path) -> Path:
    """Create a folder for results, before any work is done.

    :raises InvalidSettingError: if it cannot be written to
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidSettingError(
            f"Cannot write to {folder} ({error}); expected a folder to put results in."
        ) from error
    return folder


def tables(lines: list[Line]) -> list[Table]:
    """Return a rich table for each task, optimizer and budget."""
    result = []
    for (task, optimizer, budget), group in _by_setting(lines):
        title = f"{task}, {optimizer}, {budget} updates"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
        table.add_column("controller", overflow="fold")
        for column in ("lr", "test loss", "95 % interval", "s.d.", group[0].metric, "vs best", "cost"):
            table.add_column(column, justify="right", no_wrap=True)
        for line in group:
            mean = math.isnan(line.initial_lr) and not line.own_rate
            table.add_row(
                line.controller,
                _rate(line),
                f"{line.test_loss:.4f}",
                f"{line.low:.4f}-{line.high:.4f}",
                f"{line.deviation:.4f}",
                f"{line.test_metric:.4f}",
                f"{line.ratio:.3f}",
                f"{line.cost:.1f}",
                style="bold" if mean else "",
                end_section=mean,
            )
        result.append(table)
    return result


def markdown(lines: list[Line]) -> str:
    """Return the comparison as Markdown tables."""
    parts = []
    for (task, optimizer, budget), group in _by_setting(lines):
        parts.append(f"**{task}, {optimizer}, {budget} updates**\n")
        metric = group[0].metric
        parts.append(f"| controller | initial lr | test loss | 95 % interval | s.d. | {metric} | vs best | cost |")
        parts.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
        for line in group:
            parts.append(
                f"| {line.controller} | {_rate(line)} | {line.test_loss:.4f} | {line.low:.4f} to {line.high:.4f} | "
                f"{line.deviation:.4f} | {line.test_metric:.4f} | {line.ratio:.3f} | {line.cost:.1f} |"
            )
        parts.append("")
    return "\n".join(parts)


def _rate(line: Line) -> str:
    """The initial rate, ``own`` for a controller that ignores it, ``all`` for the mean over a policy's."""
    return "own" if line.own_rate else "all" if math.isnan(line.initial_lr) else f"{line.initial_lr:.2g}"


def write_results(folder: Path, evaluation: Evaluation, lines: list[Line], about: dict[str, Any]) -> list[Path]:
    """Write results.csv, summary.json, table.md and the plots; return their paths.

    :param about: what made the results (configuration, versions), put into the summary
    """
    results, summary, table = folder / "results.csv", folder / "summary.json", folder / "table.md"
    evaluation.runs.to_csv(results, index=False)
    table.write_text(markdown(lines), encoding="utf-8")
    content = {
        "hindsight": [asdict(item) for item in hindsight(evaluation)],
        "lines": [asdict(line) for line in lines],
        "tuned": evaluation.tuned.to_dict(orient="records"),
        **about,
    }
    summary.write_text(json.dumps(plain_json(content), indent=2, allow_nan=False), encoding="utf-8")
    return [results, summary, table, *_plots(folder, evaluation, lines)]


def plain_json(value: Any) -> Any:
    """Return a value as JSON can hold it: it has no NaN and no infinity, None stands for them."""
    if isinstance(value, dict):
        return {key: plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_setting(lines: list[Line]) -> list[tuple[tuple[str, str, int], list[Line]]]:
    groups: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.task, line.optimizer, line.budget), []).append(line)
    return list(groups.items())


def _plots(folder: Path, evaluation: Evaluation, lines: list[Line]) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    written = []
    groups = evaluation.runs.groupby(SETTING, sort=False)
    for setting, runs in groups:
        tag = "_".join(str(part) for part in setting) if groups.ngroups > 1 else ""
        own = [line for line in lines if (line.task, line.optimizer, line.budget) == setting]
        title = f"{setting[0]}, {setting[1]}, {setting[2]} updates"
        for name, draw in (("rates", _draw_rates), ("initial_rate", _draw_error_against_initial_rate)):
            path = folder / f"{name}{'_' + tag if tag else ''}.png"
            draw(path, title, runs, evaluation, own)
            written.append(path)
    return written


def _draw_error_against_initial_rate(
    path: Path, title: str, runs: pd.DataFrame, evaluation: Evaluation, lines: list[Line]
) -> None:
    """Final test loss and metric against the initial rate (the REX paper's Figure 3): mean and deviation over seeds.

    Accuracies are drawn as errors, on a logarithmic axis; what ignores the initial rate is a level line.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    tuned = {*evaluation.tuned.controller, *evaluation.own_rates}
    policies = [name for name in runs.controller.unique() if name not in tuned]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    best = min((line.test_loss for line in lines if line.controller in evaluation.references), default=math.nan)
    metric = str(runs.metric.iloc[0])
    as_error = metric.startswith("accuracy")
    figures = (runs.test_metric, metric) if not as_error else (1 - runs.test_metric, "test error")
    for axis, (value, label) in zip(axes, ((runs.test_loss, "test loss"), figures), strict=True):
        table = runs.assign(value=value)
        for number, (name, own) in enumerate(table.groupby("controller", sort=False)):
            stats = own.groupby("initial_lr").value.agg(["mean", "std"])
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
            if name in evaluation.own_rates:
                axis.axhline(own.value.mean(), label=name, color=colour, linestyle="--", linewidth=1.2)
                continue
            policy = name in policies
            shade = (
                "black" if len(policies) == 1 else f"{0.7 * policies.index(name) / len(policies):.2f}" if policy else ""
            )
            axis.errorbar(
                stats.index,
                stats["mean"],
                stats["std"].fillna(0.0),
                label=name,
                color=shade if policy else colour,
                marker="*" if policy else marker,
                markersize=9 if policy else 4,
                linewidth=2.5 if policy else 1.2,
                linestyle="-" if policy or name in evaluation.references else "-.",
                capsize=2,
                zorder=5 if policy else 2,
            )
        axis.set(xscale="log", xlabel="initial learning rate (one-cycle: peak)", ylabel=label)
        axis.grid(alpha=0.3)
        if axis is axes[0] or as_error:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0].axhline(best, color="grey", linestyle=":", linewidth=1.2, label="best tuned schedule")
    shown = [loss for loss in (best, *(line.test_loss for line in lines)) if 0 < loss < math.inf]
    if shown:
        axes[0].set_ylim(0.75 * min(shown), 30 * min(shown))
    figure.suptitle(f"{title}: end of training against initial rate, mean and s.d. over seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_rates(path: Path, title: str, runs: pd.DataFrame, evaluation: Evaluation, lines: list[Line]) -> None:
    """Rate over progress, geometric mean over seeds.

    Left each schedule at its tuned rate, right all others: at their tuned rate, or from each initial rate.
    """
    from matplotlib import pyplot as plt

    tuned = evaluation.tuned.set_index([*SETTING, "controller"]).tuned_lr
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    shades = plt.get_cmap("viridis")
    several = len(set(runs.controller) - evaluation.references) > 1
    for number, (name, own) in enumerate(runs.groupby("controller", sort=False)):
        key = (*own[SETTING].iloc[0], name)
        if key in tuned.index:
            rate = float(tuned[key])
            progress, mean = mean_path(evaluation, own[own.initial_lr == rate])
            axis, colour = axes[0 if name in evaluation.references else 1], COLOURS[number % len(COLOURS)]
            axis.plot(progress, mean, label=f"{name} ({rate:.2g})", color=colour, linewidth=1.6)
            continue
        starts = sorted(own.initial_lr.unique())
        for position, start in enumerate(starts):
            part = own[own.initial_lr == start]
            (progress, mean), spread = mean_path(evaluation, part), geometric_deviation(log_rates(evaluation, part))
            shade: Any = shades(0.9 * position / max(1, len(starts) - 1))
            label = name if name in evaluation.own_rates else f"{name} from {start:.1g}"
            if several:  # too many lines to name each: one colour a policy
                shade, label = COLOURS[number % len(COLOURS)], name if position == 0 else "_"
            axes[1].plot(progress, mean, label=label, color=shade, linewidth=1.8)
            axes[1].fill_between(progress, mean / spread, mean * spread, color=shade, alpha=0.15, linewidth=0)
    for axis, heading in zip(axes, ("schedules at their tuned rate", "learned or adaptive"), strict=True):
        axis.set(yscale="log", xlabel="progress", title=heading)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    shown = (rate for path in evaluation.paths for t, rate in path if t < 0.95 and rate > 0)
    lowest = min(shown, default=1e-5)
    axes[0].set(ylabel="learning rate", ylim=(max(lowest / 2, 1e-6), None))
    figure.suptitle(f"{title}: learning rate, geometric mean (band: s.d.) over seeds")
    figure.savefig(path, dpi=120)
    plt.close(figure)
