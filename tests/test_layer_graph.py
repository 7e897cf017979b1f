"""The layer graph: nodes are the modules that own trainable parameters, edges the data flow between them."""

from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from gns import LayerGraph, LayerGraphError, layer_graph
from gns.graph.layer_graph import NODE_TYPES, block_of, unwrap

ROBERTA_LAYERS = 12


def edges(graph: LayerGraph) -> set[tuple[str, str]]:
    return {(graph.names[a], graph.names[b]) for a, b in graph.edges.T}


def same(one: LayerGraph, other: LayerGraph) -> bool:
    return (
        one.names == other.names
        and one.types == other.types
        and one.parameters == other.parameters
        and one.tensor_sizes == other.tensor_sizes
        and np.array_equal(one.edges, other.edges)
        and np.array_equal(one.depths, other.depths)
    )


def take(model: nn.Module, *inputs: Tensor) -> LayerGraph:
    return layer_graph(model, model(*inputs).square().mean())


# ---------------------------------------------------------------------- models


def mlp(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


class SkipCNN(nn.Module):
    """A stem, a block with an identity skip, a block with a projected skip, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.shortcut = nn.Conv2d(4, 6, 1, stride=2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem_norm(self.stem(x)))
        h = F.relu(h + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(h))))))
        h = F.relu(self.shortcut(h) + self.norm3(self.conv3(h)))
        return self.head(h.mean((2, 3)))


SKIP_CNN_EDGES = {
    ("stem", "stem_norm"),
    ("stem_norm", "conv1"),
    ("conv1", "norm1"),
    ("norm1", "conv2"),
    ("conv2", "norm2"),
    # the sum of the first block has no layer of its own: both its inputs go on
    *((source, target) for source in ("stem_norm", "norm2") for target in ("conv3", "shortcut")),
    ("conv3", "norm3"),
    ("norm3", "head"),
    ("shortcut", "head"),
}


class Tied(nn.Module):
    """Decoder and embedding share their weight."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7, bias=bias)
        self.decoder.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.hidden(self.embedding(x)).relu())


class Recurrent(nn.Module):
    """An LSTM between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.last = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(self.first(x))[0][:, -1])


class TwoBranches(nn.Module):
    """Two branches from one trunk, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.right_end, self.join = nn.Linear(4, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).relu()
        return self.join(torch.cat([self.left(h), self.right_end(self.right(h).tanh())], dim=-1))


class UsedTwice(nn.Module):
    """One layer applied at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.between, self.last = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.shared(self.first(x)).relu()
        return self.last(self.shared(self.between(h).relu()))


class Owner(nn.Module):
    """Owns a parameter itself, and scales it before it is applied."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight, self.last = nn.Parameter(torch.randn(4, 3)), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.scale == 1.0 else self.scale * self.weight
        return self.last(F.linear(x, weight).relu())


class ScaledInside(nn.Module):
    """A layer whose weight is scaled, between others."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, 2.0 * self.w)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scaled, self.last = nn.Linear(3, 4), self.Scaled(), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scaled(self.first(x)).relu())


class Attention(nn.Module):
    """Self-attention between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.attention(h, h, h)[0])


