"""A function of tensors, written down as a list of operators and run without what PyTorch does between them.

For a small network, ``functional_call``, ``vmap`` and autograd take as long as the arithmetic. A trace of a forward and
backward pass calls the same operators in the same order, with the same bits, and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_flatten, tree_map

_LOGGER = logging.getLogger(__name__)
_SAME = {torch.ops.aten.detach.default, torch.ops.aten.alias.default}
_RESHAPES = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.expand.default}


class Traced:
    """A function that is traced, once for each set of shapes and strides, when it was called often enough to pay.

    Where no trace can be made, or one does not give the same bits (because Python code decides differently from call to
    call), the function itself goes on being called.

    :param function: takes and returns tensors in any nesting; may change arguments in place; draws no random numbers
    :param calls: how many calls of the same shapes come before a trace, which takes as long as some hundred
    :param most: traces kept; where there are more sets of shapes, the function itself serves the others
    """

    def __init__(self, function: Callable[..., Any], calls: int = 100, most: int = 100) -> None:
        self._function, self._calls, self._most = function, calls, most
        self._seen: dict[Any, int] = {}
        self._traces: dict[Any, GraphModule | None] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Call the function, or its trace."""
        tensors, structure = tree_flatten(arguments)
        key = (structure, *((t.shape, t.stride(), t.dtype) for t in tensors))
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] == self._calls and len(self._traces) < self._most:
            self._traces[key] = self._trace(arguments)
        trace = self._traces.get(key)
        if trace is None:
            return self._function(*arguments)
        with torch.no_grad():
            return trace(arguments)

    def _trace(self, arguments: Any) -> GraphModule | None:
        """Return a trace, if one can be made that does what the function does."""
        try:
            from torch.fx.experimental.proxy_tensor import make_fx

            trace = _without_idle_nodes(make_fx(lambda held: self._function(*held))(_copies(arguments)))
            one, other = _copies(arguments), _copies(arguments)
            with torch.no_grad():
                results = trace(one)
            expected = self._function(*other)
        except Exception as problem:  # whatever it is, the function itself works
            _LOGGER.info("no trace of %s: %s", self._function, problem)
            return None
        pairs = zip(tree_flatten((results, one))[0], tree_flatten((expected, other))[0], strict=True)
        if not all(torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True) for a, b in pairs):
            _LOGGER.info("a trace of %s gives other figures than it does; it is not used", self._function)
            return None
        return trace


def _copies(arguments: Any) -> Any:
    """Copy tensors, strides and all: operators differ by them."""
    return tree_map(
        lambda tensor: torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        ).copy_(tensor),
        arguments,
    )


def _without_idle_nodes(trace: GraphModule) -> GraphModule:
    """Leave out operators that change nothing: views of the same shape, factors of one."""
    for node in list(trace.graph.nodes):
        if node.op == "call_function" and _is_idle(node) and not any(_changes_argument(user) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            trace.graph.erase_node(node)
    trace.graph.eliminate_dead_code()
    for node in trace.graph.nodes:
        node.meta.clear()  # results of every operator, as large as all that a pass needs
    trace.recompile()
    return trace


def _is_idle(node: Node) -> bool:
    if node.target in _RESHAPES:
        return _shape(node) is not None and _shape(node) == _shape(node.args[0])
    return node.target in _SAME or (node.target is torch.ops.aten.mul.Scalar and node.args[1:] == (1,))


def _changes_argument(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _shape(node: Any) -> torch.Size | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.shape if isinstance(value, torch.Tensor) else None
