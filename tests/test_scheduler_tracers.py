"""A scheduler and what looks into models: compilers, exporters, TorchScript, and hooks of others."""

import copy
import pickle

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, batch, lively_policy, make_scheduler, network, still_policy, two_groups
from torch import nn
from torch.nn import functional as F

from gns import LayerGraphError, layer_graph


@pytest.fixture(autouse=True)
def dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(model, optimizer, scheduler, updates=T, step=None):
    for number in range(updates):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        (step or optimizer.step)()
        if scheduler:
            scheduler.step(loss)


# ---------------------------------------------------------------------- compilers


def test_a_compiled_step_of_the_optimizer_compiles_no_hook():
    rates = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01))
        scheduler = make_scheduler(optimizer, model)
        step = torch.compile(lambda optimizer=optimizer: optimizer.step(), backend="eager") if compiled else None
        train(model, optimizer, scheduler, step=step)
        rates.append([record.learning_rate for record in scheduler.history])
    assert rates[1] == pytest.approx(rates[0], rel=1e-4) and len(rates[0]) == 5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] < 5


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs):
        return self.body(inputs)


@pytest.mark.parametrize("make", [network, Own])
@pytest.mark.parametrize("way", ["outside", "in place"])
def test_a_model_compiled_after_one_without_a_scheduler_gives_its_graph(make, way):
    def compiled(model):
        if way == "outside":
            return torch.compile(model, backend="eager")
        model.compile(backend="eager")
        return model

    baseline = make()
    called = compiled(baseline)
    train(called, two_groups(baseline), None, 2)
    model = make()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    train(compiled(model), optimizer, scheduler, 2)
    assert scheduler.graph == layer_graph(model, model(batch(0)[0]).sum()) and len(scheduler.history) == 1
    train(called, two_groups(baseline), None, 2)
    assert scheduler.last_epoch == 2


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_is_exported_with_a_scheduler_on_it_which_does_not_notice(strict):
    torch.manual_seed(0)
    model, inputs = network(), batch(0)[0]
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    for trained in (0, 3):
        train(model, optimizer, scheduler, trained)
        model.zero_grad()
        exported = torch.export.export(model, (inputs,), strict=strict)
        assert torch.allclose(exported.module()(inputs), model.eval()(inputs))
        model.train()
    assert scheduler.last_epoch == 3


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs, targets):
        return {"loss": F.cross_entropy(self.body(inputs), targets)}


def test_what_a_traced_pass_returns_is_no_loss():
    model = WithLoss()
    scheduler = make_scheduler(two_groups(model), model)
    torch.jit.trace(model, batch(0), strict=False)
    torch.export.export(model, batch(0))
    assert scheduler.graph is None and scheduler._losses.of_update() is None


# ---------------------------------------------------------------------- TorchScript


@pytest.mark.parametrize("when", ["before", "within", "after", "taken off", "copied", "unpickled", "inside another"])
def test_a_model_is_scripted_with_a_scheduler_on_it(when):
    torch.manual_seed(0)
    model, inputs = network(), batch(0)[0]
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model, still_policy())
    train(model, optimizer, scheduler, {"before": 0, "after": T}.get(when, 3))
    if when == "taken off":
        scheduler.remove()
        assert "__prepare_scriptable__" not in vars(model)
    given = {"copied": copy.deepcopy, "unpickled": lambda it: pickle.loads(pickle.dumps(it))}.get(when, lambda it: it)(
        model
    )
    scripted = torch.jit.script(nn.Sequential(given, nn.Identity()) if when == "inside another" else given)
    assert torch.equal(scripted.eval()(inputs), given.eval()(inputs))
    assert next(scripted.parameters()).data_ptr() == next(given.parameters()).data_ptr()
    if when in ("before", "within"):
        train(model.train(), optimizer, scheduler, 2)
        assert scheduler.last_epoch == (5 if when == "within" else 2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.rest = nn.Linear(6, 8), nn.LayerNorm(8), nn.GRU(8, 8)
        self.leave = nn.Linear(8, 3)

    def forward(self, inputs):
        return self.leave(self.rest(self.norm(self.enter(inputs))[None])[0][0])


@pytest.mark.parametrize("make", [network, Recurrent])
def test_layers_of_a_traced_model_keep_their_types_and_its_run_its_rates(make):
    found = []
    for traced in (False, True):
        torch.manual_seed(0)
        model = make()
        model = torch.jit.trace(model, batch(0)[0], check_trace=False) if traced else model
        optimizer = two_groups(model)
        scheduler = make_scheduler(optimizer, model)
        train(model, optimizer, scheduler)
        found.append((scheduler.graph, [record.learning_rate for record in scheduler.history]))
    assert found[0][0] == found[1][0] and found[1][1] == pytest.approx(found[0][1], rel=1e-3)


@pytest.mark.parametrize("make", [network, Recurrent])
def test_a_scripted_model_takes_no_hook_and_says_so_or_is_told_its_loss(make):
    torch.manual_seed(0)
    eager = make()
    model = torch.jit.script(eager)
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    with pytest.raises(LayerGraphError, match="report_loss"):
        train(model, optimizer, scheduler, 1)
    loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
    scheduler.report_loss(loss)
    assert dict(zip(scheduler.graph.names, scheduler.graph.types, strict=True)) == {
        layer: kind
        for graph in [layer_graph(eager, F.cross_entropy(eager(batch(0)[0]), batch(0)[1]))]
        for layer, kind in zip(graph.names, graph.types, strict=True)
    }
    train(model, optimizer, scheduler)
    assert scheduler.last_epoch == T


# ---------------------------------------------------------------------- hooks that do nothing


class Both(nn.Module):
    """Two ways through one module."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, one, other):
        return self.left(one), self.right(other)


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.both = nn.Linear(6, 6), nn.Linear(6, 6), Both()
        self.leave, self.beside = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, inputs):
        left, right = self.both(self.one(inputs), self.other(inputs))
        return self.leave(left) + self.beside(right)


HOOKS = {
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "before backward": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "before forward": lambda module: module.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("where", ["inside", "everywhere"])
def test_hooks_that_do_nothing_change_no_edge_and_no_rate(hook, where):
    found = []
    for hooked in (False, True):
        torch.manual_seed(0)
        model = TwoWays()
        for module in (model.both,) if where == "inside" else model.modules():
            if hooked:
                HOOKS[hook](module)
        optimizer = two_groups(model)
        scheduler = make_scheduler(optimizer, model, lively_policy())
        train(model, optimizer, scheduler)
        found.append((model, scheduler))
    assert found[0][1].graph == found[1][1].graph and found[0][1].history == found[1][1].history
    assert same_state(found[0][0], found[1][0])
