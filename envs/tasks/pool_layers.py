"""More networks of drawn tasks: recurrent ones, bags of embeddings, graph layers, bare parameters, language models.

Layers are written out where PyTorch's own cannot be evaluated for many runs at once; parameters, their names and their
initial values are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from envs.tasks.pool_models import Network, NetworkSpec


# ---------------------------------------------------------------------- recurrent


class GRU(nn.GRU):
    """One layer of ``nn.GRU`` (Cho et al., 2014), the batch first, its steps written out."""

    def forward(self, tokens: Tensor, hx: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the state after each token, (N, T, width)."""
        state = tokens.new_zeros(len(tokens), self.hidden_size)
        states, read = [], nn.functional.linear(tokens, self.weight_ih_l0, self.bias_ih_l0)
        for now in read.unbind(1):
            kept = nn.functional.linear(state, self.weight_hh_l0, self.bias_hh_l0)
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
        states, read = [], nn.functional.linear(tokens, self.weight_ih_l0, self.bias_ih_l0)
        for now in read.unbind(1):
            gates = now + nn.functional.linear(state, self.weight_hh_l0, self.bias_hh_l0)
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
        states, read = [], nn.functional.linear(tokens, self.weight_ih_l0, self.bias_ih_l0)
        for now in read.unbind(1):
            state = (now + nn.functional.linear(state, self.weight_hh_l0, self.bias_hh_l0)).tanh()
            states.append(state)
        return torch.stack(states, dim=1)


CELLS: dict[str, Callable[..., nn.Module]] = {"gru": GRU, "lstm": LSTM, "rnn": RNN}


class LastPosition(nn.Module):
    """What was read last."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, width)."""
        return tokens[:, -1]


def recurrent(spec: NetworkSpec) -> Network:
    """Recurrent layers over rows of pixels, patches of signals, or embedded tokens; the head reads the last state."""
    from envs.tasks.pool_models import Mean, Network

    begin, width = _tokens(spec)
    layers: list[nn.Module] = [*begin]
    for after in spec.widths:
        layers.append(CELLS[spec.cell](width, after, batch_first=True))
        width = after
    if spec.norm == "layer":
        layers.append(nn.LayerNorm(width))
    if not spec.sequence:
        layers.append(Mean() if spec.pooling == "average" else LastPosition())
    return Network(nn.Sequential(*layers, *_dropout(spec)), nn.Linear(width, spec.outputs))


def _tokens(spec: NetworkSpec) -> tuple[list[nn.Module], int]:
    """Return what makes tokens (N, T, width) of examples, and their width."""
    from envs.tasks.pool_models import Patches

    if len(spec.shape) == 1:
        return [nn.Embedding(spec.vocabulary, spec.widths[0])], spec.widths[0]
    return [Patches(spec.patch)], spec.shape[-1] if len(spec.shape) == 3 else spec.patch


# ---------------------------------------------------------------------- text


class EmbeddingBag(nn.EmbeddingBag):
    """``nn.EmbeddingBag`` for bags of one size, written out: the mean of rows."""

    def forward(self, tokens: Tensor, *unused: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return (N, width)."""
        return nn.functional.embedding(tokens, self.weight).mean(dim=-2)


def bag(spec: NetworkSpec) -> Network:
    """A bag of embeddings, and fully connected layers on it."""
    from envs.tasks.pool_models import ACTIVATIONS, Network

    layers: list[nn.Module] = [EmbeddingBag(spec.vocabulary, spec.widths[0])]
    for before, after in pairwise(spec.widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[spec.activation](), *_dropout(spec)]
    return Network(nn.Sequential(*layers), nn.Linear(spec.widths[-1], spec.outputs))


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


def graph(spec: NetworkSpec) -> Network:
    """Graph layers and a head."""
    from envs.tasks.pool_models import ACTIVATIONS, Network

    body = GraphBody(spec.cell, spec.shape[1] - spec.shape[0], spec.widths, ACTIVATIONS[spec.activation])
    return Network(body, nn.Linear(spec.widths[-1], spec.outputs))


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


def bare(spec: NetworkSpec) -> Network:
    """A fully connected network of layers that PyTorch does not name."""
    from envs.tasks.pool_models import ACTIVATIONS, Network

    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise([int(torch.Size(spec.shape).numel()), *spec.widths]):
        layers += [Bare(before, after), ACTIVATIONS[spec.activation](), *_dropout(spec)]
    return Network(nn.Sequential(*layers), Bare(spec.widths[-1], spec.outputs))


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


def language_model(spec: NetworkSpec) -> Network:
    """A decoder with norms first (Radford et al., 2019) on numbers of tokens; outputs (N, T, vocabulary)."""
    from envs.tasks.pool_models import ACTIVATIONS, Network, Positions, Residual

    width = spec.widths[0]
    layers: list[nn.Module] = [nn.Embedding(spec.vocabulary, width), Positions(spec.shape[0], width)]
    for _ in spec.widths:
        between = [nn.Linear(width, 2 * width), ACTIVATIONS[spec.activation](), *_dropout(spec)]
        layers.append(Residual(nn.LayerNorm(width), CausalAttention(width)))
        layers.append(Residual(nn.LayerNorm(width), *between, nn.Linear(2 * width, width)))
    return Network(nn.Sequential(*layers, nn.LayerNorm(width)), nn.Linear(width, spec.outputs))


def _dropout(spec: NetworkSpec) -> list[nn.Module]:
    return [nn.Dropout(spec.dropout)] if spec.dropout else []
