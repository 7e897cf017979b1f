"""Feature schema ``gns-paper``: that of the paper's released code (Xiong et al., ICLR 2022), raw."""

from __future__ import annotations

import numpy as np

from gns.features.schema import Feature, FeatureSchema
from gns.features.statistics import SUM_ABS_G, SUM_W, LayerStatistics


def _mean(layers: LayerStatistics, column: int, chosen: np.ndarray) -> np.ndarray:
    """Mean of a sum's terms over the chosen tensors of each layer; 0 of a layer that has none."""
    count = np.maximum(layers.membership @ (layers.tensor_sizes * chosen), 1.0)
    return layers.added_up(layers.run.sums[..., column] * chosen) / count


SCHEMA = FeatureSchema(
    name="gns-paper",
    bound=1e6,
    layers=(
        Feature("mean_w", lambda s: _mean(s, SUM_W, ~s.is_bias)),
        Feature("mean_b", lambda s: _mean(s, SUM_W, s.is_bias)),
        Feature("mean_abs_grad_w", lambda s: _mean(s, SUM_ABS_G, ~s.is_bias)),
        Feature("mean_abs_grad_b", lambda s: _mean(s, SUM_ABS_G, s.is_bias)),
        Feature("mean_loss", lambda s: s.run.mean_loss(unknown=0.0)[..., None]),
        Feature("learning_rate", lambda s: np.asarray(s.run.learning_rate)[..., None]),
    ),
    run=(),
)
