"""The scheduler in Accelerate: prepared or not, in any order, with accumulation, precision, checkpoints, processes."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin
from lightning_loop import loader, written_out
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, still_policy, two_groups
from torch import nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def accelerator_state():
    """Accelerate keeps its settings for the rest of the process; each test begins without."""
    yield
    reset()


def reset() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """Model, optimizer, loader and scheduler, prepared; ``made`` says when and on what the scheduler is made."""

    def __init__(self, made: str = "before", parts: int = 1, dropout: float = 0.0, **settings) -> None:
        self.accelerator = Accelerator(cpu=True, **settings)
        torch.manual_seed(0)
        model, data = network(dropout), loader(parts)
        optimizer = two_groups(model)
        self.watch = Watch(optimizer)
        prepare = self.accelerator.prepare
        if made == "before":
            self.gns = make_scheduler(optimizer, model)
            self.model, self.optimizer, self.loader, self.scheduler = prepare(model, optimizer, data, self.gns)
        else:
            self.model, self.optimizer, self.loader = prepare(model, optimizer, data)
            given = (self.optimizer, self.model) if made == "after" else (optimizer, model)
            self.gns = make_scheduler(*given)
            self.scheduler = self.gns if made == "and not prepared" else prepare(self.gns)

    def train(self, tell: str = "report", clip: float | None = None, begin: int = 0, save=(None, None)) -> None:
        for number, (inputs, targets) in enumerate(self.loader):
            if number < begin:
                continue
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(inputs), targets)
                if tell == "report":
                    self.gns.report_loss(loss)
                self.accelerator.backward(loss)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.scheduler.step(*([loss] if tell == "step" else []))
                self.optimizer.zero_grad()
            if self.gns.last_epoch == save[0] and self.accelerator.sync_gradients:
                self.accelerator.save_state(save[1])


@pytest.fixture(scope="module", autouse=True)
def warmed_up():
    """Late in a long process the first run may differ from all later ones in the eighth digit; why is not known."""
    written_out()
    Run().train("step")
    reset()


# ---------------------------------------------------------------------- the rates of the loop written out


@pytest.mark.parametrize("made", ["before", "after", "on what is inside", "and not prepared"])
@pytest.mark.parametrize("tell", ["step", "report"])
def test_rates_are_those_of_the_loop_written_out_wherever_the_scheduler_is_made(made, tell):
    rates, history, model = written_out()
    run = Run(made)
    run.train(tell)
    assert isinstance(run.scheduler, AcceleratedScheduler) == (made != "and not prepared")
    assert run.watch.rates == rates and len({first for first, _ in rates}) > 4
    assert run.gns.history == history and same_state(run.model, model)


@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("adjust", [True, False])
def test_under_accumulation_the_losses_reported_are_averaged(made, adjust):
    rates, history, model = written_out(parts=2, clip=0.1)
    plugin = GradientAccumulationPlugin(num_steps=2, adjust_scheduler=adjust)
    run = Run(made, parts=2, gradient_accumulation_plugin=plugin)
    run.train(clip=0.1)
    assert run.watch.rates == rates and run.gns.history == history and same_state(run.model, model)
    assert run.gns.last_epoch == T


def test_under_accumulation_a_loss_given_to_step_is_the_last_parts():
    run = Run(parts=2, gradient_accumulation_steps=2)
    seen = []
    for number, (inputs, targets) in enumerate(run.loader):
        with run.accelerator.accumulate(run.model):
            loss = F.cross_entropy(run.model(inputs), targets)
            run.accelerator.backward(loss)
            run.optimizer.step()
            run.scheduler.step(loss)
            run.optimizer.zero_grad()
        if number % 2:
            seen.append(loss.item())
        if number == 7:
            break
    assert run.gns._run.core._losses[:4].tolist() == seen


class WithLoss(nn.Module):
    """Returns its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, inputs, targets):
        logits = self.body(inputs)
        return {"loss": F.cross_entropy(logits, targets), "logits": logits}


