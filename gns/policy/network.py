"""The graph network of a policy: encoder, actor and critic.

Layer graph -> type embedding and node features -> two graph convolutions -> mean over nodes -> joined with the global
vector -> actor (mean of the action) and critic (value). The hierarchical form pools layers to blocks between the two
convolutions, so that the second one passes messages over the blocks of a network. Without a graph, one hidden layer on
the global vector alone takes the place of all that comes before actor and critic. For action mode ``per-layer`` a
second actor reads the embedding of each layer beside that of the graph.

An actor with ``levels`` says what each of so many actions between -1 and 1 would cost, and acts by their mean, weighted
by a softmin of the costs. A network with ``members`` is so many networks, whose means are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gns.deciding.action_modes import modes_by_layer
from gns.deciding.config import DecisionConfig, Observation
from gns.errors import InvalidSettingError, UnknownNameError
from gns.features.schemas import get_schema
from gns.policy.convolution import MessageCache, convolve

CONVOLUTIONS: tuple[str, ...] = ("GCNConv", "GraphConv", "SAGEConv")
NO_GRAPH = "none"
MOST_LEVELS, MOST_MEMBERS = 64, 16
TEMPERATURE = 0.07  # of the softmin over costs, which are log losses: what ends 7 % higher weighs e times less
NUM_TYPE_EMBEDDINGS = 8  # one more than there are types, for types of a later version


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network.

    :param features: feature schema, which fixes the input widths
    :param convolution: a class of ``torch_geometric.nn``, one of :data:`CONVOLUTIONS`; or ``none``: the graph is not
        read, and ``type_embedding`` has no effect
    :param hierarchical: pool layers to blocks before the second convolution
    :param type_embedding: width of the node-type embedding
    :param hidden: width of both convolutions and of the graph embedding; without a graph, of the first hidden layer
    :param head: width of the hidden layer of actor and critic
    :param dropout: probability of dropout after the first layer; the paper's code has 0.5, and drops out while acting
        too, which this one does not
    :param action_scale: the mean action is ``action_scale * tanh(.)``
    :param per_layer: a second actor on the embedding of each layer, joined with the graph's: for action mode
        ``per-layer``, which sets it by itself where policies are made
    :param levels: actions, evenly spaced from -1 to 1, that the actor tells the costs of, see :class:`CostActor`; 0: it
        tells the action itself
    :param members: networks whose actions and values are averaged
    """

    features: str = "gns-1"
    convolution: str = "GCNConv"
    hierarchical: bool = False
    type_embedding: int = 8
    hidden: int = 64
    head: int = 64
    dropout: float = 0.0
    action_scale: float = 1.0
    per_layer: bool = False
    levels: int = 0
    members: int = 1

    def __post_init__(self) -> None:
        schema = get_schema(self.features)
        if self.convolution not in (*CONVOLUTIONS, NO_GRAPH):
            raise UnknownNameError("graph convolution", self.convolution, (*CONVOLUTIONS, NO_GRAPH))
        if self.convolution == NO_GRAPH and (self.hierarchical or not schema.globals):
            problem = (
                "hierarchical is true" if self.hierarchical else f"features {schema.name!r} has no global features"
            )
            raise InvalidSettingError(
                f"convolution is {NO_GRAPH!r} and {problem}; without a graph there are no blocks to pool, and global "
                f"features alone to read. Choose one of {', '.join(CONVOLUTIONS)}, or features such as 'srls'."
            )
        if self.per_layer and (self.convolution == NO_GRAPH or not schema.node):
            problem = (
                f"convolution is {NO_GRAPH!r}"
                if self.convolution == NO_GRAPH
                else f"features {schema.name!r} have none of layers"
            )
            raise InvalidSettingError(
                f"per_layer is true and {problem}; actions of layers need embeddings of layers. Choose one of "
                f"{', '.join(CONVOLUTIONS)} and features such as 'gns-1', or another action mode than "
                f"{modes_by_layer()}."
            )
        for name in ("type_embedding", "hidden", "head"):
            value = getattr(self, name)
            if not (isinstance(value, int) and 1 <= value <= 4096):
                raise InvalidSettingError(f"{name} is {value!r}; expected a whole number from 1 to 4096.")
        if not (isinstance(self.levels, int) and 0 <= self.levels <= MOST_LEVELS) or self.levels == 1:
            raise InvalidSettingError(f"levels is {self.levels!r}; expected 0, or a whole number from 2 to {MOST_LEVELS}.")
        if not (isinstance(self.members, int) and 1 <= self.members <= MOST_MEMBERS):
            raise InvalidSettingError(f"members is {self.members!r}; expected a whole number from 1 to {MOST_MEMBERS}.")
        if not 0.0 <= self.dropout < 1.0:
            raise InvalidSettingError(f"dropout is {self.dropout}; expected a probability in [0, 1).")
        if not 0.0 < self.action_scale <= 1.0:
            raise InvalidSettingError(f"action_scale is {self.action_scale}; expected a number in (0, 1].")


