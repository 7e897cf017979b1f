"""A snapshot, in memory or on disk, restores a run exactly."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from gns import GuardConfig, InvalidSettingError, OutOfOrderError, Snapshot

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)
after = pytest.mark.parametrize("updates", [0, 1, 4], ids=lambda n: f"after {n} updates")


class Run:
    """A run with parameters, buffers of two types, and optimizer state."""

    folder = None

    def __init__(self, optimizer: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.snapshot = Snapshot(self.model, self.optimizer, self.folder)
        self.t = 0

    def train(self, updates: int) -> None:
        for _ in range(updates):
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(self.t))
            self.optimizer.zero_grad()
            (self.model(x) - x[:, :1]).square().mean().backward()
            self.optimizer.step()
            self.t += 1

    def take(self) -> None:
        t = self.t

        def put_back() -> None:
            self.t = t

        self.snapshot.take(t, put_back)

    def state(self) -> dict[str, object]:
        """Everything, copied."""
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "t": self.t})


@pytest.fixture(params=["in memory", "on disk"], autouse=True)
def _place(request, tmp_path, monkeypatch):
    """Where the snapshots of every test are kept."""
    monkeypatch.setattr(Run, "folder", tmp_path / "snapshots" if request.param == "on disk" else None)


def same(one: object, other: object) -> bool:
    """Whether two nests are equal to the last bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return one == other


@after
@every_optimizer
def test_a_snapshot_restores_everything(optimizer, updates):
    run = Run(optimizer)
    run.train(updates)
    run.take()
    before = run.state()
    run.train(3)
    assert not same(run.state(), before)
    run.snapshot.restore()
    assert same(run.state(), before)


@after
@every_optimizer
def test_a_restored_run_repeats_itself(optimizer, updates):
    run = Run(optimizer)
    run.train(updates)
    run.take()
    run.train(3)
    first = run.state()
    run.snapshot.restore()
    run.train(3)
    assert same(run.state(), first)


@after
@every_optimizer
def test_a_snapshot_may_be_restored_again(optimizer, updates):
    run = Run(optimizer)
    run.train(updates)
    run.take()
    before = run.state()
    for more in (2, 1, 3):
        run.train(more)
        run.snapshot.restore()
        assert same(run.state(), before)


@every_optimizer
def test_the_last_snapshot_counts(optimizer):
    run = Run(optimizer)
    for updates in (0, 1, 2):
        run.train(updates)
        run.take()
        before = run.state()
        run.train(2)
        run.snapshot.restore()
        assert same(run.state(), before)
        assert run.snapshot.steps == run.t


@every_optimizer
def test_a_snapshot_taken_again_after_one_before_any_state(optimizer):
    run = Run(optimizer)
    run.take()
    run.train(2)
    run.snapshot.restore()
    run.take()
    before = run.state()
    run.train(1)
    run.snapshot.restore()
    assert same(run.state(), before)


def test_a_diverged_run_is_made_finite_again():
    run = Run("adam amsgrad")
    run.train(2)
    run.take()
    before = run.state()
    with torch.no_grad():
        for tensor in [*run.model.parameters(), run.model[1].running_mean]:
            tensor.fill_(math.nan)
        for state in run.optimizer.state.values():
            state["exp_avg"].fill_(math.inf)
    run.snapshot.restore()
    assert same(run.state(), before)


def test_state_that_came_later_is_taken_away():
    """A parameter that had no gradient before the snapshot has one after it."""
    run = Run("sgd momentum")
    run.model[0].requires_grad_(False)
    run.train(2)
    run.take()
    run.model[0].requires_grad_(True)
    run.train(1)
    assert run.model[0].weight in run.optimizer.state
    run.snapshot.restore()
    assert set(run.optimizer.state) == {*run.model[1].parameters(), *run.model[3].parameters()}


def test_an_entry_of_the_state_that_came_later_is_taken_away():
    """As an optimizer whose settings are changed on the way may add."""
    run = Run("adam amsgrad")
    run.train(1)
    run.take()
    before = run.state()
    for state in run.optimizer.state.values():
        state["later"] = torch.ones(1)
    run.snapshot.restore()
    assert same(run.state(), before)


def test_tensors_keep_their_place_in_memory():
    """Views, compiled graphs and other references go on seeing the run."""
    run = Run("adam amsgrad")
    run.train(1)
    run.take()
    run.train(1)
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    places = [tensor.data_ptr() for tensor in [*run.model.parameters(), *run.model.buffers(), *states]]
    run.snapshot.restore()
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    assert [tensor.data_ptr() for tensor in [*run.model.parameters(), *run.model.buffers(), *states]] == places


def test_learning_rates_are_left_alone():
    run = Run("adam amsgrad")
    run.take()
    run.optimizer.param_groups[0]["lr"] = 0.5
    run.snapshot.restore()
    assert run.optimizer.param_groups[0]["lr"] == 0.5


def test_what_the_caller_adds_is_put_back_in_order_at_every_restore():
    run, calls = Run("sgd"), []
    run.snapshot.take(7, lambda: calls.append("old"))
    run.snapshot.take(9, lambda: calls.append("random numbers"), lambda: calls.append("data"))
    assert calls == [] and run.snapshot.steps == 9
    run.snapshot.restore()
    run.snapshot.restore()
    assert calls == ["random numbers", "data"] * 2


def test_what_is_put_back_sees_the_restored_model():
    run, seen = Run("sgd"), []
    weight = run.model[0].weight
    before = weight.detach().clone()
    run.snapshot.take(0, lambda: seen.append(torch.equal(weight, before)))
    run.train(1)
    run.snapshot.restore()
    assert seen == [True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_multiple": 0.0}, "loss_multiple is 0.0; expected a finite number above 0"),
        ({"loss_multiple": math.nan}, "loss_multiple is nan"),
        ({"cut": 0.0}, "cut is 0.0; expected a factor between 0 and 1"),
        ({"cut": 1.0}, "cut is 1.0; expected a factor between 0 and 1"),
        ({"cut": math.nan}, "cut is nan"),
        ({"max_rollbacks": -1}, "max_rollbacks is -1; expected 0 or more"),
    ],
)
def test_a_guard_setting_outside_its_domain_is_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        GuardConfig(**settings)


def test_restoring_what_was_never_taken_is_refused():
    with pytest.raises(OutOfOrderError, match="take a snapshot first"):
        Run("sgd").snapshot.restore()