class Checkpointed(nn.Module):
    """The two middle layers are recomputed in the backward pass, if ``reentrant`` is not None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

    def middle(self, h: Tensor) -> Tensor:
        return self.c(self.b(h).relu()).relu()

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if self.reentrant is None:
            return self.d(self.middle(h))
        return self.d(checkpoint(self.middle, h, use_reentrant=self.reentrant))


@lru_cache
def roberta() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.RobertaConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=ROBERTA_LAYERS,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=20,
        num_labels=2,
    )
    inputs = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    return transformers.RobertaForSequenceClassification(config), {"input_ids": inputs, "labels": torch.tensor([0, 1])}


MODELS = {
    "mlp": (mlp, (torch.ones(2, 3),)),
    "skip_cnn": (SkipCNN, (torch.ones(2, 1, 6, 6),)),
    "tied": (lambda: Tied(bias=True), (torch.tensor([[1, 2, 3]]),)),
    "recurrent": (Recurrent, (torch.ones(2, 5, 3),)),
    "two_branches": (TwoBranches, (torch.ones(2, 3),)),
    "used_twice": (UsedTwice, (torch.ones(2, 4),)),
    "owner": (Owner, (torch.ones(2, 3),)),
    "attention": (Attention, (torch.ones(3, 2, 8),)),
}
every_model = pytest.mark.parametrize("name", MODELS)

# ---------------------------------------------------------------------- nodes and edges


def test_an_mlp_is_a_chain():
    graph = take(mlp(), torch.randn(5, 3))
    assert graph.names == ("0", "2", "4")
    assert edges(graph) == {("0", "2"), ("2", "4")}
    assert graph.parameters == (("0.weight", "0.bias"), ("2.weight", "2.bias"), ("4.weight", "4.bias"))
    assert graph.tensor_sizes == (12, 4, 16, 4, 8, 2)
    assert graph.sizes == (16, 20, 10)
    assert graph.depths.tolist() == [0.0, 0.5, 1.0]
    assert (graph.num_nodes, graph.num_edges) == (3, 2)


def test_a_cnn_has_exactly_its_skip_connections():
    graph = take(SkipCNN(), torch.randn(2, 1, 6, 6))
    assert edges(graph) == SKIP_CNN_EDGES
    kinds = dict(zip(graph.names, graph.types, strict=True))
    assert kinds == {name: "linear" if name == "head" else "norm" if "norm" in name else "conv" for name in dict(kinds)}
    depth = dict(zip(graph.names, graph.depths, strict=True))
    assert depth["stem"] == 0.0 and depth["head"] == 1.0
    assert all(depth[a] < depth[b] for a, b in SKIP_CNN_EDGES)


def test_a_cnn_in_evaluation_mode_has_the_same_graph():
    model, x = SkipCNN(), torch.randn(2, 1, 6, 6)
    assert same(take(model, x), take(model.eval(), x))


def test_a_tied_decoder_is_the_node_of_its_embedding():
    graph = take(Tied(bias=False), torch.tensor([[1, 2]]))
    assert graph.names == ("embedding", "hidden")
    assert edges(graph) == {("embedding", "hidden"), ("hidden", "embedding")}
    assert graph.parameters == (("embedding.weight",), ("hidden.weight", "hidden.bias"))


def test_a_tied_decoder_with_a_bias_is_a_node_for_its_bias():
    graph = take(Tied(bias=True), torch.tensor([[1, 2]]))
    assert graph.names == ("embedding", "hidden", "decoder")
    assert edges(graph) == {("embedding", "hidden"), ("hidden", "embedding"), ("hidden", "decoder")}
    assert graph.parameters[2] == ("decoder.bias",)
    assert sum(graph.sizes) == sum(p.numel() for p in Tied(bias=True).parameters())


def test_an_lstm_is_one_node():
    graph = take(Recurrent(), torch.randn(2, 5, 3))
    assert graph.names == ("first", "lstm", "last")
    assert graph.types == ("linear", "recurrent", "linear")
    assert edges(graph) == {("first", "lstm"), ("lstm", "last")}
    assert len(graph.parameters[1]) == 16


def test_two_branches():
    graph = take(TwoBranches(), torch.randn(2, 3))
    assert edges(graph) == {
        ("trunk", "left"),
        ("trunk", "right"),
        ("right", "right_end"),
        ("left", "join"),
        ("right_end", "join"),
    }
    depth = dict(zip(graph.names, graph.depths, strict=True))
    assert depth == pytest.approx({"trunk": 0.0, "left": 1 / 3, "right": 1 / 3, "right_end": 2 / 3, "join": 1.0})


def test_a_layer_used_twice_is_one_node_with_the_edges_of_both_uses():
    graph = take(UsedTwice(), torch.randn(2, 4))
    assert sorted(graph.names) == ["between", "first", "last", "shared"]
    assert edges(graph) == {("first", "shared"), ("shared", "between"), ("between", "shared"), ("shared", "last")}
    assert np.isfinite(graph.depths).all() and graph.depths.min() == 0.0 and graph.depths.max() == 1.0


def test_a_layer_used_twice_in_a_row_has_no_edge_to_itself():
    layer = nn.Linear(3, 3)
    graph = take(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 3))
    assert graph.names == ("0",) and graph.num_edges == 0 and graph.edges.shape == (2, 0)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        ("0", {("2", "4")}),
        ("2", {("0", "4")}),
        ("4", {("0", "2")}),
    ],
)
def test_frozen_layers_are_absent_and_data_flows_through_them(frozen, expected):
    model = mlp()
    model.get_submodule(frozen).requires_grad_(False)
    graph = take(model, torch.randn(5, 3))
    assert edges(graph) == expected
    assert set(graph.names) == {"0", "2", "4"} - {frozen}


def test_frozen_skip_connections_stay_in_the_data_flow():
    model = SkipCNN()
    frozen = ("conv1", "norm1", "conv2", "norm2")
    for name in frozen:
        model.get_submodule(name).requires_grad_(False)
    graph = take(model, torch.randn(2, 1, 6, 6))
    assert edges(graph) == {
        ("stem", "stem_norm"),
        ("stem_norm", "conv3"),
        ("stem_norm", "shortcut"),
        ("conv3", "norm3"),
        ("norm3", "head"),
        ("shortcut", "head"),
    }


def test_a_layer_with_a_frozen_weight_keeps_its_bias():
    model = mlp()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    graph = take(model, torch.randn(5, 3))
    assert edges(graph) == {("0", "2"), ("2", "4")}
    assert graph.parameters == (("0.bias",), ("2.bias",), ("4.bias",))


def test_a_layer_the_loss_does_not_depend_on_is_absent():
    model = TwoBranches()
    h = model.trunk(torch.randn(2, 3)).relu()
    graph = layer_graph(model, model.join(torch.cat([model.left(h), model.right(h).detach()], dim=-1)).sum())
    assert edges(graph) == {("trunk", "left"), ("left", "join")}


def test_a_penalty_on_the_weights_is_no_data_flow():
    model, x = mlp(), torch.randn(5, 3)
    loss = model(x).square().mean()
    penalty = sum(p.square().sum() for p in model.parameters())
    assert edges(layer_graph(model, loss + 0.01 * penalty)) == edges(layer_graph(model, loss))


class Temperature(nn.Module):
    """Scales its logits by a learned number."""

    def __init__(self, exponential: bool) -> None:
        super().__init__()
        self.exponential = exponential
        self.last, self.scale = nn.Linear(3, 4), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) * (self.scale.exp() if self.exponential else self.scale)


@pytest.mark.parametrize("exponential", [False, True])
def test_a_number_that_scales_data_is_applied_to_it(exponential):
    graph = take(Temperature(exponential), torch.randn(5, 3))
    assert graph.names == ("last", "(root)")
    assert edges(graph) == {("last", "(root)")}


def test_a_model_that_owns_a_parameter_is_the_root():
    graph = take(Owner(), torch.randn(2, 3))
    assert graph.names == ("(root)", "last")
    assert graph.types == ("linear", "linear")
    assert graph.parameters == (("weight",), ("last.weight", "last.bias"))
    assert edges(graph) == {("(root)", "last")}


def test_a_single_layer_is_a_model():
    graph = take(nn.Linear(3, 2), torch.randn(2, 3))
    assert (graph.names, graph.types, graph.num_edges) == (("(root)",), ("linear",), 0)
    assert graph.depths.tolist() == [0.0]


@pytest.mark.parametrize("scale", [2.0, 0.5])
def test_a_scaled_weight_is_still_a_weight(scale):
    assert same(take(Owner(scale), torch.randn(2, 3)), take(Owner(), torch.randn(2, 3)))


def test_a_scaled_weight_between_layers_passes_data_on():
    graph = take(ScaledInside(), torch.randn(2, 3))
    assert graph.names == ("first", "scaled", "last")
    assert edges(graph) == {("first", "scaled"), ("scaled", "last")}


def test_multihead_attention():
    graph = take(Attention(), torch.randn(3, 2, 8))
    assert graph.names == ("first", "attention", "attention.out_proj", "last")
    assert graph.types == ("linear", "attention", "attention", "linear")
    assert edges(graph) == {
        ("first", "attention"),
        ("attention", "attention.out_proj"),
        ("attention.out_proj", "last"),
    }


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_encoder_layer(norm_first):
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    graph = take(model, torch.randn(2, 5, 8))
    inside = {("self_attn", "self_attn.out_proj"), ("linear1", "linear2")}
    if norm_first:
        # the model's input, which no layer made, also skips to norm2
        assert edges(graph) == inside | {
            ("norm1", "self_attn"),
            ("self_attn.out_proj", "norm2"),
            ("norm2", "linear1"),
        }
    else:
        assert edges(graph) == inside | {
            ("self_attn.out_proj", "norm1"),
            ("norm1", "linear1"),
            ("norm1", "norm2"),
            ("linear2", "norm2"),
        }


def test_weight_norm_belongs_to_the_layer_it_shapes():
    model = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.ReLU(), weight_norm(nn.Linear(4, 1)))
    graph = take(model, torch.randn(2, 3))
    assert graph.names == ("0", "2") and graph.types == ("linear", "linear")
    assert edges(graph) == {("0", "2")}
    assert sorted(graph.parameters[0]) == [
        "0.bias",
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    ]


def test_roberta_has_102_nodes_and_149_edges():
    model, inputs = roberta()
    graph = layer_graph(model, model(**inputs).loss)
    assert (graph.num_nodes, graph.num_edges) == (102, 149)
    first = "roberta.encoder.layer.0"
    assert {target for source, target in edges(graph) if source == "roberta.embeddings.LayerNorm"} == {
        *(f"{first}.attention.self.{name}" for name in ("query", "key", "value")),
        f"{first}.attention.output.LayerNorm",
    }
    kinds = dict(zip(graph.names, graph.types, strict=True))
    assert kinds["roberta.embeddings.word_embeddings"] == "embedding"
    assert kinds[f"{first}.attention.self.query"] == "attention"
    assert kinds[f"{first}.attention.output.LayerNorm"] == "norm"
    assert kinds[f"{first}.intermediate.dense"] == "linear"


def test_the_blocks_of_roberta_are_a_chain_of_its_layers():
    model, inputs = roberta()
    graph = layer_graph(model, model(**inputs).loss)
    layers = [f"roberta.encoder.layer.{i}" for i in range(ROBERTA_LAYERS)]
    assert graph.block_names == ("roberta.embeddings", *layers, "classifier")
    assert graph.block_edges.T.tolist() == [[i, i + 1] for i in range(ROBERTA_LAYERS + 1)]
    assert [graph.block_names[b] for b in graph.block_ids] == [block_of(name) for name in graph.names]
    assert np.bincount(graph.block_ids).tolist() == [4, *[8] * ROBERTA_LAYERS, 2]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.3.attention.self.query", "encoder.layer.3"),
        ("blocks.0.1.conv", "blocks.0"),
        ("2", "2"),
        ("embeddings.LayerNorm", "embeddings"),
        ("head", "head"),
        ("(root)", "(root)"),
    ],
)
def test_the_block_of_a_layer(name, block):
    assert block_of(name) == block


def test_a_very_deep_model():
    depth = 3000
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(depth)))
    graph = take(model, torch.ones(1, 1))
    assert graph.names == tuple(str(i) for i in range(depth))
    assert graph.edges.T.tolist() == [[i, i + 1] for i in range(depth - 1)]
    assert np.allclose(graph.depths, np.linspace(0, 1, depth))
    assert len(graph.block_names) == depth and len(graph.bind(model)) == depth


# ---------------------------------------------------------------------- checkpointing, wrappers, kinds of output


def test_checkpointing_without_reentry_leaves_the_graph_as_it_is():
    x = torch.randn(2, 3)
    assert same(take(Checkpointed(reentrant=False), x), take(Checkpointed(reentrant=None), x))


def test_layers_inside_a_reentrant_checkpoint_are_a_chain_of_nodes():
    graph = take(Checkpointed(reentrant=True), torch.randn(2, 3))
    assert set(graph.names) == {"a", "b", "c", "d"}
    assert ("b", "c") in edges(graph)
    assert len(graph.bind(Checkpointed(reentrant=True))) == 4


def test_a_compiled_model_has_the_graph_and_the_names_of_the_model_inside():
    model, x = SkipCNN(), torch.randn(2, 1, 6, 6)
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    graph = layer_graph(compiled, compiled._orig_mod(x).sum())
    assert same(graph, layer_graph(model, model(x).sum()))
    assert graph.bind(compiled) == graph.bind(model)


def test_a_compiled_part_leaves_no_trace_in_the_names():
    model, x = TwoBranches(), torch.randn(2, 3)
    expected = take(model, x)
    model.left = torch.compile(model.left, backend="eager")
    graph = layer_graph(model, model.join(torch.cat([model.left._orig_mod(model.trunk(x))] * 2, dim=-1)).sum())
    assert set(graph.names) == {"trunk", "left", "join"} < set(expected.names)
    assert graph.types == ("linear",) * 3


def test_a_data_parallel_model_has_the_graph_of_the_model_inside():
    model, x = mlp(), torch.randn(2, 3)
    wrapped = nn.DataParallel(model)
    assert unwrap(torch.compile(wrapped, backend="eager")) is model
    assert same(layer_graph(wrapped, wrapped(x).sum()), layer_graph(model, model(x).sum()))


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: (y, 1, None), lambda y: [[y], "text"], lambda y: {"y": y}])
def test_outputs_may_be_any_nest(wrap):
    model = mlp()
    y = model(torch.randn(2, 3))
    assert same(layer_graph(model, wrap(y)), layer_graph(model, y.sum()))


def test_several_outputs_give_the_union_of_their_graphs():
    model = TwoBranches()
    h = model.trunk(torch.randn(2, 3))
    graph = layer_graph(model, {"left": model.left(h), "right": (model.right(h), torch.ones(1))})
    assert edges(graph) == {("trunk", "left"), ("trunk", "right")}


def test_a_transformers_output_is_a_nest_too():
    model, inputs = roberta()
    output = model(**inputs)
    assert same(layer_graph(model, output), layer_graph(model, output.loss))


@every_model
def test_backward_does_not_change_the_graph(name):
    make, inputs = MODELS[name]
    model = make()
    loss = model(*inputs).square().mean()
    before = layer_graph(model, loss)
    loss.backward()
    assert same(layer_graph(model, loss), before)


@every_model
def test_two_takes_are_equal(name):
    make, inputs = MODELS[name]
    assert same(take(make(), *inputs), take(make(), *inputs))


def test_graphs_compare():
    graph = take(mlp(), torch.randn(2, 3))
    assert graph == take(mlp(), torch.randn(5, 3))
    assert graph != take(mlp(width=5), torch.randn(2, 3))
    assert graph != take(UsedTwice(), torch.randn(2, 4))


@every_model
def test_nodes_cover_every_parameter_once(name):
    make, inputs = MODELS[name]
    model = make()
    graph = take(model, *inputs)
    named = [parameter for names in graph.parameters for parameter in names]
    assert sorted(named) == sorted(dict(model.named_parameters()))
    assert graph.tensor_sizes == tuple(model.get_parameter(parameter).numel() for parameter in named)


@pytest.mark.parametrize("name", ["mlp", "two_branches", "used_twice", "owner"])
def test_the_graph_does_not_depend_on_the_batch_size(name):
    make, (x,) = MODELS[name]
    model = make()
    assert same(take(model, x[:1]), take(model, x.repeat(4, 1)))


# ---------------------------------------------------------------------- binding


@every_model
def test_bind_gives_the_parameters_of_another_instance(name):
    make, inputs = MODELS[name]
    graph = take(make(), *inputs)
    second = make()
    bound = graph.bind(second)
    owned = [[second.get_parameter(parameter) for parameter in names] for names in graph.parameters]
    assert all(a is b for x, y in zip(bound, owned, strict=True) for a, b in zip(x, y, strict=True))


def test_bind_refuses_a_model_that_lacks_parameters():
    graph = take(mlp(), torch.randn(2, 3))
    with pytest.raises(LayerGraphError, match=r"lacks, '4\.weight' first.*take the graph anew"):
        graph.bind(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)))


def test_bind_refuses_a_model_of_other_widths():
    graph = take(mlp(width=4), torch.randn(2, 3))
    with pytest.raises(LayerGraphError):
        graph.bind(mlp(width=5))


# ---------------------------------------------------------------------- types


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class CustomRMSNorm(nn.Module):
    """A norm by its name alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).rsqrt()


