"""What comes before a scheduler's profile: a warm-up of its own, and runs whose end is not known."""

import copy
import logging
import warnings

import pytest
import torch
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, two_groups
from torch.nn import functional as F

from gns import InvalidSettingError, OutOfOrderError
from gns.deciding.phases import Phases
from gns.errors import StateError
from gns.schedules.profiles import rex
from gns.tools.history_files import load_history


def still():
    policy = lively_policy()
    with torch.no_grad():
        policy.network.actor[2].weight.zero_()
        policy.network.actor[2].bias.zero_()
    return policy


class Run:
    def __init__(self, budget: int | None = T, kind=torch.optim.AdamW, **settings) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = two_groups(self.model, kind)
        self.scheduler = make_scheduler(self.optimizer, self.model, budget=budget, **settings)
        self.watch = Watch(self.optimizer)
        self.done = 0

    @property
    def rates(self) -> list[float]:
        return [rates[0] for rates in self.watch.rates]

    def train(self, updates: int) -> "Run":
        for _ in range(updates):
            inputs, targets = batch(self.done)
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss)
            self.done += 1
        return self

    def resumed(self, **settings) -> "Run":
        states = [copy.deepcopy(part.state_dict()) for part in (self.model, self.optimizer, self.scheduler)]
        again = Run(**settings)
        for part, state in zip((again.model, again.optimizer, again.scheduler), states, strict=True):
            part.load_state_dict(state)
        again.done = self.done
        return again

    @property
    def decided_at(self) -> list[int]:
        return [record.update for record in self.scheduler.history]


# ---------------------------------------------------------------------- warm-up


@pytest.mark.parametrize("warmup", [1, 5, 7, 13])
def test_a_warm_up_climbs_to_what_the_policy_decides_first_and_it_decides_again_after(warmup):
    plain, run = Run().train(1), Run(warmup_steps=warmup).train(T)
    first = plain.rates[0]
    assert plain.scheduler.history[0].features == run.scheduler.history[0].features
    assert first != pytest.approx(0.01, rel=0.05)  # the policy has another rate in mind than the initial one
    assert run.rates[:warmup] == pytest.approx([first * (t + 1) / (warmup + 1) for t in range(warmup)], rel=1e-12)
    assert run.decided_at == [0, *(t for t in range(5, T, 5) if t >= warmup)]
    assert run.scheduler.run_history().rate_path()[1].tolist() == run.rates
    assert [rates[1] / rates[0] for rates in run.watch.rates] == pytest.approx([3.0] * T, rel=1e-12)


def test_after_the_warm_up_the_profile_has_what_is_left_to_itself():
    run = Run(policy=still(), warmup_steps=6).train(T)
    expected = [0.01 * (t + 1) / 7 if t < 6 else 0.01 * rex((t - 6) / (T - 6)) for t in range(T)]
    assert run.rates == pytest.approx(expected, rel=1e-12)
    assert run.scheduler.get_last_lr()[0] == run.rates[-1] < 0.002


def test_the_first_decision_after_the_warm_up_reads_the_losses_before_it_and_no_earlier_ones():
    run = Run(warmup_steps=12)
    losses = []
    run.model.register_forward_hook(
        lambda module, args, output: losses.append(F.cross_entropy(output, batch(run.done)[1]))
    )
    run.train(16)
    assert run.decided_at == [0, 15]
    assert run.scheduler.history[1].loss == pytest.approx(float(torch.stack(losses[10:15]).mean()), rel=1e-6)
    assert run.scheduler._run.core.steps == 16  # of the optimizer's state: all that were made


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("done", [3, 7, 11])
def test_a_run_saved_in_its_warm_up_or_after_goes_on_exactly(done, kind):
    whole = Run(kind=kind, warmup_steps=8).train(T)
    run = Run(kind=kind, warmup_steps=8).train(done).resumed(kind=kind)
    assert run.train(T - done).rates == whole.rates[done:]
    assert run.decided_at == whole.decided_at


def test_a_run_resumed_without_a_state_in_its_warm_up_climbs_to_the_same_rate():
    whole = Run(policy=still(), warmup_steps=8).train(T)
    torch.manual_seed(0)
    model = network()
    optimizer = two_groups(model)
    for group, rate in zip(optimizer.param_groups, whole.watch.rates[5], strict=True):
        group["initial_lr"], group["lr"] = group["lr"], rate
    again = make_scheduler(optimizer, model, still(), warmup_steps=8, last_epoch=4)
    watch = Watch(optimizer)
    for number in range(5, T):
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        optimizer.step()
        again.step(loss)
    assert watch.rates[0] == pytest.approx(whole.watch.rates[5], rel=1e-12)
    assert watch.rates[9] == pytest.approx(whole.watch.rates[14], rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup_steps": T}, f"warmup_steps is {T} and total_steps {T}, of which it is a part; expected fewer"),
        ({"warmup_steps": -1}, "warmup_steps is -1; expected"),
        ({"warmup_steps": 2.5}, "warmup_steps is 2.5; expected a whole number"),
        ({"warmup_steps": False}, "warmup_steps is False; expected"),
    ],
)
def test_a_warm_up_that_is_none_is_refused(settings, words):
    with pytest.raises(InvalidSettingError, match=words):
        Run(**settings)


# ---------------------------------------------------------------------- the end is not known


