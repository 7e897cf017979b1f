"""Runs that are shorter, longer or otherwise than planned: gone on with, or told."""

import copy
import logging
import warnings

import pytest
import torch
from scheduler_loop import T, batch, lively_policy, make_scheduler, network, two_groups
from torch.nn import functional as F

from gns import InvalidSettingError
from gns.scheduler import lengths


class Run:
    def __init__(self, budget: int = T, **settings) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = two_groups(self.model)
        self.scheduler = make_scheduler(self.optimizer, self.model, budget=budget, **settings)
        self.rates: list[float] = []

    def train(self, updates: int) -> None:
        for _ in range(updates):
            number = len(self.rates)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(batch(number)[0]), batch(number)[1])
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
            self.rates.append(self.scheduler.get_last_lr()[0])

    def parts(self):
        return self.model, self.optimizer, self.scheduler


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_a_run_of_fewer_updates_than_decisions_decides_before_each(budget):
    run = Run(budget)
    run.train(budget)
    assert [record.update for record in run.scheduler.history] == list(range(budget))
    assert run.scheduler.last_epoch == budget and run.scheduler.decision.num_decisions == budget
    again = Run(budget)
    again.scheduler.load_state_dict(run.scheduler.state_dict())
    assert again.scheduler.run_history().rate_path()[1][-1] == run.rates[-1]


@pytest.mark.parametrize(
    ("steps", "why", "other"),
    [(-1, "IterableDataset", "max_epochs=-1"), (float("inf"), r"max_epochs=-1", "IterableDataset")],
)
def test_an_unknown_length_is_refused_with_its_cause_and_what_to_give(steps, why, other):
    with pytest.raises(InvalidSettingError, match=rf"total_steps is .*{why}.*max_steps=N.*total_steps=None") as refused:
        Run(steps)
    assert other not in str(refused.value)


def test_a_budget_beyond_all_runs_takes_no_memory():
    run = Run(10**12)
    run.train(3)
    assert run.scheduler._run.core._losses.numel() <= 2**20 and len(run.scheduler.history) == 1
    run.scheduler.budget = 9
    run.train(6)
    assert run.scheduler.last_epoch == 9 and len(run.scheduler.history) > 3


def test_a_long_interval_keeps_losses_of_evenly_spaced_updates(monkeypatch):
    monkeypatch.setattr("gns.deciding.decision._MOST_LOSSES", 4)
    run = Run(50)  # ten updates an interval, of which every third loss is kept
    run.train(11)
    losses = run.scheduler._run.core.statistics.losses
    assert len(losses) == 4 and run.scheduler._run.core._losses.numel() == 4
    whole = Run(50)
    monkeypatch.setattr("gns.deciding.decision._MOST_LOSSES", 2**20)
    whole.train(11)
    assert losses.tolist() == whole.scheduler._run.core.statistics.losses[::3].tolist()


# ---------------------------------------------------------------------- longer than planned


@pytest.mark.parametrize("way", ["load", "set after loading", "set in mid-run", "set between step and step"])
@pytest.mark.parametrize("done", [7, T])
def test_a_run_goes_on_for_a_length_that_is_given_later(way, done):
    run = Run()
    run.train(done)
    if way in ("load", "set after loading"):
        states = [copy.deepcopy(part.state_dict()) for part in run.parts()]
        again = Run()
        again.rates = list(run.rates)
        again.model.load_state_dict(states[0])
        again.optimizer.load_state_dict(states[1])
        again.scheduler.load_state_dict(states[2], **({"total_steps": 60} if way == "load" else {}))
        run = again
    if way == "set between step and step" and done < T:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(batch(done)[0]), batch(done)[1])
        loss.backward()
        run.optimizer.step()
        run.scheduler.budget = 60
        run.scheduler.step(loss)
        run.rates.append(run.scheduler.get_last_lr()[0])
    run.scheduler.budget = 60
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.train(60 - len(run.rates))
    updates = [record.update for record in run.scheduler.history]
    assert run.scheduler.budget == 60 and run.scheduler.last_epoch == 60
    assert [update for update in updates if update > done] == list(range(12 * (done // 12 + 1), 60, 12))
    assert run.rates[-1] < run.rates[max(updates)]  # the profile comes down at the new end
    assert run.scheduler.history[-1].features["progress"] == pytest.approx(2 * 48 / 60 - 1, abs=1e-6)


def test_a_state_of_another_length_is_told_with_what_to_do_and_stands():
    run = Run()
    run.train(T)
    state = run.scheduler.state_dict()
    other = Run(2 * T)
    with pytest.warns(UserWarning, match=rf"total_steps={2 * T} and its state is of a run of {T} .* {T} of them done"):
        other.scheduler.load_state_dict(state)
    assert other.scheduler.budget == T
    with pytest.warns(UserWarning, match=f"after the last of total_steps={T} updates"):
        other.train(2)
    same = Run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.scheduler.load_state_dict(state)
        Run(2 * T).scheduler.load_state_dict(state, total_steps=2 * T)


def test_updates_past_the_end_are_told_once_and_further_steps_without_any_are_not():
    run = Run()
    run.train(T)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.scheduler.step()  # as Accelerate does, once a process
        assert not told
        run.train(3)
    assert [warning.filename for warning in told] == [__file__] and "whole number of updates" in str(told[0].message)


# ---------------------------------------------------------------------- ended early


def test_a_run_that_ends_early_is_told_at_the_end_of_the_process_with_the_number_to_give(caplog, monkeypatch):
    monkeypatch.delattr("sys.last_value", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with caplog.at_level(logging.WARNING, "gns"):
        Run().train(T)
        lengths._at_exit()
        assert not caplog.records
        Run().train(9)
        lengths._at_exit()
        lengths._at_exit()
    (record,) = caplog.records
    assert "ended after 9 of total_steps=23" in record.getMessage() and "total_steps=9:" in record.getMessage()


def test_one_that_a_process_of_several_left_or_that_raised_is_not(caplog, monkeypatch):
    monkeypatch.setattr("sys.last_value", KeyboardInterrupt(), raising=False)
    Run(policy=lively_policy()).train(2)
    lengths._at_exit()
    monkeypatch.delattr("sys.last_value")
    monkeypatch.setenv("RANK", "1")
    lengths._at_exit()
    assert not caplog.records