LAYERS = {
    "linear": [
        (nn.Linear(4, 2), torch.randn(2, 4)),
        (Conv1D(3, 4), torch.randn(2, 4)),
        (nn.EmbeddingBag(5, 2), torch.tensor([[1, 2]])),
        (Owner(), torch.randn(2, 3)),
    ],
    "conv": [
        (nn.Conv1d(1, 1, 2), torch.randn(2, 1, 4)),
        (nn.Conv2d(1, 1, 2), torch.randn(2, 1, 4, 4)),
        (nn.Conv3d(1, 1, 2), torch.randn(2, 1, 4, 4, 4)),
        (nn.ConvTranspose2d(1, 1, 2), torch.randn(2, 1, 4, 4)),
    ],
    "norm": [
        (nn.BatchNorm1d(4), torch.randn(2, 4)),
        (nn.LayerNorm(4), torch.randn(2, 4)),
        (nn.GroupNorm(2, 4), torch.randn(2, 4)),
        (nn.InstanceNorm1d(3, affine=True), torch.randn(2, 3, 4)),
        (nn.RMSNorm(4), torch.randn(2, 4)),
        (CustomRMSNorm(), torch.randn(2, 4)),
    ],
    "embedding": [(nn.Embedding(5, 2), torch.tensor([[1, 2]]))],
    "recurrent": [
        (nn.RNN(4, 2), torch.randn(3, 1, 4)),
        (nn.GRU(4, 2), torch.randn(3, 1, 4)),
        (nn.LSTM(4, 2), torch.randn(3, 1, 4)),
        (nn.GRUCell(4, 2), torch.randn(3, 4)),
    ],
    "other": [(nn.PReLU(), torch.randn(2, 4))],
}


