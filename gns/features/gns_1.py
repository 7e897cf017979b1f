"""Feature schema ``gns-1``: logarithms of dimensionless ratios, scaled to be of order 1.

Losses enter by their logarithm, so that a rescaled loss shifts one feature only. Before the first update there is no
loss: all loss features are 0 and ``no_loss`` is 1.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from gns.features.schema import Feature, FeatureSchema
from gns.features.statistics import (
    OPTIMIZER_KINDS,
    SUM_G2,
    SUM_GM,
    SUM_M2,
    SUM_U2,
    SUM_V,
    TINY,
    LayerStatistics,
    RunStatistics,
    log,
    log10,
    mean_of,
)

_KINDS = ("sgd", "adam", "adamw")
_OTHER = np.array([kind not in _KINDS for kind in OPTIMIZER_KINDS])  # and what a later version may know


def _agreement(layers: LayerStatistics) -> np.ndarray:
    sums = layers.sums
    return sums[..., SUM_GM] / (np.sqrt(sums[..., SUM_G2] * sums[..., SUM_M2]) + TINY**2)


def _signal_to_noise(layers: LayerStatistics) -> np.ndarray:
    """Squared mean gradient over mean squared gradient, both free of their start-up bias."""
    run = layers.run
    signal = layers.added_up(run.sums[..., SUM_M2] * run.momentum_scale**2)
    power = layers.added_up(run.sums[..., SUM_V] * run.second_scale)
    signal = np.where(layers.sums[..., SUM_M2] > 0, signal, power)  # no momentum yet: one gradient is its own mean
    return (signal + TINY) / (power + TINY)


def _update_over_weight(layers: LayerStatistics) -> np.ndarray:
    run = layers.run
    update_rms = np.sqrt(layers.added_up(run.sums[..., SUM_U2] * run.learning_rates**2) / layers.sizes)
    return (update_rms + TINY) / (layers.weight_rms + 1e-8)


def _loss_slope(run: RunStatistics) -> np.ndarray:
    """Logarithm of the mean loss of the interval's second half over that of its first; 0 of fewer than two losses."""
    counts = run.has_loss.sum(axis=-1)
    place, half = np.arange(run.losses.shape[-1]), (counts // 2)[..., None]
    early = mean_of(run.losses, run.counted & (place < half))
    late = mean_of(run.losses, run.counted & (place >= counts[..., None] - half))
    return np.where(counts >= 2, log(late) - log(early), np.nan)


def _loss_spread(run: RunStatistics) -> np.ndarray:
    """Logarithm of the standard deviation of the interval's losses over their mean; NaN of fewer than two."""
    mean = run.mean_loss(unknown=np.nan)
    deviation = np.sqrt(mean_of((run.losses - mean[..., None]) ** 2, run.counted))
    spread = log(deviation / np.maximum(np.abs(mean), 1e-8) + 1e-3)
    return np.where(run.counted.sum(axis=-1) >= 2, spread, np.nan)


def _is_kind(number: int, layers: LayerStatistics) -> np.ndarray:
    return np.equal(layers.run.optimizer_kind, number)


SCHEMA = FeatureSchema(
    name="gns-1",
    bound=5.0,
    layers=(
        Feature("log_weight_rms", lambda s: log10(s.weight_rms), 1.0, -1.0, "rms weight, log10"),
        Feature(
            "log_gradient_rms",
            lambda s: log10(np.sqrt(s.sums[..., SUM_G2] / s.sizes)),
            2.0,
            -3.0,
            "rms gradient, log10",
        ),
        Feature("gradient_momentum_agreement", _agreement, label="cosine of gradient and momentum"),
        Feature(
            "log_gradient_signal_to_noise",
            lambda s: log10(_signal_to_noise(s)),
            1.0,
            -1.0,
            "signal over noise of the gradient, log10",
        ),
        Feature(
            "log_update_over_weight", lambda s: log10(_update_over_weight(s)), 1.5, -3.0, "update over weight, log10"
        ),
        Feature("log_size", lambda s: np.log10(s.sizes), 2.0, 3.0, "parameters, log10"),
        Feature("depth", lambda s: s.graph.depths, 0.5, 0.5, "depth"),
    ),
    run=(
        Feature("log_learning_rate", lambda s: log10(s.run.learning_rate), 2.0, -3.0, "learning rate, log10"),
        Feature("log_loss", lambda s: s.run.log_mean_loss, 2.0, label="loss, ln"),
        Feature(
            "log_loss_since_start",
            lambda s: s.run.log_mean_loss - log(s.run.first_loss),
            2.0,
            label="loss over that of the first interval, ln",
        ),
        Feature(
            "log_loss_change",
            lambda s: s.run.log_mean_loss - log(s.run.previous_loss),
            0.5,
            label="loss over that of the interval before, ln",
        ),
        Feature("loss_slope", lambda s: _loss_slope(s.run), 0.5, label="loss of the second half over the first, ln"),
        Feature(
            "log_loss_spread", lambda s: _loss_spread(s.run), 2.0, -2.0, "spread of the losses over their mean, ln"
        ),
        Feature("progress", lambda s: np.asarray(s.run.progress), 0.5, 0.5, "updates over budget"),
        Feature("log_budget", lambda s: log10(s.run.budget), 1.0, 2.5, "budget, log10"),
        Feature("rolled_back", lambda s: np.asarray(s.run.rolled_back)),
        Feature("no_loss", lambda s: np.asarray(~s.run.has_loss.any(axis=-1))),
        *(Feature(f"optimizer_{kind}", partial(_is_kind, OPTIMIZER_KINDS.index(kind))) for kind in _KINDS),
        Feature("optimizer_other", lambda s: _OTHER[s.run.optimizer_kind]),
    ),
)
