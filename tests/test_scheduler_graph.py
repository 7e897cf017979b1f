"""The scheduler takes the layer graph by itself, whatever a model is and however it is called."""

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, make_scheduler, network, still_policy, two_groups
from torch import nn
from torch.nn import functional as F

from gns import LayerGraphError, layer_graph


class Residual(nn.Module):
    """Skip connection, batch norm, dropout; outputs of any kind."""

    def __init__(self, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 12), nn.BatchNorm1d(12)
        self.left, self.right, self.leave = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.wrap = wrap

    def forward(self, inputs):
        hidden = self.norm(self.enter(inputs))
        hidden = hidden + F.dropout(self.right(self.left(hidden).relu()), 0.2, self.training)
        return self.wrap(self.leave(hidden))


class Tied(nn.Module):
    """Input and output share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.head.weight = self.embedding.weight

    def forward(self, inputs):
        return self.head(self.body(self.embedding((inputs[:, :4].abs() * 3).long().clamp(max=9)).mean(1)).tanh())[:, :3]


class LowRank(nn.Module):
    """A frozen layer with an adapter of low rank beside it, as LoRA has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, inputs):
        return self.base(inputs) + self.up(self.down(inputs))


def frozen() -> nn.Module:
    model = Residual()
    model.enter.requires_grad_(False)
    model.left.bias.requires_grad_(False)
    return model


def logits_of(output):
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple | list) else output


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=30, max_position_embeddings=16, num_labels=3, **shape)

    class Encoder(BertForSequenceClassification):
        def forward(self, inputs):
            return super().forward(input_ids=(inputs.abs() * 5).long().clamp(max=29))

    return Encoder(config)


MODELS = {
    "tensor": Residual,
    "tuple": lambda: Residual(lambda logits: (logits, logits.detach())),
    "mapping": lambda: Residual(lambda logits: {"loss": None, "logits": logits}),
    "frozen layers": frozen,
    "adapters of low rank": lambda: nn.Sequential(LowRank(6, 12), nn.Tanh(), LowRank(12, 3)),
    "tied weights": Tied,
    "a transformer's output": bert,
}


def training_update(model, optimizer, scheduler, number: int, call=None) -> None:
    optimizer.zero_grad()
    loss = F.cross_entropy(logits_of((model if call is None else call)(batch(number)[0])), batch(number)[1])
    loss.backward()
    optimizer.step()
    if scheduler:
        scheduler.step(loss)


@pytest.mark.parametrize("kind", MODELS)
def test_the_graph_is_that_of_the_loss(kind):
    torch.manual_seed(0)
    model = MODELS[kind]()
    expected = layer_graph(model, F.cross_entropy(logits_of(model(batch(0)[0])), batch(0)[1]))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    scheduler = make_scheduler(optimizer, model)
    with torch.no_grad():
        model.eval()(batch(0)[0])  # an evaluation first, as frameworks make, says nothing
    assert scheduler.graph is None
    model.train()
    for number in range(T):
        training_update(model, optimizer, scheduler, number)
    assert scheduler.graph == expected and len(scheduler.history) == 5


def test_what_an_output_has_beside_its_loss_is_not_in_the_graph():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.beside = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, inputs, targets):
            return {"beside": self.beside(inputs), "loss": F.cross_entropy(self.used(inputs), targets)}

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = make_scheduler(optimizer, model)
    model(*batch(0))["loss"].backward()
    optimizer.step()
    scheduler.step()
    assert scheduler.graph.names == ("used",)


def compiled_outside(model):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    return compiled, compiled


def compiled_apart(model):
    """The scheduler is given the model, the loop calls what it was compiled to, as the HF Trainer does."""
    return model, torch.compile(model, backend="aot_eager")


def compiled_in_place(model):
    model.compile(backend="aot_eager")
    return model, model