def test_a_run_of_unknown_length_is_steady_and_comes_down_when_it_is_told_to():
    run = Run(None, policy=still(), warmup_steps=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.train(310)
        assert run.rates[3:] == [0.01] * 307
        run.scheduler.cooldown(40)
        run.train(40)
    assert run.rates[310:] == pytest.approx([0.01 * rex(t / 40) for t in range(40)], rel=1e-12)
    assert run.scheduler.budget == 350 and run.scheduler._run.core.finished


def test_its_decisions_are_those_of_a_run_in_its_first_half_at_ever_longer_intervals():
    run = Run(None).train(700)
    assert run.decided_at == [0, 20, 40, 60, 80, 120, 160, 240, 320, 480, 640]  # 5 decisions a run, of 100, 200, ...
    progress = [(1 + record.features["progress"]) / 2 for record in run.scheduler.history]
    assert max(progress) <= 0.6 + 1e-6 and min(progress[4:]) >= 0.25
    run.scheduler.cooldown(300)
    run.train(300)
    assert run.decided_at[11:] == [800] and run.scheduler.history[-1].features["progress"] == pytest.approx(0.6)
    assert run.rates[-1] < 0.05 * run.rates[699]


@pytest.mark.parametrize("done", [13, 60, 95])
def test_a_run_of_unknown_length_is_saved_and_goes_on_exactly(done, tmp_path):
    whole = Run(None).train(130)
    whole.scheduler.cooldown(30)
    whole.train(30)
    first = Run(None).train(done)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = first.resumed(budget=None).train(130 - done)
    run.scheduler.cooldown(30)
    run = run.train(10).resumed(budget=160).train(20)
    assert run.rates == whole.rates[140:] and run.decided_at == whole.decided_at
    history = load_history(run.scheduler.save_history(tmp_path))
    assert history == run.scheduler.run_history() and history.phases == Phases(0, 130)
    path = dict(zip(*(part.tolist() for part in history.rate_path()), strict=True))
    assert [path[update] for update in range(140, 150)] == run.rates[:10]


def test_a_policy_that_decides_every_so_many_updates_goes_on_doing_so():
    run = Run(None, policy=lively_policy(decision_interval=30)).train(400)
    assert run.decided_at == list(range(0, 400, 30))


def test_a_cooldown_where_the_end_is_known_is_refused():
    for run in (Run(), Run(None)):
        if not run.scheduler._run.end_known:
            run.scheduler.cooldown(20)
        with pytest.raises(InvalidSettingError, match=r"cooldown\(9\) came in a run of \d+ updates.*total_steps=None"):
            run.scheduler.cooldown(9)
    with pytest.raises(InvalidSettingError, match="steps is 0; expected"):
        Run(None).scheduler.cooldown(0)
    with pytest.raises(InvalidSettingError, match="policy takes one decision a run"):
        Run(None, policy=lively_policy(num_decisions=1))


def test_a_run_is_extended_to_more_updates_than_it_had():
    run = Run(policy=still()).train(10)
    run.scheduler.extend(60)
    run.train(50)
    assert run.scheduler.budget == 60 and run.rates[59] == pytest.approx(0.01 * rex(59 / 60))
    with pytest.raises(InvalidSettingError, match="total_steps is 60, and the run has 60 updates already"):
        run.scheduler.extend(60)
    unknown = Run(None, policy=still()).train(10)
    unknown.scheduler.extend(40)  # below what its decisions were taken for
    assert unknown.train(30).rates[39] == pytest.approx(0.01 * rex(29 / 30))


def test_an_end_without_a_cooldown_is_told(caplog):
    run = Run(None).train(30)
    with caplog.at_level(logging.WARNING, "gns"):
        run.scheduler._progress.tell_if_unfinished()
    assert "ended after 30 updates" in caplog.text and "scheduler.cooldown(steps)" in caplog.text
    run.scheduler.cooldown(5)
    run.train(5)
    caplog.clear()
    run.scheduler._progress.tell_if_unfinished()
    assert not caplog.text


@pytest.mark.parametrize("phases", [{"warmup": -1}, {"warmup": 5, "steady": 2}, {"steady": 1.5}, {"late": 1}, None])
def test_damaged_phases_of_a_state_are_refused(phases):
    state = Run(warmup_steps=2).train(3).scheduler.state_dict()
    with pytest.raises(StateError, match="damaged"):
        Run().scheduler.load_state_dict(state | {"phases": phases})


def test_a_state_of_before_there_were_phases_is_read():
    run = Run().train(6)
    state = run.scheduler.state_dict()
    del state["phases"]
    again = Run()
    again.scheduler.load_state_dict(state)
    assert again.scheduler._run.phases == Phases()


# ---------------------------------------------------------------------- what it says of itself


def test_a_scheduler_says_where_it_stands():
    run = Run(warmup_steps=4)
    assert repr(run.scheduler).startswith("GNSScheduler(update 0 of 23, learning rate 0.01 (from 0.01), 0 decisions, ")
    run.train(6)
    rate = run.scheduler.get_last_lr()[0]
    said = f"update 6 of 23, learning rate {rate:.3g} (from 0.01), 2 decisions, 0 rollbacks, mode profile, profile rex"
    assert repr(run.scheduler) == f"GNSScheduler({said}, warm-up of 4)"
    assert "update 0 of an unknown number" in repr(Run(None).scheduler)
    with pytest.raises(OutOfOrderError, match="empty"):
        Run(None).scheduler.plot()
