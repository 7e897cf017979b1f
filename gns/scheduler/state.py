"""A scheduler's layer graph and decision core, as plain values and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from gns.graph.layer_graph import LayerGraph, trainable_parameters
from gns.parallel.distributed import agree

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def plain_graph(graph: LayerGraph) -> dict[str, Any]:
    """Return a graph as lists, numbers and text, which any safe loader reads."""
    plain = {name: getattr(graph, name) for name in ("names", "types", "tensor_sizes")}
    return {
        **{name: list(value) for name, value in plain.items()},
        "edges": graph.edges.tolist(),
        "parameters": [list(names) for names in graph.parameters],
        "depths": graph.depths.tolist(),
    }


def graph_from_plain(plain: dict[str, Any]) -> LayerGraph:
    """Return the graph of :func:`plain_graph`."""
    return LayerGraph(
        names=tuple(plain["names"]),
        types=tuple(plain["types"]),
        edges=np.array(plain["edges"], dtype=np.int64).reshape(2, -1),
        parameters=tuple(tuple(names) for names in plain["parameters"]),
        tensor_sizes=tuple(plain["tensor_sizes"]),
        depths=np.array(plain["depths"], dtype=np.float64),
    )


def graph_of_first_rank(
    graph: LayerGraph | None, model: nn.Module, given: dict[str, Any], group: ProcessGroup
) -> LayerGraph | None:
    """Return the layer graph that rank 0 has, for all ranks: where layers are left out by chance, they take others.

    :param given: what all ranks must have been given alike, by name
    :raises RanksDisagreeError: if they were not
    """
    own = None if graph is None else plain_graph(graph)
    device = next(iter(trainable_parameters(model).values())).device
    plain = agree({**given, "graph": own}, "graph", group, device)
    return graph if plain == own else None if plain is None else graph_from_plain(plain)


def on_device_of(model: nn.Module, core: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a core's state with its tensors beside the parameters, wherever they were loaded to."""
    if core is None:
        return None
    device = next(iter(trainable_parameters(model).values())).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in core.items()}
