"""Feature schema ``srls``: the seven features of SRLS (Xu, Dai, Kemp, Metz, 2019, arXiv 1909.09712). It sees no graph.

Where the paper takes them raw, here losses, variances and the rate enter by their logarithm, and the mean of the output
layer's weights in units of their root mean square: raw, they span many decades. What is not known is 0: the training
loss before the first update and after a rollback, the change of predictions at the first decision. As the paper has no
flag for it, that looks like a loss or a variance of 1.
"""

from __future__ import annotations

import numpy as np

from gns.features.schema import Feature, FeatureSchema
from gns.features.statistics import SUM_W, SUM_W2, TINY, LayerStatistics, log, log10
from gns.graph.layer_graph import LayerGraph


def output_layer(graph: LayerGraph) -> int:
    """Return the last layer that no edge leaves; the last of all where edges leave every layer."""
    ends = set(range(graph.num_nodes)) - set(graph.edges[0].tolist())
    return max(ends, default=graph.num_nodes - 1)


def _output_weights(layers: LayerStatistics, column: int) -> np.ndarray:
    """Mean of a sum's terms over the weights of the output layer, without its biases: (*N,)."""
    chosen = (layers.membership[output_layer(layers.graph)] > 0) & ~layers.is_bias
    return (layers.run.sums[..., column] * chosen).sum(axis=-1) / max(layers.tensor_sizes @ chosen, 1.0)


def _mean_over_rms(layers: LayerStatistics) -> np.ndarray:
    mean, square = _output_weights(layers, SUM_W), _output_weights(layers, SUM_W2)
    return mean / np.sqrt(np.maximum(square, TINY**2))


def _variance(layers: LayerStatistics) -> np.ndarray:
    return _output_weights(layers, SUM_W2) - _output_weights(layers, SUM_W) ** 2


SCHEMA = FeatureSchema(
    name="srls",
    bound=5.0,
    needs_validation=True,
    layers=(),
    run=(
        Feature("log_training_loss", lambda s: s.run.log_mean_loss, 2.0),
        Feature("log_validation_loss", lambda s: log(np.asarray(s.run.validation_loss)), 2.0),
        Feature("log_prediction_variance", lambda s: log10(np.asarray(s.run.prediction_variance)), 2.0),
        Feature("log_prediction_change_variance", lambda s: log10(np.asarray(s.run.prediction_change_variance)), 2.0),
        Feature("output_weight_mean_over_rms", _mean_over_rms),
        Feature("log_output_weight_variance", lambda s: log10(_variance(s)), 2.0, -2.0),
        Feature("log_learning_rate", lambda s: log10(s.run.learning_rate), 2.0, -3.0),
    ),
)
