"""Features of a training run: one row a layer and one global vector, from per-layer sums.

Everything a policy sees is computed from sums over a layer's scalars (of w, w^2, g^2, g*m, ...) and from the losses
of the updates since the last decision. Sums add up over shards and processes, so a sharded model needs one
all-reduce of an array of shape (tensors, :data:`NUM_SUMS`), and a decision needs one copy to the host. What follows
the sums is NumPy in float64, vectorised over any leading batch dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gns.errors import UnknownNameError
from gns.graph.layer_graph import LayerGraph

# Columns of the array of sums. w: weight, g: gradient, m: momentum as the coming update will use it but before this
# gradient entered, v: second moment (Adam) or squared gradient, u: coming update at a learning rate of 1.
SUM_W, SUM_W2, SUM_ABS_G, SUM_G2, SUM_GM, SUM_M2, SUM_V, SUM_U2 = range(8)
NUM_SUMS = 8
OPTIMIZER_KINDS: tuple[str, ...] = ("sgd", "adam", "adamw", "other")
_TINY = 1e-12


def _unknown() -> np.ndarray:
    return np.asarray(math.nan)


@dataclass(frozen=True)
class FeatureSchema:
    """Names, widths and bound of a set of features. The name stands in every policy file.

    :param node: names of the columns of the node matrix (L, F)
    :param globals: names of the entries of the global vector (G,)
    :param bound: every feature lies in [-bound, bound]
    :param needs_validation: whether a pass over held-out data at every decision is needed to compute them
    """

    name: str
    node: tuple[str, ...]
    globals: tuple[str, ...]
    bound: float
    needs_validation: bool = False


@dataclass(frozen=True)
class RunStatistics:
    """What is known of a run at a decision, on the host. Leading batch dimensions ``*N`` are allowed throughout.

    :param sums: float64 (*N, P, :data:`NUM_SUMS`), a row for each of the P parameter tensors
    :param learning_rates: (*N, P), rate of each tensor's parameter group if the coming decision changes nothing
    :param momentum_scale: (*N, P), factor that turns the optimizer's momentum into a mean of gradients
    :param second_scale: (*N, P), factor that corrects the second moment's bias towards zero
    :param losses: (*N, k), losses of the k updates completed since the last decision, oldest first; k may be 0
    :param loss_counts: (*N,), how many of them a run has, which come first; the rest is filled up. -1: all
    :param first_loss: (*N,), mean loss of the first interval; NaN before it ends
    :param previous_loss: (*N,), mean loss of the interval before the last one; NaN where there is none
    :param learning_rate: (*N,), rate of the first parameter group if the coming decision changes nothing; in mode
        ``per-layer`` without the group's multiplier, which is in ``learning_rates``
    :param progress: (*N,), updates done over budget
    :param budget: (*N,), updates
    :param rolled_back: (*N,), 1 where the last interval was undone by the guard
    :param optimizer_kind: (*N,), index into :data:`OPTIMIZER_KINDS`
    :param validation_loss: (*N,), see :class:`gns.features.held_out.ValidationStatistics`, like the two that follow;
        NaN where nothing was measured
    :param prediction_variance: (*N,)
    :param prediction_change_variance: (*N,)
    """

    sums: np.ndarray
    learning_rates: np.ndarray
    momentum_scale: np.ndarray
    second_scale: np.ndarray
    losses: np.ndarray
    first_loss: np.ndarray
    previous_loss: np.ndarray
    learning_rate: np.ndarray
    progress: np.ndarray
    budget: np.ndarray
    rolled_back: np.ndarray
    optimizer_kind: np.ndarray
    loss_counts: np.ndarray = field(default_factory=lambda: np.array(-1))
    validation_loss: np.ndarray = field(default_factory=_unknown)
    prediction_variance: np.ndarray = field(default_factory=_unknown)
    prediction_change_variance: np.ndarray = field(default_factory=_unknown)

    @property
    def finite(self) -> np.ndarray:
        """Whether parameters, gradients, optimizer state and losses are all finite, bool (*N,)."""
        of_losses = np.isfinite(self.losses) | ~self.has_loss
        return np.isfinite(self.sums).all(axis=(-1, -2)) & of_losses.all(axis=-1)

    @property
    def has_loss(self) -> np.ndarray:
        """Which entries of ``losses`` are a loss, bool (*N, k)."""
        count = self.losses.shape[-1]
        counts = np.where(self.loss_counts < 0, count, self.loss_counts)
        return np.broadcast_to(np.arange(count) < counts[..., None], self.losses.shape)

    def mean_loss(self, unknown: float) -> np.ndarray:
        """Return the mean of ``losses``, (*N,); of a run without any, ``unknown``."""
        has_loss = self.has_loss
        return np.where(has_loss.any(axis=-1), _mean(self.losses, has_loss), unknown)


def tensor_sums(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor] | None,
    seconds: Sequence[Tensor] | None,
    updates: Sequence[Tensor] | None,
) -> Tensor:
    """Return the sums of P parameter tensors on their own device, without synchronising with the host.

    :param weights: P tensors
    :param gradients: gradients, of the same shapes
    :param momenta: momentum of the optimizer, or None if it keeps none (yet)
    :param seconds: second moments, or None: the squared gradient stands in
    :param updates: the coming update at a learning rate of 1, or None if it is not known
    :return: float32 tensor (P, NUM_SUMS)
    """
    squares = [_powsum(weights, 2), _powsum(gradients, 1), _powsum(gradients, 2)]
    zeros = torch.zeros_like(squares[0])
    products = torch._foreach_mul(_wide(gradients), _wide(momenta)) if momenta is not None else None
    columns = [
        _total(weights),
        *squares,
        _total(products) if products is not None else zeros,
        _powsum(momenta, 2) if momenta is not None else zeros,
        _total(seconds) if seconds is not None else squares[2],
        _powsum(updates, 2) if updates is not None else zeros,
    ]
    return torch.stack(columns, dim=-1)


def _powsum(tensors: Sequence[Tensor], power: int) -> Tensor:
    """Sum of ``|x|^power`` of each tensor: (P,)."""
    return torch.stack(list(torch._foreach_powsum(list(tensors), power, dtype=torch.float32)))


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of each tensor: (P,)."""
    return torch.stack([t.sum(dtype=torch.float32) for t in tensors])


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """At least float32: products of half-precision numbers soon leave their range."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


def gns_node_features(graph: LayerGraph, run: RunStatistics) -> np.ndarray:
    """Node features of schema ``gns-1``: logarithms of dimensionless ratios, scaled to be of order 1.

    :return: float32 array (*N, L, 7); columns as in ``SCHEMAS["gns-1"].node``
    """
    layer = _by_layer(graph)
    sums = layer @ run.sums
    counts = np.array(graph.sizes, dtype=np.float64)
    weight_rms = np.sqrt(sums[..., SUM_W2] / counts)
    gradient_rms = np.sqrt(sums[..., SUM_G2] / counts)
    agreement = sums[..., SUM_GM] / (np.sqrt(sums[..., SUM_G2] * sums[..., SUM_M2]) + _TINY**2)
    # Signal over noise: squared mean gradient over mean squared gradient, both free of their start-up bias.
    signal = (layer @ (run.sums[..., SUM_M2] * run.momentum_scale**2)[..., None])[..., 0]
    power = (layer @ (run.sums[..., SUM_V] * run.second_scale)[..., None])[..., 0]
    signal = np.where(sums[..., SUM_M2] > 0, signal, power)  # no momentum yet: one gradient is its own mean
    update_rms = np.sqrt((layer @ (run.sums[..., SUM_U2] * run.learning_rates**2)[..., None])[..., 0] / counts)
    shape = weight_rms.shape
    columns = [
        _log10(weight_rms) + 1.0,
        (_log10(gradient_rms) + 3.0) / 2.0,
        agreement,
        _log10((signal + _TINY) / (power + _TINY)) + 1.0,
        (_log10((update_rms + _TINY) / (weight_rms + 1e-8)) + 3.0) / 1.5,
        np.broadcast_to((np.log10(counts) - 3.0) / 2.0, shape),
        np.broadcast_to(2.0 * graph.depths - 1.0, shape),
    ]
    return _finish(np.stack(columns, axis=-1), SCHEMAS["gns-1"].bound)


def gns_global_features(run: RunStatistics) -> np.ndarray:
    """Global features of schema ``gns-1``.

    Losses enter by their logarithm, so that a rescaled loss shifts one feature only. Before the first update there
    is no loss: all loss features are 0 and ``no_loss`` is 1.

    :return: float32 array (*N, 14); entries as in ``SCHEMAS["gns-1"].globals``
    """
    level, since_start, change, slope, spread, no_loss = _loss_features(run)
    kind = np.eye(len(OPTIMIZER_KINDS))[run.optimizer_kind]
    entries = [
        (_log10(run.learning_rate) + 3.0) / 2.0,
        0.5 * level,
        0.5 * since_start,
        2.0 * change,
        2.0 * slope,
        spread,
        2.0 * np.asarray(run.progress) - 1.0,
        _log10(run.budget) - 2.5,
        np.asarray(run.rolled_back, dtype=np.float64),
        no_loss,
    ]
    return _finish(np.concatenate([np.stack(entries, axis=-1), kind], axis=-1), SCHEMAS["gns-1"].bound)


def _loss_features(run: RunStatistics) -> list[np.ndarray]:
    """Level, change since the start, change, slope and spread of the losses, and whether there is none: (*N,) each."""
    losses, has_loss = run.losses, run.has_loss
    counts = has_loss.sum(axis=-1)
    mean = _mean(losses, has_loss)
    level = _log(mean)
    place, half = np.arange(losses.shape[-1]), (counts // 2)[..., None]
    early = _mean(losses, has_loss & (place < half))
    late = _mean(losses, has_loss & (place >= counts[..., None] - half))
    deviation = np.sqrt(_mean((losses - mean[..., None]) ** 2, has_loss))
    values = [
        (1, level),
        (1, _or_zero(level - _log(run.first_loss))),
        (1, _or_zero(level - _log(run.previous_loss))),
        (2, _log(late) - _log(early)),
        (2, _log(deviation / np.maximum(np.abs(mean), 1e-8) + 1e-3) / 2.0 + 1.0),
    ]
    return [*(np.where(counts >= needed, value, 0.0) for needed, value in values), np.where(counts > 0, 0.0, 1.0)]


def paper_node_features(graph: LayerGraph, run: RunStatistics) -> np.ndarray:
    """Node features of the paper's released code (Xiong et al., ICLR 2022): raw, nothing normalised.

    Mean weight, mean bias, mean absolute gradient of weight and of bias, mean loss since the last decision, rate.

    :return: float32 array (*N, L, 6)
    """
    is_bias, layer = _is_bias(graph), _by_layer(graph)
    tensor_counts = np.array(graph.tensor_sizes, dtype=np.float64)
    columns = []
    for column in (SUM_W, SUM_ABS_G):
        for chosen in (~is_bias, is_bias):
            count = np.maximum(layer @ (tensor_counts * chosen), 1.0)
            columns.append((layer @ (run.sums[..., column] * chosen)[..., None])[..., 0] / count)
    both = run.mean_loss(unknown=0.0), np.asarray(run.learning_rate)
    columns += [np.broadcast_to(x[..., None], columns[0].shape) for x in both]
    return _finish(np.stack(columns, axis=-1), SCHEMAS["gns-paper"].bound)


def paper_global_features(run: RunStatistics) -> np.ndarray:
    """Return the paper's global vector: it has none, so the last axis has length 0."""
    return np.zeros((*np.shape(run.learning_rate), 0), dtype=np.float32)


