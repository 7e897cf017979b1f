"""The feature schemas by name. Each stands in a module of its own; a policy file says which one it was trained on."""

from __future__ import annotations

import numpy as np

from gns.errors import UnknownNameError
from gns.features import gns_1, gns_2, gns_paper, srls
from gns.features.schema import FeatureSchema
from gns.features.statistics import LayerStatistics, RunStatistics
from gns.graph.layer_graph import LayerGraph

SCHEMAS: dict[str, FeatureSchema] = {
    schema.name: schema for schema in (gns_1.SCHEMA, gns_2.SCHEMA, gns_paper.SCHEMA, srls.SCHEMA)
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
    known = get_schema(schema)
    return known.compute(LayerStatistics(graph, run, known.products))
