"""A scheduler's layer graph and decision core, as plain values and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.errors import StateError
from gns.graph.layer_graph import LayerGraph, trainable_parameters, unwrap
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


def names_held(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str | None]:
    """Return the names of what an optimizer holds, in its order; None for a parameter that is not the model's."""
    names = {parameter: name for name, parameter in unwrap(model).named_parameters()}
    return [names.get(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def put_state_in_order(optimizer: torch.optim.Optimizer, model: nn.Module, saved: list[str | None] | None) -> None:
    """Give each parameter the optimizer's state of its name, where it was saved with parameters in another order.

    PyTorch loads an optimizer's state by position. A model that was pruned before its optimizer was made has other
    positions than one that was pruned afterwards.

    :param saved: names in the order of the run that saved the state; None: not known
    """
    now = names_held(optimizer, model)
    if saved is None or saved == now or None in now or sorted(map(str, saved)) != sorted(map(str, now)):
        return
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_name = dict(zip(saved, [optimizer.state.pop(parameter, None) for parameter in held], strict=True))
    for parameter, name in zip(held, now, strict=True):
        if by_name[name] is not None:
            optimizer.state[parameter] = by_name[name]


def require_state_of_its_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Pass an optimizer whose momenta have the shapes of its parameters, which PyTorch does not check on loading.

    :raises StateError: on any other
    """
    for name, parameter in model.named_parameters():
        for key in ("momentum_buffer", "exp_avg"):
            momentum = optimizer.state.get(parameter, {}).get(key)
            if isinstance(momentum, Tensor) and momentum.shape != parameter.shape:
                raise StateError(
                    f"The optimizer's {key} of {name} has shape {tuple(momentum.shape)} and the parameter "
                    f"{tuple(parameter.shape)}: its state was loaded in another order of parameters. Expected that "
                    "of the run that saved it: make the optimizer before the model is pruned or changed otherwise, if "
                    "that run did, or afterwards."
                )
