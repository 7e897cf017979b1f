"""Momentum, second moment and the coming update, read from an optimizer's state.

"Coming update" is the step the optimizer would take now, on the gradients that are pending, at a learning rate of 1.
It is exact for ``torch.optim.SGD``, ``Adam`` and ``AdamW`` (:mod:`gns.features.update_rules`); for any other optimizer
it is unknown here and the decision core measures it from the parameters instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gns.features.update_rules import counted_steps, read_alike


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
    """Return one of :data:`gns.features.statistics.OPTIMIZER_KINDS`; a wrapper's inner optimizer counts."""
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

    :param parameters: P tensors; those the optimizer does not hold have a coming update of 0. Complex ones are read as
        pairs of real numbers
    :param gradients: their pending gradients; None where there is none, and then no update comes either
    :param steps: updates done so far, used where the optimizer does not count them itself
    """
    kind = optimizer_kind(optimizer)
    momenta: dict[int, Tensor] = {}
    seconds: dict[int, Tensor] = {}
    updates: dict[int, Tensor] = {}
    momentum_scale, second_scale = np.ones(len(parameters)), np.ones(len(parameters))
    for group, chosen in split_alike(optimizer, parameters, gradients):
        ws = [as_real(parameters[i].detach()) for i in chosen]
        gs = [as_real(_or_zeros(gradients[i], parameters[i])) for i in chosen]
        states = [real_state(optimizer, parameters[i]) for i in chosen]
        found = read_alike(kind, group, states, ws, gs, steps)
        momentum_scale[chosen], second_scale[chosen] = found.momentum_scale, found.second_scale
        momenta.update(zip(chosen, found.momenta or [], strict=False))
        seconds.update(zip(chosen, found.seconds or [], strict=False))
        if gradients[chosen[0]] is not None:
            updates.update(zip(chosen, found.updates, strict=False))
    parameters, gradients = [as_real(p) for p in parameters], [None if g is None else as_real(g) for g in gradients]
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


def as_real(tensor: Any) -> Any:
    """Return complex numbers as pairs of real ones, which is how optimizers treat them, without their gradient."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def real_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """Return the optimizer's state of a tensor, :func:`as_real`."""
    state = optimizer.state.get(parameter, {})
    if not parameter.is_complex():
        return state
    return {key: as_real(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return tensor if tensor is not None else torch.zeros_like(like, requires_grad=False)


def group_of_each(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[int]:
    """Return the number of the parameter group of each tensor; -1 for a tensor the optimizer does not hold."""
    number_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [number_of.get(id(p), -1) for p in parameters]
