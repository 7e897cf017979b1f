"""The coming update is the one the optimizer then makes; momenta are means of gradients."""

import pytest
import torch
from torch import Tensor, nn

from gns import DecisionConfig, DecisionCore, layer_graph
from gns.features.moments import Moments, group_of_each, optimizer_kind, read_moments
from gns.features.statistics import SUM_U2

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
KNOWN = {
    "sgd": (SGD, {}),
    "sgd momentum": (SGD, {"momentum": 0.9}),
    "sgd dampening": (SGD, {"momentum": 0.9, "dampening": 0.3}),
    "sgd nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd decay": (SGD, {"weight_decay": 0.1}),
    "sgd momentum decay": (SGD, {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.1}),
    "sgd nesterov decay": (SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    "sgd maximize": (SGD, {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
    "sgd fused": (SGD, {"momentum": 0.9, "weight_decay": 0.1, "fused": True}),
    "adam": (Adam, {}),
    "adam betas": (Adam, {"betas": (0.5, 0.7), "eps": 1e-3}),
    "adam decay": (Adam, {"weight_decay": 0.1}),
    "adam amsgrad": (Adam, {"amsgrad": True, "betas": (0.9, 0.6)}),
    "adam amsgrad decay": (Adam, {"amsgrad": True, "betas": (0.9, 0.6), "weight_decay": 0.1}),
    "adam maximize": (Adam, {"weight_decay": 0.1, "maximize": True}),
    "adam decoupled": (Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adam fused": (Adam, {"weight_decay": 0.1, "fused": True}),
    "adamw": (AdamW, {}),
    "adamw decay": (AdamW, {"weight_decay": 0.1}),
    "adamw amsgrad": (AdamW, {"amsgrad": True, "betas": (0.9, 0.6), "weight_decay": 0.1}),
    "adamw maximize": (AdamW, {"weight_decay": 0.1, "maximize": True}),
    "adamw fused": (AdamW, {"weight_decay": 0.1, "fused": True}),
}
UNKNOWN = {
    "rmsprop": (torch.optim.RMSprop, {}),
    "rmsprop momentum": (torch.optim.RMSprop, {"momentum": 0.9}),
    "nadam": (torch.optim.NAdam, {}),
    "adagrad": (torch.optim.Adagrad, {}),
}
every_known = pytest.mark.parametrize("name", KNOWN)
every_unknown = pytest.mark.parametrize("name", UNKNOWN)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def make(name: str, parameters: object, lr: float = 0.01) -> torch.optim.Optimizer:
    cls, settings = {**KNOWN, **UNKNOWN}[name]
    return cls(parameters, lr=lr, **settings)


def compute_gradient(model: nn.Module, t: int) -> Tensor:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    model.zero_grad()
    loss = (model(x) - x[:, :2]).square().mean()
    loss.backward()
    return loss


def read(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> Moments:
    parameters = list(model.parameters())
    return read_moments(optimizer, parameters, [p.grad for p in parameters], steps)


def change_of_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Make an update and return what it took off each parameter, per unit of its rate."""
    before = [p.detach().clone() for p in model.parameters()]
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    groups = group_of_each(optimizer, list(model.parameters()))
    return [(b - p.detach()) / rates[g] for b, p, g in zip(before, model.parameters(), groups, strict=True)]


def assert_equal(updates: list[Tensor] | None, changes: list[Tensor]) -> None:
    assert updates is not None
    for update, change in zip(updates, changes, strict=True):
        assert (update - change).norm() <= 1e-9 * change.norm()
        assert change.norm() > 0


# ---------------------------------------------------------------------- the coming update


@every_known
def test_the_coming_update_is_the_one_that_comes(name):
    model = network()
    optimizer = make(name, model.parameters())
    for t in range(6):
        compute_gradient(model, t)
        updates = read(model, optimizer, t).updates if t in (0, 1, 5) else None
        changes = change_of_step(model, optimizer)
        if t in (0, 1, 5):
            assert_equal(updates, changes)


@every_known
def test_reading_changes_nothing(name):
    model, other = network(), network()
    optimizer, other_optimizer = make(name, model.parameters()), make(name, other.parameters())
    for t in range(3):
        compute_gradient(model, t), compute_gradient(other, t)
        gradients = [p.grad.clone() for p in model.parameters()]
        read(model, optimizer, t)
        assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True))
        optimizer.step(), other_optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_two_groups_of_different_settings(cls):
    model = network()
    settings = (
        [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.0}]
        if cls is SGD
        else [{"betas": (0.5, 0.9), "weight_decay": 0.2}, {"amsgrad": True, "weight_decay": 0.0}]
    )
    layers = (model[0], model[2])
    optimizer = cls(
        [{"params": layer.parameters(), **setting} for layer, setting in zip(layers, settings, strict=True)], lr=0.01
    )
    optimizer.param_groups[1]["lr"] = 0.003
    for t in range(4):
        compute_gradient(model, t)
        updates = read(model, optimizer, t).updates
        assert_equal(updates, change_of_step(model, optimizer))


@pytest.mark.parametrize(
    "name", ["sgd", "sgd momentum decay", "sgd nesterov decay", "adam", "adam amsgrad", "adamw decay"]
)
def test_a_layer_that_joins_later(name):
    """As in gradual unfreezing."""
    model = network()
    optimizer = make(name, model.parameters())
    for t in range(5):
        compute_gradient(model, t)
        if t < 3:
            model[2].weight.grad = model[2].bias.grad = None
        updates = read(model, optimizer, t).updates
        changes = change_of_step(model, optimizer)
        if t < 3:
            assert all(torch.equal(u, torch.zeros_like(u)) for u in [*updates[2:], *changes[2:]])
            updates, changes = updates[:2], changes[:2]
        assert_equal(updates, changes)


def test_a_group_without_momentum_beside_one_with_it_has_momentum_zero():
    model = network()
    optimizer = SGD(
        [{"params": model[0].parameters(), "momentum": 0.9}, {"params": model[2].parameters(), "momentum": 0.0}], lr=0.1
    )
    compute_gradient(model, 0)
    optimizer.step()
    momenta = read(model, optimizer, 1).momenta
    assert all(m.abs().sum() > 0 for m in momenta[:2])
    assert all(torch.equal(m, torch.zeros_like(m)) for m in momenta[2:])


def test_parameters_may_come_in_any_order():
    model = network()
    optimizer = Adam(reversed(list(model.parameters())), lr=0.01)
    for t in range(2):
        compute_gradient(model, t)
        updates = read(model, optimizer, t).updates
        assert_equal(updates, change_of_step(model, optimizer))


# ---------------------------------------------------------------------- momenta as means


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("name", ["sgd momentum", "sgd dampening", "sgd nesterov", "adam", "adam betas", "adamw"])
def test_scaled_momenta_of_a_constant_gradient_are_that_gradient(name, steps):
    """A mean of equal gradients is that gradient, after however many updates."""
    model = network()
    optimizer = make(name, model.parameters(), lr=0.1)
    compute_gradient(model, 0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in range(steps):
        optimizer.step()
    moments = read(model, optimizer, steps)
    for i, parameter in enumerate(model.parameters()):
        torch.testing.assert_close(moments.momenta[i] * moments.momentum_scale[i], parameter.grad, rtol=1e-9, atol=0)
        if moments.seconds is not None:
            torch.testing.assert_close(
                moments.seconds[i] * moments.second_scale[i], parameter.grad.square(), rtol=1e-9, atol=0
            )


@every_known
def test_before_the_first_update_there_are_no_momenta(name):
    model = network()
    compute_gradient(model, 0)
    moments = read(model, make(name, model.parameters()), 0)
    assert moments.momenta is None and moments.seconds is None


def test_adam_counts_its_updates_itself():
    """A resumed optimizer has done more updates than the run knows of."""
    model = network()
    optimizer = Adam(model.parameters())
    for t in range(3):
        compute_gradient(model, t)
        optimizer.step()
    compute_gradient(model, 3)
    moments = read(model, optimizer, 0)
    assert moments.momentum_scale.tolist() == pytest.approx([1 / (1 - 0.9**3)] * 4)
    assert_equal(moments.updates, change_of_step(model, optimizer))


# ---------------------------------------------------------------------- optimizers of an unknown kind


@every_unknown
def test_the_coming_update_of_an_unknown_optimizer_is_not_known(name):
    model = network()
    optimizer = make(name, model.parameters())
    assert optimizer_kind(optimizer) == "other"
    for t in range(2):
        compute_gradient(model, t)
        assert read(model, optimizer, t).updates is None
        optimizer.step()


@pytest.mark.parametrize(("name", "key"), [("rmsprop momentum", "momentum_buffer"), ("nadam", "exp_avg")])
def test_the_momentum_of_an_unknown_optimizer_is_found_by_its_usual_names(name, key):
    model = network()
    optimizer = make(name, model.parameters())
    compute_gradient(model, 0)
    assert read(model, optimizer, 0).momenta is None
    optimizer.step()
    momenta = read(model, optimizer, 1).momenta
    assert all(m is optimizer.state[p][key] for m, p in zip(momenta, model.parameters(), strict=True))


@every_unknown
@pytest.mark.parametrize("mode", ["profile", "recursive"])
def test_the_update_of_an_unknown_optimizer_is_measured(name, mode):
    """Measured at the last update of each interval, the short one at the end among them."""
    budget, model = 7, network().float()
    optimizer = make(name, [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.002}])
    graph = layer_graph(model, model(torch.ones(1, 4)))
    core = DecisionCore(model, optimizer, graph, budget, DecisionConfig(mode=mode, decision_interval=3))
    changes, compared = None, 0
    for t in range(budget):
        loss = compute_gradient_float(model, t)
        if core.decision_due:
            compared += assert_measured(core, changes)
            core.decide(0.5)
        core.set_rates()
        changes = change_of_step(model, optimizer)
        core.note_update(loss)
    assert core.finished
    compute_gradient_float(model, budget)
    assert compared + assert_measured(core, changes) == 3


def compute_gradient_float(model: nn.Module, t: int) -> Tensor:
    generator = torch.Generator().manual_seed(t)
    x = torch.randn(8, 4, generator=generator)
    model.zero_grad()
    loss = (model(x) - x[:, :2]).square().mean()
    loss.backward()
    return loss


def assert_measured(core: DecisionCore, changes: list[Tensor] | None) -> int:
    core.observe()
    measured = core.statistics.sums[:, SUM_U2].tolist()
    if changes is None:
        assert measured == [0.0] * 4
        return 0
    assert measured == pytest.approx([float(change.square().sum()) for change in changes], rel=1e-3)
    return 1


# ---------------------------------------------------------------------- optimizers and parameters


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd momentum", "sgd"), ("adam", "adam"), ("adamw", "adamw"), ("rmsprop", "other")]
)
def test_the_kind_of_an_optimizer_is_seen_through_wrappers(name, kind):
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    optimizer = make(name, network().parameters())
    assert optimizer_kind(optimizer) == optimizer_kind(Wrapper(Wrapper(optimizer))) == kind


def test_the_group_of_each_parameter():
    model = network()
    optimizer = SGD([{"params": [model[0].weight]}, {"params": model[2].parameters()}], lr=0.1)
    assert group_of_each(optimizer, list(model.parameters())) == [0, -1, 1, 1]


@pytest.mark.parametrize("name", ["sgd momentum", "adam"])
def test_parameters_the_optimizer_does_not_hold_are_not_updated_and_hide_no_others(name):
    model = network().float()
    optimizer = make(name, model[2].parameters())
    core = DecisionCore(
        model, optimizer, layer_graph(model, model(torch.ones(1, 4))), 3, DecisionConfig(decision_interval=1)
    )
    for t in range(3):
        loss = compute_gradient_float(model, t)
        core.observe()
        core.decide(0.0)
        core.set_rates()
        known = core.statistics.sums[:, SUM_U2]
        expected = [0.0, 0.0, *(float(change.square().sum()) for change in change_of_step(model[2], optimizer))]
        assert known.tolist() == pytest.approx(expected, rel=1e-3)
        core.note_update(loss)
