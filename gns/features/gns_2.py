"""Feature schema ``gns-2``: ``gns-1``, what the run's start tells, and what is known of the optimizer before it.

Memory: how far the weights have travelled from the start, of each layer and in all, against the weights there, against
the gradient (DoG, Ivgi et al. 2023, and D-Adaptation, Defazio and Mishchenko 2023, build on both), and against a random
walk of as many updates of the present size. A run at too low a rate goes straight, one at too high a rate wanders.
"""

from __future__ import annotations

import numpy as np

from gns.features import gns_1
from gns.features.schema import Feature, FeatureSchema
from gns.features.statistics import SUM_U2, LayerStatistics, log10
from gns.features.travel import GRADIENT2, GRADIENT_TRAVEL, START2, TRAVEL2


def _travel(sums: np.ndarray) -> np.ndarray:
    """Norm of the displacement over that of the start; NaN where nothing has moved."""
    moved = np.where(sums[..., TRAVEL2] > 0.0, sums[..., TRAVEL2], np.nan)
    return np.sqrt(moved / np.maximum(sums[..., START2], 1e-12))


def _cosine(sums: np.ndarray) -> np.ndarray:
    """Cosine of the gradient with the displacement: below 0 where the way goes on, above where it leads back."""
    return sums[..., GRADIENT_TRAVEL] / np.sqrt(sums[..., GRADIENT2] * sums[..., TRAVEL2] + 1e-30)


def _over_random_walk(layers: LayerStatistics) -> np.ndarray:
    """Norm of the displacement over ``|rate * u| sqrt(t)``, u being the coming update; NaN before the first update."""
    run = layers.run
    step = np.sqrt((run.sums[..., SUM_U2] * run.learning_rates**2).sum(axis=-1))
    updates = np.asarray(run.progress) * np.asarray(run.budget)
    walked = np.where(updates > 0, step * np.sqrt(updates), np.nan)
    return np.sqrt(layers.travel.sum(axis=-2)[..., TRAVEL2]) / np.maximum(walked, 1e-30)


def _mean(layers: LayerStatistics, name: str) -> np.ndarray:
    return layers.run.settings[name].mean(axis=-1)


def _decayed_by(layers: LayerStatistics) -> np.ndarray:
    return layers.run.settings["weight_decay"].max(axis=-1)


SCHEMA = FeatureSchema(
    name="gns-2",
    bound=5.0,
    needs_start=True,
    settings=("momentum", "beta2", "weight_decay", "decoupled"),
    layers=(
        *gns_1.SCHEMA.layers,
        Feature("log_travel", lambda s: log10(_travel(s.travel)), 1.0, -1.0, "displacement over start, log10"),
        Feature("travel_cosine", lambda s: _cosine(s.travel), 0.33, label="cosine of gradient and displacement"),
    ),
    run=(
        *gns_1.SCHEMA.run,
        Feature("log_level", lambda s: log10(s.run.level), label="level of the rate over the default, log10"),
        Feature("log_forgetting", lambda s: log10(1.0 - _mean(s, "momentum")), 0.5, -1.0, "1 - momentum, log10"),
        Feature(
            "log_forgetting_squares",
            lambda s: np.where(_mean(s, "beta2") > 0.0, log10(1.0 - _mean(s, "beta2")), np.nan),
            1.0,
            -2.5,
            "1 - beta2, log10",
        ),
        Feature("log_weight_decay", lambda s: log10(_decayed_by(s) + 1e-5), 1.0, -4.0, "weight decay, log10"),
        Feature("decoupled", lambda s: _mean(s, "decoupled")),
        Feature("log_parameters", lambda s: np.log10(s.sizes.sum()), 1.0, 4.0, "parameters, log10"),
        Feature("log_layers", lambda s: np.log10(len(s.sizes)), 0.5, 0.7, "layers, log10"),
        Feature("pretrained", lambda s: np.asarray(s.run.pretrained)),
        Feature(
            "log_travel",
            lambda s: log10(_travel(s.travel.sum(axis=-2))),
            1.0,
            -1.0,
            "displacement over start, of all, log10",
        ),
        Feature(
            "travel_cosine",
            lambda s: _cosine(s.travel.sum(axis=-2)),
            0.33,
            label="cosine of gradient and displacement, of all",
        ),
        Feature(
            "log_travel_over_random_walk",
            lambda s: log10(_over_random_walk(s)),
            label="displacement over a random walk's, log10",
        ),
    ),
)
