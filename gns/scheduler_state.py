"""What goes in and out of a scheduler as plain values: its layer graph, its core's state, losses."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError
from gns.layer_graph import LayerGraph, trainable_parameters


def scalar(loss: Any) -> Tensor:
    """Return a loss as a detached tensor without dimensions, on its device.

    :raises InvalidSettingError: if it is neither a tensor of one element nor a float
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(())
    if isinstance(loss, Real) and not isinstance(loss, Integral):
        return torch.tensor(float(loss), dtype=torch.float32, device="cpu")
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise InvalidSettingError(
        f"The loss is {given}; expected a tensor of one element or a float. Pass the loss of the update; an epoch or a "
        "number of updates is not taken, since the scheduler counts by itself."
    )


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


def on_device_of(model: nn.Module, core: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a core's state with its tensors beside the parameters, wherever they were loaded to."""
    if core is None:
        return None
    device = next(iter(trainable_parameters(model).values())).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in core.items()}
