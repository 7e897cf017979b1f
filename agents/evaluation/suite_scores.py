"""The figures of a part of a suite as arrays, and what one result of each method costs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from agents.evaluation.results import Evaluation, score_arrays
from agents.evaluation.statistics import stratified_interval

Interval = tuple[float, float, float]  # figure, lower and upper end


class Scores:
    """A part's figures as arrays; lower is better everywhere.

    What is tuned counts at its tuned rate, a policy with the mean over its initial rates.

    :ivar settings: each a :class:`agents.evaluation.results.Setting`
    :ivar methods: names of controllers
    :ivar loss: test losses, float (settings, methods, seeds); of a diverged run infinite
    :ivar metric: the task's metric of the same shape, negated where more is better
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.settings, self.methods, arrays = score_arrays(evaluation)
        self.loss, self.metric = arrays["loss"], arrays["metric"]
        self.references = [n for n, name in enumerate(self.methods) if name in self.evaluation.references]

    def ratios(self, losses: np.ndarray) -> np.ndarray:
        """Return mean loss over that of the best tuned schedule: float (settings, methods).

        The best is the one with the lowest mean here, on the test split, which is stricter on all others than the best
        on the reward split would be.
        """
        means = losses.mean(axis=2)
        with np.errstate(invalid="ignore"):
            return np.asarray(means / means[:, self.references].min(axis=1, keepdims=True))

    def mean_ratio(self, losses: np.ndarray) -> np.ndarray:
        """Return the geometric mean of the ratios over settings: float (methods,)."""
        return np.asarray(np.exp(np.log(self.ratios(losses)).mean(axis=0)))

    def log_ratios(self) -> np.ndarray:
        """Return ln(loss / loss of the best tuned schedule with the same seed): float (settings, methods, seeds)."""
        best = np.array(self.references)[self.loss.mean(axis=2)[:, self.references].argmin(axis=1)]
        with np.errstate(invalid="ignore"):
            return np.asarray(np.log(self.loss / np.take_along_axis(self.loss, best[:, None, None], axis=1)))

    def learned_nothing(self, name: str) -> tuple[int, int]:
        """Return how many of a controller's runs learned nothing, and how many there are."""
        runs = self.evaluation.counted_everywhere(name)
        return int(self.evaluation.learned_nothing(runs).sum()), len(runs)

    def price(self, name: str) -> tuple[float, float]:
        """Return what one result of a controller costs: updates over the budget, and passes over the reward split.

        Every rate tried for what is tuned counts, and updates of searches. Means over settings.
        """
        costs = []
        for setting in self.settings:
            paid, results = self.evaluation.runs_of(setting, name), len(self.evaluation.counted(setting, name))
            if results:
                updates = (paid.updates + paid.search_updates).sum() / setting.budget
                costs.append((updates / results, paid.evaluations.sum() / results))
        return tuple(float(value) for value in np.mean(costs, axis=0))  # type: ignore[return-value]

    def bootstrap(self, scores: np.ndarray, statistic: Callable[[np.ndarray], float]) -> Interval:
        """Return a statistic of scores (settings, methods, seeds) and its interval over seeds within settings."""
        low, high = stratified_interval(scores, lambda drawn: np.array([statistic(drawn)]))
        return float(statistic(scores)), float(low[0]), float(high[0])
