"""The scheduler in PyTorch Lightning: passing ``self`` is all there is to do."""

import copy
import csv
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lightning_loop import Manual, Module, fit, loader, trainer, written_out
from plain_loop import same_state
from pytorch_lightning.callbacks import LearningRateFinder, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, two_groups
from torch import nn
from torch.nn import functional as F

from gns import InvalidSettingError, LayerGraphError
from gns.integrations.lightning import LossReporter

# Lightning's own remarks: on workers, on what it deprecates in PyTorch.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


def module(kind: type = Module, *args, **settings):
    torch.manual_seed(0)
    return kind(*args, **settings)


# ---------------------------------------------------------------------- the rates of the loop written out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"parts": 2},
        {"parts": 4},
        {"clip": 0.1},
        {"parts": 2, "clip": 0.1},
        {"precision": "bf16-mixed", "parts": 2},
        {"precision": "bf16-true", "clip": 0.1},
    ],
    ids=str,
)
def test_rates_are_those_of_the_loop_written_out(settings):
    rates, history, model = written_out(**settings)
    parts = settings.get("parts", 1)
    trained = module()
    fit(
        trained,
        parts,
        accumulate_grad_batches=parts,
        gradient_clip_val=settings.get("clip"),
        precision=settings.get("precision", "32-true"),
        val_check_interval=4 * parts,  # evaluations between updates tell no loss
    )
    assert trained.rates == rates and len({first for first, _ in rates}) > 4
    assert trained.scheduler.history == history and len(history) == 5
    assert same_state(trained.network, model)


@pytest.mark.parametrize("tell", [True, False])
def test_manual_optimization_has_them_whether_the_loss_is_given_or_not(tell):
    rates, history, model = written_out()
    trained = module(Manual, tell)
    fit(trained)
    assert trained.rates == rates and trained.scheduler.history == history and same_state(trained.network, model)


def test_a_batch_left_over_by_accumulation_is_an_update_with_its_own_loss():
    trained = module(policy=lively_policy(decision_interval=1))
    fit(trained, parts=1, updates=T, accumulate_grad_batches=2)
    assert trained.scheduler.last_epoch == (T + 1) // 2 == len(trained.rates)
    losses = [2.0 ** record.features["log_loss"] for record in trained.scheduler.history]
    assert len(losses) == (T + 1) // 2
    assert trained.trainer.global_step == (T + 1) // 2


def test_an_inner_module_does_too_and_exactly_with_the_reporter_passed():
    rates, history, model = written_out()
    trained = module(given="network")
    fit(trained)  # the loss is what the closure returns
    assert trained.rates == rates and trained.scheduler.history == history and same_state(trained.network, model)
    rates, history, model = written_out(parts=2)
    trained = module(given="network")
    fit(trained, parts=2, accumulate_grad_batches=2, callbacks=[LossReporter()])
    assert trained.rates == rates and trained.scheduler.history == history and same_state(trained.network, model)


def test_the_reporter_is_one_whoever_adds_it():
    for callbacks in ([], [LossReporter()]):
        trained = module()
        training = fit(trained, callbacks=callbacks)
        assert sum(isinstance(callback, LossReporter) for callback in training.callbacks) == 1
        assert trained.scheduler.last_epoch == T
        assert not trained._forward_hooks  # what the module returns is not looked at as well


class Warmed(Module):
    """PyTorch's warm-up before the policy."""

    def configure_optimizers(self):
        optimizer = two_groups(self)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
        self.scheduler = make_scheduler(optimizer, self, budget=T - 4)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, self.scheduler], milestones=[4])
        self.rates = Watch(optimizer).rates
        return [optimizer], [{"scheduler": both, "interval": self.interval}]


def test_a_warm_up_may_come_first():
    trained = module(Warmed)
    fit(trained)
    assert [first for first, _ in trained.rates[:4]] == pytest.approx([0.001, 0.00325, 0.0055, 0.00775])
    assert trained.scheduler.last_epoch == T - 4 and len(trained.scheduler.history) == 5
    assert trained.scheduler.history[0].features["no_loss"] == 1.0


# ---------------------------------------------------------------------- several optimizers


