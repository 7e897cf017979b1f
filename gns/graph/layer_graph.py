"""The layer graph of any ``nn.Module``, read off the autograd graph of one forward pass.

Nodes are the modules that own trainable parameters; an edge says that data flows from one to the other with
no third such module between. Nothing is traced and no architecture is known by name: the walk starts at a
loss, follows ``grad_fn.next_functions`` back to the ``AccumulateGrad`` leaves, names each leaf by the module
that owns the parameter and contracts every operation that owns none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, is_dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.errors import LayerGraphError
from gns.graph.autograd_walk import walk_back
from gns.parallel.fsdp import refuse_flat_parameters, sharded_of_unsharded

NODE_TYPES: tuple[str, ...] = ("linear", "conv", "norm", "embedding", "attention", "recurrent", "other")

_ATTENTION_NAMES = re.compile(
    r"(^|[._])(attn|attention|self_attn|q_proj|k_proj|v_proj|o_proj|query|key|value|qkv|c_attn|in_proj)([._]|$)",
    re.IGNORECASE,
)
# Operations that make a layer of an unknown class what it is, such as a product with a bare parameter.
_OPERATIONS: dict[str, tuple[str, ...]] = {
    "conv": ("ConvolutionBackward", "MkldnnConvolutionBackward"),
    "linear": (
        "MmBackward",
        "AddmmBackward",
        "BmmBackward",
        "BaddbmmBackward",
        "MvBackward",
        "AddmvBackward",
        "DotBackward",
        "EmbeddingBagBackward",
    ),
    "embedding": ("EmbeddingBackward",),
    "norm": ("NativeLayerNormBackward", "NativeBatchNormBackward", "NativeGroupNormBackward"),
}


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Structure of a network: ``L`` layers, ``E`` edges, ``B`` blocks. Holds names only, never tensors.

    Two models of one architecture have equal graphs, so a graph may be cached and bound to each new model.

    :param names: module path of each node, in order of execution; ``"(root)"`` for the model itself
    :param types: one of :data:`NODE_TYPES` for each node
    :param edges: int64 array of shape (2, E), sources above targets
    :param parameters: names of the trainable parameters of each node, as in ``named_parameters()``
    :param tensor_sizes: number of scalars of each parameter tensor, node after node (P tensors); of all its shards. A
        complex number is two
    :param depths: float array (L,): longest path from an input, scaled to [0, 1]
    """

    names: tuple[str, ...]
    types: tuple[str, ...]
    edges: np.ndarray = field(repr=False)
    parameters: tuple[tuple[str, ...], ...] = field(repr=False)
    tensor_sizes: tuple[int, ...] = field(repr=False)
    depths: np.ndarray = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LayerGraph)
            and self._names() == other._names()
            and np.array_equal(self.edges, other.edges)
            and np.array_equal(self.depths, other.depths)
        )

    def __hash__(self) -> int:
        return hash(self._names())

    def _names(self) -> tuple[Any, ...]:
        return self.names, self.types, self.parameters, self.tensor_sizes

    @property
    def num_nodes(self) -> int:
        """Number of layers ``L``."""
        return len(self.names)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of trainable scalars of each node."""
        sizes = iter(self.tensor_sizes)
        return tuple(sum(next(sizes) for _ in names) for names in self.parameters)

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``."""
        return int(self.edges.shape[1])

    @cached_property
    def type_ids(self) -> np.ndarray:
        """Index of each node's type in :data:`NODE_TYPES`, int64 array (L,)."""
        return np.array([NODE_TYPES.index(kind) for kind in self.types], dtype=np.int64)

    @cached_property
    def block_names(self) -> tuple[str, ...]:
        """Names of the ``B`` blocks, in order of first appearance. See :func:`block_of`."""
        return tuple(dict.fromkeys(block_of(name) for name in self.names))

    @cached_property
    def block_ids(self) -> np.ndarray:
        """Block of each node, int64 array (L,)."""
        index = {name: position for position, name in enumerate(self.block_names)}
        return np.array([index[block_of(name)] for name in self.names], dtype=np.int64)

    @cached_property
    def block_edges(self) -> np.ndarray:
        """Edges between different blocks, each once, int64 array (2, number of block edges)."""
        pairs = {(int(a), int(b)) for a, b in self.block_ids[self.edges].T if a != b}
        return np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2).T.copy()

    def bind(self, model: nn.Module) -> list[list[nn.Parameter]]:
        """Return the parameters of each node from a model of this architecture.

        :raises LayerGraphError: if the model lacks a parameter that the graph names, or has it in another size
        """
        by_name = _named_parameters(unwrap(model))
        missing = [name for names in self.parameters for name in names if name not in by_name]
        if missing:
            raise LayerGraphError(
                f"The layer graph names {len(missing)} parameters that this model lacks, {missing[0]!r} first. "
                "Expected a model of the architecture the graph was taken from; take the graph anew."
            )
        flat = [name for names in self.parameters for name in names]
        for name, size in zip(flat, self.tensor_sizes, strict=True):
            if _scalars(by_name[name]) != size:
                raise LayerGraphError(
                    f"{name} has {_scalars(by_name[name]):,} scalars in this model and {size:,} in the graph. Expected "
                    "a model of the architecture the graph was taken from; take the graph anew."
                )
        return [[by_name[name] for name in names] for names in self.parameters]

    def plot(self, axis: Any = None, level: str = "layer", values: np.ndarray | None = None, label: str = "") -> Any:
        """Draw the graph, see :func:`gns.tools.drawing.draw_layer_graph`; returns matplotlib axes."""
        from gns.tools.drawing import draw_layer_graph

        return draw_layer_graph(self, axis, level, values=values, label=label)

    def to_pyg(self, level: str = "layer") -> Any:
        """Return the graph as ``torch_geometric.data.Data``.

        :param level: ``"layer"`` (L nodes with ``node_type``, ``depth``, ``log_size``, ``block`` and ``names``) or
            ``"block"`` (B nodes)
        """
        from torch_geometric.data import Data

        if level == "block":
            return Data(
                edge_index=torch.from_numpy(self.block_edges.copy()),
                num_nodes=len(self.block_names),
                names=list(self.block_names),
            )
        if level != "layer":
            raise LayerGraphError(f"level is {level!r}; expected 'layer' or 'block'.")
        return Data(
            edge_index=torch.from_numpy(self.edges.copy()),
            num_nodes=self.num_nodes,
            node_type=torch.from_numpy(self.type_ids.copy()),
            depth=torch.from_numpy(self.depths.astype(np.float32)),
            log_size=torch.tensor(self.sizes, dtype=torch.float32).log10(),
            block=torch.from_numpy(self.block_ids.copy()),
            names=list(self.names),
        )


