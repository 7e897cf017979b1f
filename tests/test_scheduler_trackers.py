"""What a scheduler tells trackers at its decisions and rollbacks."""

import copy
import json
from pathlib import Path

import pytest
import torch
from scheduler_loop import T, batch, make_scheduler, network, two_groups
from torch.nn import functional as F

from gns import GuardConfig, InvalidSettingError


class Run:
    def __init__(self, **settings) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = two_groups(self.model)
        self.scheduler = make_scheduler(self.optimizer, self.model, **settings)
        self.rates: list[float] = []

    def train(self, updates: int = T, bad: int = -1) -> None:
        for number in range(updates):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(batch(number)[0]), batch(number)[1])
            loss.backward()
            self.optimizer.step()
            self.scheduler.step(loss if number != bad else float("nan"))
            self.rates.append(self.scheduler.get_last_lr()[0])


class Told:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, float], int]] = []

    def __call__(self, figures: dict[str, float], update: int) -> None:
        self.calls.append((figures, update))


@pytest.mark.parametrize("warmup", [0, 6])
def test_a_function_has_the_figures_of_every_decision(warmup):
    run, told = Run(warmup_steps=warmup), Told()
    run.scheduler.log_to(told)
    run.train()
    records = run.scheduler.history
    assert [update for _, update in told.calls] == [record.update for record in records] and len(records) > 3
    for number, (record, (figures, update)) in enumerate(zip(records, told.calls, strict=True), start=1):
        assert figures == {
            "gns/learning_rate": run.rates[update],  # that which was applied, in a warm-up too
            "gns/multiplier": record.multiplier,
            "gns/decisions": number,
            "gns/rollbacks": 0,
        }


def test_a_rollback_is_told_with_what_it_cut_by():
    run, told = Run(guard=GuardConfig(cut=0.25)), Told()
    run.scheduler.log_to(told, prefix="lr/")
    run.train(12, bad=4)
    taken_back = [figures for figures, _ in told.calls if figures["lr/multiplier"] == 0.25]
    assert run.scheduler.rollbacks == len(taken_back) == 1
    assert taken_back[0]["lr/rollbacks"] == 1 and taken_back[0]["lr/decisions"] == 1
    assert told.calls[-1][0]["lr/decisions"] == len(run.scheduler.history) - 1


def test_tensorboard_has_a_chart_of_each_figure(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    run = Run()
    with SummaryWriter(str(tmp_path)) as writer:
        run.scheduler.log_to(writer)
        run.train()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = ("learning_rate", "multiplier", "decisions", "rollbacks")
    assert sorted(events.Tags()["scalars"]) == sorted(f"gns/{name}" for name in names)
    rates = events.Scalars("gns/learning_rate")
    assert [event.step for event in rates] == [record.update for record in run.scheduler.history]
    assert [event.value for event in rates] == pytest.approx([run.rates[event.step] for event in rates])


class WandbRun:
    """The two calls of a run of W&B, of which the first says what its charts have as an axis."""

    def __init__(self) -> None:
        self.defined, self.rows = [], []

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append((name, step_metric))

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def test_a_run_of_weights_and_biases_has_the_update_as_its_axis():
    import inspect

    import wandb

    run, kept = Run(), WandbRun()
    for name in ("define_metric", "log"):  # what stands for it takes what it takes
        inspect.signature(getattr(wandb.Run, name)).bind(kept, "gns/*", **{"step_metric": "x"} if "d" in name else {})
    run.scheduler.log_to(kept)
    run.train()
    assert kept.defined == [("gns/*", "gns/update")]
    assert [row["gns/update"] for row in kept.rows] == [record.update for record in run.scheduler.history]
    assert kept.rows[1]["gns/multiplier"] == run.scheduler.history[1].multiplier


def test_trackers_of_accelerate_have_the_figures(tmp_path):
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

    class Tracker(GeneralTracker):
        name, requires_logging_directory, main_process_only = "kept", False, True

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[tuple[int, dict]] = []

        @property
        def tracker(self):
            return self.rows

        def store_init_configuration(self, values) -> None:
            pass

        def log(self, values, step=None, **_) -> None:
            self.rows.append((step, values))

    tracker = Tracker()
    accelerator = Accelerator(cpu=True, log_with=tracker)
    accelerator.init_trackers("run")
    run = Run()
    run.scheduler.log_to(accelerator)
    run.train()
    assert [step for step, _ in tracker.rows] == [record.update for record in run.scheduler.history]
    assert json.dumps(tracker.rows[-1][1]) and tracker.rows[-1][1]["gns/decisions"] == len(tracker.rows)


def test_targets_stay_with_the_scheduler_that_was_given_them():
    run, told = Run(), Told()
    run.scheduler.log_to(told)
    run.train(3)
    count = len(told.calls)
    again = copy.deepcopy(run)
    state = run.scheduler.state_dict()
    again.train(9)
    assert len(told.calls) == count and len(again.scheduler.history) > count
    fresh = Run()
    fresh.scheduler.load_state_dict(state)
    assert not fresh.scheduler._run.listeners and run.scheduler._run.listeners


@pytest.mark.parametrize("target", [None, 3, Path("folder"), {}])
def test_what_is_no_tracker_is_refused(target):
    with pytest.raises(InvalidSettingError, match="expected a run of W&B, a SummaryWriter"):
        Run().scheduler.log_to(target)