class Adversaries(pl.LightningModule):
    """Two networks, each with its optimizer and its scheduler; ``order`` says how these are stepped."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.maker, self.judge, self.order = nn.Linear(6, 6), network(), order
        self.automatic_optimization = False

    def loss(self, part: int, number: int):
        inputs, targets = batch(number)
        made = self.maker(inputs)
        if part == 0:
            return 3 - F.cross_entropy(self.judge(made), targets)
        return F.cross_entropy(self.judge(made.detach()), targets)

    def training_step(self, given, number):
        optimizers = self.optimizers(use_pl_optimizer=self.order != "past the trainer")
        for part, (optimizer, scheduler) in enumerate(zip(optimizers, self.lr_schedulers(), strict=True)):
            if self.order == "toggled":
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            if self.order == "closure":
                optimizer.step(closure=lambda part=part: self.manual_backward(self.loss(part, number)))
            else:
                self.manual_backward(self.loss(part, number))
                optimizer.step()
            if self.order == "toggled":
                self.untoggle_optimizer(optimizer)
            if self.order != "schedulers last":
                scheduler.step()
        if self.order == "schedulers last":
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def make(self):
        optimizers = [torch.optim.Adam(part.parameters(), lr=0.01) for part in (self.maker, self.judge)]
        return optimizers, [make_scheduler(optimizer, self) for optimizer in optimizers]

    def configure_optimizers(self):
        optimizers, self.schedulers = self.make()
        return optimizers, self.schedulers


@pytest.mark.parametrize("order", ["at once", "schedulers last", "closure", "toggled", "past the trainer"])
def test_each_of_several_schedulers_is_told_the_losses_of_its_optimizer(order):
    torch.manual_seed(3)
    trained, by_hand = Adversaries(order), Adversaries(order)
    by_hand.load_state_dict(trained.state_dict())
    optimizers, schedulers = by_hand.make()
    for number in range(T):
        for part, (optimizer, scheduler) in enumerate(zip(optimizers, schedulers, strict=True)):
            if order == "toggled":  # what is frozen is not in the graph
                by_hand.judge.requires_grad_(part == 1)
            optimizer.zero_grad()
            loss = by_hand.loss(part, number)
            scheduler.report_loss(loss)
            loss.backward()
            by_hand.judge.requires_grad_(True)
            optimizer.step()
            scheduler.step()
    fit(trained)
    for scheduler, expected in zip(trained.schedulers, schedulers, strict=True):
        assert scheduler.graph == expected.graph and scheduler.history == expected.history
        assert scheduler.last_epoch == T and len({record.learning_rate for record in scheduler.history}) > 4
    assert same_state(trained, by_hand)
    assert "maker" in trained.schedulers[0].graph.names and "maker" not in trained.schedulers[1].graph.names


# ---------------------------------------------------------------------- updates that are none


class SkipsSome(Module):
    """Leaves some batches out, as a ``training_step`` may."""

    skipped = frozenset({0, 6, 7})

    def training_step(self, given, number):
        return None if number in self.skipped else super().training_step(given, number)


def test_a_batch_that_training_step_leaves_out_counts_as_nothing():
    trained = module(SkipsSome)
    fit(trained)
    assert trained.scheduler.last_epoch == T - 3 and trained.scheduler._run.core.update == T - 3
    assert [record.update for record in trained.scheduler.history] == [0, 5, 10, 15]


def test_under_a_scaler_losses_are_unscaled_and_updates_it_leaves_out_count_as_nothing():
    class Overflows(Module):
        def on_after_backward(self):
            if self.trainer.global_step == 4 and self.network[0].weight.grad is not None and not self.overflowed:
                self.overflowed = True
                self.network[0].weight.grad[0, 0] = torch.inf

        overflowed = False

    losses = []
    for scaled in (False, True):
        trained = module(Overflows, policy=lively_policy(decision_interval=1))
        trained.overflowed = not scaled
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        fit(trained, plugins=[plugin] if scaled else None)
        losses.append([record.features["log_loss"] for record in trained.scheduler.history])
        assert trained.scheduler.last_epoch == T - scaled
    assert losses[1][1:4] == pytest.approx(losses[0][1:4], abs=0.01)


# ---------------------------------------------------------------------- checkpoints


class Numbers(pl.Callback):
    """Keeps the random numbers in a checkpoint, which Lightning does not."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self.state = checkpoint["random"]

    def on_train_epoch_start(self, trainer, pl_module):
        if hasattr(self, "state"):
            torch.set_rng_state(self.__dict__.pop("state"))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_resumed_run_goes_on_to_the_last_bit(parts, tmp_path):
    settings = {"accumulate_grad_batches": parts, "gradient_clip_val": 0.5, "max_epochs": 4}
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = module(dropout=0.3)
    callbacks = [saved, Numbers()]
    fit(whole, parts, 6, enable_checkpointing=True, callbacks=callbacks, **settings)
    assert len(whole.rates) == 24 and len({first for first, _ in whole.rates}) > 4
    for epoch in range(3):
        torch.manual_seed(99)
        second = Module(dropout=0.3)
        fit(second, parts, 6, str(tmp_path / f"epoch={epoch}.ckpt"), callbacks=[Numbers()], **settings)
        assert second.rates == whole.rates[6 * (epoch + 1) :]
        assert second.scheduler.history == whole.scheduler.history and same_state(second.network, whole.network)


