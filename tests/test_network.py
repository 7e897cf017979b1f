"""The graph network sees graphs: not the order of nodes and edges, not padding, not its neighbours in a batch."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from envs import EnvConfig, LearningRateEnv, PadGraph
from envs.learning_rate_env import node_matrix
from envs.padding import unpad
from gns import (
    DecisionConfig,
    GNSPolicy,
    InvalidSettingError,
    NetworkConfig,
    Observation,
    PolicyConfig,
    UnknownNameError,
)
from gns.features.schemas import SCHEMAS
from gns.graph.layer_graph import NODE_TYPES
from gns.policy.network import (
    CONVOLUTIONS,
    NUM_TYPE_EMBEDDINGS,
    GNSNetwork,
    _pool_to_blocks,
    batch_observations,
    mean_by_group,
)

TOLERANCE = 1e-6
quick = settings(deadline=None, derandomize=True, max_examples=25)
FORMS = {
    "flat": {},
    "hierarchical": {"hierarchical": True},
    "GraphConv": {"convolution": "GraphConv"},
    "SAGEConv hierarchical": {"convolution": "SAGEConv", "hierarchical": True},
    "paper features": {"features": "gns-paper"},
    "paper features hierarchical": {"features": "gns-paper", "hierarchical": True},
    "no node features": {"features": "srls"},
    "costs": {"levels": 9},
    "members": {"members": 3},
}
every_form = pytest.mark.parametrize("form", FORMS)
sizes = st.integers(1, 12)
seeds = st.integers(0, 2**31 - 1)


@lru_cache
def network(form: str) -> GNSNetwork:
    """A network whose outputs are of order 1, unlike a new policy's."""
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=16, head=16, **FORMS[form])).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


def observation(seed: int, layers: int, form: str = "flat", edges: int | None = None) -> Observation:
    """A random graph of up to ``edges`` edges; blocks are runs of neighbouring layers."""
    rng = np.random.default_rng(seed)
    schema = SCHEMAS[FORMS[form].get("features", "gns-1")]
    pairs = rng.integers(layers, size=(2, 2 * layers if edges is None else edges))
    pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1).reshape(2, -1)
    return Observation(
        nodes=rng.normal(size=(layers, len(schema.node))).astype(np.float32),
        node_types=rng.integers(len(NODE_TYPES), size=layers),
        blocks=np.concatenate([[0], rng.integers(2, size=layers - 1).cumsum()]).astype(np.int64),
        edges=pairs.astype(np.int64),
        globals=rng.normal(size=len(schema.globals)).astype(np.float32),
    )