def block_of(name: str) -> str:
    """Return the block a layer belongs to.

    The path up to and with its first number, since a number marks a repeated pattern (``encoder.layer.3`` of
    ``encoder.layer.3.attention.self.query``); without a number, the parent (``embeddings`` of
    ``embeddings.LayerNorm``); a layer with no parent is a block of its own.
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ".".join(parts[:-1]) or name


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile``'s and data-parallel wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module) or (
            type(model).__name__ in ("DistributedDataParallel", "DataParallel")
            and isinstance(inner := getattr(model, "module", None), nn.Module)
        ):
            model = inner
        else:
            return model


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name, each tensor once.

    :raises LayerGraphError: if there is none
    """
    parameters = {name: p for name, p in _named_parameters(unwrap(model)).items() if p.requires_grad}
    if not parameters:
        raise LayerGraphError(
            f"{type(unwrap(model)).__name__} has no trainable parameter. Expected at least one with "
            "requires_grad=True; unfreeze a layer or pass the model that is being trained."
        )
    return parameters


def layer_of_parameters(model: nn.Module) -> dict[int, str]:
    """Return the name of the layer that owns each parameter, by the tensor's identity, frozen ones among them."""
    return {id(p): _owner(name) or "(root)" for name, p in _named_parameters(unwrap(model)).items()}


def layer_graph(model: nn.Module, outputs: Any) -> LayerGraph:
    """Take the layer graph of ``model`` from what one forward pass returned.

    :param model: the module being trained; wrappers of ``torch.compile`` and DDP are seen through
    :param outputs: the loss, or any nest of tuples, lists, mappings, dataclasses and tensors with a ``grad_fn``; must
        be alive, and may already have gone through ``backward``. Best from a batch of two or more: a parameter added
        to a batch of one has the shape of its result and cannot be told from a rescaled weight
    :return: the graph; layers that are frozen or that the outputs do not depend on are not in it
    :raises LayerGraphError: if the model has no trainable parameter or the outputs depend on none; if it is wrapped by
        FSDP1, or by an FSDP2 whose parameters cannot be told
    """
    model = unwrap(model)
    trainable = trainable_parameters(model)
    layer_of = {id(parameter): _owner(name) for name, parameter in trainable.items()}
    sharded = sharded_of_unsharded(model)
    if sharded is None:
        raise LayerGraphError(
            f"{type(model).__name__} is sharded by fully_shard, and this version of PyTorch ({torch.__version__}) does "
            "not say which parameter stands for which in a forward pass. Pass graph=, taken by gns.layer_graph(model, "
            "loss) before the model is sharded."
        )
    layer_of.update({leaf: layer_of[id(p)] for leaf, p in sharded.items() if id(p) in layer_of})
    roots = [tensor.grad_fn for tensor in tensors_in(outputs) if tensor.grad_fn is not None]
    walk = walk_back(roots, layer_of)

    order = list(dict.fromkeys(walk.order))
    if walk.opaque:
        # What lies inside an opaque operation is taken in order of registration, one layer after the other.
        layers = dict.fromkeys(layer_of.values())
        hidden = [layer for layer in layers if layer not in walk.order or layer in walk.inside]
        walk.edges.update(pairwise(hidden))
        order += [layer for layer in hidden if layer not in walk.order]
    if not order:
        raise LayerGraphError(
            f"The loss does not depend on any trainable parameter of {type(model).__name__} "
            f"({len(trainable)} trainable tensors, none reached from the loss). Expected the loss of a forward pass "
            "of this model with gradients enabled; check for detach(), no_grad() or another model's loss."
        )
    index = {layer: position for position, layer in enumerate(order)}
    edges = np.array(sorted((index[a], index[b]) for a, b in walk.edges if a != b), dtype=np.int64).reshape(-1, 2).T
    by_layer: dict[str, list[str]] = {layer: [] for layer in order}
    for name in trainable:
        if _owner(name) in by_layer:
            by_layer[_owner(name)].append(name)
    return LayerGraph(
        names=tuple(layer or "(root)" for layer in order),
        types=tuple(_node_type(model, layer, walk.applied_by.get(layer, ())) for layer in order),
        edges=edges.copy(),
        parameters=tuple(tuple(by_layer[layer]) for layer in order),
        tensor_sizes=tuple(_scalars(trainable[name]) for layer in order for name in by_layer[layer]),
        depths=_depths(len(order), edges),
    )


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors of any nest of tuples, lists, mappings and dataclasses, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    if is_dataclass(outputs) and not isinstance(outputs, type):
        outputs = list(vars(outputs).values())
    if isinstance(outputs, list | tuple | set | ValuesView):
        return [tensor for item in outputs for tensor in tensors_in(item)]
    return []