def test_a_checkpoint_is_read_without_running_code_and_holds_no_callback_of_the_schedulers(tmp_path):
    trained = module()
    fit(trained).save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["last_epoch"] == T
    assert "LossReporter" not in state["callbacks"]


# ---------------------------------------------------------------------- beside other parts of Lightning


def test_a_trainer_may_fit_twice():
    trained = module()
    training = fit(trained)
    first = trained.scheduler
    training.fit_loop.max_epochs = 2
    training.fit(trained, loader())
    assert trained.scheduler is not first and first.last_epoch == T
    # Lightning makes optimizer and scheduler anew, and estimates the budget over both fits.
    assert trained.scheduler.last_epoch == T and trained.scheduler.budget == 2 * T
    assert sum(isinstance(callback, LossReporter) for callback in training.callbacks) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["copy", "pickle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_module_is_copied_with_the_scheduler_it_holds(when, copied):
    rates, history, _ = written_out()
    original = module()
    if when == "after":
        fit(original)
    twin = copied(original)
    if when == "after":
        assert twin.scheduler.model is twin and twin.scheduler.history == history
        assert twin.scheduler.last_epoch == T
    twin.load_state_dict(module().state_dict())
    fit(twin)
    assert twin.rates == rates and twin.scheduler.history == history
    assert pickle.loads(pickle.dumps(LossReporter()))._losses == []


def test_a_learning_rate_finder_is_not_disturbed_and_its_rate_is_where_the_policy_begins(tmp_path):
    found = {}
    for scheduled in (True, False):

        class Found(Module):
            def configure_optimizers(self, scheduled=scheduled):
                self.lr = 0.01
                configured = super().configure_optimizers()
                if not scheduled:
                    self.scheduler.remove()
                return configured if scheduled else configured["optimizer"]

        trained = module(Found)
        trained.lr = 0.01
        finder = LearningRateFinder(min_lr=1e-4, max_lr=0.1, num_training_steps=15)
        with torch.random.fork_rng():
            fit(trained, callbacks=[finder], default_root_dir=tmp_path)
        found[scheduled] = finder.optimal_lr.results
        suggested = finder.optimal_lr.suggestion()
        if scheduled:
            assert trained.scheduler._run.core.initial_lrs == [suggested, suggested] and suggested != 0.01
            assert trained.scheduler.last_epoch == T == trained.scheduler._run.core.steps
            assert len(trained.scheduler.history) == 5
    assert found[True] == found[False]


def test_a_monitor_sees_the_rates_of_the_updates_made(tmp_path):
    trained = module()
    monitor = LearningRateMonitor("step")
    fit(trained, callbacks=[monitor], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    first, last = monitor.lrs["lr-AdamW/pg1"], monitor.lrs["lr-AdamW/pg2"]
    assert list(zip(first[1:], last[1:], strict=True)) == [tuple(rates) for rates in trained.rates[:-1]]


# ---------------------------------------------------------------------- mistakes


def test_a_scheduler_stepped_once_an_epoch_is_refused_before_training():
    trained = module(interval="epoch")
    with pytest.raises(InvalidSettingError, match=r"interval 'epoch' and frequency 1; expected 'step' and 1.*Return"):
        fit(trained)
    assert trained.rates == []
    with pytest.raises(InvalidSettingError, match="interval 'epoch'"):
        fit(module(Warmed, interval="epoch"))


# ---------------------------------------------------------------------- lengths


@pytest.mark.parametrize(
    ("settings", "updates"), [({"fast_dev_run": True}, 1), ({"overfit_batches": 3}, 3), ({"limit_train_batches": 4}, 4)]
)
def test_a_smoke_run_decides_before_every_update(settings, updates):
    trained = module()
    fit(trained, **settings)
    assert trained.scheduler.budget == trained.scheduler.last_epoch == updates == len(trained.scheduler.history)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return (batch(number) for number in range(T))


def test_data_without_a_length_are_refused_with_what_to_give_and_trained_on_then():
    data = torch.utils.data.DataLoader(Stream(), batch_size=None)
    with pytest.raises(InvalidSettingError, match=r"IterableDataset.*max_steps=N"):
        trainer().fit(module(), data)
    with pytest.raises(InvalidSettingError, match=r"total_steps is inf.*without an end \(max_epochs=-1.*max_steps=N"):
        fit(module(), max_epochs=-1)
    trained = module()
    trainer(max_epochs=-1, max_steps=7).fit(trained, data)
    assert trained.scheduler.last_epoch == trained.scheduler.budget == 7


class Stops(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 9


def test_training_that_stops_early_is_told_with_the_number_to_give(caplog):
    fit(module())
    assert "ended after" not in caplog.text
    fit(module(), callbacks=[Stops()], min_epochs=0)
    assert f"ended after 9 of total_steps={T} updates" in caplog.text


class Unknown(Module):
    def configure_optimizers(self):
        optimizer = two_groups(self)
        self.rates = Watch(optimizer).rates
        self.scheduler = make_scheduler(optimizer, self, budget=None)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 30:
            self.scheduler.cooldown(10)
        return -1 if self.trainer.global_step == 40 else None

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.global_step >= 40


def test_training_without_an_end_is_cooled_down_when_it_is_known(caplog):
    trained = module(Unknown)
    fit(trained, max_epochs=-1)
    rates = [first for first, _ in trained.rates]
    assert trained.scheduler.last_epoch == trained.scheduler.budget == len(rates) == 40
    assert rates[0] == rates[19] and rates[39] < 0.3 * rates[30] and "ended after" not in caplog.text


def test_the_trainers_loggers_have_the_figures_of_every_decision(tmp_path):
    trained = module()
    fit(trained, logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1))
    rows = list(csv.DictReader((next(tmp_path.rglob("metrics.csv"))).open()))
    logged = {int(row["step"]): row for row in rows if row.get("gns/decisions")}
    records = {record.update: record for record in trained.scheduler.history}
    assert logged.keys() == records.keys() and len(records) == 5
    for number, (update, record) in enumerate(records.items(), start=1):
        assert float(logged[update]["gns/multiplier"]) == pytest.approx(record.multiplier)
        assert float(logged[update]["gns/learning_rate"]) == pytest.approx(trained.rates[update][0])
        assert (float(logged[update]["gns/decisions"]), float(logged[update]["gns/rollbacks"])) == (number, 0)


class Longer(Module):
    def on_train_start(self):
        self.scheduler.budget = self.trainer.estimated_stepping_batches


def test_a_checkpoint_is_gone_on_with_for_more_epochs(tmp_path):
    fit(module(), updates=6, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, filename="end")])
    for kind, budget in ((Module, 6), (Longer, 12)):
        trained = module(kind)
        with pytest.warns(UserWarning, match="made with total_steps=12 and its state is of a run of 6"):
            trainer(max_epochs=2).fit(trained, loader(updates=6), ckpt_path=str(tmp_path / "end.ckpt"))
        assert trained.scheduler.budget == budget == trained.scheduler.last_epoch
        assert len({first for first, _ in trained.rates}) > 1 if kind is Longer else 1


