"""Whether a scheduler was given what it can work on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gns.errors import InvalidSettingError, LayerGraphError
from gns.features.moments import group_of_each
from gns.graph.layer_graph import trainable_parameters, unwrap
from gns.scheduler.hooks import is_lightning


def require_kinds(optimizer: Any, model: Any) -> None:
    """Pass an optimizer and a model.

    :raises InvalidSettingError: on anything else
    """
    for name, given, kind in (("optimizer", optimizer, torch.optim.Optimizer), ("model", model, nn.Module)):
        if not isinstance(given, kind):
            raise InvalidSettingError(
                f"{name} is a {type(given).__name__}; expected a {kind.__module__}.{kind.__name__}. Call "
                "GNSScheduler(optimizer, model, total_steps=...)."
            )


def require_that_it_trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Pass an optimizer that holds trainable parameters of the model.

    :raises LayerGraphError: on one that holds none
    """
    if all(group < 0 for group in group_of_each(optimizer, list(trainable_parameters(model).values()))):
        raise LayerGraphError(
            f"The optimizer holds none of the trainable parameters of {type(unwrap(model)).__name__}. Expected an "
            "optimizer built on this model's parameters; pass the model that the optimizer trains."
        )


def no_graph_known(model: nn.Module, problem: LayerGraphError | None) -> LayerGraphError:
    """Return the error of a first update before which no layer graph could be taken.

    :param problem: why the last forward pass gave none; None: there was none with a gradient
    """
    seen, advice = "forward pass of", "Call the model itself, make the scheduler before the first forward pass"
    if is_lightning(model):
        seen, advice = "loss of", "Make the scheduler in configure_optimizers, call self.manual_backward(loss)"
    if isinstance(unwrap(model), torch.jit.RecursiveScriptModule):
        advice = "A scripted model takes no hook"
    return LayerGraphError(
        f"No layer graph is known at the first update: no {seen} {type(unwrap(model)).__name__} was seen "
        f"that has a gradient ({problem or 'none at all'}). {advice}, call "
        "scheduler.report_loss(loss) before the first update, or pass graph=gns.layer_graph(model, loss)."
    )