def _named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return parameters by name, each tensor once, without the prefix of compiled submodules.

    Of a sharded model always those that the optimizer holds, even while others stand in for them.
    """
    refuse_flat_parameters(model)
    sharded = sharded_of_unsharded(model) or {}
    return {name.replace("_orig_mod.", ""): sharded.get(id(p), p) for name, p in model.named_parameters()}


def _scalars(parameter: Tensor) -> int:
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _owner(parameter_name: str) -> str:
    """Return the path of the module that owns a parameter; a parametrized weight belongs to the module it shapes."""
    return re.sub(r"(^|\.)parametrizations\..*$", "", parameter_name.rpartition(".")[0])


def _node_type(model: nn.Module, layer: str, applied_by: Sequence[str]) -> str:
    """Return the type of a layer: by class, by the class's name, by its place in the model, then by what it does.

    :param applied_by: operations of autograd that apply its parameters to data
    """
    parent = module = model
    for part in layer.split(".") if layer else []:
        parent, module = module, unwrap(getattr(module, part))
    kind, above = _class_of(module), _class_of(parent)
    name = _name_of_class(module).removeprefix("FSDP")  # fully_shard makes a subclass of that name
    if issubclass(kind, nn.MultiheadAttention) or issubclass(above, nn.MultiheadAttention):
        return "attention"
    if issubclass(kind, nn.Linear) or (name == "Conv1D" and not issubclass(kind, nn.Conv1d)):
        return "attention" if _ATTENTION_NAMES.search(layer) else "linear"
    if issubclass(kind, nn.modules.conv._ConvNd):
        return "conv"
    if "norm" in name.lower():
        return "norm"
    if issubclass(kind, nn.EmbeddingBag):
        return "linear"  # a matrix product with the counts of a bag's tokens; tokens in order are another thing
    if issubclass(kind, nn.Embedding):
        return "embedding"
    if issubclass(kind, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    found = (t for t, operations in _OPERATIONS.items() if any(name.startswith(operations) for name in applied_by))
    added = bool(applied_by) and all(name.startswith("AddBackward") for name in applied_by)
    if added and all(p.dim() == 1 for p in module.parameters(recurse=False)):
        return "linear"  # the bias of a graph layer, whose weights are another module's; positions are a table
    return next(found, "other")


def _class_of(module: nn.Module) -> type:
    """Return the class of a module; of a traced or scripted one that of torch.nn's by the name it keeps, if any."""
    found = getattr(nn, _name_of_class(module), None) if isinstance(module, torch.jit.ScriptModule) else None
    return found if isinstance(found, type) else type(module)


def _name_of_class(module: nn.Module) -> str:
    scripted = isinstance(module, torch.jit.ScriptModule)
    return str(module.original_name) if scripted else type(module).__name__


def _depths(num_nodes: int, edges: np.ndarray) -> np.ndarray:
    """Longest path to each node along edges that follow the order of execution, scaled to [0, 1]."""
    depths = np.zeros(num_nodes)
    for source, target in edges.T:  # sorted by source, and a source is final before any edge leaves it
        if source < target:
            depths[target] = max(depths[target], depths[source] + 1)
    return depths / max(1.0, depths.max(initial=0.0))
