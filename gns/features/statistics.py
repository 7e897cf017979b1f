"""What is known of a training run at a decision: sums over its parameter tensors, losses, and where it stands.

Sums are over a tensor's scalars, of w, w^2, g^2, g m, ... They add up over shards and processes, so a sharded model
needs one all-reduce of an array of shape (tensors, :data:`NUM_SUMS`), and a decision needs one copy to the host. What
follows the sums is NumPy in float64, vectorised over any leading batch dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from gns.graph.layer_graph import LayerGraph

# Columns of the array of sums. w: weight, g: gradient, m: momentum as the coming update will use it but before this
# gradient entered, v: second moment (Adam) or squared gradient, u: coming update at a learning rate of 1.
SUM_W, SUM_W2, SUM_ABS_G, SUM_G2, SUM_GM, SUM_M2, SUM_V, SUM_U2 = range(8)
NUM_SUMS = 8
OPTIMIZER_KINDS: tuple[str, ...] = ("sgd", "adam", "adamw", "other")
TINY = 1e-12
_OUTLIER = 1e3  # a loss so many times the others' is one; 2.3 among losses of 0.0023 is not yet


def _unknown() -> np.ndarray:
    return np.asarray(math.nan)


@dataclass(frozen=True)
class RunStatistics:
    """What is known of a run at a decision, on the host. Leading batch dimensions ``*N`` are allowed throughout.

    :param sums: float64 (*N, P, :data:`NUM_SUMS` + Q), a row for each of the P parameter tensors; the last columns are
        the Q products that the feature schema asks for
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
    :param settings: (*N, P) each, the settings of the optimizer that the feature schema asks for, by the names of
        :data:`gns.features.update_rules.SETTINGS`
    :param level: (*N,), level of the rate over the calibrated default of the optimizer; NaN where there is none
    :param pretrained: (*N,), 1 where the model came with weights of another training
    :param travel: (*N, P, :data:`gns.features.travel.NUM_TRAVEL_SUMS`), where the schema asks for the start
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
    settings: Mapping[str, np.ndarray] = field(default_factory=dict)
    level: np.ndarray = field(default_factory=_unknown)
    pretrained: np.ndarray = field(default_factory=lambda: np.array(0.0))
    travel: np.ndarray = field(default_factory=_unknown)
    validation_loss: np.ndarray = field(default_factory=_unknown)
    prediction_variance: np.ndarray = field(default_factory=_unknown)
    prediction_change_variance: np.ndarray = field(default_factory=_unknown)

    @property
    def finite(self) -> np.ndarray:
        """Whether parameters, gradients, optimizer state and losses are all finite, bool (*N,)."""
        losses_finite = np.isfinite(self.losses) | ~self.has_loss
        return self.state_finite & losses_finite.all(axis=-1)

    @property
    def state_finite(self) -> np.ndarray:
        """Whether parameters, gradients and optimizer state are all finite, whatever the losses are, bool (*N,)."""
        return np.isfinite(self.sums).all(axis=(-1, -2))

    @cached_property
    def has_loss(self) -> np.ndarray:
        """Which entries of ``losses`` are a loss, bool (*N, k)."""
        count = self.losses.shape[-1]
        counts = np.where(self.loss_counts < 0, count, self.loss_counts)
        return np.broadcast_to(np.arange(count) < counts[..., None], self.losses.shape)

    @cached_property
    def counted(self) -> np.ndarray:
        """Which losses count in features, bool (*N, k): all, but for outliers that the run has come back from.

        Where the last loss is an outlier itself the run may be diverging, and all of them count.
        """
        usual = usual_losses(self.losses, self.has_loss, self.first_loss)
        if usual is self.has_loss:
            return usual
        last = np.maximum(self.has_loss.sum(axis=-1, keepdims=True) - 1, 0)
        return np.where(np.take_along_axis(usual, last, axis=-1), usual, self.has_loss)

    def mean_loss(self, unknown: float) -> np.ndarray:
        """Return the mean of the losses that count, (*N,); of a run without any, ``unknown``."""
        counted = self.counted
        return np.where(counted.any(axis=-1), mean_of(self.losses, counted), unknown)

    @cached_property
    def log_mean_loss(self) -> np.ndarray:
        """Natural logarithm of :meth:`mean_loss`, (*N,); NaN of a run without any."""
        return log(self.mean_loss(unknown=math.nan))


