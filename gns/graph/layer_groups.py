"""Parameter groups of an optimizer by layer: what action mode ``per-layer`` gives multipliers of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from gns.errors import LayerGraphError, UnknownNameError
from gns.graph.layer_graph import block_of, layer_of_parameters, trainable_parameters

LEVELS = ("layer", "block")


def parameter_groups(
    model: nn.Module, level: str = "layer", groups: Iterable[Any] | None = None
) -> list[dict[str, Any]]:
    """Return one parameter group a layer of the layer graph, or a block, to be handed to an optimizer::

        optimizer = torch.optim.AdamW(gns.parameter_groups(model), lr=1e-3)

    No forward pass is needed: a layer is a module that owns trainable parameters. Those that no loss will depend on get
    groups as well.

    :param model: the module to be trained; wrappers of ``torch.compile`` and DDP are seen through
    :param level: ``"layer"`` or ``"block"``, see :func:`gns.layer_graph.block_of`
    :param groups: parameters, or groups of them with settings such as a weight decay, as an optimizer takes them: each
        is divided by layer, and its parts keep its settings. None: all trainable parameters
    :return: groups in the order of ``groups``, their parts in the order in which the model registers its layers
    :raises UnknownNameError: on another level
    :raises LayerGraphError: if the model has no trainable parameter, or a group holds one that is not the model's
    """
    if level not in LEVELS:
        raise UnknownNameError("level of parameter groups", level, LEVELS)
    layers = layer_of_parameters(model)
    given = list(trainable_parameters(model).values() if groups is None else groups)
    settings = given if given and isinstance(given[0], dict) else [{"params": given}]
    found: list[dict[str, Any]] = []
    for group in settings:
        parts: dict[str, list[nn.Parameter]] = {}
        held = group["params"]
        for parameter in [held] if isinstance(held, nn.Parameter) else held:
            layer = layers.get(id(parameter))
            if layer is None:
                raise LayerGraphError(
                    f"A parameter of shape {tuple(parameter.shape)} in the groups is none of {type(model).__name__}'s; "
                    "expected groups of the parameters of the model that is given."
                )
            parts.setdefault(layer if level == "layer" else block_of(layer), []).append(parameter)
        found += [{**group, "params": part} for part in parts.values()]
    return found
