"""Layers of drawn tasks' networks: attention, recurrent ones, bags of embeddings, graph layers, bare parameters.

Layers are written out where PyTorch's own cannot be evaluated for many runs at once; parameters, their names and their
initial values are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# ---------------------------------------------------------------------- plain ones


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the sum."""
        return inputs + super().forward(inputs)


class MeanPosition(nn.Module):
    """Mean over all positions of images or signals."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, channels)."""
        return inputs.flatten(2).mean(dim=2)


class Positions(nn.Module):
    """Adds a learned vector to each token."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, T, width) with their places in them."""
        return tokens + self.weight


class Attention(nn.Module):
    """Self-attention of two heads (Vaswani et al., 2017), written out so that many runs share it under ``vmap``."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, T, width) that have read each other."""
        q, k, v = (
            layer(tokens).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))


class Patches(nn.Module):
    """Signals (N, 1, length) as tokens (N, T, patch), images (N, 1, H, W) as their rows (N, H, W)."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, inputs: Tensor) -> Tensor:
        """Return tokens."""
        return inputs[:, 0] if inputs.dim() == 4 else inputs[:, 0].unflatten(-1, (-1, self.patch))


class Mean(nn.Module):
    """Mean over tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, width)."""
        return tokens.mean(dim=1)


# ---------------------------------------------------------------------- recurrent


def _affine(layer: nn.RNNBase, which: str, values: Tensor) -> Tensor:
    """Return what the layer's gates read of its input (``ih``) or its state (``hh``)."""
    return nn.functional.linear(values, getattr(layer, f"weight_{which}_l0"), getattr(layer, f"bias_{which}_l0"))


class GRU(nn.GRU):
    """One layer of ``nn.GRU`` (Cho et al., 2014), the batch first, its steps written out."""

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the state after each token, (N, T, width)."""
        state = tokens.new_zeros(len(tokens), self.hidden_size)
        states, read = [], _affine(self, "ih", tokens)
        for now in read.unbind(1):
            kept = _affine(self, "hh", state)
            (r, z, n), (kr, kz, kn) = now.chunk(3, -1), kept.chunk(3, -1)
            update = (z + kz).sigmoid()
            new = (n + (r + kr).sigmoid() * kn).tanh()
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states, dim=1)


class LSTM(nn.LSTM):
    """One layer of ``nn.LSTM`` (Hochreiter and Schmidhuber, 1997), the batch first, its steps written out."""

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the state after each token, (N, T, width)."""
        state = cell = tokens.new_zeros(len(tokens), self.hidden_size)
        states, read = [], _affine(self, "ih", tokens)
        for now in read.unbind(1):
            gates = now + _affine(self, "hh", state)
            i, f, g, o = gates.chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            state = o.sigmoid() * cell.tanh()
            states.append(state)
        return torch.stack(states, dim=1)


class RNN(nn.RNN):
    """One layer of ``nn.RNN`` (Elman, 1990), the batch first, its steps written out."""

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the state after each token, (N, T, width)."""
        state = tokens.new_zeros(len(tokens), self.hidden_size)
        states, read = [], _affine(self, "ih", tokens)
        for now in read.unbind(1):
            state = (now + _affine(self, "hh", state)).tanh()
            states.append(state)
        return torch.stack(states, dim=1)


CELLS: dict[str, Callable[..., nn.Module]] = {"gru": GRU, "lstm": LSTM, "rnn": RNN}


class LastPosition(nn.Module):
    """What was read last."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, width)."""
        return tokens[:, -1]


# ---------------------------------------------------------------------- text


class EmbeddingBag(nn.EmbeddingBag):
    """``nn.EmbeddingBag`` for bags of one size, written out: the mean of rows."""

    def forward(self, tokens: Tensor, *unused: Tensor | None) -> Tensor:
        """Return (N, width)."""
        return nn.functional.embedding(tokens, self.weight).mean(dim=-2)


# ---------------------------------------------------------------------- graphs


class GraphBody(nn.Module):
    """PyG's dense graph layers, an activation after each, and the mean over nodes.

    :param kind: ``gcn`` (Kipf and Welling, 2017), ``sage`` (Hamilton et al., 2017) or ``graph`` (Morris et al., 2019)
    :param features: of a node in the data
    :param widths: of the layers
    :param activation: makes what follows each
    """

    def __init__(self, kind: str, features: int, widths: tuple[int, ...], activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        from torch_geometric.nn import DenseGCNConv, DenseGraphConv, DenseSAGEConv

        make = {"gcn": DenseGCNConv, "sage": DenseSAGEConv, "graph": DenseGraphConv}[kind]
        self.features = features
        self.layers = nn.ModuleList(make(before, after) for before, after in pairwise([features, *widths]))
        self.activation = activation()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, width) of (N, nodes, features + nodes)."""
        nodes, edges = inputs[..., : self.features], inputs[..., self.features :]
        for layer in self.layers:
            nodes = self.activation(layer(nodes, edges))
        return nodes.mean(dim=1)


GRAPH_LAYERS = ("gcn", "sage", "graph")


# ---------------------------------------------------------------------- norms, parameters in other hands


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` (Wu and He, 2018), written out."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, channels, ...)."""
        grouped = inputs.unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(grouped.flatten(2), dim=2, correction=0)
        shape = (*mean.shape, *[1] * (grouped.dim() - 2))
        found = ((grouped - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)).flatten(1, 2)
        places = (-1, *[1] * (inputs.dim() - 2))
        return found * self.weight.view(places) + self.bias.view(places)


class Bare(nn.Module):
    """An affine layer whose parameters are its own, and have other names."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.gain, self.offset = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (N, outputs)."""
        return inputs @ self.matrix * self.gain + self.offset


class _LengthAndDirection(nn.Module):
    """Weight normalisation (Salimans and Kingma, 2016): rows are a length times a direction."""

    def forward(self, lengths: Tensor, directions: Tensor) -> Tensor:
        flat = directions.flatten(1)
        return directions * (lengths / flat.norm(dim=1)).view(-1, *[1] * (directions.dim() - 1))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.flatten(1).norm(dim=1), weight


def weight_normalise(network: nn.Module) -> None:
    """Parametrise all linear and convolutional layers by length and direction, in place."""
    for module in list(network.modules()):
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            parametrize.register_parametrization(module, "weight", _LengthAndDirection())


# ---------------------------------------------------------------------- language models


class CausalAttention(nn.Module):
    """Self-attention of two heads that reads no later token, written out; query, key and value in one layer."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (N, T, width) that have read those before them."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.in_proj(tokens).chunk(3, dim=-1)
        )
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        count = tokens.shape[-2]
        later = torch.ones(count, count, dtype=torch.bool, device=tokens.device).triu(1)
        weights = scores.masked_fill(later, -1e9).softmax(dim=-1)
        return self.out((weights @ v).transpose(-2, -3).flatten(-2))