def no_node_features(graph: LayerGraph, run: RunStatistics) -> np.ndarray:
    """Return the node features of schema ``srls``, which sees no graph: float32 array (*N, L, 0)."""
    return np.zeros((*np.shape(run.learning_rate), graph.num_nodes, 0), dtype=np.float32)


def srls_global_features(graph: LayerGraph, run: RunStatistics) -> np.ndarray:
    """Return the seven features of SRLS (Xu, Dai, Kemp, Metz, 2019, arXiv 1909.09712).

    Where the paper takes them raw, here losses, variances and the rate enter by their logarithm, and the mean of the
    output layer's weights in units of their root mean square: raw, they span many decades. What is not known is 0: the
    training loss before the first update and after a rollback, the change of predictions at the first decision. As the
    paper has no flag for it, that looks like a loss or a variance of 1.

    :return: float32 array (*N, 7); entries as in ``SCHEMAS["srls"].globals``
    """
    chosen = (_by_layer(graph)[_output_layer(graph)] > 0) & ~_is_bias(graph)
    count = max(np.array(graph.tensor_sizes, dtype=np.float64) @ chosen, 1.0)
    mean = (run.sums[..., SUM_W] * chosen).sum(axis=-1) / count
    square = (run.sums[..., SUM_W2] * chosen).sum(axis=-1) / count
    entries = [
        0.5 * _log(run.mean_loss(unknown=1.0)),
        0.5 * _log(np.asarray(run.validation_loss)),
        _log10(np.asarray(run.prediction_variance)) / 2.0,
        _log10(np.asarray(run.prediction_change_variance)) / 2.0,
        mean / np.sqrt(np.maximum(square, _TINY**2)),
        _log10(square - mean**2) / 2.0 + 1.0,
        (_log10(run.learning_rate) + 3.0) / 2.0,
    ]
    shape = np.shape(run.learning_rate)
    return _finish(np.stack([np.broadcast_to(entry, shape) for entry in entries], axis=-1), SCHEMAS["srls"].bound)


