"""The guard of a scheduler: a run that diverges is taken back, as often as allowed, and says so."""

import logging
import math
from itertools import pairwise

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, two_groups
from torch.nn import functional as F

from gns import GuardConfig

places = pytest.mark.parametrize("place", ["memory", "disk"])


def guard_in(place: str, folder, **settings) -> GuardConfig:
    return GuardConfig(folder=folder if place == "disk" else None, **settings)


OPTIMIZERS = {
    "adamw": lambda model: two_groups(model, foreach=True),
    "fused adam": lambda model: two_groups(model, torch.optim.Adam, fused=True),
    "fused momentum": lambda model: two_groups(model, torch.optim.SGD, momentum=0.9, fused=True),
    "decay alone": lambda model: two_groups(model, torch.optim.SGD, weight_decay=0.5),
    "rmsprop": lambda model: two_groups(model, torch.optim.RMSprop, rate=1e-3),
}


class Run:
    """A run of which single updates can be spoilt, from either kind of loop."""

    def __init__(
        self, optimizer: str = "adamw", guard: GuardConfig | None = None, closure: bool = False, **more
    ) -> None:
        torch.manual_seed(3)
        self.model, self.closure, self.number = network(), closure, 0
        self.optimizer = OPTIMIZERS[optimizer](self.model)
        self.scheduler = make_scheduler(self.optimizer, self.model, guard=guard, **more)
        self.watch = Watch(self.optimizer)

    def update(self, spoil=lambda run: None, loss: float | None = None) -> None:
        """One pass of the loop; ``spoil`` acts on the run when the gradient is pending."""

        def gradient():
            self.optimizer.zero_grad()
            found = F.cross_entropy(self.model(batch(self.number)[0]), batch(self.number)[1])
            found.backward()
            spoil(self)
            return found

        if self.closure:
            found = self.optimizer.step(gradient)
        else:
            found = gradient()
            self.optimizer.step()
        self.scheduler.step(found if loss is None else loss)
        self.number += 1

    def until(self, update: int) -> None:
        while self.scheduler.last_epoch < update:
            self.update()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def moments(self) -> list[torch.Tensor]:
        states = self.optimizer.state.values()
        return [value.clone() for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def spoil_gradient(run: Run) -> None:
    run.model[0].weight.grad[0, 0] = math.nan


def spoil_weights(run: Run) -> None:
    with torch.no_grad():
        run.model[0].weight[0, 0] = math.inf


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("closure", [False, True])
@places
def test_a_guard_that_has_nothing_to_do_changes_no_bit(place, optimizer, closure, tmp_path):
    guards = (None, guard_in(place, tmp_path), guard_in(place, tmp_path, enabled=False))
    runs = [Run(optimizer, guard, closure) for guard in guards]
    for run in runs:
        run.until(T)
    assert runs[0].watch.rates == runs[1].watch.rates == runs[2].watch.rates
    assert same_state(runs[0].model, runs[1].model) and same_state(runs[0].model, runs[2].model)
    assert runs[1].scheduler.rollbacks == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_weights, None])
@places
def test_a_diverged_interval_is_undone_the_rate_cut_and_the_policy_told(
    place, spoil, closure, optimizer, caplog, tmp_path
):
    run = Run(optimizer, guard_in(place, tmp_path, cut=0.25), closure, policy=lively_policy(mode="recursive"))
    run.until(4)
    kept = {}

    def keep(run: Run) -> None:
        kept.update(weights=run.weights(), moments=run.moments())

    run.update()
    run.update(keep)  # the decision at update 5 finds the run well
    for _ in range(3):
        run.update(loss=1e9 if spoil is None else None)
    run.update(spoil or (lambda run: None), loss=1e9 if spoil is None else None)
    if run.scheduler.rollbacks == 0:
        run.update()  # the decision at update 10 finds it diverged
    assert run.scheduler.rollbacks == 1 and run.scheduler.last_epoch == 10
    assert all(torch.equal(value, kept["weights"][name]) for name, value in run.model.state_dict().items())
    assert all(map(torch.equal, run.moments(), kept["moments"]))
    before, record = run.scheduler.history[-2:]
    assert record.rollback and record.update == 10 and record.multiplier == 0.25 and record.action is None
    assert record.finite is (spoil is None)
    assert record.learning_rate == pytest.approx(0.25 * before.learning_rate)
    made = len(run.watch.rates)
    run.update()
    decision = run.scheduler.history[-1]
    assert not decision.rollback and decision.update == 10 and decision.features["rolled_back"] == 1.0
    assert decision.learning_rate == pytest.approx(record.learning_rate * decision.multiplier)
    assert run.watch.rates[made][0] == decision.learning_rate and run.scheduler.last_epoch == 11
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert "state after 5 updates is restored" in caplog.text and "rollback 1 of 5" in caplog.text
    run.until(T)
    assert run.scheduler.rollbacks == 1
    assert all(torch.isfinite(value).all() for value in run.model.state_dict().values())


