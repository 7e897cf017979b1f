"""Training in Lightning for the scheduler's tests, and the same written out."""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as pl
import torch
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, two_groups
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def loader(parts: int = 1, updates: int = T) -> DataLoader:
    """Of the stream that every loop is trained on; ``parts`` batches make an update's.

    Draws no global random number, as a loader would without a generator of its own.
    """
    inputs, targets = (torch.cat(tensors) for tensors in zip(*map(batch, range(updates)), strict=True))
    return DataLoader(TensorDataset(inputs, targets), batch_size=8 // parts, generator=torch.Generator())


class Module(pl.LightningModule):
    """As a user writes one; ``given`` says on which module the scheduler is made."""

    def __init__(self, dropout: float = 0.0, given: str = "self", interval: str = "step", **settings) -> None:
        super().__init__()
        self.network, self.given, self.interval, self.settings = network(dropout), given, interval, settings

    def loss(self, given):
        inputs, targets = given
        return F.cross_entropy(self.network(inputs.to(self.dtype)), targets)

    def training_step(self, given, number):
        return self.loss(given)

    def validation_step(self, given, number):
        self.log("validation loss", self.loss(given))

    def configure_optimizers(self):
        optimizer = two_groups(self)
        self.rates = Watch(optimizer).rates
        model = self if self.given == "self" else self.network
        policy = self.settings.pop("policy", None) or lively_policy()
        self.scheduler = make_scheduler(
            optimizer, model, policy, budget=self.trainer.estimated_stepping_batches, **self.settings
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": self.interval}}


class Manual(Module):
    """Optimizes by hand; ``tell`` says whether its scheduler is given the loss."""

    def __init__(self, tell: bool, parts: int = 1) -> None:
        super().__init__()
        self.automatic_optimization, self.tell, self.parts = False, tell, parts

    def training_step(self, given, number):
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        loss = self.loss(given)
        if number % self.parts == 0:
            optimizer.zero_grad()
        self.manual_backward(loss / self.parts)
        if (number + 1) % self.parts == 0:
            optimizer.step()
            scheduler.step(loss) if self.tell else scheduler.step()


def trainer(**settings) -> pl.Trainer:
    """One that says and writes nothing, unless told to."""
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"),
        False,
    )
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet, **settings})


def fit(module: pl.LightningModule, parts: int = 1, updates: int = T, ckpt_path=None, **settings) -> pl.Trainer:
    """Train; return the trainer. Lightning's advice on workers and cards is not listened to."""
    training = trainer(**settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", module="lightning_fabric")
        training.fit(module, loader(parts, updates), loader(updates=3), ckpt_path=ckpt_path)
    return training


def written_out(parts: int = 1, clip: float | None = None, precision: str = "32-true", dropout: float = 0.0):
    """Rates, history and model of the loop that Lightning's must equal."""
    torch.manual_seed(0)
    model = network(dropout)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model.to(dtype)
    optimizer = two_groups(model)
    watch, scheduler = Watch(optimizer), make_scheduler(optimizer, model)
    for number in range(T):
        optimizer.zero_grad()
        for inputs, targets in zip(*(tensor.chunk(parts) for tensor in batch(number)), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = F.cross_entropy(model(inputs.to(dtype)), targets)
            (loss / parts).backward()
            scheduler.report_loss(loss)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
    return watch.rates, scheduler.history, model
