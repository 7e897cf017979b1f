"""How often each method is among the best, over all settings: the table of the REX paper, beside the paper's figures.

Chen et al., MLSys 2022, Table 1: shares of Top-1 and Top-3 finishes at low budgets (below 25 % of a full run), at high
ones, and overall. Rates are chosen on the reward split, methods are ranked on the test split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.evaluation.results import Evaluation, score_arrays
from agents.evaluation.statistics import interquartile_mean, mean_ranks, regret, stratified_interval, top_shares

HIGH_BUDGET = 25.0  # percent of a full run
BUDGETS = ("low", "high", "overall")
RANKINGS = ("metric", "loss")


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
    :param learned_nothing: share of its runs that learned nothing
    """

    ranked_by: str
    controller: str
    top: dict[str, tuple[float, float]]
    rank: float
    regret: float
    regret_low: float
    regret_high: float
    settings: dict[str, int]
    learned_nothing: float = 0.0


def shares(evaluation: Evaluation) -> list[Shares]:
    """Return the shares of every method, ranked by the metric and then by the loss.

    Whatever is tuned counts with the rate chosen on the reward split, a policy with its mean over initial rates.
    A budget that was not asked for as a percentage counts as a full run.
    """
    settings, methods, scores = score_arrays(evaluation)
    percents = np.array([evaluation.percents.get((item.task, item.budget), 100.0) for item in settings])
    kinds = {"low": percents < HIGH_BUDGET, "high": percents >= HIGH_BUDGET, "overall": percents > 0}
    regrets = regret(scores["loss"])
    means, (low, high) = interquartile_mean(regrets), stratified_interval(regrets, interquartile_mean)
    nothing = {name: evaluation.learned_nothing(evaluation.counted_everywhere(name)).mean() for name in methods}
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
                    learned_nothing=float(nothing[name]),
                )
            )
    return result
