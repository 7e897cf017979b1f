"""Momentum, second moment and the coming update, read from an optimizer's state.

"Coming update" is the step the optimizer would take now, on the gradients that are pending, at a learning rate of 1.
It is computed exactly for ``torch.optim.SGD``, ``Adam`` and ``AdamW``; for any other optimizer it is unknown here and
the decision core measures it from the parameters instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gns.features import OPTIMIZER_KINDS


@dataclass(frozen=True)
class Moments:
    """Optimizer state of P tensors; lists follow the order of the tensors.

    :param momenta: momentum tensors, or None before the first update and for optimizers that keep none
    :param seconds: second moments (Adam), or None
    :param updates: coming update at a learning rate of 1, or None if the optimizer is not a known one
    :param momentum_scale: float64 (P,), momentum times this is a mean of gradients
    :param second_scale: float64 (P,), second moment times this is free of its start-up bias
    """

    momenta: list[Tensor] | None
    seconds: list[Tensor] | None
    updates: list[Tensor] | None
    momentum_scale: np.ndarray
    second_scale: np.ndarray


def optimizer_kind(optimizer: torch.optim.Optimizer) -> str:
    """Return one of :data:`gns.features.OPTIMIZER_KINDS`; wrappers with an ``optimizer`` inside are seen through."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if isinstance(optimizer, torch.optim.AdamW):
        return "adamw"
    if isinstance(optimizer, torch.optim.Adam):
        return "adam"
    return "sgd" if isinstance(optimizer, torch.optim.SGD) else "other"


assert {"sgd", "adam", "adamw", "other"} == set(OPTIMIZER_KINDS)


def read_moments(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor], steps: int
) -> Moments:
    """Read an optimizer's state for P parameters.

    :param parameters: P tensors, all in the optimizer's parameter groups
    :param gradients: their pending gradients (zeros where there is none)
    :param steps: updates done so far, used where the optimizer does not count them itself
    """
    kind = optimizer_kind(optimizer)
    groups = group_of_each(optimizer, parameters)
    count = len(parameters)
    momenta: list[Tensor | None] = [None] * count
    seconds: list[Tensor | None] = [None] * count
    updates: list[Tensor | None] = [None] * count
    momentum_scale, second_scale = np.ones(count), np.ones(count)
    for number, group in enumerate(optimizer.param_groups):
        chosen = [i for i in range(count) if groups[i] == number]
        if not chosen:
            continue
        ws, gs = [parameters[i].detach() for i in chosen], [gradients[i] for i in chosen]
        states = [optimizer.state.get(parameters[i], {}) for i in chosen]
        if kind == "sgd":
            ms, us, scale = _sgd(group, states, ws, gs, steps)
            vs, correction = None, 1.0
        elif kind in ("adam", "adamw"):
            ms, vs, us, scale, correction = _adam(group, states, ws, gs, kind == "adamw", steps)
        else:
            ms, vs, us, scale, correction = _first_momentum(states, ws), None, None, 1.0, 1.0
        momentum_scale[chosen], second_scale[chosen] = scale, correction
        for target, source in ((momenta, ms), (seconds, vs), (updates, us)):
            for i, tensor in zip(chosen, source or [], strict=False):
                target[i] = tensor
    # A group without momentum beside one with it: zeros say "none"; its squared gradient stands for its second moment.
    return Moments(
        momenta=_filled(momenta, [torch.zeros_like(g) for g in gradients] if any_missing(momenta) else []),
        seconds=_filled(seconds, torch._foreach_mul(list(gradients), list(gradients)) if any_missing(seconds) else []),
        updates=None if any(u is None for u in updates) else [u for u in updates if u is not None],
        momentum_scale=momentum_scale,
        second_scale=second_scale,
    )