@pytest.mark.parametrize(
    ("kind", "layer", "x"),
    [
        pytest.param(kind, layer, x, id=f"{type(layer).__name__}-{kind}")
        for kind, cases in LAYERS.items()
        for layer, x in cases
    ],
)
def test_the_type_of_a_layer_follows_its_class(kind, layer, x):
    graph = layer_graph(Holder(layer), layer(x))
    assert dict(zip(graph.names, graph.types, strict=True))["layer"] == kind
    assert graph.type_ids.tolist() == [NODE_TYPES.index(kind) for kind in graph.types]


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "query", "c_attn", "self_attn"])
def test_a_linear_layer_in_an_attention_place_is_an_attention_projection(name):
    model = nn.Module()
    setattr(model, name, nn.Linear(3, 3))
    assert layer_graph(model, getattr(model, name)(torch.ones(1, 3))).types == ("attention",)


@pytest.mark.parametrize("name", ["keyboard", "evaluate", "queries_head", "attentive"])
def test_a_linear_layer_of_a_similar_name_is_linear(name):
    model = nn.Module()
    setattr(model, name, nn.Linear(3, 3))
    assert layer_graph(model, getattr(model, name)(torch.ones(1, 3))).types == ("linear",)


# ---------------------------------------------------------------------- PyTorch Geometric


