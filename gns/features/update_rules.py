"""The update rules of ``torch.optim``, of tensors that are alike: readable, and exact.

An update is ``w <- w - rate * u``; u is what is called the update here. A rule has two parts: how the optimizer's state
takes in a gradient, and the update that follows from the state. The coming update, on the gradients that are pending,
needs both, on copies of the state. Of the last update the state has taken in the gradient already.

Faster ways to the same numbers are compared with this module by the tests: pieces of large tensors
(:mod:`gns.features.sums`), and in the environments and baselines runs side by side and derivatives by the rate.

Another optimizer is one more function in :data:`_RULES`, and its kind in
:data:`gns.features.statistics.OPTIMIZER_KINDS` and :func:`gns.features.moments.optimizer_kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Group = Mapping[str, Any]  # of an optimizer's parameters, by the names of torch.optim
Tensors = list[Tensor]

# What a feature schema may ask to know of an optimizer, from its kind and a parameter group. Momentum is the share of
# the past in what stands for the gradient, whatever the optimizer calls it.
SETTINGS: dict[str, Callable[[str, Group], Any]] = {
    "momentum": lambda kind, group: _betas(kind, group)[0],
    "beta2": lambda kind, group: _betas(kind, group)[1],
    "weight_decay": lambda kind, group: group.get("weight_decay", 0.0),
    "decoupled": lambda kind, group: float(is_decoupled(kind, group)),
}


class Alike(NamedTuple):
    """What is read of tensors that are alike: of one parameter group, with state of as many updates.

    :param momenta: as the coming update will use them, along gradients; None where there are none (yet)
    :param seconds: second moments; None where there are none (yet)
    :param updates: the coming updates; empty of an optimizer whose rule is not known
    :param momentum_scale: momentum times this is a mean of gradients
    :param second_scale: second moment times this is free of its bias towards 0
    """

    momenta: Tensors | None
    seconds: Tensors | None
    updates: Tensors
    momentum_scale: Any = 1.0
    second_scale: Any = 1.0


def read_alike(kind: str, group: Group, states: list[Any], ws: Tensors, gs: Tensors, steps: int) -> Alike:
    """Read tensors that are alike, or like pieces of them: their state, and the coming update.

    :param kind: one of :data:`gns.features.statistics.OPTIMIZER_KINDS`
    :param group: their parameter group
    :param states: optimizer state of each
    :param ws: the tensors
    :param gs: their pending gradients
    :param steps: updates done so far, used where the optimizer does not count them itself
    """
    if kind in _RULES:
        return _RULES[kind](group, states, ws, gs, steps)
    return Alike(first_momentum(states, ws), None, [])


# ---------------------------------------------------------------------- SGD


def sgd(group: Group, states: list[Any], ws: Tensors, gs: Tensors, steps: int) -> Alike:
    """``b <- momentum b + (1 - dampening) d`` and ``u = b``, or ``u = d + momentum b`` (Nesterov).

    d is the gradient with weight decay. The first update begins with ``b = d``.
    """
    directions = decayed(group, ws, gs)
    momentum = float(group["momentum"])
    buffers = [state.get("momentum_buffer") for state in states]
    if momentum == 0.0 or any(b is None for b in buffers):
        ahead = 1.0 + momentum if group["nesterov"] else 1.0
        return Alike(None, None, list(torch._foreach_mul(directions, ahead)) if ahead != 1.0 else directions)
    after = list(torch._foreach_mul(buffers, momentum))
    torch._foreach_add_(after, directions, alpha=1.0 - float(group["dampening"]))
    updates = sgd_update(group, directions, after)
    return Alike(_along_gradients(group, buffers), None, updates, sgd_scale(group, steps))


def sgd_update(group: Group, directions: Tensors, buffers: Tensors) -> Tensors:
    """Return the update from momentum buffers that have taken in the gradient."""
    if group["nesterov"]:
        return list(torch._foreach_add(directions, buffers, alpha=float(group["momentum"])))
    return buffers


def sgd_scale(group: Group, steps: Any) -> Any:
    """Return what makes a momentum buffer a mean of gradients.

    Of equal gradients g, the buffer after t updates is
    ``(momentum^(t-1) + (1 - dampening) (1 - momentum^(t-1))/(1 - momentum)) g``.

    :param steps: updates done; a number, or an array of them
    """
    momentum, gain = float(group["momentum"]), 1.0 - float(group.get("dampening", 0.0))
    if momentum == 0.0 or momentum >= 1.0:
        return steps * 0.0 + 1.0
    first = momentum ** (np.maximum(steps, 1) - 1)
    return 1.0 / (first + gain * (1.0 - first) / (1.0 - momentum))


# ---------------------------------------------------------------------- Adam and AdamW


def adam(group: Group, states: list[Any], ws: Tensors, gs: Tensors, steps: int, kind: str = "adam") -> Alike:
    """``m <- beta1 m + (1 - beta1) d``, ``v <- beta2 v + (1 - beta2) d^2``, then :func:`adam_update`.

    Kingma and Ba, 2015, algorithm 1. d is the gradient, with weight decay unless that is decoupled (Loshchilov and
    Hutter, 2019), where it is added to the update.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    decoupled = is_decoupled(kind, group)
    directions = decayed({**group, "weight_decay": 0.0} if decoupled else group, ws, gs)
    started = all("exp_avg" in state for state in states)
    if started:
        steps = counted_steps(states[0]["step"], steps)
        started = steps > 0  # a fused optimizer whose first update a GradScaler left out has moments of no gradient yet
    if started:
        ms, vs = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        means = list(torch._foreach_lerp(ms, directions, 1.0 - beta1))
        squares = list(torch._foreach_mul(vs, beta2))
        torch._foreach_addcmul_(squares, directions, directions, 1.0 - beta2)
        if group.get("amsgrad"):
            torch._foreach_maximum_(squares, [state["max_exp_avg_sq"] for state in states])
    else:
        steps, ms, vs = 0, None, None  # nothing to correct yet
        means = list(torch._foreach_mul(directions, 1.0 - beta1))
        squares = list(torch._foreach_mul(directions, directions))
        torch._foreach_mul_(squares, 1.0 - beta2)
    updates = adam_update(group, means, squares, steps + 1)
    if decoupled and group["weight_decay"]:
        torch._foreach_add_(updates, ws, alpha=float(group["weight_decay"]))
    return Alike(_along_gradients(group, ms), vs, updates, *adam_scales(group, steps))