def permuted(seen: Observation, seed: int) -> Observation:
    """The same graph with its nodes renumbered and its edges in another order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(seen.nodes))  # node order[i] becomes node i
    renumbered = np.argsort(order)[seen.edges]
    return Observation(
        nodes=seen.nodes[order],
        node_types=seen.node_types[order],
        blocks=seen.blocks[order],
        edges=renumbered[:, rng.permutation(seen.edges.shape[1])],
        globals=seen.globals,
    )


@torch.no_grad()
def outputs(form: str, *seen: Observation) -> Tensor:
    """Action and value of each graph."""
    return torch.cat(network(form)(batch_observations(seen)), dim=1)


def assert_near(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape and torch.isfinite(one).all()
    assert (one - other).abs().max() < TOLERANCE


# ---------------------------------------------------------------------- order


@every_form
@quick
@given(layers=sizes, seed=seeds)
def test_the_order_of_nodes_and_edges_does_not_matter(form, layers, seed):
    seen = observation(seed, layers, form)
    assert_near(outputs(form, seen), outputs(form, permuted(seen, seed + 1)))


@every_form
def test_everything_observed_matters(form):
    """Otherwise the invariances above and below would be those of a constant."""
    seen = observation(3, 8, form)
    before = outputs(form, seen)
    changes = {
        **({"nodes": seen.nodes + 0.5} if seen.nodes.size else {}),
        "node_types": (seen.node_types + 1) % len(NODE_TYPES),
        "edges": seen.edges[:, :-3],
        **({"globals": seen.globals + 0.5} if len(seen.globals) else {}),
        **({"blocks": np.zeros_like(seen.blocks)} if FORMS[form].get("hierarchical") else {}),
    }
    for name, value in changes.items():
        assert (outputs(form, replace(seen, **{name: value})) - before).abs().max() > 1e-3, name


@quick
@given(layers=sizes, seed=seeds)
def test_the_numbers_of_blocks_do_not_matter(layers, seed):
    seen = observation(seed, layers)
    renumbered = replace(seen, blocks=7 * (seen.blocks.max() - seen.blocks) + 3)
    assert_near(outputs("hierarchical", seen), outputs("hierarchical", renumbered))


# ---------------------------------------------------------------------- batches


@every_form
@quick
@given(layers=st.lists(sizes, min_size=1, max_size=6), seed=seeds)
def test_a_batch_is_its_graphs_one_by_one(form, layers, seed):
    seen = [observation(seed + i, count, form) for i, count in enumerate(layers)]
    together = outputs(form, *seen)
    assert together.shape == (len(layers), 2)
    assert_near(together, torch.cat([outputs(form, one) for one in seen]))


def test_a_batch_numbers_nodes_and_edges_through():
    seen = [observation(1, 3), observation(2, 1), observation(3, 4)]
    batch = batch_observations(seen)
    assert batch.graph.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert batch.globals.shape == (3, len(SCHEMAS["gns-1"].globals))
    first, last = seen[0].edges.shape[1], seen[2].edges.shape[1]
    assert batch.edges.shape == (2, first + last)
    assert torch.equal(batch.edges[:, first:], torch.from_numpy(seen[2].edges + 4))


def test_the_mean_of_an_empty_group_is_0():
    values, group = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0, 2, 2])
    assert mean_by_group(values, group, 4).tolist() == [[1.0, 2.0], [0.0, 0.0], [4.0, 5.0], [0.0, 0.0]]


def test_blocks_are_joined_by_each_edge_between_them_once():
    chain = replace(
        observation(0, 5), blocks=np.array([0, 0, 1, 1, 0]), edges=np.array([[0, 0, 1, 2, 3], [1, 2, 3, 3, 4]])
    )
    lone = replace(observation(1, 2), blocks=np.array([1, 1]), edges=np.array([[0], [1]]))
    h = torch.arange(7.0).unsqueeze(-1)
    means, between, graph, block = _pool_to_blocks(h, batch_observations([chain, lone]))
    assert means.flatten().tolist() == pytest.approx([5 / 3, 2.5, 5.5])
    assert between.T.tolist() == [[0, 1], [1, 0]]
    assert graph.tolist() == [0, 0, 1]
    assert block.tolist() == [0, 0, 1, 1, 0, 2, 2]


# ---------------------------------------------------------------------- padding


@lru_cache
def padding(features: str, max_nodes: int, max_edges: int) -> PadGraph:
    config = EnvConfig(decision=DecisionConfig(features=features))
    return PadGraph(LearningRateEnv(["digits_mlp"], config), max_nodes=max_nodes, max_edges=max_edges)


def padded(form: str, seen: Observation, max_nodes: int, max_edges: int) -> dict[str, np.ndarray]:
    """What the wrapper makes of the graph the environment would have given."""
    pad = padding(FORMS[form].get("features", "gns-1"), max_nodes, max_edges)
    links = seen.edges.T
    made = pad.observation(spaces.GraphInstance(node_matrix(seen), np.ones((len(links), 1), np.float32), links))
    assert made["nodes"].shape[0] == max_nodes and made["edges"].shape == (2, max_edges)
    return made


@torch.no_grad()
def outputs_of_padded(form: str, *seen: dict[str, np.ndarray]) -> Tensor:
    stacked = {name: torch.from_numpy(np.stack([one[name] for one in seen])) for name in seen[0]}
    return torch.cat(network(form)(unpad(stacked)), dim=1)


@every_form
@pytest.mark.parametrize("room", [(12, 24), (13, 25), (64, 200)])
@quick
@given(layers=st.lists(sizes, min_size=1, max_size=4), seed=seeds)
def test_padding_does_not_matter(form, room, layers, seed):
    seen = [observation(seed + i, count, form) for i, count in enumerate(layers)]
    assert_near(outputs_of_padded(form, *(padded(form, one, *room) for one in seen)), outputs(form, *seen))


@every_form
@quick
@given(layers=sizes, seed=seeds)
def test_what_stands_in_the_padding_is_read_by_nobody(form, layers, seed):
    seen = padded(form, observation(seed, layers, form), 20, 40)
    before = outputs_of_padded(form, seen)
    nodes, edges = (int(size) for size in seen["sizes"])
    seen["nodes"][nodes:] = np.nan
    seen["edges"][:, edges:] = 19
    assert torch.equal(outputs_of_padded(form, seen), before)


# ---------------------------------------------------------------------- odd graphs


@every_form
@pytest.mark.parametrize("layers", [1, 5])
def test_a_graph_without_edges(form, layers):
    seen = observation(0, layers, form, edges=0)
    assert seen.edges.shape == (2, 0)
    others = [observation(1, 4, form), seen, observation(2, 1, form)]
    assert_near(outputs(form, seen), outputs(form, *others)[1:2])
    assert_near(outputs_of_padded(form, padded(form, seen, 6, 3)), outputs(form, seen))


@every_form
def test_a_graph_of_one_node(form):
    seen = observation(0, 1, form)
    assert outputs(form, seen).shape == (1, 2)
    assert outputs(form, seen).isfinite().all()


@every_form
@pytest.mark.parametrize("kind", [len(NODE_TYPES), NUM_TYPE_EMBEDDINGS, 1000])
def test_a_node_of_an_unseen_type(form, kind):
    """Types of a later version share the spare embedding."""
    seen = observation(4, 5, form)
    types = seen.node_types.copy()
    types[2] = kind
    unseen = outputs(form, replace(seen, node_types=types))
    types[2] = NUM_TYPE_EMBEDDINGS - 1
    assert torch.equal(unseen, outputs(form, replace(seen, node_types=types)))
    assert not torch.equal(unseen, outputs(form, seen))


# ---------------------------------------------------------------------- outputs and gradients


@every_form
@quick
@given(layers=sizes, seed=seeds, size=st.sampled_from([1.0, 1e3, 1e6]))
def test_actions_lie_between_minus_1_and_1(form, layers, seed, size):
    seen = observation(seed, layers, form)
    action, value = outputs(form, replace(seen, nodes=seen.nodes * np.float32(size)))[0]
    assert -1.0 <= action <= 1.0 and torch.isfinite(value)


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_action_scale_bounds_the_action(scale):
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=8, head=8, action_scale=scale))
    with torch.no_grad():
        made.actor[2].bias.fill_(20.0)
        action, _ = made(batch_observations([observation(0, 4)]))
    assert action.item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("form", [{}, {"levels": 17}, {"members": 2}])
def test_a_new_policy_changes_next_to_nothing(form):
    torch.manual_seed(1)
    made = GNSNetwork(NetworkConfig(**form))
    with torch.no_grad():
        actions, values = made(batch_observations([observation(seed, 6) for seed in range(20)]))
    assert actions.abs().max() < 0.02
    assert values.std() > 0


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("features", sorted(SCHEMAS))
def test_gradients_reach_every_parameter(convolution, hierarchical, features):
    torch.manual_seed(0)
    form = {"gns-1": "flat", "gns-paper": "paper features", "srls": "no node features"}[features]
    made = GNSNetwork(NetworkConfig(features, convolution, hierarchical, hidden=8, head=8))
    action, value = made(batch_observations([observation(seed, 6, form) for seed in range(4)]))
    (action.sum() + value.sum()).backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_the_action_is_the_one_that_costs_least():
    made = network("costs")
    seen = batch_observations([observation(seed, 5) for seed in range(30)])
    with torch.no_grad():
        costs = made.actor.costs(made.encoder(seen))
        made.actor[2].weight.mul_(1000.0)
        sharp = made(seen)[0].squeeze(1)
        made.actor[2].weight.div_(1000.0)
    cheapest = (costs - made.actor[2].bias).argmin(dim=1)
    assert len(set(cheapest.tolist())) > 1
    assert ((sharp - (cheapest / 4.0 - 1.0)).abs() < 0.26).float().mean() > 0.9


@pytest.mark.parametrize("levels", [0, 5])
def test_members_are_averaged(levels):
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=8, head=8, levels=levels, members=3)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
        seen = batch_observations([observation(seed, 5) for seed in range(4)])
        alone = [member(seen) for member in made.members]
        action, value = made(seen)
        assert_near(action, sum(one for one, _ in alone) / 3)
        assert_near(value, sum(one for _, one in alone) / 3)
        assert_near(action, made.actions(seen)[0])
    assert (alone[0][0] - alone[1][0]).abs().min() > 1e-3


def test_members_actions_of_layers_are_averaged():
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=8, head=8, per_layer=True, members=2)).eval()
    seen = batch_observations([observation(0, 5), observation(1, 3)])
    with torch.no_grad():
        _, layers = made.actions(seen)
        assert_near(layers, sum(member.actions(seen)[1] for member in made.members) / 2)
    assert layers.shape == (8,)


# ---------------------------------------------------------------------- dropout


@pytest.mark.parametrize("training", [False, True])
def test_dropout_has_no_effect_on_the_policys_action(training):
    torch.manual_seed(0)
    config = PolicyConfig(network=NetworkConfig(hidden=8, head=8, dropout=0.5))
    policy = GNSPolicy(config).train(training)
    without = GNSPolicy(PolicyConfig(network=NetworkConfig(hidden=8, head=8)))
    without.load_state_dict(policy.state_dict())
    seen = observation(0, 6)
    assert {policy.act(seen) for _ in range(5)} == {without.act(seen)}
    assert all(module.training == training for module in policy.modules())


def test_dropout_drops_out_in_training():
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=8, head=8, dropout=0.5)).train()
    values = {made(batch_observations([observation(0, 6)]))[1].item() for _ in range(5)}
    assert len(values) > 1


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"convolution": "GATConv"}, UnknownNameError, "Unknown graph convolution 'GATConv'; expected one of: "),
        ({"features": "gns-9"}, UnknownNameError, "Unknown feature schema 'gns-9'; expected one of: "),
        *(
            ({name: value}, InvalidSettingError, f"{name} is {value!r}; expected a whole number from 1 to 4096")
            for name in ("type_embedding", "hidden", "head")
            for value in (0, -1, 4097, 2**40, 8.0, "8", None)
        ),
        *(
            ({"levels": value}, InvalidSettingError, f"levels is {value!r}; expected 0, or a whole number from 2 to 64")
            for value in (1, -1, 65, 2**40, 9.0, None)
        ),
        *(
            ({"members": value}, InvalidSettingError, f"members is {value!r}; expected a whole number from 1 to 16")
            for value in (0, -1, 17, 2**40, 2.0, None)
        ),
        ({"dropout": 1.0}, InvalidSettingError, r"dropout is 1.0; expected a probability in \[0, 1\)"),
        ({"dropout": -0.1}, InvalidSettingError, "dropout is -0.1"),
        ({"dropout": float("nan")}, InvalidSettingError, "dropout is nan"),
        ({"action_scale": 0.0}, InvalidSettingError, r"action_scale is 0.0; expected a number in \(0, 1\]"),
        ({"action_scale": 1.5}, InvalidSettingError, "action_scale is 1.5"),
    ],
)
def test_a_network_setting_outside_its_domain_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        NetworkConfig(**settings)