def compiled_in_parts(model):
    model.left = torch.compile(model.left, backend="aot_eager")
    model.norm.compile(backend="aot_eager")
    return model, model


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [compiled_outside, compiled_apart, compiled_in_place, compiled_in_parts])
def test_a_compiled_models_graph_is_that_of_the_model_inside_and_its_training_is_left_alone(compiled, dynamo):
    torch.manual_seed(0)
    plain = Residual()
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    expected = layer_graph(plain, F.cross_entropy(plain(batch(0)[0]), batch(0)[1]))
    ends = []
    for schedule in (False, True):
        torch._dynamo.reset()
        model = Residual()
        model.load_state_dict(start)
        given, called = compiled(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = make_scheduler(optimizer, given, still_policy()) if schedule else None
        torch.manual_seed(1)
        for number in range(T):
            training_update(model, optimizer, scheduler, number, called)
        ends.append((model, torch.get_rng_state()))
    assert scheduler.graph == expected and len(scheduler.history) == 5
    assert same_state(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


def test_a_graph_may_be_given_and_is_needed_where_the_model_is_not_called_itself():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    loss = F.cross_entropy(model[3:](model[:3](batch(0)[0])), batch(0)[1])
    loss.backward()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LayerGraphError, match=r"pass graph="):
        optimizer.step()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    scheduler.remove()
    scheduler = make_scheduler(optimizer, model, graph=layer_graph(model, loss))
    optimizer.step()
    scheduler.step(loss)
    assert len(scheduler.history) == 1


def test_a_graph_of_another_model_is_refused():
    model, other = network(), Residual()
    graph = layer_graph(other, other(batch(0)[0]).sum())
    with pytest.raises(LayerGraphError, match="lacks"):
        make_scheduler(two_groups(model), model, graph=graph)


def test_an_output_of_frozen_layers_alone_leaves_the_graph_to_a_later_one():
    model = network()
    model.requires_grad_(False)[5].requires_grad_(True)
    optimizer = torch.optim.SGD(model[5].parameters(), lr=0.1)
    scheduler = make_scheduler(optimizer, model)
    inputs = batch(0)[0].requires_grad_()
    head, model[5] = model[5], nn.Identity()
    model(inputs)  # has a gradient, but none of a parameter
    model[5] = head
    assert scheduler.graph is None
    training_update(model, optimizer, scheduler, 0)
    assert scheduler.graph.names == ("5",)


def test_a_model_that_is_not_the_optimizers_is_refused_and_none_of_its_hooks_stay():
    model, other = network(), network()
    optimizer = two_groups(other)
    with pytest.raises(LayerGraphError, match="holds none of the trainable parameters of Sequential"):
        make_scheduler(optimizer, model)
    assert not model._forward_hooks and not optimizer._optimizer_step_pre_hooks


def test_parts_of_a_model_may_have_optimizers_of_their_own():
    rates = []
    for order in (0, 1):
        torch.manual_seed(3)
        model = network()
        optimizers = [
            torch.optim.SGD(model[:4].parameters(), lr=0.1, momentum=0.9),
            torch.optim.Adam(model[5].parameters(), lr=0.01),
        ]
        schedulers = [make_scheduler(optimizer, model) for optimizer in optimizers]
        watches = [Watch(optimizer) for optimizer in optimizers]
        for number in range(T):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            for scheduler in schedulers[:: -1 if order else 1]:
                scheduler.step(loss)
        rates.append([watch.rates for watch in watches])
        assert [len(scheduler.history) for scheduler in schedulers] == [5, 5]
        assert schedulers[0].graph == schedulers[1].graph
    first, second = rates[0]
    assert rates[0] == rates[1]
    assert [a / 0.1 for (a,) in first] != pytest.approx([b / 0.01 for (b,) in second])


@pytest.mark.parametrize("after_backward", [True, False])
def test_where_no_model_is_called_a_loss_that_is_reported_gives_the_graph(after_backward):
    torch.manual_seed(0)
    model = nn.ModuleDict({"used": network(), "beside": nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = make_scheduler(optimizer, model)
    for number in range(T):
        optimizer.zero_grad()
        loss = F.cross_entropy(model["used"](batch(number)[0]), batch(number)[1])
        expected = layer_graph(model, loss)
        if not after_backward:
            scheduler.report_loss(loss)
        loss.backward()
        if after_backward:
            scheduler.report_loss(loss)
        optimizer.step()
        scheduler.step()
    assert scheduler.graph == expected and "beside" not in scheduler.graph.names and len(scheduler.history) == 5


def test_a_loss_of_another_optimizers_parameters_gives_no_graph():
    model = nn.ModuleDict({"one": network(), "other": network()})
    optimizer = torch.optim.Adam(model["one"].parameters(), lr=0.01)
    scheduler = make_scheduler(optimizer, model)
    for name, layers in (("other", None), ("one", ("one.0", "one.3", "one.5"))):
        scheduler.report_loss(F.cross_entropy(model[name](batch(0)[0]), batch(0)[1]))
        assert scheduler.graph is None if layers is None else scheduler.graph.names == layers
