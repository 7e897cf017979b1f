"""Padded observations hold exactly the graphs they were made from."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import EnvConfig, LearningRateEnv, PadGraph, get_task, unpad
from envs.learning_rate_env import node_matrix
from gns import DecisionConfig, InvalidSettingError, NetworkConfig, Observation
from gns.features.schemas import SCHEMAS
from gns.policy.network import GNSNetwork, batch_observations

TASKS = [
    get_task("digits_mlp"),
    get_task("digits_cnn", model={"channels": [4, 4, 8]}),
    get_task("mnist1d_mlp", model={"hidden": []}),
]


def make_env(features: str = "gns-1", **room) -> PadGraph:
    config = EnvConfig(budgets=(10, 20), decision=DecisionConfig(num_decisions=5, features=features))
    return PadGraph(LearningRateEnv(TASKS, config), **room)


def collect(env: PadGraph) -> tuple[dict[str, torch.Tensor], list[Observation]]:
    """Padded observations of mixed sizes, stacked as SB3 does, and the observations they were made from."""
    padded, observations = [], []
    for seed, task in enumerate([1, 0, 2, 0, 1]):
        padded.append(env.reset(seed=seed, options={"task": TASKS[task].name})[0])
        observations.append(env.unwrapped.observation)
        padded.append(env.step(np.array([0.5], dtype=np.float32))[0])
        observations.append(env.unwrapped.observation)
    assert len({len(o.nodes) for o in observations}) == 3
    return stack(padded), observations


def stack(padded: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.stack([p[key] for p in padded])) for key in padded[0]}


def assert_same_batch(one, other) -> None:
    for name, a, b in zip(one._fields, one, other, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("features", sorted(SCHEMAS))
@pytest.mark.parametrize("room", [{}, {"max_nodes": 11, "max_edges": 17}])
def test_padding_and_unpadding_give_the_batch_of_the_observations(features, room):
    padded, observations = collect(make_env(features, **room))
    assert_same_batch(unpad(padded), batch_observations(observations))


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_network_gives_the_same_for_padded_and_unpadded_graphs(hierarchical):
    padded, observations = collect(make_env())
    torch.manual_seed(0)
    network = GNSNetwork(NetworkConfig(hierarchical=hierarchical))
    for a, b in zip(network(unpad(padded)), network(batch_observations(observations)), strict=True):
        assert torch.equal(a, b)


def test_what_lies_beyond_the_sizes_is_read_by_nobody():
    env = make_env(max_nodes=9, max_edges=9)
    padded, observations = collect(env)
    for number, o in enumerate(observations):
        assert not padded["nodes"][number, len(o.nodes) :].any()
        assert not padded["edges"][number, :, o.edges.shape[1] :].any()
        padded["nodes"][number, len(o.nodes) :] = torch.nan
        padded["edges"][number, :, o.edges.shape[1] :] = 1e6
    assert_same_batch(unpad(padded), batch_observations(observations))


@pytest.mark.parametrize("features", sorted(SCHEMAS))
def test_the_space_holds_the_observations(features):
    env = make_env(features)
    assert (env.max_nodes, env.max_edges) == (4, 3)
    schema = SCHEMAS[features]
    assert env.observation_space["nodes"].shape == (4, 2 + len(schema.node))
    assert env.observation_space["edges"].shape == (2, 3)
    assert ("globals" in env.observation_space.spaces) == bool(schema.globals)
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        assert observation in env.observation_space
        assert all(value.dtype == np.float32 for value in observation.values())


def test_without_globals_the_batch_has_globals_of_width_zero():
    env = make_env("gns-paper")
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"nodes", "edges", "sizes"}
    batch = unpad(stack([observation, observation]))
    assert batch.globals.shape == (2, 0)


@pytest.mark.parametrize("room", [{"max_nodes": 2, "max_edges": 9}, {"max_nodes": 9, "max_edges": 1}])
def test_too_little_room_is_named(room):
    env = make_env(**room)
    message = f"3 nodes and 2 edges; there is room for {room['max_nodes']} and {room['max_edges']}"
    with pytest.raises(InvalidSettingError, match=message):
        env.reset(seed=0, options={"task": "digits_mlp"})


@pytest.mark.parametrize("room", [{"max_nodes": 12}, {"max_edges": 12}])
def test_room_left_out_is_that_of_the_largest_task(room):
    env = make_env(**room)
    assert (env.max_nodes, env.max_edges) == (room.get("max_nodes", 4), room.get("max_edges", 3))


@st.composite
def graphs(draw, max_nodes: int = 6, max_edges: int = 8) -> Observation:
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    nodes, edges = draw(st.integers(1, max_nodes)), draw(st.integers(0, max_edges))
    schema = SCHEMAS["gns-1"]
    return Observation(
        nodes=rng.uniform(-5, 5, (nodes, len(schema.node))).astype(np.float32),
        node_types=rng.integers(0, 7, nodes),
        blocks=rng.integers(0, 10_000, nodes),
        edges=rng.integers(0, nodes, (2, edges)),
        globals=rng.uniform(-5, 5, len(schema.globals)).astype(np.float32),
    )


ROOM = make_env(max_nodes=6, max_edges=8)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(graphs(), min_size=1, max_size=5))
def test_the_round_trip_keeps_any_graphs(observations):
    padded = [
        ROOM.observation(
            spaces.GraphInstance(nodes=node_matrix(o), edges=np.ones((o.edges.shape[1], 1)), edge_links=o.edges.T)
        )
        for o in observations
    ]
    assert all(p in ROOM.observation_space for p in padded)
    assert_same_batch(unpad(stack(padded)), batch_observations(observations))
