"""The default rate moved by static facts: what a network and its optimizer are, before the first update.

A regression on drawn tasks, whose coefficients stand in ``calibrated.json`` beside the fixed rates that it moves. Facts
are clipped at three standard deviations of those tasks, so that what lies far outside moves the rate no further.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from gns.graph.layer_graph import NODE_TYPES, LayerGraph
from gns.schedules.calibrated import ENCODER_RATE, calibrated_rate, calibration, measured_profile

FACTS = (
    *("log_budget", "log_parameters", "log_layers", "log_forgetting", "log_forgetting_squares", "log_weight_decay"),
    *(f"share_{kind}" for kind in NODE_TYPES),
    *("batch_norm", "layer_norm", "recurrent"),
)
MOST_DEVIATIONS = 3.0


def facts_of_run(optimizer: torch.optim.Optimizer, model: nn.Module, graph: LayerGraph, budget: int) -> np.ndarray:
    """Return the :data:`FACTS` of a run as numbers, (F,).

    :param budget: number of updates
    """
    group, modules = optimizer.param_groups[0], list(model.modules())
    beta1, beta2 = group.get("betas", (group.get("momentum", 0.0), 0.0))
    decay = max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shares = np.bincount(graph.type_ids, minlength=len(NODE_TYPES)) / graph.num_nodes
    batch_norm, layer_norm, recurrent = (
        any(isinstance(module, kinds) for module in modules)
        for kinds in (nn.modules.batchnorm._BatchNorm, (nn.LayerNorm, nn.GroupNorm), nn.RNNBase)
    )
    return numbers(
        *(budget, parameters, graph.num_nodes, float(beta1), float(beta2), decay),
        *(shares.tolist(), batch_norm, layer_norm, recurrent),
    )


def numbers(
    budget: int,
    parameters: int,
    layers: int,
    momentum: float,
    beta2: float,
    weight_decay: float,
    shares: list[float],
    batch_norm: bool,
    layer_norm: bool,
    recurrent: bool,
) -> np.ndarray:
    """Return the :data:`FACTS` from what they are made of, (F,).

    :param momentum: share of the past in what stands for the gradient; of Adam beta1
    :param beta2: 0 of an optimizer without
    :param shares: share of the layers that are of each of :data:`gns.graph.layer_graph.NODE_TYPES`
    """
    logs = [math.log10(max(value, 1)) for value in (budget, parameters, layers)]
    forgetting = math.log10(max(1.0 - momentum, 1e-6))
    squares = math.log10(max(1.0 - beta2, 1e-6)) if beta2 else -1.5
    flags = [float(flag) for flag in (batch_norm, layer_norm, recurrent)]
    return np.array([*logs, forgetting, squares, math.log10(weight_decay + 1e-5), *shares, *flags])


def moved_by(facts: np.ndarray, known: Mapping[str, Any]) -> float:
    """Return log10 of what facts move the fixed rate of an optimizer by.

    :param known: the regression, as in ``calibrated.json``
    """
    deviations = (facts - np.array(known["mean"])) / np.array(known["deviation"])
    return float(np.clip(deviations, -MOST_DEVIATIONS, MOST_DEVIATIONS) @ np.array(known["weights"]))


def default_rate(
    optimizer: torch.optim.Optimizer, model: nn.Module, graph: LayerGraph, budget: int, profile: str = "rex"
) -> float:
    """Return the rate that a run starts from where nothing is tuned: the prior's.

    The fixed rate of the optimizer, moved by static facts. Pretrained encoders under Adam and its kin have
    :data:`gns.schedules.calibrated.ENCODER_RATE`. A profile that was not measured has the rate of REX.

    :raises UnknownNameError: if no rate was calibrated for the optimizer
    """
    pretrained = is_pretrained(model)
    fixed = calibrated_rate(optimizer, measured_profile(profile), pretrained)
    adaptive, encoder = not isinstance(optimizer, torch.optim.SGD), any(map(_attends, model.modules()))
    if pretrained and adaptive and encoder:
        return ENCODER_RATE
    known = calibration()["static"]
    usual = known["usual"]["adam" if adaptive else "sgd"]
    return fixed * usual * 10.0 ** moved_by(facts_of_run(optimizer, model, graph, budget), known)


@torch.no_grad()
def is_pretrained(model: nn.Module) -> bool:
    """Whether a model came with weights of another training, as far as its normalisation layers tell.

    These begin with the same number in every place of their weights, and of their biases, in every common library; a
    training changes that. Of a model without such layers nothing is known, and it counts as new.
    """
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
    found = (m for m in model.modules() if isinstance(m, kinds) or type(m).__name__.endswith(("LayerNorm", "RMSNorm")))
    held = (p for m in found for p in m.parameters(recurse=False) if p.numel() > 1 and not p.is_meta)
    return any(bool((p.detach() != p.detach().flatten()[0]).any()) for p in held)


def _attends(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or "Attention" in type(module).__name__