class Backward(Manual):
    """Calls ``backward`` itself, which the trainer does not see."""

    def manual_backward(self, loss, *args, **kwargs):
        loss.backward()


def test_a_loss_that_the_trainer_never_saw_is_asked_for():
    with pytest.raises(LayerGraphError, match=r"no loss of Backward.*self\.manual_backward\(loss\).*report_loss"):
        fit(module(Backward, True))


def test_a_loss_that_the_trainer_never_saw_may_be_reported():
    class Reports(Backward):
        def manual_backward(self, loss, *args, **kwargs):
            self.lr_schedulers().report_loss(loss)
            loss.backward()

    rates, history, _ = written_out()
    trained = module(Reports, False)
    fit(trained)
    assert trained.rates == rates and trained.scheduler.history == history


class Unseen(Manual):
    """Steps the optimizer itself and not through the trainer."""

    def optimizers(self, use_pl_optimizer=True):
        return super().optimizers(use_pl_optimizer=False)


@pytest.mark.parametrize("tell", [True, False])
def test_an_optimizer_may_be_stepped_past_the_trainer(tell):
    rates, history, model = written_out()
    trained = module(Unseen, tell)
    fit(trained)
    assert trained.rates == rates and trained.scheduler.history == history and same_state(trained.network, model)


def test_without_a_trainer_a_lightning_module_is_a_module():
    trained = module()
    trained.forward = trained.network.forward
    optimizer = two_groups(trained)
    scheduler = make_scheduler(optimizer, trained)
    for number in range(T):
        optimizer.zero_grad()
        loss = F.cross_entropy(trained(batch(number)[0]), batch(number)[1])
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert len(scheduler.history) == 5 and trainer().callbacks is not None


