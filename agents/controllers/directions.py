"""How a loss depends on the rate of the last update: readable, and in few calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors as flatten  # joins in one call; of a single tensor it is a view

from gns.features.update_rules import adam_update, sgd_update

_STRETCH = 2**16


def hypergradient_by_tensor(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    gradients: Sequence[Tensor | None],
    last: Sequence[Tensor | None],
) -> float:
    """Return the loss's derivative by a group's rate, ``-<g_t, u_{t-1}>``, tensor by tensor.

    The readable one, for any optimizer of this project; a tensor without an update, last time or now, counts 0.

    :param group: parameter group, its rate still that of the last update
    :param gradients: pending gradients of its parameters
    :param last: gradients of the last update
    """
    total = 0.0
    for parameter, gradient, before in zip(group["params"], gradients, last, strict=True):
        if gradient is not None and before is not None:
            direction = last_direction(group, parameter.detach(), optimizer.state.get(parameter, {}), before)
            total -= float((gradient * direction).sum())
    return total


def last_direction(group: dict[str, Any], weight: Tensor, state: Mapping[str, Any], gradient: Tensor) -> Tensor:
    """Return u of the last update ``w_t = w_{t-1} - eta u`` of one tensor, from what it left behind.

    :param group: parameter group, its rate still that of the last update
    :param weight: w_t
    :param state: the optimizer's state after the update
    :param gradient: gradient of the last update
    """
    decay, rate = group["weight_decay"], group["lr"]
    if "betas" in group:
        second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        direction = adam_update(group, [state["exp_avg"].clone()], [second.clone()], float(state["step"]))[0]
        return _decayed(direction, weight, rate, decay) if group.get("decoupled_weight_decay") else direction
    if not group["momentum"]:
        return _decayed(gradient, weight, rate, decay) if decay else gradient
    direction = sgd_update(group, [gradient], [state["momentum_buffer"]])[0]
    return _decayed(direction, weight, rate, decay) if decay and group["nesterov"] else direction


def _decayed(direction: Tensor, weights: Tensor, rate: float, decay: float) -> Tensor:
    """Add the decay of the weights before the update, ``w_{t-1} = (w_t + eta u) / (1 - eta decay)``."""
    return direction + decay * (weights + rate * direction) / (1.0 - rate * decay)


def hypergradient(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], gradients: Sequence[Tensor], last: Sequence[Tensor]
) -> float:
    """Return the same where every tensor has been updated at every update, in few calls.

    Small groups are joined to one tensor, so that the number of tensors hardly matters; large ones are gone through in
    stretches that stay in the cache, so that memory is read once. One or two copies to the host.
    """
    if sum(g.numel() for g in gradients) <= _STRETCH or gradients[0].device.type != "cpu":
        return _of_stretch(optimizer, group, group["params"], gradients, last, joined=True)
    total = 0.0
    for p, g, before in zip(group["params"], gradients, last, strict=True):
        total += _of_stretch(optimizer, group, [p], [g], [before], joined=False)
    return total


def _of_stretch(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    last: Sequence[Tensor],
    joined: bool,
) -> float:
    """Return the derivative's part of some tensors, as one stretch if ``joined``."""
    kept, scale, eps = optimizer.state, 1.0, 0.0
    adam = "betas" in group
    states = [kept[p] for p in parameters] if adam or group["momentum"] else []
    columns: list[Sequence[Tensor]] = [gradients]
    if adam:
        root, scale = _corrections(group, float(states[0]["step"]))
        eps = root * group["eps"]
        second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
        columns += [[state["exp_avg"] for state in states], [state[second] for state in states]]
    else:
        columns.append([state["momentum_buffer"] for state in states] if _is_velocity(group) else last)
        if group["nesterov"]:
            columns.append([state["momentum_buffer"] for state in states])
    if decays := _decays_apart(group):
        columns.append([p.detach() for p in parameters])
    product = weights = 0.0
    flat = [flatten(column) for column in columns]
    for g, d, *others in [flat] if joined else zip(*(column.split(_STRETCH) for column in flat), strict=True):
        if adam:
            d = d / others[0].sqrt().add_(eps)
        elif group["nesterov"]:
            d = torch.add(d, others[0], alpha=group["momentum"])
        product += torch.dot(g, d).item()
        if decays:
            weights += torch.dot(g, others[-1]).item()
    product *= scale
    return -(_with_decay(group, product, weights) if decays else product)


def _is_velocity(group: dict[str, Any]) -> bool:
    return bool(group["momentum"]) and not group["nesterov"]


def _corrections(group: dict[str, Any], steps: float) -> tuple[float, float]:
    """Return r and s for which Adam's direction is ``s m / (sqrt(v) + r eps)``."""
    beta1, beta2 = group["betas"]
    root = (1.0 - beta2**steps) ** 0.5
    return root, root / (1.0 - beta1**steps)


def _decays_apart(group: dict[str, Any]) -> bool:
    """Whether the weights' decay is not yet in what the optimizer keeps."""
    if not group["weight_decay"]:
        return False
    if "betas" in group:
        return bool(group.get("decoupled_weight_decay"))
    return not group["momentum"] or group["nesterov"]


def _with_decay(group: dict[str, Any], product: float, weights: float) -> float:
    """Return <g, u> for ``u = d + decay w_{t-1}`` and ``w_{t-1} = (w_t + eta d) / (1 - eta decay)``.

    :param product: <g, d>
    :param weights: <g, w_t>
    """
    share = group["weight_decay"] / (1.0 - group["lr"] * group["weight_decay"])
    return (1.0 + share * group["lr"]) * product + share * weights