class LayerStatistics:
    """The statistics of a run, its sums added up over the tensors of each layer: what every feature is a function of.

    :param graph: layer graph of the model; rows of ``run.sums`` stand in its order
    :param run: statistics of the run
    :param products: what the columns of ``run.sums`` after the first :data:`NUM_SUMS` are the products of
    """

    def __init__(self, graph: LayerGraph, run: RunStatistics, products: tuple[tuple[str, str], ...] = ()) -> None:
        self.graph, self.run, self._products = graph, run, products

    @cached_property
    def membership(self) -> np.ndarray:
        """Which tensors are of which layer, float64 (L, P), 0 or 1."""
        lengths = [len(names) for names in self.graph.parameters]
        return np.repeat(np.eye(len(lengths)), lengths, axis=1)

    @cached_property
    def sums(self) -> np.ndarray:
        """Sums over the scalars of each layer, (*N, L, S)."""
        return self.membership @ self.run.sums

    @cached_property
    def travel(self) -> np.ndarray:
        """Sums of :mod:`gns.features.travel` over the scalars of each layer, (*N, L, 4)."""
        return self.membership @ self.run.travel

    @cached_property
    def sizes(self) -> np.ndarray:
        """Scalars of each layer, float64 (L,)."""
        return np.array(self.graph.sizes, dtype=np.float64)

    @cached_property
    def tensor_sizes(self) -> np.ndarray:
        """Scalars of each tensor, float64 (P,)."""
        return np.array(self.graph.tensor_sizes, dtype=np.float64)

    @cached_property
    def is_bias(self) -> np.ndarray:
        """Whether each tensor is a bias, bool (P,)."""
        names = [name for layer in self.graph.parameters for name in layer]
        return np.array([name.rpartition(".")[2].startswith("bias") for name in names])

    def added_up(self, values: np.ndarray) -> np.ndarray:
        """Add up values of tensors, (*N, P), over each layer: (*N, L)."""
        return (self.membership @ values[..., None])[..., 0]

    def product(self, left: str, right: str) -> np.ndarray:
        """Return the sums of a product that the schema asks for, over the scalars of each layer: (*N, L)."""
        return self.sums[..., NUM_SUMS + self._products.index((left, right))]

    @cached_property
    def weight_rms(self) -> np.ndarray:
        """Root mean square of the weights of each layer, (*N, L)."""
        return np.sqrt(self.sums[..., SUM_W2] / self.sizes)


def usual_losses(losses: np.ndarray, present: np.ndarray, first_loss: Any = math.nan) -> np.ndarray:
    """Say which losses are no outliers: finite, and at most 1,000 times the median of the finite ones.

    One loss of infinity or of 1e30, as a CTC loss or a bad batch gives, would otherwise stand in every mean. Of
    losses within a factor of 1,000 of each other all are usual, and ``present`` itself is returned.

    :param losses: (*N, k), the first of each row first
    :param present: which of them are a loss, bool (*N, k)
    :param first_loss: (*N,), mean loss of the first interval, by which a later loss may be as much larger; NaN: unknown
    :return: bool (*N, k)
    """
    sizes = np.abs(losses)
    smallest = np.where(present, sizes, math.inf).min(axis=-1, initial=math.inf)
    largest = np.where(present, sizes, 0.0).max(axis=-1, initial=0.0)
    if (largest <= _OUTLIER * smallest).all() and np.isfinite(largest).all():
        return present
    finite = present & np.isfinite(losses)
    in_order = np.sort(np.where(finite, sizes, math.inf), axis=-1)
    middle = np.maximum(finite.sum(axis=-1, keepdims=True) - 1, 0) // 2
    median = np.take_along_axis(in_order, middle, axis=-1)[..., 0]
    limit = _OUTLIER * np.fmax(median, np.abs(first_loss))
    return finite & (sizes <= limit[..., None])


def mean_of(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen values along the last axis, 0 where none is."""
    return np.where(chosen, values, 0.0).sum(axis=-1) / np.maximum(chosen.sum(axis=-1), 1)


def log10(value: np.ndarray) -> np.ndarray:
    """Logarithm to the base of 10, floored at 1e-12; NaN stays NaN."""
    return np.log10(np.maximum(value, TINY))


def log(value: np.ndarray) -> np.ndarray:
    """Natural logarithm, floored at 1e-8: a loss of zero or less counts as the floor; NaN stays NaN."""
    return np.log(np.maximum(value, 1e-8))


def log_loss(loss: float) -> float:
    """Natural logarithm of a loss, floored like the loss features: the unit of the reward."""
    return math.log(max(loss, 1e-8))
