"""Padding of graph observations to a ``Dict`` of ``Box``es, which SB3's buffers, checkers and savers understand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.calls import action_entries
from envs.learning_rate_env import LearningRateEnv, action_space
from gns.errors import InvalidSettingError
from gns.policy.network import GraphBatch


class PadGraph(gym.ObservationWrapper):
    """Pads graphs of up to ``max_nodes`` nodes and ``max_edges`` edges.

    The observation is a dictionary of float32 arrays: ``nodes`` (max_nodes, 2 + F), rows [type, block, features];
    ``edges`` (2, max_edges); ``globals`` (G,), left out where the schema has none; ``sizes`` (2,), the numbers of nodes
    and edges. What lies beyond the sizes is 0 and is read by nobody. In action mode ``per-layer`` there is room for the
    actions of ``max_nodes`` layers as well.

    :param env: an environment with graph observations
    :param max_nodes: room for nodes; the largest of the environment's tasks by default
    :param max_edges: room for edges, likewise
    """

    def __init__(self, env: gym.Env, max_nodes: int | None = None, max_edges: int | None = None) -> None:
        super().__init__(env)
        base = env.unwrapped
        assert isinstance(base, LearningRateEnv)
        if max_nodes is None or max_edges is None:
            nodes, edges = base.graph_limits()
            max_nodes, max_edges = max_nodes or nodes, max_edges or max(edges, 1)
        self.max_nodes, self.max_edges = max_nodes, max_edges
        self._width = 2 + len(base.schema.node)
        space = base.observation_space
        assert isinstance(space, spaces.Graph) and isinstance(space.node_space, spaces.Box)
        low, high = space.node_space.low, space.node_space.high
        boxes: dict[str, spaces.Space] = {
            "nodes": spaces.Box(
                np.tile(low[: self._width], (max_nodes, 1)), np.tile(high[: self._width], (max_nodes, 1))
            ),
            "edges": spaces.Box(0.0, float(max_nodes - 1) or 1.0, (2, max_edges)),
            "sizes": spaces.Box(0.0, np.array([max_nodes, max_edges], dtype=np.float32)),
        }
        if base.schema.globals:
            boxes["globals"] = spaces.Box(low[self._width :], high[self._width :])
        self._has_globals = "globals" in boxes
        self.observation_space = spaces.Dict(boxes)
        if base.config.decision.per_layer:
            self.action_space = action_space(max_nodes)

    def step(self, action: Any) -> Any:
        """Step the environment with the actions of the layers there are; see :class:`LearningRateEnv`.

        :raises InvalidActionError: see :meth:`LearningRateEnv.step`
        """
        base = self.unwrapped
        assert isinstance(base, LearningRateEnv)
        if base.running and self.action_space != base.action_space:
            own = 1 + base.core.graph.num_nodes
            assert self.action_space.shape is not None
            action = action_entries(action, {1, own, *self.action_space.shape}).reshape(-1)[:own]
        return super().step(action)

    def observation(self, observation: spaces.GraphInstance) -> dict[str, np.ndarray]:
        """Pad one graph.

        :raises InvalidSettingError: if it is larger than the room there is
        """
        nodes, links = np.asarray(observation.nodes), np.asarray(observation.edge_links)
        if len(nodes) > self.max_nodes or len(links) > self.max_edges:
            raise InvalidSettingError(
                f"The layer graph has {len(nodes)} nodes and {len(links)} edges; there is room for {self.max_nodes} "
                f"and {self.max_edges}. Raise max_nodes and max_edges."
            )
        padded = {
            "nodes": np.zeros((self.max_nodes, self._width), dtype=np.float32),
            "edges": np.zeros((2, self.max_edges), dtype=np.float32),
            "sizes": np.array([len(nodes), len(links)], dtype=np.float32),
        }
        padded["nodes"][: len(nodes)] = nodes[:, : self._width]
        padded["edges"][:, : len(links)] = links.T
        if self._has_globals:
            padded["globals"] = nodes[0, self._width :].copy()
        return padded

    def state_dict(self) -> dict[str, Any]:
        """Return the environment's, see :meth:`envs.learning_rate_env.LearningRateEnv.state_dict`."""
        return self.unwrapped.state_dict()  # type: ignore[attr-defined]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the environment go on from a :meth:`state_dict`.

        :raises StateError: if it is of something else
        """
        self.unwrapped.load_state_dict(state)  # type: ignore[attr-defined]


def unpad(observation: dict[str, Tensor]) -> GraphBatch:
    """Join B padded observations into one batch of graphs, by index arithmetic alone.

    :param observation: as :class:`PadGraph` makes them, with a leading batch dimension B
    """
    nodes, edges, sizes = observation["nodes"], observation["edges"], observation["sizes"].long()
    (count, room), device = nodes.shape[:2], nodes.device
    node = (torch.arange(room, device=device) < sizes[:, :1]).flatten().nonzero().squeeze(1)
    edge = (torch.arange(edges.shape[2], device=device) < sizes[:, 1:]).flatten().nonzero().squeeze(1)
    rows = nodes.flatten(0, 1).index_select(0, node)
    kinds = rows[:, :2].long()
    offsets = sizes[:, 0].cumsum(0) - sizes[:, 0]
    numbered = (edges.long() + offsets[:, None, None]).transpose(0, 1).flatten(1)
    globals_ = observation.get("globals")
    return GraphBatch(
        nodes=rows[:, 2:],
        node_types=kinds[:, 0],
        blocks=kinds[:, 1],
        edges=numbered.index_select(1, edge),
        graph=torch.div(node, room, rounding_mode="floor"),
        globals=globals_ if globals_ is not None else nodes.new_zeros(count, 0),
    )


def pad_layers(values: Tensor, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Give values of the layers of B graphs, one after the other, the places of their layers in padded observations.

    :param values: (N,), in the order of :func:`unpad`
    :param observation: B padded observations with room for M layers
    :return: (B, M), 0 where there is no layer, and where there is one, bool (B, M)
    """
    nodes, sizes = observation["nodes"], observation["sizes"].long()
    there = torch.arange(nodes.shape[1], device=nodes.device) < sizes[:, :1]
    return values.new_zeros(there.shape).masked_scatter(there, values), there
