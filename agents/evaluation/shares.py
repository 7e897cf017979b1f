"""How often each method is among the best, over all settings: the table of the REX paper, beside the paper's figures.

Chen et al., MLSys 2022, Table 1: shares of Top-1 and Top-3 finishes at low budgets (below 25 % of a full run), at high
ones, and overall. Rates are chosen on the reward split, methods are ranked on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from agents.evaluation.protocol import SETTING, Evaluation
from agents.evaluation.statistics import interquartile_mean, mean_ranks, regret, stratified_interval, top_shares

HIGH_BUDGET = 25.0  # percent of a full run
BUDGETS = ("low", "high", "overall")
RANKINGS = ("metric", "loss")
# Chen et al., Table 1: Top-1 and Top-3 in percent at low budgets, at high ones, overall.
PAPER: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    "constant": ((0, 0), (2, 10), (1, 5)),
    "exponential": ((5, 7), (5, 14), (5, 11)),
    "onecycle": ((15, 49), (12, 40), (13, 45)),
    "linear": ((10, 78), (12, 62), (11, 70)),
    "step": ((2, 12), (7, 38), (5, 25)),
    "cosine": ((2, 66), (10, 62), (6, 64)),
    "rex": ((73, 95), (67, 88), (70, 92)),
}
LEGEND = (
    "Shares in percent of settings (task, optimizer, budget) in which a method is the best / among the best three by "
    "its mean over seeds on the test split; ties count for each, a diverged method for none. low: budgets below 25 % "
    "of a full run. paper: Chen et al. (MLSys 2022), Table 1, among its seven methods, by the task's metric, step "
    "including decay on plateau. rank: mean rank. regret: interquartile mean over settings and seeds of ln(test loss / "
    "mean test loss of the setting's best method), with its 95 % bootstrap interval over seeds within settings. A "
    "policy counts with its mean over initial rates."
)


@dataclass(frozen=True)
class Shares:
    """One method over all settings.

    :param ranked_by: ``metric`` (the task's) or ``loss``, on the test split
    :param controller: its name
    :param top: shares of Top-1 and Top-3 by kind of budget (:data:`BUDGETS`), in [0, 1]; NaN where there are none
    :param rank: mean rank over all settings, 1 is best
    :param regret: interquartile mean of the regret in test loss (:func:`agents.evaluation.statistics.regret`)
    :param regret_low: lower end of its 95 % stratified bootstrap interval; the divisor, the mean of the setting's best
        method, is not drawn anew
    :param regret_high: upper end
    :param settings: number of settings by kind of budget
    """

    ranked_by: str
    controller: str
    top: dict[str, tuple[float, float]]
    rank: float
    regret: float
    regret_low: float
    regret_high: float
    settings: dict[str, int]


def shares(evaluation: Evaluation) -> list[Shares]:
    """Return the shares of every method, ranked by the metric and then by the loss.

    Whatever is tuned counts with the rate chosen on the reward split, a policy with its mean over initial rates.
    A budget that was not asked for as a percentage counts as a full run.
    """
    settings, methods, scores = score_arrays(evaluation)
    percents = np.array([evaluation.percents.get((task, budget), 100.0) for task, _, budget in settings])
    kinds = {"low": percents < HIGH_BUDGET, "high": percents >= HIGH_BUDGET, "overall": percents > 0}
    regrets = regret(scores["loss"])
    means, (low, high) = interquartile_mean(regrets), stratified_interval(regrets, interquartile_mean)
    result = []
    for ranked_by in RANKINGS:
        own = scores[ranked_by]
        top = {kind: [top_shares(own[where], k) for k in (1, 3)] for kind, where in kinds.items()}
        ranks = mean_ranks(own)
        for number, name in enumerate(methods):
            result.append(
                Shares(
                    ranked_by=ranked_by,
                    controller=name,
                    top={kind: (float(best[number]), float(best_3[number])) for kind, (best, best_3) in top.items()},
                    rank=float(ranks[number]),
                    regret=float(means[number]),
                    regret_low=float(low[number]),
                    regret_high=float(high[number]),
                    settings={kind: int(where.sum()) for kind, where in kinds.items()},
                )
            )
    return result


def score_arrays(
    evaluation: Evaluation,
) -> tuple[list[tuple[str, str, int]], list[str], dict[str, np.ndarray]]:
    """Return settings, methods, and for each of :data:`RANKINGS` float (settings, methods, seeds), lower is better.

    Metrics of which more is better are negated. What is not a number is infinite.
    """
    runs = evaluation.runs.merge(evaluation.tuned[[*SETTING, "controller", "tuned_lr"]], how="left")
    runs = runs[runs.tuned_lr.isna() | (runs.tuned_lr == runs.initial_lr)]
    sign = runs.task.map(lambda name: -1.0 if evaluation.higher_is_better.get(name, True) else 1.0)
    runs = runs.assign(
        metric=(sign * runs.test_metric).fillna(math.inf),
        loss=runs.test_loss.fillna(math.inf),
        setting=pd.MultiIndex.from_frame(runs[SETTING]).to_flat_index(),
    )
    settings, methods = list(runs.setting.unique()), list(evaluation.runs.controller.unique())
    seeds = sorted(runs.seed.unique())
    places = pd.MultiIndex.from_product([settings, methods, seeds])
    shape = len(settings), len(methods), len(seeds)
    means = runs.groupby(["setting", "controller", "seed"])[list(RANKINGS)].mean().reindex(places).fillna(math.inf)
    return settings, methods, {name: means[name].to_numpy().reshape(shape) for name in RANKINGS}


def write_shares(folder: Path, table: Sequence[Shares]) -> list[Path]:
    """Write shares.csv (a row a method and ranking) and shares.md; return their paths."""
    rows, text = folder / "shares.csv", folder / "shares.md"
    pd.DataFrame([_row(item) for item in table]).to_csv(rows, index=False)
    text.write_text(shares_markdown(table), encoding="utf-8")
    return [rows, text]


def shares_markdown(table: Sequence[Shares]) -> str:
    """Return the shares in Markdown: a table by metric, one by loss, and what the columns are."""
    parts = []
    for title, items in _by_ranking(table):
        parts += [f"**{title}**", "", f"| {' | '.join(_HEADINGS)} |", f"| --- |{' ---: |' * (len(_HEADINGS) - 1)}"]
        parts += [f"| {' | '.join(_cells(item))} |" for item in items]
        parts.append("")
    return "\n".join([*parts, LEGEND, ""])


def shares_tables(table: Sequence[Shares]) -> list[Table]:
    """Return the shares as rich tables, by metric and by loss."""
    result = []
    for title, items in _by_ranking(table):
        shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False)
        for heading in _HEADINGS:
            name = heading == _HEADINGS[0]
            shown.add_column(heading, justify="left" if name else "right", no_wrap=not name, overflow="fold")
        for item in items:
            shown.add_row(*_cells(item))
        result.append(shown)
    return result


_HEADINGS = ("controller", "low", "paper", "high", "paper", "overall", "paper", "rank", "regret", "95 %")
_TITLES = {"metric": "by the task's metric", "loss": "by the test loss"}


def _by_ranking(table: Sequence[Shares]) -> list[tuple[str, list[Shares]]]:
    groups: dict[str, list[Shares]] = {}
    for item in table:
        groups.setdefault(item.ranked_by, []).append(item)
    return [
        (
            f"Top-1/Top-3 {_TITLES[name]} in {{overall}} settings ({{low}} low, {{high}} high budgets)".format(
                **items[0].settings
            ),
            items,
        )
        for name, items in groups.items()
    ]


def _cells(item: Shares) -> list[str]:
    parts = [item.controller]
    for number, kind in enumerate(BUDGETS):
        paper = PAPER.get(item.controller)
        parts.append("/".join("-" if math.isnan(share) else f"{100 * share:.0f}" for share in item.top[kind]))
        parts.append("/".join(map(str, paper[number])) if paper else "")
    interval = f"{_rounded(item.regret_low)}, {_rounded(item.regret_high)}"
    return [*parts, f"{item.rank:.2f}", _rounded(item.regret), interval]


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # no minus before nothing


def _row(item: Shares) -> dict[str, object]:
    row = asdict(item)
    top, settings = row.pop("top"), row.pop("settings")
    paper = PAPER.get(item.controller)
    for number, kind in enumerate(BUDGETS):
        for place, k in enumerate((1, 3)):
            row[f"{kind}_top{k}"] = top[kind][place]
            row[f"{kind}_top{k}_paper"] = paper[number][place] / 100 if paper else math.nan
        row[f"{kind}_settings"] = settings[kind]
    return row