def network_for(network: NetworkConfig, decision: DecisionConfig) -> NetworkConfig:
    """Return a network's configuration with the actors that an action mode asks for.

    :raises InvalidSettingError: if it has an actor of layers and the mode has no actions of layers, or it has no
        embeddings of layers and the mode has such actions
    """
    if network.per_layer and not decision.per_layer:
        raise InvalidSettingError(
            f"The network has per_layer = true, for which mode {decision.mode!r} has no use; set env.decision.mode to "
            f"{modes_by_layer()}, or agent.network.per_layer to false."
        )
    return replace(network, per_layer=True) if decision.per_layer else network


class GraphBatch(NamedTuple):
    """B graphs as one disconnected graph, the way PyG batches: N nodes in all, E edges in all.

    :param nodes: float32 (N, F)
    :param node_types: int64 (N,)
    :param blocks: int64 (N,), block of each node within its own graph
    :param edges: int64 (2, E), numbered over the whole batch
    :param graph: int64 (N,), graph each node belongs to, in ascending order
    :param globals: float32 (B, G)
    """

    nodes: Tensor
    node_types: Tensor
    blocks: Tensor
    edges: Tensor
    graph: Tensor
    globals: Tensor


def batch_observations(observations: Sequence[Observation]) -> GraphBatch:
    """Batch B observations of any sizes."""
    sizes = [len(o.nodes) for o in observations]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return GraphBatch(
        nodes=torch.from_numpy(np.concatenate([o.nodes for o in observations])),
        node_types=torch.from_numpy(np.concatenate([o.node_types for o in observations])),
        blocks=torch.from_numpy(np.concatenate([o.blocks for o in observations])),
        edges=torch.from_numpy(
            np.concatenate([o.edges + k for o, k in zip(observations, offsets, strict=True)], axis=1)
        ),
        graph=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        globals=torch.from_numpy(np.stack([o.globals for o in observations])),
    )


