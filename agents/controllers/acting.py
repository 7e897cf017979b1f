"""Methods that decide once an interval, in an agent's place: they drive the environment through its action space.

``predict(observation, state, episode_start, deterministic)`` has the signature of Stable-Baselines3's policies, so
that ``evaluate_policy``, rollouts and plain loops take a baseline where they take an agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import GraphInstance

from envs.padding import pad_layers, unpad
from gns.deciding.config import DecisionConfig
from gns.errors import InvalidSettingError
from gns.features.schemas import get_schema
from gns.policy.artefact import GNSPolicy
from gns.policy.network import GraphBatch
from gns.schedules.profiles import get_profile

State = tuple[dict[str, Any], ...]
_NEEDED = ("log_learning_rate", "log_loss", "progress", "rolled_back", "no_loss")


@dataclass(frozen=True)
class View:
    """What a rule reads off an observation of schema ``gns-1``.

    :param progress: updates done over budget
    :param initial: initial rate, cut wherever the guard cut the run's
    :param loss: mean training loss since the last decision; None where there is none
    """

    progress: float
    initial: float
    loss: float | None


class Acting:
    """A rule for the rate, turned into actions.

    The rate is the rule's at every decision; in between it follows the environment's own profile. In mode
    ``recursive`` it is constant there; a rule that is itself the environment's profile is followed exactly.

    :param decision: how the environment turns actions into rates
    :param target: rate wanted at a decision, from a view and a dictionary in which the rule may remember things
    :raises InvalidSettingError: if the environment's features do not tell the rate and the progress
    """

    def __init__(self, decision: DecisionConfig, target: Callable[[View, dict[str, Any]], float]) -> None:
        schema = get_schema(decision.features)
        if not set(_NEEDED) <= set(schema.globals):
            raise InvalidSettingError(
                f"Observations of schema {schema.name!r} do not hold {', '.join(_NEEDED)}; expected an environment "
                "with features 'gns-1' to act in."
            )
        self._decision, self._target = decision, target
        self._width = 2 + len(schema.node)
        self._columns = {name: (schema.globals.index(name), schema.feature(name).inverse) for name in _NEEDED}
        constant = decision.mode in ("recursive", "gns-paper")
        self._profile = get_profile("constant" if constant else decision.profile)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, State]:
        """Return actions for observations, as SB3's ``BasePolicy.predict`` does.

        :param observation: a graph, a padded observation, or a batch of B of these
        :param state: what the last call returned; None at the first
        :param episode_start: bool (B,), where an episode begins and the state is to be forgotten
        :param deterministic: makes no difference
        :return: float32 actions (B, 1), or (1,) for a single observation, and the new state
        """
        table, single = self._globals(observation)
        starts = np.zeros(len(table), dtype=bool) if episode_start is None else np.atleast_1d(episode_start)
        actions, memories = [], []
        for i, row in enumerate(table):
            memory = {} if state is None or starts[i] else dict(state[i])
            actions.append(self._act(row, memory))
            memories.append(memory)
        result = np.array(actions, dtype=np.float32).reshape(-1, 1)
        return (result[0] if single else result), tuple(memories)

    def _act(self, row: np.ndarray, memory: dict[str, Any]) -> float:
        values = {name: inverse(float(row[column])) for name, (column, inverse) in self._columns.items()}
        progress = min(max(values["progress"], 0.0), 1.0)
        rate = 10.0 ** values["log_learning_rate"]
        shape = self._profile(progress)
        if not memory:
            memory["initial"] = rate / shape
        elif values["rolled_back"] > 0.5 and shape > 0.0:
            memory["initial"] *= rate / shape / memory["level"]
        loss = None if values["no_loss"] > 0.5 else math.exp(values["log_loss"])
        target = self._target(View(progress, memory["initial"], loss), memory)
        action, multiplier = self._action(target / rate, target / (memory["initial"] * shape) if shape > 0.0 else 1.0)
        memory["level"] = rate / shape * multiplier if shape > 0.0 else memory["initial"]
        return action

    def _action(self, ratio: float, over_profile: float) -> tuple[float, float]:
        """Return the action that multiplies the rate by a ratio, or comes nearest, and what it does multiply by."""
        decision = self._decision
        if decision.mode == "anchored":
            action = min(max(math.log(over_profile) / decision.strength, -1.0), 1.0)
            return action, ratio
        if decision.mode == "gns-paper":
            action = min(max(ratio - 1.0, -1.0), 1.0)
            return action, 1.0 + action
        action = min(max(math.log(ratio) / math.log(decision.base), -1.0), 1.0)
        return action, decision.base**action

    def _globals(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Return the global features (B, G), and whether the observation was a single one."""
        if isinstance(observation, GraphInstance):
            return np.asarray(observation.nodes)[:1, self._width :], True
        table = np.asarray(observation["globals"])
        return np.atleast_2d(table), table.ndim == 1


class ActingPolicy:
    """A learned policy with the signature of SB3's ``predict``, for environments with its own decision settings.

    :param policy: the policy
    """

    def __init__(self, policy: GNSPolicy) -> None:
        self._policy = policy

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, State | None]:
        """Return the policy's deterministic actions: see :meth:`Acting.predict`; the state passes through unused.

        In action mode ``per-layer`` they are (B, 1 + L), with room for the layers that the observation has room for.
        """
        batch, padded, single = self._batch(observation)
        training = self._policy.training
        self._policy.eval()
        mean, layers = self._policy.network.actions(batch)
        self._policy.train(training)
        if layers is not None:
            own = layers[None] if padded is None else pad_layers(layers, padded)[0]
            mean = torch.cat([mean, own], dim=1)
        actions = mean.numpy()
        return (actions[0] if single else actions), state

    def _batch(self, observation: Any) -> tuple[GraphBatch, dict[str, torch.Tensor] | None, bool]:
        """Return the graphs, the padded observations they are from, and whether it was a single one."""
        if isinstance(observation, GraphInstance):
            return self._graph(observation), None, True
        tensors = {key: torch.as_tensor(np.asarray(value)) for key, value in observation.items()}
        single = tensors["nodes"].ndim == 2
        padded = {key: value[None] for key, value in tensors.items()} if single else tensors
        return unpad(padded), padded, single

    def _graph(self, observation: GraphInstance) -> GraphBatch:
        rows = torch.as_tensor(np.asarray(observation.nodes))
        width = 2 + len(get_schema(self._policy.config.decision.features).node)
        links: Any = observation.edge_links
        return GraphBatch(
            nodes=rows[:, 2:width],
            node_types=rows[:, 0].long(),
            blocks=rows[:, 1].long(),
            edges=torch.as_tensor(np.asarray(links)).T.long(),
            graph=torch.zeros(len(rows), dtype=torch.long),
            globals=rows[:1, width:],
        )
