"""A feature schema: a table of features, each with what it is a function of and how it is scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gns.errors import InvalidSettingError
from gns.features.statistics import LayerStatistics

PRODUCT_FACTORS = ("weight", "gradient", "momentum", "second", "update")


@dataclass(frozen=True)
class Feature:
    """One feature of every layer, or of the run: ``(value - shift) / scale``.

    :param name: the name that stands in policy files
    :param value: the value before it is scaled, from the statistics: (*N, L) of layers, (*N,) of the run, or what can
        be broadcast to it. NaN where it is not known, which makes the feature 0
    :param scale: divides the value, so that features are of order 1
    :param shift: taken off the value before
    :param label: what the value is, for an axis of a plot; empty: its name
    """

    name: str
    value: Callable[[LayerStatistics], np.ndarray]
    scale: float = 1.0
    shift: float = 0.0
    label: str = ""

    def inverse(self, feature: Any) -> Any:
        """Return the value, before it was scaled, of a feature that lies within its bound: a number or an array."""
        return self.scale * feature + self.shift

    @property
    def plot_label(self) -> str:
        """What the value is."""
        return self.label or self.name


@dataclass(frozen=True)
class FeatureSchema:
    """A set of features. Its name, and the names of its features, stand in every policy file.

    :param layers: the columns of the node matrix (L, F)
    :param run: the entries of the global vector (G,)
    :param bound: every feature lies in [-bound, bound]
    :param needs_validation: whether a pass over held-out data at every decision is needed to compute them
    :param needs_start: whether they need a sketch of the weights at the run's start, see :mod:`gns.features.travel`
    :param products: sums that its features need beside the first :data:`gns.features.statistics.NUM_SUMS`: pairs of
        :data:`PRODUCT_FACTORS`, whose products are summed over the scalars of each tensor; a feature reads one by
        :meth:`gns.features.statistics.LayerStatistics.product`. What an optimizer does not keep, or is not known to
        do, counts as 0; the squared gradient stands for a missing second moment
    :param settings: settings of the optimizer that its features need, names in
        :data:`gns.features.update_rules.SETTINGS`; a feature reads them in ``statistics.run.settings``
    :raises InvalidSettingError: on a product of what is not known
    """

    name: str
    layers: tuple[Feature, ...]
    run: tuple[Feature, ...]
    bound: float
    needs_validation: bool = False
    needs_start: bool = False
    products: tuple[tuple[str, str], ...] = ()
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = {factor for product in self.products for factor in product} - set(PRODUCT_FACTORS)
        if unknown:
            raise InvalidSettingError(
                f"Schema {self.name!r} asks for products with {', '.join(sorted(unknown))}; expected factors among "
                f"{', '.join(PRODUCT_FACTORS)}."
            )

    @cached_property
    def node(self) -> tuple[str, ...]:
        """Names of the features of layers."""
        return tuple(feature.name for feature in self.layers)

    @cached_property
    def globals(self) -> tuple[str, ...]:
        """Names of the features of the run."""
        return tuple(feature.name for feature in self.run)

    @cached_property
    def _tables(self) -> list[tuple[tuple[Feature, ...], np.ndarray, np.ndarray]]:
        """Features, their shifts and their scales: of layers, and of the run."""
        tables = (self.layers, self.run)
        return [(rows, np.array([f.shift for f in rows]), np.array([f.scale for f in rows])) for rows in tables]

    def feature(self, name: str) -> Feature:
        """Return the feature of that name."""
        return next(feature for feature in (*self.layers, *self.run) if feature.name == name)

    def compute(self, statistics: LayerStatistics) -> tuple[np.ndarray, np.ndarray]:
        """Return features of layers (*N, L, F) and of the run (*N, G): float32, finite, within the bound."""
        shape = np.shape(statistics.run.learning_rate)
        with np.errstate(all="ignore"):  # statistics of a diverged run may be infinite
            return (
                self._table(0, statistics, (*shape, statistics.graph.num_nodes)),
                self._table(1, statistics, shape),
            )

    def _table(self, which: int, statistics: LayerStatistics, shape: tuple[int, ...]) -> np.ndarray:
        features, shifts, scales = self._tables[which]
        table = np.empty((*shape, len(features)))
        for column, feature in enumerate(features):
            table[..., column] = feature.value(statistics)
        table -= shifts
        table /= scales
        table[np.isnan(table)] = 0.0
        return np.clip(table, -self.bound, self.bound, out=table).astype(np.float32)
