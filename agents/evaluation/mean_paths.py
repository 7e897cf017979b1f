"""Means over training runs of what they did: rates, and losses of their batches, at the same points of progress."""

from __future__ import annotations

import numpy as np
import pandas as pd

from agents.evaluation.results import Evaluation

_LOWEST = 1e-30  # a rate of 0 has no logarithm


def mean_path(evaluation: Evaluation, runs: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return progress and the geometric mean of the rates over runs: float (points,) each; NaN where all had ended.

    :param runs: of one setting
    """
    return progress_of(evaluation, runs), geometric_mean(log_rates(evaluation, runs))


def mean_losses(evaluation: Evaluation, runs: pd.DataFrame) -> np.ndarray | None:
    """Return the geometric mean over runs of the training losses at the points of :func:`mean_path`, if known."""
    return geometric_mean(log_losses(evaluation, runs)) if evaluation.losses else None


def progress_of(evaluation: Evaluation, runs: pd.DataFrame) -> np.ndarray:
    """Return the points of progress that all runs of a setting have: float (points,)."""
    return np.array([share for share, _ in evaluation.paths[int(runs.index[0])]], dtype=float)


def log_rates(evaluation: Evaluation, runs: pd.DataFrame) -> np.ndarray:
    """Return logarithms of the rates: float (runs, points), NaN where a run had ended.

    :param runs: of one setting
    """
    rates = np.array([[rate for _, rate in evaluation.paths[int(row)]] for row in runs.index], dtype=float)
    return np.log(np.maximum(rates, _LOWEST))


def log_losses(evaluation: Evaluation, runs: pd.DataFrame) -> np.ndarray:
    """Return logarithms of the training losses: float (runs, points), NaN where a run had ended or a loss is below 0.

    :param runs: of one setting
    """
    losses = np.array([evaluation.losses[int(row)] for row in runs.index], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(losses))


def geometric_mean(logs: np.ndarray) -> np.ndarray:
    """Return the mean over runs, float (points,); NaN where all had ended, infinite where one had diverged.

    :param logs: float (runs, points), NaN where a run had ended
    """
    known = ~np.isnan(logs)
    sums, counts = np.where(known, logs, 0.0).sum(axis=0), known.sum(axis=0)
    with np.errstate(over="ignore"):
        return np.exp(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))
