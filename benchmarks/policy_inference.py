"""What a policy costs on one core: its answer to one graph and to 256 graphs of 10 nodes, and an update by PPO.

The network and its twin, the same one that calls PyTorch Geometric's layers, take turns in one process and change
places every round, so that a machine whose speed drifts slows both alike. Graphs are chains like those of networks,
their features random; an update is ``PPO.train()`` on a rollout of 64 episodes of 20 decisions with the settings of
:class:`agents.training.ppo.PPOConfig`, never stopped early. After the last one both agents must have the same weights.

    python -m benchmarks.policy_inference
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.training.ppo import GraphActorCriticPolicy, PPOConfig, make_ppo, single_thread
from envs.padding import unpad
from gns.deciding.decision import Observation
from gns.features.schemas import get_schema
from gns.graph.layer_graph import NODE_TYPES
from gns.policy.network import GNSNetwork, GraphEncoder, NetworkConfig, batch_observations

EPISODES, DECISIONS = 64, 20
SCHEMA = get_schema("gns-1")


def padded(rng: np.random.Generator, size: int, room: int) -> dict[str, np.ndarray]:
    """Return a chain of ``size`` nodes as :class:`envs.padding.PadGraph` would, in a room of ``room``."""
    nodes = np.zeros((room, 2 + len(SCHEMA.node)), dtype=np.float32)
    nodes[:size, 0], nodes[:size, 1] = rng.integers(len(NODE_TYPES), size=size), np.arange(size) // 2
    nodes[:size, 2:] = rng.normal(size=(size, len(SCHEMA.node)))
    edges = np.zeros((2, room - 1), dtype=np.float32)
    edges[:, : size - 1] = np.arange(size - 1), np.arange(1, size)
    return {
        "nodes": nodes,
        "edges": edges,
        "sizes": np.array([size, size - 1], dtype=np.float32),
        "globals": rng.normal(size=len(SCHEMA.globals)).astype(np.float32),
    }


class RandomGraphs(gym.Env):
    """Episodes of random features and rewards on graphs of ``smallest`` to ``room`` nodes, one graph an episode."""

    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, seed: int, smallest: int, room: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._smallest, self._room = smallest, room
        shapes = {name: value.shape for name, value in padded(self._rng, room, room).items()}
        self.observation_space = spaces.Dict({name: spaces.Box(-1e6, 1e6, shape) for name, shape in shapes.items()})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a graph."""
        self._decision, self._size = 0, int(self._rng.integers(self._smallest, self._room + 1))
        return padded(self._rng, self._size, self._room), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Draw features and a reward."""
        self._decision += 1
        done = self._decision == DECISIONS
        return padded(self._rng, self._size, self._room), float(self._rng.normal()), done, False, {}


def take_turns(arms: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Return the seconds of each arm by round, after a few rounds that do not count."""
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(-3, rounds):
        order = range(len(arms)) if turn % 2 else reversed(range(len(arms)))
        for arm in order:
            start = time.perf_counter()
            arms[arm]()
            if turn >= 0:
                seconds[arm].append(time.perf_counter() - start)
    return seconds


def report(name: str, seconds: list[list[float]]) -> None:
    """Print medians and minima in milliseconds, and the median ratio of a round."""
    own, twin = seconds
    ratio = median(a / b for a, b in zip(own, twin, strict=True))
    figures = "".join(f"{1e3 * median(times):11.3f}{1e3 * min(times):10.3f}" for times in seconds)
    print(f"{name:<44}{figures}{ratio:9.3f}", flush=True)


def networks() -> list[GNSNetwork]:
    """Return a network and its twin."""
    made = [GNSNetwork(NetworkConfig()).eval() for _ in range(2)]
    made[1].load_state_dict(made[0].state_dict())
    for part in made[1].modules():
        if isinstance(part, GraphEncoder):
            part.message_cache = None
    return made


@torch.no_grad()
def measure_inference(rounds: int, nodes: int) -> None:
    """Measure one graph as a scheduler asks, and padded batches as PPO does."""
    rng, pair = np.random.default_rng(0), networks()
    one = padded(rng, nodes, nodes)
    seen = Observation(
        nodes=one["nodes"][:, 2:],
        node_types=one["nodes"][:, 0].astype(np.int64),
        blocks=one["nodes"][:, 1].astype(np.int64),
        edges=one["edges"].astype(np.int64),
        globals=one["globals"],
    )
    arms = [lambda network=network: network(batch_observations([seen])) for network in pair]
    report(f"one graph of {nodes} nodes", take_turns(arms, 10 * rounds))
    for name, smallest in ((f"256 graphs of {nodes} nodes", nodes), (f"256 graphs of 2 to {nodes} nodes", 2)):
        drawn = [padded(rng, int(rng.integers(smallest, nodes + 1)), nodes) for _ in range(256)]
        batch = {key: torch.from_numpy(np.stack([graph[key] for graph in drawn])) for key in one}
        arms = [lambda network=network, batch=batch: network(unpad(batch)) for network in pair]
        report(name, take_turns(arms, rounds))


def agents(smallest: int, room: int) -> list[PPO]:
    """Return two agents with the same weights and the same rollout, the second with PyG's layers."""
    made = []
    for twin in (False, True):
        config = PPOConfig(target_kl=None)
        venv = DummyVecEnv([lambda seed=seed: RandomGraphs(seed, smallest, room) for seed in range(config.num_envs)])
        agent = make_ppo(venv, config, DECISIONS, seed=0)
        assert isinstance(agent.policy, GraphActorCriticPolicy)
        if twin:
            agent.policy.features_extractor.encoder.message_cache = None  # type: ignore[union-attr]
        agent.learn(EPISODES * DECISIONS)
        made.append(agent)
    return made


def measure_updates(rounds: int, nodes: int) -> None:
    """Measure whole updates, all passes over a rollout."""
    for name, smallest in ((f"graphs of {nodes} nodes", nodes), (f"graphs of 2 to {nodes} nodes", 2)):
        pair, draws = agents(smallest, nodes), [0, 0]

        def update(arm: int, pair: list[PPO] = pair, draws: list[int] = draws) -> None:
            np.random.seed(draws[arm])  # the order of a pass, which the two agents would else draw in turns
            draws[arm] += 1
            pair[arm].train()

        report(
            f"update, {EPISODES} x {DECISIONS} decisions, {name}",
            take_turns([lambda: update(0), lambda: update(1)], rounds),
        )
        own, twin = (agent.policy.network_state() for agent in pair)  # type: ignore[operator]
        assert all(torch.equal(value, twin[key]) for key, value in own.items()), "the two agents came apart"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="rounds of inference on 256 graphs")
    parser.add_argument("--updates", type=int, default=15, help="rounds of updates by PPO")
    parser.add_argument("--nodes", type=int, default=10)
    arguments = parser.parse_args()
    single_thread()
    torch.manual_seed(0)
    print(f"{'milliseconds on one thread':<44}{'median':>11}{'least':>10}{'PyG median':>11}{'least':>10}{'ratio':>9}")
    measure_inference(arguments.rounds, arguments.nodes)
    measure_updates(arguments.updates, arguments.nodes)


if __name__ == "__main__":
    main()