def test_past_the_limit_a_run_is_restored_all_the_same_and_one_error_says_that_it_is_lost(caplog):
    run = Run(guard=GuardConfig(max_rollbacks=2, cut=0.5), policy=lively_policy(mode="recursive"))
    run.until(5)
    kept = {}
    run.update(lambda run: kept.update(run.weights()), loss=1e9)
    while run.scheduler.last_epoch < T:
        run.update(loss=1e9)
    assert run.scheduler.rollbacks == 4 and run.scheduler.last_epoch == T
    assert [record.update for record in run.scheduler.history if record.rollback] == [10, 15, 20, T]
    assert [record.update for record in run.scheduler.history if not record.rollback] == [0, 5, 10, 15, 20]
    rates = [record.learning_rate for record in run.scheduler.history if record.rollback]
    assert all(after < before for before, after in pairwise(rates))
    assert all(torch.equal(value, kept[name]) for name, value in run.model.state_dict().items())
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] * 2 + [logging.ERROR]
    assert "this run is lost" in caplog.text and "max_rollbacks = 2" in caplog.text


def test_the_last_interval_is_watched_as_well():
    run = Run(guard=GuardConfig())
    run.until(20)
    kept = {}
    run.update(lambda run: kept.update(run.weights()))
    run.update()
    run.update(loss=1e9)
    assert run.scheduler.last_epoch == T and run.scheduler.history[-1].rollback
    assert run.scheduler.history[-1].update == T
    assert all(torch.equal(value, kept[name]) for name, value in run.model.state_dict().items())


def test_several_rollbacks_in_a_row_go_back_to_one_state_and_cut_each_time():
    run = Run(guard=GuardConfig(cut=0.5), policy=lively_policy(mode="recursive"))
    run.until(5)
    kept, restored = {}, []
    run.update(lambda run: kept.update(run.weights()))
    run.until(10)
    for _ in range(3):
        run.update(spoil_gradient)
        restored.append(run.weights())
    assert run.scheduler.last_epoch == 10
    assert all(torch.equal(value, one[name]) for one in restored for name, value in kept.items())
    rates = [record.learning_rate for record in run.scheduler.history if record.rollback]
    assert rates[1] == pytest.approx(rates[0] / 2) and rates[2] == pytest.approx(rates[0] / 4)


def test_a_resumed_run_can_be_taken_back_to_where_it_was_resumed():
    first = Run(guard=GuardConfig())
    first.until(8)
    run = Run(guard=GuardConfig())
    for name in ("model", "optimizer", "scheduler"):
        getattr(run, name).load_state_dict(getattr(first, name).state_dict())
    run.number = first.number
    before = run.weights()
    run.update()
    run.update(loss=1e9)
    run.update()
    assert run.scheduler.rollbacks == 1 and run.scheduler.history[-1].rollback
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    run.until(T)
    whole = Run(guard=GuardConfig())
    whole.until(T)
    assert whole.scheduler.rollbacks == 0 and not same_state(run.model, whole.model)


def test_rollbacks_and_what_was_used_of_them_are_part_of_the_state():
    first = Run(guard=GuardConfig(max_rollbacks=1))
    first.until(9)
    first.update(loss=1e9)
    first.update()
    run = Run(guard=GuardConfig(max_rollbacks=1))
    for name in ("model", "optimizer", "scheduler"):
        getattr(run, name).load_state_dict(getattr(first, name).state_dict())
    assert run.scheduler.rollbacks == 1 and run.scheduler.history == first.scheduler.history
    run.until(14)
    run.update(loss=1e9)
    run.until(T)
    assert run.scheduler.rollbacks == 2