def adam_update(group: Group, means: Tensors, squares: Tensors, steps: float) -> Tensors:
    """Return ``m/(1 - beta1^t) / (sqrt(v/(1 - beta2^t)) + eps)``.

    :param means: m, which has taken in the gradient of update t, as v has, overwritten
    :param squares: v, or its maximum so far (AMSGrad); overwritten
    :param steps: t
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    torch._foreach_sqrt_(squares)
    torch._foreach_div_(squares, (1.0 - beta2**steps) ** 0.5)
    torch._foreach_add_(squares, float(group["eps"]))
    torch._foreach_div_(means, squares)
    torch._foreach_div_(means, 1.0 - beta1**steps)
    return means


def adam_scales(group: Group, steps: Any) -> tuple[Any, Any]:
    """Return what makes m and v means of gradients and of their squares: 1 before the first update.

    :param steps: updates done; a number, or an array of them
    """
    safe = np.maximum(steps, 1)
    first, second = (np.where(steps, 1.0 / (1.0 - float(beta) ** safe), 1.0) for beta in group["betas"])
    return first, second


def adamw(group: Group, states: list[Any], ws: Tensors, gs: Tensors, steps: int) -> Alike:
    """Read tensors of ``torch.optim.AdamW``: :func:`adam` with decoupled weight decay."""
    return adam(group, states, ws, gs, steps, "adamw")


_RULES: dict[str, Callable[[Group, list[Any], Tensors, Tensors, int], Alike]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}

# ---------------------------------------------------------------------- what they share


def _betas(kind: str, group: Group) -> tuple[float, float]:
    """Shares of the past in what stands for the gradient and for its square; 0 where nothing does."""
    simple = (group.get("momentum", 0.0), 0.0)
    return simple if kind == "sgd" else group.get("betas", simple)


def is_decoupled(kind: str, group: Group) -> bool:
    """Whether weight decay shrinks the weights themselves, and is not part of the gradient."""
    return kind == "adamw" or bool(group.get("decoupled_weight_decay", False))


def decayed(group: Group, ws: Tensors, gs: Tensors) -> Tensors:
    """Return gradients with the sign and the weight decay that the optimizer gives them."""
    directions = list(torch._foreach_neg(gs)) if group.get("maximize") else gs
    if group["weight_decay"]:
        directions = list(torch._foreach_add(directions, ws, alpha=float(group["weight_decay"])))
    return directions


def _along_gradients(group: Group, momenta: Tensors | None) -> Tensors | None:
    """Return momenta that point along gradients: an optimizer that maximizes keeps them the other way round."""
    return list(torch._foreach_neg(momenta)) if momenta and group.get("maximize") else momenta


def counted_steps(step: Any, fallback: int) -> int:
    """Updates an Adam state has counted; a counter on an accelerator is not read, since that would wait for it."""
    if isinstance(step, Tensor):
        return int(step.item()) if step.device.type == "cpu" else fallback
    return int(step)


def first_momentum(states: list[Any], ws: Tensors) -> Tensors | None:
    """Momentum of an unknown optimizer: the usual names, where they hold a tensor of the parameter's shape."""
    for key in ("exp_avg", "momentum_buffer"):
        found = [state.get(key) for state in states]
        if all(isinstance(m, Tensor) and m.shape == w.shape for m, w in zip(found, ws, strict=True)):
            return found
    return None
