"""The convolution on prepared graphs is PyG's to the last bit, and a prepared graph is never taken for another."""

import copy
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GCNConv

import gns.policy.convolution
from gns import GNSPolicy, NetworkConfig
from gns.policy.convolution import MessageCache, convolve, normalise
from gns.policy.finding import BUNDLED
from gns.policy.network import GNSNetwork, GraphBatch

quick = settings(deadline=None, derandomize=True, max_examples=40)
EDGES = torch.tensor([[0, 1, 2], [1, 2, 3]])


@lru_cache
def layer() -> GCNConv:
    torch.manual_seed(0)
    made = GCNConv(5, 7)
    torch.nn.init.normal_(made.bias)
    return made


def outcome(function, *inputs: Tensor) -> list[Tensor]:
    """What a function gives, and the gradients it sends back to its input and to the layer's parameters."""
    h, *others = inputs
    h = h.clone().requires_grad_()
    result = function(h, *others)
    weights = torch.linspace(-1.0, 2.0, result.numel()).view_as(result)
    return [result, *torch.autograd.grad((weights * result).sum(), [h, *layer().parameters()])]


def batch(sizes: list[int], seed: int = 0, width: int = 7, globals_: int = 14) -> GraphBatch:
    """Random graphs of these sizes; edges repeat and lead back to their node, as a hostile file's might."""
    generator = torch.Generator().manual_seed(seed)
    edges, offset = [], 0
    for size in sizes:
        edges.append(offset + torch.randint(size, (2, 2 * size), generator=generator))
        offset += size
    return GraphBatch(
        nodes=torch.randn(offset, width, generator=generator),
        node_types=torch.randint(7, (offset,), generator=generator),
        blocks=torch.cat([torch.arange(size) // 2 for size in sizes]),
        edges=torch.cat(edges, dim=1),
        graph=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        globals=torch.randn(len(sizes), globals_, generator=generator),
    )


def network(hierarchical: bool = False) -> tuple[GNSNetwork, GNSNetwork]:
    """A network, and the same one that calls PyG's layers."""
    torch.manual_seed(0)
    made = GNSNetwork(NetworkConfig(hidden=16, head=16, hierarchical=hierarchical))
    twin = copy.deepcopy(made)
    twin.encoder.message_cache = None
    return made, twin


def assert_equal(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# ---------------------------------------------------------------------- the twin


@quick
@given(nodes=st.integers(1, 12), edges=st.integers(0, 40), seed=st.integers(0, 2**31 - 1))
def test_it_is_pygs_layer_to_the_last_bit_forward_and_backward(nodes, edges, seed):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(nodes, 5, generator=generator)
    links = torch.randint(nodes, (2, edges), generator=generator)
    messages = normalise(links, nodes, h.dtype)
    assert_equal(outcome(lambda x: convolve(layer(), x, messages), h), outcome(layer(), h, links))


def test_it_is_pygs_layer_under_autocast():
    h = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        own, twin = convolve(layer(), h, normalise(EDGES, 4, h.dtype)), layer()(h, EDGES)
    assert_equal([own], [twin])


@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("sizes", [[1], [6], [3, 1, 9, 4], [5] * 8])
def test_a_network_is_the_one_of_pygs_layers_to_the_last_bit(hierarchical, sizes):
    found = []
    for made in network(hierarchical):
        action, value = made(batch(sizes))
        (action.sum() + value.square().sum()).backward()
        found.append([action, value, *(parameter.grad for parameter in made.parameters())])
    assert_equal(*found)


def test_the_bundled_policy_acts_as_with_pygs_layers():
    own, twin = GNSPolicy.from_pretrained(BUNDLED), GNSPolicy.from_pretrained(BUNDLED)
    twin.network.encoder.message_cache = None
    for seed in range(5):
        seen = batch([3, 12, 40], seed)
        assert_equal(own.network(seen), twin.network(seen))


def test_a_policys_weights_have_the_names_of_pygs_layers():
    made, twin = network()
    made(batch([4]))
    assert list(made.state_dict()) == list(twin.state_dict())
    assert {"encoder.first.lin.weight", "encoder.first.bias"} <= set(made.state_dict())


# ---------------------------------------------------------------------- the cache


@pytest.fixture
def made(monkeypatch):
    """The graphs prepared so far, by number of nodes."""
    counts: list[int] = []

    def noted(edges: Tensor, count: int, dtype: torch.dtype):
        counts.append(count)
        return normalise(edges, count, dtype)

    monkeypatch.setattr(gns.policy.convolution, "normalise", noted)
    return counts


@pytest.mark.parametrize(("hierarchical", "graphs"), [(False, [6]), (True, [6, 3])])
def test_a_runs_graph_is_prepared_once_for_all_its_decisions(made, hierarchical, graphs):
    own, _ = network(hierarchical)
    seen = batch([6])
    for seed in range(4):
        own(seen._replace(edges=seen.edges.clone(), nodes=batch([6], seed).nodes))
    assert made == graphs


def test_a_batch_of_equal_graphs_is_prepared_once(made):
    own, _ = network()
    edges = torch.cat([EDGES, EDGES + 4, EDGES + 8], dim=1)
    for seed in range(3):
        own(batch([4, 4, 4], seed)._replace(edges=edges.clone()))
    assert made == [12]


def test_another_graph_is_not_taken_for_the_last():
    own, twin = network()
    seen = batch([6])
    other_edges = seen._replace(edges=seen.edges.flip(1).roll(1))
    fewer_edges = seen._replace(edges=seen.edges[:, 1:])
    more_nodes = batch([9])._replace(edges=seen.edges)
    for graph in (seen, other_edges, fewer_edges, seen, more_nodes, other_edges):
        assert_equal(own(graph), twin(graph))


def test_edges_changed_in_place_are_another_graph():
    own, twin = network()
    seen = batch([6])
    own(seen)
    seen.edges[0, 0] = (seen.edges[0, 0] + 1) % 6
    assert_equal(own(seen), twin(seen))


def test_a_change_of_precision_prepares_the_graph_anew():
    cache = MessageCache()
    weights = {dtype: cache.get(EDGES, 4, dtype).weights for dtype in (torch.float32, torch.float64)}
    assert all(found.dtype == dtype for dtype, found in weights.items())
    assert_equal(cache.get(EDGES, 4, torch.float64), normalise(EDGES, 4, torch.float64))


def test_a_graph_first_seen_in_inference_serves_in_training():
    own, twin = network()
    with torch.inference_mode():
        own(batch([5]))
    found = []
    for network_ in (own, twin):
        network_(batch([5]))[1].sum().backward()
        found.append(network_.encoder.first.lin.weight.grad)
    assert_equal(found[:1], found[1:])


def test_no_more_than_two_graphs_are_kept(made):
    cache = MessageCache()
    for count in (4, 5, 6, 4, 6, 4):
        cache.get(EDGES, count, torch.float32)
    assert made == [4, 5, 6, 4]