SCHEMAS: dict[str, FeatureSchema] = {
    "gns-1": FeatureSchema(
        name="gns-1",
        node=(
            "log_weight_rms",
            "log_gradient_rms",
            "gradient_momentum_agreement",
            "log_gradient_signal_to_noise",
            "log_update_over_weight",
            "log_size",
            "depth",
        ),
        globals=(
            "log_learning_rate",
            "log_loss",
            "log_loss_since_start",
            "log_loss_change",
            "loss_slope",
            "log_loss_spread",
            "progress",
            "log_budget",
            "rolled_back",
            "no_loss",
            *(f"optimizer_{kind}" for kind in OPTIMIZER_KINDS),
        ),
        bound=5.0,
    ),
    "gns-paper": FeatureSchema(
        name="gns-paper",
        node=("mean_w", "mean_b", "mean_abs_grad_w", "mean_abs_grad_b", "mean_loss", "learning_rate"),
        globals=(),
        bound=1e6,
    ),
    "srls": FeatureSchema(
        name="srls",
        node=(),
        globals=(
            "log_training_loss",
            "log_validation_loss",
            "log_prediction_variance",
            "log_prediction_change_variance",
            "output_weight_mean_over_rms",
            "log_output_weight_variance",
            "log_learning_rate",
        ),
        bound=5.0,
        needs_validation=True,
    ),
}
_Feature = Callable[[LayerGraph, RunStatistics], np.ndarray]
_FEATURES: dict[str, tuple[_Feature, _Feature]] = {  # of nodes, and global ones
    "gns-1": (gns_node_features, lambda graph, run: gns_global_features(run)),
    "gns-paper": (paper_node_features, lambda graph, run: paper_global_features(run)),
    "srls": (no_node_features, srls_global_features),
}


