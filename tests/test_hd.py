"""Hypergradient descent against finite differences of the loss, and its fast path against its readable twin."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from plain_loop import small_task
from torch import Tensor, nn

from agents.controllers.directions import hypergradient, hypergradient_by_tensor
from agents.controllers.hd import HDController
from envs.learning_rate_env import Episode
from gns.errors import InvalidSettingError

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "sgd, decay": lambda parameters: torch.optim.SGD(parameters, lr=0.05, weight_decay=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "momentum, decay": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adam, decay": lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def problem(seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
    """A small network in float64 and the inputs of some batches."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return model, [torch.randn(8, 4, generator=generator, dtype=torch.float64) for _ in range(6)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch).squeeze() - batch.sum(1).sin()).square().mean()


def loss_after(name: str, last_rate: float | None) -> float:
    """Loss of the sixth batch after five updates, the last of them at another rate."""
    model, batches = problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    for number, batch in enumerate(batches[:5]):
        if number == 4 and last_rate is not None:
            optimizer.param_groups[0]["lr"] = last_rate
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return loss_of(model, batches[5]).item()


def by_stretches(optimizer, group, pending, last) -> float:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.controllers.directions._STRETCH", 3)
        return hypergradient(optimizer, group, pending, last)


@pytest.mark.parametrize("function", [hypergradient, by_stretches, hypergradient_by_tensor])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_losss_derivative_by_the_last_rate(name, function):
    model, batches = problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    group = optimizer.param_groups[0]
    for batch in batches[:5]:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        last = [p.grad for p in group["params"]]
        optimizer.step()
    optimizer.zero_grad()
    loss_of(model, batches[5]).backward()
    rate, width = group["lr"], 1e-6
    differences = (loss_after(name, rate + width) - loss_after(name, rate - width)) / (2 * width)
    assert abs(differences) > 1e-4
    pending = [p.grad for p in group["params"]]
    assert function(optimizer, group, pending, last) == pytest.approx(differences, rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reading_it_leaves_everything_as_it_was(name):
    """Also where a group has one tensor, which joining does not copy."""
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=torch.float64))
    optimizer = OPTIMIZERS[name]([weight])
    for step in range(3):
        weight.grad = torch.full_like(weight, 0.5 + step)
        last = [weight.grad]
        optimizer.step()
    weight.grad = torch.full_like(weight, 4.0)
    before = copy.deepcopy((optimizer.state_dict(), weight.grad, last, weight.detach()))
    value = hypergradient(optimizer, optimizer.param_groups[0], [weight.grad], last)
    assert value == pytest.approx(hypergradient_by_tensor(optimizer, optimizer.param_groups[0], [weight.grad], last))
    assert value == pytest.approx(by_stretches(optimizer, optimizer.param_groups[0], [weight.grad], last))
    after = (optimizer.state_dict(), weight.grad, last, weight.detach())
    assert str(after) == str(before)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw"])
def test_a_run_follows_the_rule_at_every_update(optimizer):
    task, beta = small_task(batch_size=8), 1e-3
    session = HDController("hd", beta=beta).start(Episode(task, optimizer, 30, 0.01, 2))
    expected = 0.01
    for update in range(30):
        group = session.run.optimizer.param_groups[0]
        last = [None if p.grad is None else p.grad.clone() for p in group["params"]]
        session.run.compute_gradient()
        if update:
            pending = [p.grad for p in group["params"]]
            expected -= beta * hypergradient_by_tensor(session.run.optimizer, group, pending, last)
        session.before_update()
        assert session.rates[-1] == pytest.approx(expected, rel=1e-5)
        session.run.apply_update()
        session.after_update(session.run.loss)
    assert session.rates[-1] != 0.01


def test_a_rate_that_is_too_low_rises_and_one_that_is_too_high_falls():
    task = small_task(batch_size=32)
    low = HDController("hd", beta=1e-3).train(Episode(task, "sgd", 200, 1e-4, 0))
    assert low.rates[-1] > 10 * low.rates[0]
    constant = HDController("hd", beta=0.0).train(Episode(task, "sgd", 200, 1e-4, 0))
    assert set(constant.rates) == {1e-4} and low.reward_loss < 0.8 * constant.reward_loss


def test_a_parameter_without_a_gradient_counts_nothing():
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    run = HDController("hd", beta=1e-3).train(Episode(small_task(build_model=Partly), "sgdm", 20, 0.01, 0))
    alone = HDController("hd", beta=1e-3).train(
        Episode(small_task(build_model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))), "sgdm", 20, 0.01, 0)
    )
    assert run.rates == pytest.approx(alone.rates, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw"])
def test_an_update_that_overflows_in_float16_teaches_nothing(optimizer):
    session = HDController("hd", beta=1e-3).start(Episode(small_task(precision="float16"), optimizer, 60, 0.01, 0))
    session.run._scaler.load_state_dict({**session.run._scaler.state_dict(), "scale": 2.0**30})
    left_out = []
    for _ in range(60):
        session.update()
        left_out.append(session.run.left_out)
    assert left_out[:2] == [True, True] and left_out.count(False) > 30
    # A rate moves where an update was made before and one comes now.
    moves = [after != before for before, after in pairwise(session.rates)]
    assert moves == [not (before or now) for before, now in pairwise(left_out)]
    assert all(math.isfinite(rate) for rate in session.rates)


def test_each_group_may_have_a_rate_of_its_own():
    def groups(model: nn.Module) -> list[dict]:
        first, *rest = model.parameters()
        return [{"params": [first]}, {"params": rest, "lr": 0.001}]

    task = small_task(parameter_groups=groups)
    session = HDController("hd", beta=1e-3, per_group=True).start(Episode(task, "sgdm", 30, 0.01, 0))
    for _ in range(30):
        session.update()
    own = [group["lr"] for group in session.run.optimizer.param_groups]
    assert own[0] / own[1] != pytest.approx(10.0, rel=1e-3)


def test_beta_follows_its_own_hypergradient():
    session = HDController("hd", beta=0.5, beta_rate=0.1).start(Episode(small_task(), "sgd", 10, 0.01, 0))
    session.descend([0.002])
    assert session.betas == [0.5]  # nothing before it to compare with
    session.descend([0.003])
    assert session.betas[0] == pytest.approx(0.5 + 0.1 * 0.003 * 0.002)  # two of one sign: the step was too short
    session.descend([-0.004])
    assert session.betas[0] == pytest.approx(0.5 + 0.1 * (0.003 * 0.002 - 0.004 * 0.003))
    session.descend([1e9])
    assert session.betas[0] == 0.0


@pytest.mark.parametrize(
    "change", [{"beta": -1.0}, {"beta_rate": math.nan}, {"min_lr": 0.0}, {"min_lr": 3, "max_lr": 2}]
)
def test_settings_outside_their_domain_are_refused(change):
    with pytest.raises(InvalidSettingError):
        HDController("hd", **change)
