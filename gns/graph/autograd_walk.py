"""The walk from a loss back through autograd's operations, which finds layers and the data flow between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Operations that read rows of a parameter: their output is data, although every input is a parameter.
_INDEXING = ("EmbeddingBackward", "EmbeddingBagBackward", "IndexBackward", "IndexSelectBackward", "GatherBackward")
# Operations whose second operand may be a constant, which autograd shows as a missing input.
_ELEMENTWISE = ("MulBackward", "DivBackward", "AddBackward", "SubBackward", "PowBackward", "RsubBackward")
# Operations that hide the layers inside them from autograd: reentrant checkpointing, compiled and scripted functions.
_OPAQUE = ("CheckpointFunctionBackward", "CompiledFunctionBackward", "DifferentiableGraphBackward")
# Operations of FSDP2, DDP and modules' full backward hooks that hand on each of their inputs as it is, and mix none.
_HANDS_ON = ("RegisterPostBackwardFunctionBackward", "_DDPSinkBackward", "BackwardHookFunctionBackward")


@dataclass
class Walk:
    """What the walk found: layers in order of use, edges, and the layers seen to enter an opaque operation.

    ``applied_by`` has the operations that apply the parameters of each layer to data, in order.
    """

    order: dict[str, None] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)
    opaque: bool = False
    inside: set[str] = field(default_factory=set)
    applied_by: dict[str, list[str]] = field(default_factory=dict)


_Layers = dict[str, None]  # an ordered set of layer names


def walk_back(roots: Iterable[Any], layer_of: Mapping[int, str]) -> Walk:
    """Visit every operation, inputs first, and push sets of layers through it.

    Each operation gets one of two sets. ``raw``: its output is a function of parameters alone (a transposed or
    rescaled weight) and still waits for the operation that applies it to data. ``reach``: its output is data, and
    these are the layers it came from last. An operation that meets ``raw`` inputs with data applies those layers.
    """
    walk = Walk()
    raw: dict[Any, _Layers] = {}
    reach: dict[Any, _Layers] = {}
    unused: _Layers = {}
    for operation in _topological(roots):
        inputs = _inputs(operation)
        name = operation.name()
        if name.endswith("AccumulateGrad"):
            layer = layer_of.get(id(operation.variable))
            if layer is None:
                reach[operation] = {}  # an input that asks for gradients, or another model's parameter
            else:
                raw[operation] = {layer: None}
            continue
        weights: _Layers = {}
        sources: _Layers = {}
        mixes = _mixes_data(operation, name, inputs, raw)
        for parent in inputs:
            if mixes and parent in raw and _is_penalty(parent, operation):
                unused.update(raw[parent])
            else:
                weights.update(raw.get(parent, {}))
            sources.update(reach.get(parent, {}))
        if name.rpartition("::")[2].startswith(_OPAQUE):
            walk.opaque = True
            walk.inside.update(weights)
        if not mixes:
            raw[operation] = weights
        elif weights:
            reach[operation] = weights
            walk.order.update(weights)
            walk.edges.update((source, layer) for source in sources for layer in weights)
            for layer in weights:
                walk.applied_by.setdefault(layer, []).append(name)
        else:
            reach[operation] = sources
    for root in roots:  # a loss of parameters alone: layers without edges
        walk.order.update(raw.get(root, {}))
    walk.order.update(unused)  # seen in a penalty: last, where no use put them before
    return walk


def _mixes_data(operation: Any, name: str, inputs: list[Any], raw: Mapping[Any, _Layers]) -> bool:
    """Say whether an operation's output is data rather than a transformed parameter."""
    present = [parent for parent in inputs if parent is not None]
    if not present or any(parent not in raw for parent in present) or name.startswith(_INDEXING):
        return True
    if len(present) == len(inputs):
        return False
    # A missing input is data without gradient, or a constant: a constant leaves an elementwise result's shape alone.
    if not name.startswith(_ELEMENTWISE):
        return True
    return _output_shape(operation) not in [_output_shape(parent) for parent in present]


def _is_penalty(operation: Any, consumer: Any) -> bool:
    """Say whether a function of parameters alone is one number that joins another: a norm in the loss."""
    if operation.name().endswith("AccumulateGrad"):
        return False
    return _output_shape(operation) == () and _output_shape(consumer) == ()


def _output_shape(operation: Any) -> tuple[int, ...]:
    if operation.name().endswith("AccumulateGrad"):
        return tuple(operation.variable.shape)
    return tuple(int(size) for size in operation._input_metadata[0].shape)


def _inputs(operation: Any) -> list[Any]:
    """Return the operations that an operation's inputs come from, past those that only hand them on."""
    inputs = []
    for parent, output in operation.next_functions:
        while parent is not None and parent.name() in _HANDS_ON:
            parent, output = parent.next_functions[output]
        inputs.append(parent)
    return inputs


def _topological(roots: Iterable[Any]) -> list[Any]:
    """Return every operation above ``roots``, each after its inputs; an explicit stack, for graphs of any depth."""
    done: dict[Any, None] = {}
    for root in roots:
        stack = [(root, False)]
        while stack:
            operation, expanded = stack.pop()
            if operation in done:
                continue
            if expanded:
                done[operation] = None
                continue
            stack.append((operation, True))
            parents = _inputs(operation)
            stack.extend((parent, False) for parent in reversed(parents) if parent is not None and parent not in done)
    return list(done)
