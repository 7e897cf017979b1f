"""What is replaced, added or renamed while a run goes on: graph, rates and guard follow."""

import copy
import math

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, still_policy
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from gns import GNSScheduler, GuardConfig, InvalidSettingError, LayerGraphError, SnapshotError
from gns.errors import StateError


def sgd(parameters, lr: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


class Run:
    """A run whose model is changed on the way."""

    def __init__(self, model: nn.Module, trained=None, guard: GuardConfig | None = None, policy=None, **more) -> None:
        self.model, self.number = model, 0
        self.optimizer = sgd((trained or model).parameters())
        self.scheduler = make_scheduler(
            self.optimizer, model, policy or lively_policy(mode="recursive"), guard=guard, **more
        )
        self.watch = Watch(self.optimizer)

    def update(self, factor: float = 1.0, loss: float | None = None) -> None:
        inputs, targets = batch(self.number)
        self.optimizer.zero_grad()
        found = F.cross_entropy(self.model(inputs * factor), targets)
        found.backward()
        self.optimizer.step()
        self.scheduler.step(found if loss is None else loss)
        self.number += 1

    def until(self, update: int) -> None:
        while self.scheduler.last_epoch < update:
            self.update()

    def layers(self) -> tuple[str, ...]:
        return self.scheduler.graph.names


def made() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


class Averaging(nn.Module):
    """Assigns its buffers anew in every pass; one of them grows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x):
        hidden = self.inner(x).tanh()
        self.average = 0.9 * self.average + 0.1 * hidden.detach().mean(0)
        self.seen = torch.cat([self.seen, hidden.detach().mean().reshape(1)])
        return self.outer(hidden - self.average)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_buffer_that_is_assigned_anew_is_restored(place, tmp_path):
    run = Run(Averaging(), guard=GuardConfig(folder=tmp_path if place == "disk" else None))
    run.until(5)
    for number in range(5):
        if number == 1:
            kept = copy.deepcopy(run.model.state_dict())
            kept["weights"] = [p.detach().clone() for p in run.model.parameters()]
        run.update(math.nan if number == 3 else 1.0)
    run.update()  # the decision at update 10
    assert run.scheduler.rollbacks == 1
    assert run.model.average.isfinite().all() and len(run.model.seen) == 6
    assert torch.equal(run.model.average, kept["average"]) and torch.equal(run.model.seen, kept["seen"])
    run.until(T)
    assert all(value.isfinite().all() for value in run.model.state_dict().values())


def test_a_module_that_is_replaced_is_restored_and_in_the_graph():
    run = Run(made(), guard=GuardConfig())
    run.until(6)
    old = run.model[2]
    run.model[2] = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    run.optimizer.add_param_group({"params": run.model[2].parameters()})
    run.until(11)
    assert run.layers() == ("0", "2.0", "2.1", "4")
    run.until(12)
    kept = None
    for number in range(4):
        kept = kept or (copy.deepcopy(run.model.state_dict()) if run.scheduler.last_epoch == 15 else None)
        run.update()
        del number
    before = copy.deepcopy(run.model.state_dict())
    run.update(math.nan)
    while run.scheduler.rollbacks == 0:
        run.update()
    assert not same_state(run.model, old) and run.model[2][0].weight.isfinite().all()
    assert all(value.isfinite().all() for value in before.values())
    run.until(T)


def test_a_backbone_that_is_unfrozen_joins_with_its_own_rate_and_keeps_its_ratio():
    model = made()
    model[0].requires_grad_(False), model[2].requires_grad_(False)
    run = Run(model, trained=model[4])
    run.until(7)
    assert run.layers() == ("4",)
    rate = run.watch.rates[-1][0]
    model[0].requires_grad_(True), model[2].requires_grad_(True)
    added = [*model[0].parameters(), *model[2].parameters()]
    run.optimizer.add_param_group({"params": added, "lr": rate / 5})
    before = [p.detach().clone() for p in added]
    run.until(T)
    assert run.layers() == ("0", "2", "4") and not any(map(torch.equal, added, before))
    ratios = [own[1] / own[0] for own in run.watch.rates[7:]]
    assert ratios == pytest.approx([0.2] * len(ratios)) and len(set(run.watch.rates[i][0] for i in (8, 12, 17))) > 1
    assert len(run.scheduler.base_lrs) == 2 and run.scheduler.get_last_lr() == run.watch.rates[-1]


def test_parameters_of_the_optimizer_that_are_unfrozen_join_the_graph_at_the_next_decision():
    model = made()
    model[0].requires_grad_(False)
    run = Run(model)
    run.until(7)
    model[0].requires_grad_(True)
    run.until(10)
    assert run.layers() == ("2", "4")
    run.until(12)
    assert run.layers() == ("0", "2", "4") == run.scheduler._run.core.graph.names


def test_per_layer_rates_take_up_groups_and_layers():
    model = made()
    model[0].requires_grad_(False)
    run = Run(model, trained=model[2:], policy=lively_policy(mode="per-layer"))
    run.until(6)
    model[0].requires_grad_(True)
    run.optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.003})
    run.until(T)
    assert len(run.watch.rates[-1]) == 2 and run.layers() == ("0", "2", "4")


def test_a_group_may_be_added_late_at_a_rate_that_means_an_initial_one_beyond_the_bounds(tmp_path):
    def run_of(updates: int, added: bool) -> Run:
        run = Run(made(), policy=lively_policy(mode="profile"))
        run.until(updates)
        if added:
            run.model.append(nn.Linear(3, 3))
            run.optimizer.add_param_group({"params": run.model[5].parameters(), "lr": 9.0})
        return run

    whole = run_of(T - 7, True)
    whole.until(T - 3)
    assert whole.layers() == ("0", "2", "4", "5") and whole.scheduler.base_lrs[1] > whole.scheduler.decision.max_lr
    updates, rates = whole.scheduler.run_history().rate_path()
    since = (updates >= T - 7) & (updates < T - 3)  # the record does not say when a group was added
    assert rates[since] == pytest.approx([rate[0] for rate in whole.watch.rates[-4:]], rel=1e-12)
    resumed, saved = run_of(0, True), copy.deepcopy(whole.scheduler.state_dict())
    resumed.number = whole.number
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    resumed.scheduler.load_state_dict(saved)
    whole.until(T), resumed.until(T)
    assert resumed.watch.rates == whole.watch.rates[-3:] and max(map(max, whole.watch.rates[-7:])) <= 10.0


def test_a_group_whose_rate_is_out_of_bounds_or_that_is_taken_away_is_refused():
    run = Run(made())
    run.until(6)
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 99.0})
    with pytest.raises(InvalidSettingError, match="rate is 99; expected one within"):
        run.update()
    run = Run(made())
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    run.until(6)
    run.optimizer.param_groups.pop()
    with pytest.raises(InvalidSettingError, match="has 1 parameter groups and its scheduler knows 2"):
        run.update()


def test_an_optimizer_left_with_none_of_the_models_parameters_is_refused():
    run = Run(made())
    run.until(10)
    run.model.load_state_dict(run.model.state_dict(), assign=True)
    for number in (0, 2, 4):
        run.model[number] = nn.Linear(*reversed(run.model[number].weight.shape))
    for parameter in run.optimizer.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(LayerGraphError, match="holds none of the trainable parameters"):
        run.optimizer.step()


@pytest.mark.parametrize("at", [7, 8])
def test_pruning_in_mid_run_is_followed_and_the_run_goes_on_from_its_state(at):
    def pruned(run: Run) -> None:
        for module in (run.model[0], run.model[2]):
            prune.l1_unstructured(module, "weight", 0.5)

    run, again = Run(made()), Run(made())
    run.until(at)
    pruned(run)
    run.until(11 if at == 7 else 8)
    prune.identity(again.model[0], "weight"), prune.identity(again.model[2], "weight")
    for name in ("model", "optimizer", "scheduler"):
        getattr(again, name).load_state_dict(copy.deepcopy(getattr(run, name).state_dict()))
    again.number = run.number
    for one in (run, again):
        one.until(T)
    if at == 7:
        assert run.watch.rates[-5:] == again.watch.rates[-5:] and same_state(run.model, again.model)
    assert "0.weight_orig" in run.scheduler.graph.parameters[0] and run.layers() == again.layers()


def test_an_optimizer_made_after_pruning_gets_the_state_of_each_parameter_by_its_name():
    run, model = Run(made()), made()
    run.until(7)
    prune.l1_unstructured(run.model[0], "weight", 0.5)
    run.until(11)
    prune.identity(model[0], "weight")
    again = Run(model)
    held = [name for name, _ in model.named_parameters()]
    assert held[:2] == ["0.bias", "0.weight_orig"]  # the optimizer that saved its state had them the other way round
    for name in ("model", "optimizer", "scheduler"):
        getattr(again, name).load_state_dict(copy.deepcopy(getattr(run, name).state_dict()))
    again.number = run.number
    for one in (run, again):
        one.until(T)
    assert run.watch.rates[-5:] == again.watch.rates[-5:]
    ours, theirs = run.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_rollback_after_pruning_restores_what_bore_another_name():
    run = Run(made(), guard=GuardConfig())
    run.until(5)
    kept = []
    for number in range(6):
        if number == 1:  # after the decision at update 5
            prune.l1_unstructured(run.model[0], "weight", 0.5)
        run.update(math.nan if number == 3 else 1.0)
        if number == 0:
            kept = run.model[0].weight.detach().clone()
    assert run.scheduler.rollbacks == 1 and run.model[0].weight_orig.isfinite().all()
    assert not torch.equal(run.model[0].weight_orig, kept)  # it is the state before update 6
    run.until(T)
    assert run.scheduler.rollbacks == 1


def test_momenta_of_another_order_of_parameters_are_named():
    run = Run(made())
    run.until(6)
    model = made()
    prune.identity(model[0], "weight")  # its parameters are in another order now
    again = Run(model)
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    with pytest.raises(StateError, match=r"momentum_buffer of 0.bias has shape \(16, 6\)"):
        again.update()


def test_what_came_since_and_is_not_finite_cannot_be_restored_and_says_so():
    run = Run(made(), guard=GuardConfig(), policy=still_policy())
    run.until(6)
    run.model.append(nn.Linear(3, 3))
    run.optimizer.add_param_group({"params": run.model[-1].parameters()})
    run.update(math.nan)
    with pytest.raises(SnapshotError, match=r"has 5.bias, 5.weight only since the last good state \(after 5 updates\)"):
        run.until(T)


def test_a_run_that_is_changed_is_followed_without_a_decision_core_too():
    """Groups that are added before the first update."""
    model = made()
    run = Run(model, trained=model[4])
    run.optimizer.add_param_group({"params": [*model[0].parameters(), *model[2].parameters()], "lr": 0.002})
    run.until(T)
    assert isinstance(run.scheduler, GNSScheduler) and run.scheduler.base_lrs == [0.01, 0.002]
    assert {round(own[1] / own[0], 6) for own in run.watch.rates} == {0.2}
