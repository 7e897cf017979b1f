"""The graph convolution of Kipf & Welling (2017) on a graph prepared once for all that reads it.

``GCNConv`` of PyTorch Geometric works out the normalisation of the edges anew in every layer and every call, which for
the small graphs of networks costs more than the convolution. Here it is worked out once and handed to each layer. The
layers themselves are PyG's, with their weights and names, and each is the readable twin of :func:`convolve`: the same
numbers to the last bit, forward and backward.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Messages(NamedTuple):
    """What passes along the edges of a graph: M messages, of its edges and of each node to itself.

    :param sources: int64 (M,), node each comes from
    :param targets: int64 (M,), node each goes to
    :param weights: (M, 1), 1 / sqrt(d_source d_target), d one more than a node's incoming edges (eq. 2 of the paper)
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor


def normalise(edges: Tensor, count: int, dtype: torch.dtype) -> Messages:
    """Return the messages of a graph of ``count`` nodes with ``edges`` (2, E)."""
    from torch_geometric.nn.conv.gcn_conv import gcn_norm  # takes a second to import: only where a network is built

    (sources, targets), weights = gcn_norm(edges, None, count, dtype=dtype)
    return Messages(sources, targets, weights.unsqueeze(-1))


def convolve(layer: nn.Module, h: Tensor, messages: Messages) -> Tensor:
    """Return what ``layer``, a ``GCNConv``, makes of ``h`` (N, D): (N, D')."""
    sent = layer.lin(h).index_select(0, messages.sources)  # type: ignore[operator]
    sent = sent.to(messages.weights.dtype).mul_(messages.weights)  # in place: fresh memory costs more than the product
    received = sent.new_zeros(len(h), sent.shape[1])
    received.scatter_add_(0, messages.targets.unsqueeze(-1).expand_as(sent), sent)
    return received.add_(layer.bias)


class Known(NamedTuple):
    """A graph whose messages are kept."""

    edges: np.ndarray
    nodes: int
    messages: Messages

    def is_of(self, edges: np.ndarray, count: int, dtype: torch.dtype) -> bool:
        """Whether this is the graph of the arguments."""
        return count == self.nodes and dtype == self.messages.weights.dtype and np.array_equal(edges, self.edges)


class MessageCache:
    """Keeps the messages of the two graphs made last: layers and blocks of a run, the same at all its decisions.

    A batch of equal graphs is found again too, in whatever order they come. Graphs in a GPU's memory are not kept: to
    compare them would wait for the GPU.
    """

    def __init__(self) -> None:
        self._known: tuple[Known, ...] = ()

    def get(self, edges: Tensor, count: int, dtype: torch.dtype) -> Messages:
        """Return :func:`normalise` of the same arguments."""
        if not edges.is_cpu:
            return normalise(edges, count, dtype)
        links = edges.numpy()
        for known in self._known:
            if known.is_of(links, count, dtype):
                return known.messages
        with torch.inference_mode(False):  # messages first asked for in inference must serve in training too
            made = Known(links.copy(), count, normalise(edges, count, dtype))
        self._known = (made, *self._known[:1])
        return made.messages