def test_the_losses_of_a_models_outputs_are_averaged_by_themselves():
    rates, history, _ = written_out(parts=2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = WithLoss()
    optimizer = two_groups(model)
    watch, gns = Watch(optimizer), make_scheduler(optimizer, model)
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, loader(2), gns)
    for inputs, targets in data:
        with accelerator.accumulate(model):
            accelerator.backward(model(inputs, targets)["loss"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert watch.rates == rates and gns.history == history


@pytest.mark.parametrize("made", ["before", "after"])
def test_mixed_precision_and_split_batches_change_nothing_in_who_is_told_what(made):
    rates, history, model = written_out(precision="bf16-mixed")
    run = Run(made, mixed_precision="bf16", dataloader_config=DataLoaderConfiguration(split_batches=True))
    run.train("step")
    assert run.watch.rates == rates and run.gns.history == history and same_state(run.model, model)


def test_updates_that_a_scaler_leaves_out_count_as_nothing():
    run = Run()
    inner, scaler = run.optimizer.optimizer, torch.amp.GradScaler("cpu", init_scale=2.0**12)
    run.optimizer = AcceleratedOptimizer(inner, scaler=scaler)  # on a card mixed_precision="fp16" makes it so
    run.scheduler = AcceleratedScheduler(run.gns, run.optimizer)
    skipped = {0, 5, 9}
    for number in range(T):
        inputs, targets = batch(number)
        loss = F.cross_entropy(run.model(inputs), targets)
        scaler.scale(loss).backward()
        if number in skipped:
            run.model[0].weight.grad[0, 0] = torch.inf
        run.optimizer.step()
        assert run.optimizer.step_was_skipped == (number in skipped)
        run.scheduler.step(loss)
        run.optimizer.zero_grad()
    assert run.gns.last_epoch == T - 3 == run.gns._run.core.update
    assert [record.update for record in run.gns.history] == [0, 5, 10, 15] and all(r.finite for r in run.gns.history)


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("n", [1, 5, 8, 13])
def test_a_resumed_run_goes_on_to_the_last_bit(n, tmp_path):
    settings = {"gradient_accumulation_steps": 2, "parts": 2, "dropout": 0.3}
    whole = Run(**settings)
    whole.train(save=(n, tmp_path))
    assert len(whole.watch.rates) == T
    reset()
    second = Run(made="after", **settings)
    second.accelerator.load_state(tmp_path)
    second.train(begin=2 * n)
    assert second.watch.rates == whole.watch.rates[n:] and second.gns.history == whole.gns.history
    assert same_state(second.model, whole.model)


# ---------------------------------------------------------------------- several processes

PROCESS = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}]
from test_accelerate import count_updates
count_updates()
"""


def count_updates() -> None:
    """Train in one of several processes and write down what was counted; decisions do not depend on the data."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    counted = {}
    for made, budget in (("before", 6), ("after", 6), ("for the whole", 12)):
        torch.manual_seed(0)
        model, data = network(), loader(2, 12)
        optimizer = two_groups(model)
        watch = Watch(optimizer)
        if made != "after":
            gns = make_scheduler(optimizer, model, still_policy(), budget=budget)
            model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, gns)
        else:
            model, optimizer, data = accelerator.prepare(model, optimizer, data)
            gns = make_scheduler(optimizer, model, still_policy(), budget=budget)
            scheduler = accelerator.prepare(gns)
        for inputs, targets in data:
            with accelerator.accumulate(model):
                loss = F.cross_entropy(model(inputs), targets)
                gns.report_loss(loss)
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        counted[made] = {
            "processes": accelerator.num_processes,
            "updates": gns.last_epoch,
            "rates": len(watch.rates),
            "decisions": [record.update for record in gns.history],
            "layers": list(gns.graph.names),
        }
    Path(f"counted_{accelerator.process_index}.json").write_text(json.dumps(counted))
    accelerator.end_training()


def test_two_processes_count_every_update_once(root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared = {**os.environ, **address, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS.format(tests=str(root / "tests"))],
            cwd=tmp_path,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = []
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        said.append(errors)
    expected = {"processes": 2, "updates": 6, "rates": 6, "decisions": [0, 2, 4], "layers": ["0", "3", "5"]}
    for rank in range(2):
        counted = json.loads((tmp_path / f"counted_{rank}.json").read_text())
        whole = counted.pop("for the whole")
        assert counted == dict.fromkeys(("before", "after"), expected)
        assert whole["updates"] == 6 and whole["decisions"] == [0, 3]
    # Of the run that was made for the batches of both, the first says at its end which number to give, and it alone.
    assert ["after 6 of total_steps=12" in errors for errors in said] == [True, False]
    assert said[0].count("give total_steps=6:") == 1


def test_the_example_runs_and_prints_every_decision(root, tmp_path, monkeypatch, capsys):
    lively_policy().save_pretrained(tmp_path / "policy")
    monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", str(tmp_path / "policy")])
    capsys.readouterr()
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(root / "examples" / "accelerate_loop.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["0", "53", "106", "159", "212"]
    assert re.fullmatch(r"accuracy [01]\.\d{3}", lines[-1])
