"""A scheduler's layer graph and decision core, as plain values and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.deciding.decision import DecisionConfig, DecisionCore
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


def make_core(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    graph: LayerGraph,
    budget: int,
    config: DecisionConfig,
    initial_lrs: list[float | Tensor],
    state: dict[str, Any] | None,
    updates: int,
    process_group: ProcessGroup | None = None,
) -> DecisionCore:
    """Make the decision core of a run, whatever the optimizer's rates are by now.

    :param initial_lrs: initial rate of each parameter group
    :param state: state dict of the core that it goes on from, if there is one
    :param updates: updates done; without a state the core then goes on from the optimizer's rates
    :param process_group: see :class:`gns.deciding.decision.DecisionCore`
    """
    now = [float(group["lr"]) for group in optimizer.param_groups]
    for group, initial in zip(optimizer.param_groups, initial_lrs, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].copy_(torch.as_tensor(initial))
        else:
            group["lr"] = float(initial)
    core = DecisionCore(model, optimizer, graph, budget, config, process_group)
    if state is not None:
        core.load_state_dict(state)
    elif updates:
        fresh = core.state_dict()
        core.load_state_dict(fresh | {"memory": fresh["memory"] | {"update": updates, "steps": updates}})
        scale = core.shared_rate(now) / (core.initial_lrs[0] * core.factor)
        fresh = core.state_dict()
        core.load_state_dict(fresh | {"memory": fresh["memory"] | {"scale": scale}})
    return core