# ---------------------------------------------------------------------- other processes


def run(script: str, root: Path, folder: Path, *paths: Path) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, root, root / "tests"))),
        "OMP_NUM_THREADS": "1",
    }
    (folder / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


OTHER_NAME = """
import lightning.pytorch as pl
from lightning_loop import Module, fit
import sys, torch
torch.manual_seed(0)
module = Module()
fit(module)
from gns.integrations.lightning import LossReporter
assert isinstance(module, pl.LightningModule) and issubclass(LossReporter, pl.Callback)
assert "pytorch_lightning" not in sys.modules
print(*[first for first, _ in module.rates])
"""


def test_the_package_under_its_other_name_serves_as_well(root, tmp_path):
    # The package lightning is the same sources, moved: so they are moved here.
    for name, other in (("pytorch_lightning", "pytorch"), ("lightning_fabric", "fabric")):
        source = Path(__import__(name).__file__).parent
        shutil.copytree(source, tmp_path / "lightning" / other, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "lightning" / "__init__.py").write_text("")
    (tmp_path / "lightning_loop.py").write_text((root / "tests" / "lightning_loop.py").read_text())
    for path in tmp_path.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            text.replace("pytorch_lightning", "lightning.pytorch").replace("lightning_fabric", "lightning.fabric"),
            encoding="utf-8",
        )
    rates, _, _ = written_out()
    shown = run(OTHER_NAME, root, tmp_path, tmp_path)
    assert [float(rate) for rate in shown.split()] == [first for first, _ in rates]


TWO_PROCESSES = """
import torch
from lightning_loop import Module, fit
from scheduler_loop import still_policy
if __name__ == "__main__":
    torch.manual_seed(0)
    module = Module(policy=still_policy())
    fit(module, parts=2, devices=2, strategy="ddp", use_distributed_sampler=False)
    scheduler = module.scheduler
    counted = [scheduler.last_epoch, len(module.rates), *(record.update for record in scheduler.history)]
    print(" ".join(map(str, counted)) + "\\n", end="")  # in one piece: both processes write here
"""


def test_two_processes_count_every_update_once(root, tmp_path):
    lines = [line for line in run(TWO_PROCESSES, root, tmp_path).splitlines() if line and line[0].isdigit()]
    assert lines == [f"{2 * T} {2 * T} 0 10 20 30 40"] * 2


def test_the_example_runs_and_prints_every_decision(root, tmp_path, monkeypatch, capsys):
    lively_policy().save_pretrained(tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_module.py", str(tmp_path / "policy")])
    capsys.readouterr()
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(root / "examples" / "lightning_module.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("update", "accuracy"))]
    assert [line.split()[1] for line in lines[:-1]] == ["0", "44", "88", "132", "176"]
    assert re.fullmatch(r"accuracy [01]\.\d{3}", lines[-1])


def test_layers_that_compilation_hides_stand_in_the_order_they_were_registered_in():
    class Compiled(Module):
        def configure_model(self):
            self.network.compile(backend="aot_eager")

    trained = module(Compiled)
    fit(trained)
    assert trained.scheduler.graph.names == ("network.0", "network.3", "network.5")
    assert trained.scheduler.graph.edges.tolist() == [[0, 1], [1, 2]]
    assert trained.scheduler.last_epoch == T
