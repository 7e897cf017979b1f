"""Closures of ``optimizer.step(closure)``, and optimizers that hold the one that makes the update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from gns.errors import InvalidSettingError
from gns.features.moments import innermost, optimizers_in

# These write the rates of their groups into those of the optimizer inside, at every step.
_HANDS_RATES_ON = ("ZeroRedundancyOptimizer",)


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """Return the closure among the arguments of ``step``, the optimizer first; None if there is none."""
    return args[1] if len(args) > 1 else kwargs.get("closure")


def followed_by(
    args: tuple[Any, ...], kwargs: dict[str, Any], decide: Callable[[Any], None], at_once: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let ``decide`` follow the first call of the closure of ``optimizer.step(closure)``, as its gradients are pending.

    The optimizer calls it when it likes: one may have moved the weights before. So it is called as often as without.

    :param args: arguments of ``step``, the optimizer first
    :param decide: is given what the closure returned
    :param at_once: whether to call the closure now, for an optimizer that reads its rate before the first call, while
        its weights are where they were; that call is then answered with what is known
    :return: arguments to go on with
    """
    closure = closure_of(args, kwargs)
    assert closure is not None
    known: list[Any] = []
    calls = 0

    def evaluated() -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return known.pop() if known else closure()
        loss = closure()
        decide(loss)
        return loss

    if at_once:
        with torch.enable_grad():
            known.append(evaluated())
    if len(args) > 1:
        return (args[0], evaluated, *args[2:]), kwargs
    return args, {**kwargs, "closure": evaluated}


def updating(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that makes the updates: the innermost one of wrappers, whose parameter groups are the same.

    :raises InvalidSettingError: if an optimizer inside holds some of the same parameters in groups of its own, which
        rates would not reach; if the optimizer was never initialised, and so calls no hooks
    """
    for wrapper in _chain(optimizer):
        own = {id(group) for group in wrapper.param_groups}
        held = {id(parameter) for group in wrapper.param_groups for parameter in group["params"]}
        for name, inner in optimizers_in(wrapper).items():
            if any(kind.__name__ in _HANDS_RATES_ON for kind in type(wrapper).__mro__):
                continue
            theirs = [group for group in inner.param_groups if id(group) not in own]
            if any(id(parameter) in held for group in theirs for parameter in group["params"]):
                raise InvalidSettingError(
                    f"{type(wrapper).__name__} holds an optimizer as {name!r}, a {type(inner).__name__}, with "
                    "parameter groups of its own: a rate set on the one does not reach the other. Give GNSScheduler "
                    f"the inner one, optimizer.{name}; or let both have the same groups "
                    "(self.param_groups = inner.param_groups)."
                )
    found = innermost(optimizer)
    if not isinstance(getattr(found, "_optimizer_step_pre_hooks", None), Mapping):
        inside = ", ".join(map(repr, optimizers_in(found))) or "none"
        raise InvalidSettingError(
            f"{type(found).__name__} was made without Optimizer.__init__, so that no hook of its steps can be called "
            f"(optimizers inside: {inside}). Call super().__init__ in it, or give each optimizer inside a scheduler."
        )
    return found


def _chain(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """Yield an optimizer and those that :func:`gns.features.moments.innermost` goes through."""
    last = innermost(optimizer)
    yield optimizer
    while optimizer is not last:
        optimizer = next(inner for inner in optimizers_in(optimizer).values() if innermost(inner) is last)
        yield optimizer
