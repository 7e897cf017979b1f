"""The scheduler in transformers' Trainer: losses, figures in the logs, budgets, resuming, the Trainer's settings."""

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
from plain_loop import same_state
from scheduler_loop import lively_policy
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader
from trainer_runs import (
    BATCH,
    EXAMPLES,
    MODELS,
    PARTS,
    UPDATES,
    Seen,
    arguments,
    bert,
    data,
    logged,
    make_trainer,
)
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

from gns import GNSScheduler, GuardConfig, InvalidSettingError, OutOfOrderError
from gns.integrations.transformers import GNSCallback, GNSTrainer, training_updates

CHECKED = {"trainer": Trainer, "callbacks": [GNSCallback()]}


@pytest.fixture
def seen(monkeypatch):
    return Seen(monkeypatch)


class Collator:
    """Batches as they are trained on."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        batch = {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
        self.batches.append(batch)
        return batch


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("trainer", [Trainer, GNSTrainer])
@pytest.mark.parametrize("kind", ["mean", "bert", "gpt2"])
def test_the_loss_of_an_update_is_what_the_trainer_logs_with_evaluations_between(kind, trainer, tmp_path, seen):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True}
    run = make_trainer(tmp_path, kind, trainer=trainer, settings=settings)
    run.train()
    assert len(seen.losses) == UPDATES and len(logged(run, "eval_loss")) == UPDATES + 1
    assert seen.losses == pytest.approx(logged(run), rel=1e-6)
    assert len({rate for rate, _ in seen.rates}) > 3


@pytest.mark.parametrize("trainer", [Trainer, GNSTrainer])
@pytest.mark.parametrize("kind", ["mean", "gpt2"])
def test_the_loss_of_an_update_is_that_of_its_parts_taken_together(kind, trainer, tmp_path, seen):
    collator = Collator()
    run = make_trainer(tmp_path, kind, trainer=trainer, data_collator=collator)
    before = copy.deepcopy(run.model).eval()
    run.train()
    parts = collator.batches[:PARTS]
    together = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    assert seen.losses[0] == pytest.approx(before(**together)["loss"].item(), rel=1e-5)
    if kind == "gpt2":
        mean_of_means = sum(before(**part)["loss"].item() for part in parts) / PARTS
        assert seen.losses[0] != pytest.approx(mean_of_means, rel=1e-4)


def other_loss(outputs, labels, num_items_in_batch=None):
    return nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.5, reduction="sum") / (
        num_items_in_batch or len(labels)
    )


OWN_LOSS = {
    "label smoothing": {"settings": {"label_smoothing_factor": 0.2}},
    "a loss function": {"compute_loss_func": other_loss},
}


@pytest.mark.parametrize("how", OWN_LOSS)
def test_a_loss_that_the_model_does_not_return_is_refused_by_a_plain_trainer(how, tmp_path):
    with pytest.raises(OutOfOrderError, match=r"report_loss\(loss\)"):
        make_trainer(tmp_path, **CHECKED, **OWN_LOSS[how]).train()


@pytest.mark.parametrize("how", OWN_LOSS)
def test_a_loss_that_the_model_does_not_return_is_told_by_the_trainer(how, tmp_path, seen):
    run = make_trainer(tmp_path, **OWN_LOSS[how])
    run.train()
    assert seen.losses == pytest.approx(logged(run), rel=1e-6) and len(seen.losses) == UPDATES


class OtherLoss(Seq2SeqTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)  # which has a loss that is not trained on
        loss = 100.0 * other_loss(outputs, inputs["labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class Ours(GNSTrainer, OtherLoss):
    pass


def test_another_trainer_s_own_loss_comes_before_that_of_the_outputs(tmp_path, seen, monkeypatch):
    monkeypatch.setattr("trainer_runs.TrainingArguments", Seq2SeqTrainingArguments)
    run = make_trainer(tmp_path, trainer=Ours)
    run.train()
    assert seen.losses == pytest.approx(logged(run), rel=1e-6) and min(seen.losses) > 50


@pytest.mark.parametrize("how", [{}, CHECKED])
def test_losses_of_an_update_that_float16_left_out_are_forgotten(how, tmp_path, seen, monkeypatch):
    from accelerate.optimizer import AcceleratedOptimizer

    calls, original = [], AcceleratedOptimizer.step

    def step(self, closure=None):
        calls.append(len(calls))
        self._is_overflow = calls[-1] == 4
        return None if self._is_overflow else original(self, closure)

    monkeypatch.setattr(AcceleratedOptimizer, "step", step)
    run = make_trainer(tmp_path, **how)
    run.train()
    assert run.lr_scheduler.last_epoch == UPDATES - 1 == len(seen.losses)
    assert seen.losses == pytest.approx([loss for n, loss in enumerate(logged(run)) if n != 4], rel=1e-6)


def test_shares_of_a_loss_over_several_processes_are_scaled_as_the_trainer_scales_them(tmp_path, seen, monkeypatch):
    run = make_trainer(tmp_path, "gpt2", **CHECKED)
    monkeypatch.setattr(type(run.args), "world_size", 2)
    GNSCallback().on_train_begin(run.args, state(run), run.control, lr_scheduler=run.lr_scheduler)
    assert run.lr_scheduler.shared_by == 2
    batch = {key: value.unsqueeze(0) for key, value in data("gpt2")[0].items()}
    loss = run.model(**batch, num_items_in_batch=30).loss
    assert run.lr_scheduler._losses.of_update().item() == pytest.approx(2 * loss.item())
    run.args.average_tokens_across_devices = False
    GNSCallback().on_train_begin(run.args, state(run), run.control, lr_scheduler=run.lr_scheduler)
    assert run.lr_scheduler.shared_by == 1


def state(run, begun: int = 0, updates: int = UPDATES):
    run.state.max_steps, run.state.global_step = updates, begun
    return run.state


# ---------------------------------------------------------------------- what the callback refuses, and logs


@pytest.mark.parametrize("how", [{}, CHECKED])
def test_a_budget_that_is_not_the_trainer_s_is_refused_with_both_numbers(how, tmp_path):
    with pytest.raises(InvalidSettingError, match=r"total_steps=11 .* 10; expected total_steps=10"):
        make_trainer(tmp_path, updates=11, **how).train()


def test_a_schedule_of_another_kind_is_refused(tmp_path):
    run = make_trainer(tmp_path)
    run.lr_scheduler = CosineAnnealingLR(run.optimizer, UPDATES)
    with pytest.raises(InvalidSettingError, match="CosineAnnealingLR; expected a GNSScheduler"):
        run.train()


def test_a_second_run_with_the_same_scheduler_is_refused(tmp_path):
    run = make_trainer(tmp_path)
    run.train()
    with pytest.raises(InvalidSettingError, match=r"counted 10 updates.* after 0"):
        run.train()


def test_going_on_from_a_checkpoint_without_a_scheduler_is_refused(tmp_path):
    saves = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    make_trainer(tmp_path, settings=saves).train()
    with pytest.raises(InvalidSettingError, match=r"counted 0 updates.* after 4.*save_only_model=False"):
        make_trainer(tmp_path, settings=saves).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_several_gpus_in_one_process_are_refused(tmp_path, monkeypatch):
    run = make_trainer(tmp_path)
    monkeypatch.setattr(type(run.args), "n_gpu", 2)
    with pytest.raises(InvalidSettingError, match="2 GPUs in one process"):
        GNSCallback().on_train_begin(run.args, state(run), run.control, lr_scheduler=run.lr_scheduler)


def test_decisions_reach_a_tracker(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = make_trainer(tmp_path, settings={"report_to": "tensorboard"})
    run.train()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    decisions = [event.value for event in events.Scalars("train/gns/decisions")]
    assert decisions == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    multipliers = [event.value for event in events.Scalars("train/gns/multiplier")]
    assert multipliers[1::2] == pytest.approx([record.multiplier for record in run.lr_scheduler.history])
    assert {event.value for event in events.Scalars("train/gns/rollbacks")} == {0}
    assert logged(run, "learning_rate") == pytest.approx(
        [event.value for event in events.Scalars("train/learning_rate")]
    )


def test_decisions_enter_the_log_history_of_a_plain_trainer_too(tmp_path):
    run = make_trainer(tmp_path, **CHECKED, settings={"eval_strategy": "epoch"})
    run.train()
    assert logged(run, "gns/decisions") == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert all(("gns/decisions" in entry) == ("loss" in entry) for entry in run.state.log_history)


# ---------------------------------------------------------------------- the number of updates

GRID = [
    (examples, parts, drop, epochs, split, processes)
    for examples in (1, 50, 64)
    for parts in (1, 3, 40)
    for drop in (False, True)
    for epochs in (1, 2.3)
    for split in (False, True)
    for processes in (1, 2, 3)
]


def test_the_number_of_updates_is_the_trainer_s_own_over_a_grid_of_settings(tmp_path):
    from accelerate.data_loader import prepare_data_loader

    model, numbers = bert(), set()
    for examples, parts, drop, epochs, split, processes in GRID:
        config = {"split_batches": split, "even_batches": True}
        settings = {"num_train_epochs": epochs, "dataloader_drop_last": drop, "accelerator_config": config}
        batch_size = BATCH if not split else 6
        args = arguments(
            tmp_path, gradient_accumulation_steps=parts, per_device_train_batch_size=batch_size, **settings
        )
        run = Trainer(model, args, train_dataset=list(range(examples)))
        loader = DataLoader(range(examples), batch_size=batch_size, drop_last=drop, shuffle=True)
        loader = prepare_data_loader(loader, num_processes=processes, process_index=0, split_batches=split)
        if len(loader) == 0:
            with pytest.raises(InvalidSettingError, match="no whole batch"):
                training_updates(args, examples, processes)
            continue
        expected = run.set_initial_training_values(args, loader)[-1]
        assert training_updates(args, examples, processes) == expected
        if processes == 1:
            assert run.set_initial_training_values(args, run.get_train_dataloader())[-1] == expected
            assert training_updates(args, examples) == expected
        numbers.add(expected)
    assert len(numbers) > 15


@pytest.mark.parametrize("settings", [{}, {"num_train_epochs": 1.5}, {"max_steps": 7}, {"dataloader_drop_last": True}])
def test_a_run_ends_after_that_number(settings, tmp_path, seen):
    updates = training_updates(arguments(tmp_path, **settings), EXAMPLES)
    run = make_trainer(tmp_path, updates=updates, settings=settings)
    run.train()
    assert run.state.max_steps == run.state.global_step == run.lr_scheduler.last_epoch == len(seen.losses) == updates


@pytest.mark.parametrize(
    ("examples", "settings", "message"),
    [
        (0, {}, "examples is 0"),
        (50, {"max_steps": 0}, "no update at all"),
        (50, {"num_train_epochs": 0}, "no update at all"),
        (None, {}, r"examples is None .*IterableDataset.*max_steps=N"),
    ],
)
def test_no_update_at_all_is_refused(examples, settings, message, tmp_path):
    with pytest.raises(InvalidSettingError, match=message):
        training_updates(arguments(tmp_path, **settings), examples)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup_steps": 4}, "warmup_steps=4"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type='cosine'"),
        ({"warmup_steps": 0.1, "lr_scheduler_type": "constant"}, "warmup_steps=0.1, lr_scheduler_type='constant'"),
        ({}, None),
    ],
)
def test_settings_that_do_nothing_are_told_once(settings, named, tmp_path):
    run = make_trainer(tmp_path, "mean", settings=settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    told = [str(warning.message) for warning in caught if "has no effect" in str(warning.message)]
    assert len(told) == (named is not None)
    assert not told or (f"TrainingArguments({named}) has no" in told[0] and "warmup_steps=N" in told[0])


class Stops(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_training_that_stops_early_is_told_with_the_number_to_give(tmp_path, caplog):
    make_trainer(tmp_path, "mean", callbacks=[Stops()]).train()
    assert f"ended after 4 of total_steps={UPDATES} updates" in caplog.text
    assert training_updates(arguments(tmp_path, max_steps=3), None) == 3


# ---------------------------------------------------------------------- resuming

SAVES = {"save_strategy": "steps", "save_steps": 1, "bf16": True}


def dropping(folder, seed: int = 3, **settings):
    """Dropout, bfloat16, accumulation, two groups; the last update of an epoch is of one part."""
    return make_trainer(folder, "dropout", seed=seed, settings={**SAVES, **settings})


def test_n_and_m_updates_equal_their_sum(tmp_path, seen):
    whole = dropping(tmp_path / "whole")
    whole.train()
    rates, losses = seen.clear()
    assert len({rate for rate, _ in rates}) > 3 and len(set(losses)) == UPDATES
    for n in range(1, UPDATES):
        rest = dropping(tmp_path / "rest", seed=90 + n, save_strategy="no")
        rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{n}"))
        assert seen.clear() == (rates[n:], losses[n:]), n
        assert same_state(rest.model, whole.model), n
        assert rest.lr_scheduler.history == whole.lr_scheduler.history


def test_a_run_that_goes_on_keeps_its_number_of_updates(tmp_path):
    dropping(tmp_path / "whole").train()
    longer = dropping(tmp_path / "rest", num_train_epochs=4)
    longer.lr_scheduler.budget = 20
    with pytest.raises(InvalidSettingError, match=r"total_steps=10 .* 20; .*keeps the number it was begun with"):
        longer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-10"))


def test_a_run_that_was_taken_back_goes_on(tmp_path, seen):
    def guarded(folder, seed):
        return make_trainer(folder, "mean", seed=seed, guard=GuardConfig(loss_multiple=1.0001), settings=SAVES)

    whole = guarded(tmp_path / "whole", 3)
    whole.train()
    done = whole.lr_scheduler.last_epoch
    assert done < UPDATES and logged(whole, "gns/rollbacks")[-1] > 0
    rates, _ = seen.clear()
    rest = guarded(tmp_path / "rest", 4)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{UPDATES - 1}"))
    assert seen.clear()[0] == rates[-1:] and rest.lr_scheduler.last_epoch == done


PROCESS = """
import sys
import warnings
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}]
import trainer_runs
run = trainer_runs.make_trainer(Path("rest"), "dropout", seed=50, settings={settings!r})
run.train(resume_from_checkpoint="whole/checkpoint-6")
torch.save([[r.learning_rate for r in run.lr_scheduler.history], run.model.state_dict()], "end")
"""


def test_a_new_process_goes_on_to_the_last_bit(root, tmp_path):
    whole = dropping(tmp_path / "whole")
    whole.train()
    program = PROCESS.format(tests=str(root / "tests"), settings={**SAVES, "save_strategy": "no"})
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rates, weights = torch.load(tmp_path / "end")
    assert rates == [record.learning_rate for record in whole.lr_scheduler.history]
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())


# ---------------------------------------------------------------------- the Trainer's settings


def rates_of(folder, monkeypatch, **settings):
    with monkeypatch.context() as patch:
        seen = Seen(patch)
        run = make_trainer(folder, settings=settings)
        run.train()
    return run, seen.rates


def test_checkpointed_activations_give_the_same_graph_and_rates(tmp_path, monkeypatch):
    plain, expected = rates_of(tmp_path, monkeypatch)
    run, rates = rates_of(tmp_path, monkeypatch, gradient_checkpointing=True)
    assert run.lr_scheduler.graph.edges.tolist() == plain.lr_scheduler.graph.edges.tolist()
    assert rates == expected and same_state(run.model, plain.model)


def test_the_policy_sees_gradients_as_they_are_clipped(tmp_path, monkeypatch):
    clipped, _ = rates_of(tmp_path, monkeypatch, max_grad_norm=1e-3)
    free, _ = rates_of(tmp_path, monkeypatch, max_grad_norm=0)
    small, large = (run.lr_scheduler.history[0] for run in (clipped, free))
    assert small.update == large.update == 0 and small.action != large.action


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    run = make_trainer(tmp_path, settings=settings)
    run.train()
    assert run.state.best_model_checkpoint and run.lr_scheduler.last_epoch == UPDATES
    assert run.evaluate()["eval_loss"] == pytest.approx(min(logged(run, "eval_loss")), rel=1e-6)


def warmed(folder, updates: int = UPDATES - 3, **settings):
    run = make_trainer(folder, updates=updates, settings=settings)
    rise = LinearLR(run.optimizer, start_factor=0.25, total_iters=3)
    run.lr_scheduler = SequentialLR(run.optimizer, [rise, run.lr_scheduler], milestones=[3])
    return run


def test_a_warm_up_may_come_before_and_a_run_goes_on_from_within_or_after_it(tmp_path, seen):
    whole = warmed(tmp_path / "whole", save_strategy="steps", save_steps=2)
    whole.train()
    rates, losses = seen.clear()
    assert len(losses) == UPDATES - 3
    assert logged(whole, "learning_rate")[:3] == pytest.approx([0.00075, 0.0015, 0.00225])
    assert logged(whole, "learning_rate")[4:] == [rate for rate, _ in rates[:-1]]  # SequentialLR's are one update late
    for n, counted in [(2, 0), (6, 3)]:
        rest = warmed(tmp_path / "rest")
        rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{n}"))
        assert seen.clear() == (rates[counted:], losses[counted:]) and same_state(rest.model, whole.model)
    with pytest.raises(InvalidSettingError, match=r"after a warm-up of 3.*expected total_steps=7"):
        warmed(tmp_path, UPDATES).train()


class OutOfMemory(nn.Module):
    """Has room for three rows."""

    def __init__(self):
        super().__init__()
        self.inner = bert()

    def forward(self, input_ids, labels=None):
        if len(input_ids) > 3:
            raise RuntimeError("CUDA out of memory.")
        return self.inner(input_ids, labels=labels)


def test_a_batch_size_that_is_found_must_leave_the_number_of_updates(tmp_path, seen):
    settings = {"auto_find_batch_size": True, "gradient_accumulation_steps": 1}
    with pytest.raises(InvalidSettingError, match=r"total_steps=26 .* 34;"):
        make_trainer(tmp_path, model=OutOfMemory(), updates=26, settings=settings).train()
    run = make_trainer(tmp_path, model=OutOfMemory(), settings={**settings, "max_steps": UPDATES})
    run.train()
    assert len(seen.losses) == UPDATES and seen.losses == pytest.approx(logged(run), rel=1e-6)


class OwnSchedule(GNSTrainer):
    """Makes its scheduler where a Trainer makes one, as the document shows."""

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = GNSScheduler(self.optimizer, self.model, num_training_steps, policy=lively_policy())
        return self.lr_scheduler


def test_a_schedule_made_by_the_trainer_fits_the_batch_size_that_is_found(tmp_path, seen):
    settings = {"auto_find_batch_size": True, "gradient_accumulation_steps": 1}
    run = OwnSchedule(OutOfMemory(), arguments(tmp_path, **settings), train_dataset=data("bert"))
    run.train()
    assert len(seen.losses) == 34 == run.lr_scheduler.last_epoch == run.lr_scheduler.budget
    assert [record.update for record in run.lr_scheduler.history] == [0, 7, 14, 21, 28]
    assert seen.losses == pytest.approx(logged(run), rel=1e-6)


@pytest.mark.parametrize("n", [4, 6])
def test_a_schedule_made_by_the_trainer_goes_on_to_the_last_bit(n, tmp_path, seen):
    def run(seed, **settings):
        torch.manual_seed(seed)
        args = arguments(tmp_path / "whole", **SAVES | settings)
        return OwnSchedule(model_init=MODELS["dropout"], args=args, train_dataset=data("bert"))

    whole = run(3)
    whole.train()
    rates, losses = seen.clear()
    rest = run(4, save_strategy="no")
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{n}"))
    assert seen.clear() == (rates[n:], losses[n:]) and same_state(rest.model, whole.model)
    rest.train()  # from the beginning, with a scheduler of its own
    assert seen.clear() == (rates, losses)