def get_schema(name: str) -> FeatureSchema:
    """Return the feature schema of that name.

    :raises UnknownNameError: if there is none
    """
    if name not in SCHEMAS:
        raise UnknownNameError("feature schema", name, SCHEMAS)
    return SCHEMAS[name]


def compute_features(schema: str, graph: LayerGraph, run: RunStatistics) -> tuple[np.ndarray, np.ndarray]:
    """Return node features (*N, L, F) and global features (*N, G) of a schema: float32, finite, within its bound."""
    nodes, global_ = _FEATURES[get_schema(schema).name]
    with np.errstate(all="ignore"):  # statistics of a diverged run may be infinite; _finish makes features finite
        return nodes(graph, run), global_(graph, run)


def _by_layer(graph: LayerGraph) -> np.ndarray:
    """Membership matrix (L, P) of parameter tensors in layers; rows of ``sums`` stand in the graph's order."""
    lengths = [len(names) for names in graph.parameters]
    return np.repeat(np.eye(len(lengths)), lengths, axis=1)


def _is_bias(graph: LayerGraph) -> np.ndarray:
    """Whether each parameter tensor is a bias, bool (P,)."""
    return np.array([name.rpartition(".")[2].startswith("bias") for names in graph.parameters for name in names])


def _output_layer(graph: LayerGraph) -> int:
    """Return the last layer that no edge leaves; the last of all where edges leave every layer."""
    ends = set(range(graph.num_nodes)) - set(graph.edges[0].tolist())
    return max(ends, default=graph.num_nodes - 1)


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen values along the last axis, 0 where none is."""
    return np.where(chosen, values, 0.0).sum(axis=-1) / np.maximum(chosen.sum(axis=-1), 1)


def _log10(value: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(value, _TINY))


def _log(value: np.ndarray) -> np.ndarray:
    """Natural logarithm, floored at 1e-8: a loss of zero or less counts as the floor; NaN stays NaN."""
    return np.log(np.maximum(value, 1e-8))


def _or_zero(value: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(value), 0.0, value)


def _finish(values: np.ndarray, bound: float) -> np.ndarray:
    finite = np.nan_to_num(values, nan=0.0, posinf=bound, neginf=-bound)
    return np.clip(finite, -bound, bound).astype(np.float32)


def log_loss(loss: float) -> float:
    """Natural logarithm of a loss, floored like the loss features: the unit of the reward."""
    return math.log(max(loss, 1e-8))