class GraphEncoder(nn.Module):
    """Encodes a :class:`GraphBatch` into one vector a graph: float32 (B, ``hidden``).

    Without its ``message_cache`` it calls PyG's layers, for the same numbers in more time.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        import torch_geometric.nn as pyg  # takes a second to import: only where a network is built

        schema = get_schema(config.features)
        convolution = getattr(pyg, config.convolution)
        self.hierarchical = config.hierarchical
        self.type_embedding = nn.Embedding(NUM_TYPE_EMBEDDINGS, config.type_embedding)
        self.first: nn.Module = convolution(len(schema.node) + config.type_embedding, config.hidden)
        self.second: nn.Module = convolution(config.hidden, config.hidden)
        self.message_cache = MessageCache() if config.convolution == "GCNConv" else None
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.hidden + len(schema.globals), config.hidden)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Return the embedding of each graph."""
        return self.graphs_and_layers(batch)[0]

    def graphs_and_layers(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Return the embedding of each graph, (B, hidden), and of each layer, (N, hidden).

        That of a layer is what the second convolution gives; in the hierarchical form its block's.
        """
        types = batch.node_types.clamp(0, NUM_TYPE_EMBEDDINGS - 1)
        h = torch.cat([batch.nodes, self.type_embedding(types)], dim=-1)
        h = self.dropout(torch.relu_(self._convolve(self.first, h, batch.edges)))
        graph, edges, block = batch.graph, batch.edges, None
        if self.hierarchical:
            h, edges, graph, block = _pool_to_blocks(h, batch)
        h = torch.relu_(self._convolve(self.second, h, edges))
        pooled = mean_by_group(h, graph, batch.globals.shape[0])
        embedding = torch.tanh(self.output(torch.cat([pooled, batch.globals], dim=-1)))
        return embedding, h if block is None else h[block]

    def _convolve(self, layer: nn.Module, h: Tensor, edges: Tensor) -> Tensor:
        if self.message_cache is None:
            return layer(h, edges)
        return convolve(layer, h, self.message_cache.get(edges, len(h), h.dtype))


def _pool_to_blocks(h: Tensor, batch: GraphBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean over each block; edges between blocks, each once; the graph of each block; the block of each node."""
    width = int(batch.blocks.max()) + 1
    keys, block = torch.unique(batch.graph * width + batch.blocks, return_inverse=True)
    between = block[batch.edges]
    between = torch.unique(between[:, between[0] != between[1]], dim=1)
    return mean_by_group(h, block, len(keys)), between, torch.div(keys, width, rounding_mode="floor"), block


def mean_by_group(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Mean of the rows of ``values`` (N, D) in each of ``count`` groups: (count, D); an empty group gives 0."""
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, group, values)
    return sums / torch.bincount(group, minlength=count).clamp(min=1).unsqueeze(-1)


class GlobalEncoder(nn.Module):
    """Encodes the global vectors of a :class:`GraphBatch` and reads nothing else: float32 (B, ``hidden``).

    With the hidden layer of actor and critic, the network of SRLS (Xu et al., 2019): two hidden layers, the first of
    them shared.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.first = nn.Linear(len(get_schema(config.features).globals), config.hidden)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Return the embedding of each global vector."""
        return self.dropout(torch.tanh(self.first(batch.globals)))


class GNSNetwork(nn.Module):
    """Encoder with actor and critic heads; with ``members``, several of them, which stand in :attr:`members`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.members: nn.ModuleList | None = None
        if config.members > 1:
            self.members = nn.ModuleList(GNSNetwork(replace(config, members=1)) for _ in range(config.members))
            return
        self.encoder = GlobalEncoder(config) if config.convolution == NO_GRAPH else GraphEncoder(config)
        self.actor = CostActor(config) if config.levels else _actor(config.hidden, config)
        self.critic = nn.Sequential(nn.Linear(config.hidden, config.head), nn.Tanh(), nn.Linear(config.head, 1))
        _begin_still(self.actor)
        self.layer_actor: LayerActor | None = LayerActor(config) if config.per_layer else None

    def forward(self, batch: GraphBatch) -> tuple[Tensor, Tensor]:
        """Return the mean action (B, 1) in [-1, 1], that of all layers, and the value (B, 1)."""
        if self.members is not None:
            actions, values = zip(*(member(batch) for member in self.members), strict=True)
            return torch.stack(actions).mean(dim=0), torch.stack(values).mean(dim=0)
        embedding = self.encoder(batch)
        return self.actor(embedding), self.critic(embedding)

    def actions(self, batch: GraphBatch) -> tuple[Tensor, Tensor | None]:
        """Return the mean action (B, 1), and that of each layer (N,); None where layers have none. All in [-1, 1]."""
        if self.members is not None:
            shared, layers = zip(*(member.actions(batch) for member in self.members), strict=True)  # type: ignore[operator]
            return torch.stack(shared).mean(dim=0), torch.stack(layers).mean(dim=0) if self.config.per_layer else None
        if self.layer_actor is None:
            return self.actor(self.encoder(batch)), None
        assert isinstance(self.encoder, GraphEncoder)
        embedding, layers = self.encoder.graphs_and_layers(batch)
        return self.actor(embedding), self.layer_actor(embedding, layers, batch.graph)


class CostActor(nn.Sequential):
    """Mean action from the costs of actions, which a curve of costs can teach by itself: no sample of an action needed.

    :param config: ``levels`` actions from ``-action_scale`` to ``action_scale``
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(nn.Linear(config.hidden, config.head), nn.Tanh(), nn.Linear(config.head, config.levels))
        self.scale = config.action_scale

    def costs(self, embedding: Tensor) -> Tensor:
        """Return the cost of each action, (B, levels), for embeddings (B, hidden): a log loss, up to a constant."""
        return super().forward(embedding)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the mean action (B, 1), weighted by ``softmax(-cost / TEMPERATURE)``."""
        costs = self.costs(embedding)
        actions = torch.linspace(-self.scale, self.scale, costs.shape[-1], dtype=costs.dtype, device=costs.device)
        # Rounding may leave a mean of the outermost action outside the bounds.
        mean = torch.softmax(costs / -TEMPERATURE, dim=-1) @ actions
        return mean.clamp(-self.scale, self.scale).unsqueeze(-1)


class LayerActor(nn.Module):
    """Mean action of each layer, from its embedding and that of its graph."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.head = _actor(2 * config.hidden, config)
        _begin_still(self.head)

    def forward(self, graphs: Tensor, layers: Tensor, graph: Tensor) -> Tensor:
        """Return the actions (N,) in [-1, 1] for embeddings (B, hidden) and (N, hidden), layer i in ``graph[i]``."""
        return self.head(torch.cat([layers, graphs[graph]], dim=-1)).squeeze(-1)


def _actor(width: int, config: NetworkConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, config.head), nn.Tanh(), nn.Linear(config.head, 1), nn.Tanh(), _Scale(config.action_scale)
    )


@torch.no_grad()
def _begin_still(actor: nn.Sequential) -> None:
    """Let a new actor change next to nothing."""
    last = actor[2]
    assert isinstance(last, nn.Linear)
    last.weight.mul_(0.01)
    last.bias.zero_()


class _Scale(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x
