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
    """Return one of :data:`gns.features.schemas.OPTIMIZER_KINDS`; a wrapper's inner optimizer counts."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    optimizer = innermost(optimizer)
    if isinstance(optimizer, torch.optim.AdamW):
        return "adamw"
    if isinstance(optimizer, torch.optim.Adam):
        return "adam"
    return "sgd" if isinstance(optimizer, torch.optim.SGD) else "other"


def optimizers_in(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers among an optimizer's attributes, and in lists and mappings there, by name."""
    found: dict[str, torch.optim.Optimizer] = {}
    for name, value in vars(optimizer).items():
        if name in ("state", "param_groups", "defaults") or name.startswith("_optimizer_"):
            continue
        named = {f"{name}[{key!r}]": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        if isinstance(value, list | tuple):
            named = {f"{name}[{number}]": part for number, part in enumerate(value)}
        found.update({key: part for key, part in named.items() if isinstance(part, torch.optim.Optimizer)})
    return {name: inner for name, inner in found.items() if inner is not optimizer}


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that a wrapper steps, whatever the attribute is called: the one with the same groups."""
    passed: set[int] = set()
    while True:
        passed.add(id(optimizer))
        inner = {id(part): part for part in optimizers_in(optimizer).values() if id(part) not in passed}
        same = [part for part in inner.values() if _same_groups(part.param_groups, optimizer.param_groups)]
        if len(same) != 1:
            return optimizer
        optimizer = same[0]


def _same_groups(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(one is other for one, other in zip(ones, others, strict=True))


def read_moments(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], steps: int
) -> Moments:
    """Read an optimizer's state for P parameters.

    :param parameters: P tensors; those the optimizer does not hold have a coming update of 0
    :param gradients: their pending gradients; None where there is none, and then no update comes either
    :param steps: updates done so far, used where the optimizer does not count them itself
    """
    kind = optimizer_kind(optimizer)
    momenta: dict[int, Tensor] = {}
    seconds: dict[int, Tensor] = {}
    updates: dict[int, Tensor] = {}
    momentum_scale, second_scale = np.ones(len(parameters)), np.ones(len(parameters))
    for group, chosen in split_alike(optimizer, parameters, gradients):
        ws = [parameters[i].detach() for i in chosen]
        gs = [_or_zeros(gradients[i], parameters[i]) for i in chosen]
        states = [optimizer.state.get(parameters[i], {}) for i in chosen]
        ms, vs, us, scale, correction = read_alike(kind, group, states, ws, gs, steps)
        momentum_scale[chosen], second_scale[chosen] = scale, correction
        momenta.update(zip(chosen, ms or [], strict=False))
        seconds.update(zip(chosen, vs or [], strict=False))
        if gradients[chosen[0]] is not None:
            updates.update(zip(chosen, us, strict=False))
    # Beside tensors with momentum, zeros say "none"; a squared gradient stands for a missing second moment.
    count = range(len(parameters))
    return Moments(
        momenta=[_or_zeros(momenta.get(i), parameters[i]) for i in count] if momenta else None,
        seconds=[seconds[i] if i in seconds else _or_zeros(gradients[i], parameters[i]).square() for i in count]
        if seconds
        else None,
        updates=[_or_zeros(updates.get(i), parameters[i]) for i in count] if kind != "other" else None,
        momentum_scale=momentum_scale,
        second_scale=second_scale,
    )


def read_alike(
    kind: str, group: dict[str, Any], states: list[Any], ws: list[Tensor], gs: list[Tensor], steps: int
) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor], float, float]:
    """Read tensors of one part of :func:`split_alike`, or like pieces of them; parameters, gradients and state alike.

    :param states: optimizer state of each
    :return: momenta, second moments, coming updates (none of an unknown optimizer), and the two scales of
        :class:`Moments`
    """
    if kind == "sgd":
        ms, us, scale = _sgd(group, states, ws, gs, steps)
        return ms, None, us, scale, 1.0
    if kind in ("adam", "adamw"):
        return _adam(group, states, ws, gs, kind == "adamw", steps)
    return first_momentum(states, ws), None, [], 1.0, 1.0


def split_alike(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> list[tuple[dict[str, Any], list[int]]]:
    """Split the tensors an optimizer holds into parts that one foreach call can treat alike.

    Of one part all are in one parameter group, all have a gradient or none has, and all have optimizer state of as many
    updates or none has any (a counter on an accelerator is not read, and counts as the run's).
    """
    parts: dict[tuple[int, int, bool], list[int]] = {}
    for i, number in enumerate(group_of_each(optimizer, parameters)):
        if number >= 0:
            state = optimizer.state.get(parameters[i], {})
            started = "exp_avg" in state or state.get("momentum_buffer") is not None
            done = counted_steps(state.get("step", 1), 1) if started else 0
            parts.setdefault((number, done, gradients[i] is not None), []).append(i)
    return [(optimizer.param_groups[number], chosen) for (number, _, _), chosen in parts.items()]


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return tensor if tensor is not None else torch.zeros_like(like, requires_grad=False)


def group_of_each(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """Return the number of the parameter group of each tensor; -1 for a tensor the optimizer does not hold."""
    number_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [number_of.get(id(p), -1) for p in parameters]


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
    # Of equal gradients g, the buffer after t updates is (momentum^(t-1) + gain (1 - momentum^(t-1))/(1 - momentum)) g.
    first = momentum ** (max(steps, 1) - 1)
    buffers = _signed(group, buffers)
    return buffers, updates, 1.0 / (first + gain * (1.0 - first) / (1.0 - momentum)) if momentum < 1.0 else 1.0


def _adam(
    group: dict[str, Any], states: list[Any], ws: list[Tensor], gs: list[Tensor], decoupled: bool, steps: int
) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor], float, float]:
    """Moments, coming update and bias corrections for ``torch.optim.Adam`` and ``AdamW`` (Kingma and Ba, alg. 1)."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    decoupled = decoupled or bool(group.get("decoupled_weight_decay", False))
    directions = _decayed({**group, "weight_decay": 0.0} if decoupled else group, ws, gs)
    started = all("exp_avg" in state for state in states)
    if started:
        steps = counted_steps(states[0]["step"], steps)
        started = steps > 0  # a fused optimizer whose first update a GradScaler left out has moments of no gradient yet
    if started:
        ms, vs = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        numerators = torch._foreach_lerp(ms, directions, 1.0 - beta1)
        denominators = torch._foreach_mul(vs, beta2)
        torch._foreach_addcmul_(denominators, directions, directions, 1.0 - beta2)
    else:
        steps, ms, vs = 0, None, None  # nothing to correct yet
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
    if not started:
        return ms, vs, list(numerators), 1.0, 1.0
    return _signed(group, ms or []), vs, list(numerators), 1.0 / (1.0 - beta1**steps), 1.0 / (1.0 - beta2**steps)


def _decayed(group: dict[str, Any], ws: list[Tensor], gs: list[Tensor]) -> list[Tensor]:
    """Gradients with the sign and the L2 term the optimizer gives them."""
    directions = list(torch._foreach_neg(gs)) if group.get("maximize") else gs
    if group["weight_decay"]:
        directions = list(torch._foreach_add(directions, ws, alpha=float(group["weight_decay"])))
    return directions


def _signed(group: dict[str, Any], momenta: list[Any]) -> list[Tensor]:
    """Momenta that point along gradients: an optimizer that maximizes keeps them the other way round."""
    return list(torch._foreach_neg(momenta)) if group.get("maximize") else momenta


def counted_steps(step: Any, fallback: int) -> int:
    """Updates an Adam state has counted; a counter on an accelerator is not read, since that would wait for it."""
    if isinstance(step, Tensor):
        return int(step.item()) if step.device.type == "cpu" else fallback
    return int(step)


def first_momentum(states: list[Any], ws: list[Tensor]) -> list[Tensor] | None:
    """Momentum of an unknown optimizer: the usual names, where they hold a tensor of the parameter's shape."""
    for key in ("exp_avg", "momentum_buffer"):
        found = [state.get(key) for state in states]
        if all(isinstance(m, Tensor) and m.shape == w.shape for m, w in zip(found, ws, strict=True)):
            return found
    return None