@every_model
def test_to_pyg_by_layer(name):
    make, inputs = MODELS[name]
    graph = take(make(), *inputs)
    data = graph.to_pyg()
    assert data.validate(raise_on_error=True)
    assert data.num_nodes == graph.num_nodes and data.edge_index.shape == (2, graph.num_edges)
    assert data.edge_index.dtype == torch.int64 and np.array_equal(data.edge_index.numpy(), graph.edges)
    for values in (data.node_type, data.depth, data.log_size, data.block):
        assert values.shape == (graph.num_nodes,)
    assert torch.allclose(10**data.log_size, torch.tensor(graph.sizes, dtype=torch.float32))
    assert data.names == list(graph.names)


def test_to_pyg_by_block():
    model, inputs = roberta()
    graph = layer_graph(model, model(**inputs).loss)
    data = graph.to_pyg("block")
    assert data.validate(raise_on_error=True)
    assert data.num_nodes == ROBERTA_LAYERS + 2 and data.edge_index.shape == (2, ROBERTA_LAYERS + 1)
    assert data.names == list(graph.block_names)


def test_changing_the_pyg_graph_leaves_the_layer_graph():
    graph = take(mlp(), torch.randn(2, 3))
    data = graph.to_pyg()
    data.edge_index.zero_(), data.block.zero_()
    assert same(graph, take(mlp(), torch.randn(2, 3)))


def test_to_pyg_refuses_another_level():
    with pytest.raises(LayerGraphError, match="level is 'node'; expected 'layer' or 'block'"):
        take(mlp(), torch.randn(2, 3)).to_pyg("node")


# ---------------------------------------------------------------------- errors


def test_a_model_without_trainable_parameters_is_refused():
    model = mlp().requires_grad_(False)
    with pytest.raises(LayerGraphError, match=r"Sequential has no trainable parameter.*requires_grad=True"):
        layer_graph(model, model(torch.randn(2, 3)).sum())


def no_grad_loss(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).sum()


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, x: mlp()(x).sum(),
        lambda model, x: model(x).detach().sum(),
        no_grad_loss,
        lambda model, x: {"loss": 1.0, "text": "abc"},
        lambda model, x: None,
    ],
    ids=["another model's", "detached", "no_grad", "no tensor", "None"],
)
def test_a_loss_that_depends_on_no_parameter_is_refused(loss):
    model = mlp()
    with pytest.raises(LayerGraphError, match=r"does not depend on any trainable parameter of Sequential.*6 trainable"):
        layer_graph(model, loss(model, torch.randn(2, 3)))