def group_of_each(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """Return the number of the parameter group of each tensor; -1 for a tensor the optimizer does not hold."""
    number_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [number_of.get(id(p), -1) for p in parameters]


def any_missing(tensors: list[Tensor | None]) -> bool:
    """Say whether a list holds both tensors and gaps."""
    return any(t is None for t in tensors) and any(t is not None for t in tensors)


def _filled(tensors: list[Tensor | None], fillers: Sequence[Tensor]) -> list[Tensor] | None:
    if all(t is None for t in tensors):
        return None
    return [t if t is not None else fillers[i] for i, t in enumerate(tensors)]


def _sgd(
    group: dict[str, Any], states: list[Any], ws: list[Tensor], gs: list[Tensor], steps: int
) -> tuple[list[Tensor] | None, list[Tensor], float]:
    """Momentum, coming update and the momentum's scale for ``torch.optim.SGD``."""
    directions = _decayed(group, ws, gs)
    momentum = float(group["momentum"])
    buffers = [state.get("momentum_buffer") for state in states]
    if momentum == 0.0 or any(b is None for b in buffers):
        # The first update starts the buffer with the direction itself; Nesterov then looks one momentum ahead.
        ahead = 1.0 + momentum if group["nesterov"] else 1.0
        return None, list(torch._foreach_mul(directions, ahead)) if ahead != 1.0 else directions, 1.0
    gain = 1.0 - float(group["dampening"])
    updates = list(torch._foreach_mul(buffers, momentum))
    torch._foreach_add_(updates, directions, alpha=gain)
    if group["nesterov"]:
        updates = list(torch._foreach_add(directions, updates, alpha=momentum))
    scale = (1.0 - momentum) / max(gain, 1e-8) / max(1.0 - momentum ** max(steps, 1), 1e-8)
    return buffers, updates, scale


def _adam(
    group: dict[str, Any], states: list[Any], ws: list[Tensor], gs: list[Tensor], decoupled: bool, steps: int
) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor], float, float]:
    """Moments, coming update and bias corrections for ``torch.optim.Adam`` and ``AdamW`` (Kingma and Ba, alg. 1)."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    decoupled = decoupled or bool(group.get("decoupled_weight_decay", False))
    directions = _decayed({**group, "weight_decay": 0.0} if decoupled else group, ws, gs)
    started = all("exp_avg" in state for state in states)
    if started:
        steps = _steps(states[0]["step"], steps)
        ms, vs = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        numerators = torch._foreach_lerp(ms, directions, 1.0 - beta1)
        denominators = torch._foreach_mul(vs, beta2)
        torch._foreach_addcmul_(denominators, directions, directions, 1.0 - beta2)
    else:
        steps, ms, vs = 0, None, None
        numerators = torch._foreach_mul(directions, 1.0 - beta1)
        denominators = torch._foreach_mul(directions, directions)
        torch._foreach_mul_(denominators, 1.0 - beta2)
    if group.get("amsgrad") and started:
        torch._foreach_maximum_(denominators, [state["max_exp_avg_sq"] for state in states])
    torch._foreach_sqrt_(denominators)
    torch._foreach_div_(denominators, (1.0 - beta2 ** (steps + 1)) ** 0.5)
    torch._foreach_add_(denominators, float(group["eps"]))
    torch._foreach_div_(numerators, denominators)
    torch._foreach_div_(numerators, 1.0 - beta1 ** (steps + 1))
    if decoupled and group["weight_decay"]:
        torch._foreach_add_(numerators, ws, alpha=float(group["weight_decay"]))
    done = max(steps, 1)
    return ms, vs, list(numerators), 1.0 / (1.0 - beta1**done), 1.0 / (1.0 - beta2**done)


def _decayed(group: dict[str, Any], ws: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
    """Gradients with the sign and the L2 term the optimizer gives them."""
    directions = list(torch._foreach_neg(gs)) if group.get("maximize") else gs
    if group["weight_decay"]:
        directions = list(torch._foreach_add(directions, ws, alpha=float(group["weight_decay"])))
    return directions


def _steps(step: Any, fallback: int) -> int:
    """Updates an Adam state has counted; a counter on an accelerator is not read, since that would wait for it."""
    if isinstance(step, Tensor):
        return int(step.item()) if step.device.type == "cpu" else fallback
    return int(step)


def _first_momentum(states: list[Any], ws: list[Tensor]) -> list[Tensor] | None:
    """Momentum of an unknown optimizer: the usual names, where they hold a tensor of the parameter's shape."""
    for key in ("exp_avg", "momentum_buffer"):
        found = [state.get(key) for state in states]
        if all(isinstance(m, Tensor) and m.shape == w.shape for m, w in zip(found, ws, strict=True)):
            return found
    return None
