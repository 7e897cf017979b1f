"""Tiny models, made-up data and runs of transformers' Trainer for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scheduler_loop import lively_policy
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, TrainingArguments

from gns import DecisionCore, GNSScheduler
from gns.integrations.transformers import GNSTrainer

EXAMPLES, BATCH, PARTS = 50, 4, 3  # 13 batches an epoch, 5 updates of 3, 3, 3, 3 and 1
UPDATES = 10


class OwnMean(nn.Module):
    """Returns the mean over its batch, and takes no number of items."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(30, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.out(self.table(input_ids).mean(1))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def bert(dropout: float = 0.0) -> nn.Module:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return BertForSequenceClassification(BertConfig(**sizes, **rates, intermediate_size=32, num_labels=3))


def gpt2() -> nn.Module:
    """Divides the sum of its losses by the number of items it is told."""
    sizes = {
        "vocab_size": 30,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


MODELS = {"mean": OwnMean, "bert": bert, "gpt2": gpt2, "dropout": lambda: bert(dropout=0.1)}


def data(kind: str) -> list[dict[str, Tensor]]:
    """Rows of nine words; for a language model labels of which some, not equally many, are left out."""
    generator = torch.Generator().manual_seed(5)
    words = torch.randint(30, (EXAMPLES, 9), generator=generator)
    if kind != "gpt2":
        return [{"input_ids": row, "labels": row[:3].sum() % 3} for row in words]
    shown = torch.rand(words.shape, generator=generator) < torch.rand(EXAMPLES, 1, generator=generator)
    shown[:, 0], shown[:, 1] = False, True  # the first word is predicted by none
    return [{"input_ids": x, "labels": torch.where(keep, x, -100)} for x, keep in zip(words, shown, strict=True)]


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    given = {
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": PARTS,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **settings,
    }
    return TrainingArguments(str(folder), **given)


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    """Matrices with weight decay, and vectors that learn three times as fast without."""
    parts = [[p for p in model.parameters() if (p.ndim > 1) is matrix] for matrix in (True, False)]
    groups = [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1], "weight_decay": 0.0, "lr": 0.009}]
    return torch.optim.AdamW(groups, lr=0.003)


def make_trainer(
    folder: Path,
    kind: str = "bert",
    model: nn.Module | None = None,
    trainer: type = GNSTrainer,
    updates: int = UPDATES,
    policy: Any = None,
    seed: int = 3,
    guard: Any = None,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """A trainer with a scheduler that changes the rate at every other update."""
    torch.manual_seed(seed)
    model = MODELS[kind]() if model is None else model
    optimizer = two_groups(model)
    policy = policy or lively_policy()
    scheduler = GNSScheduler(optimizer, model, total_steps=updates, policy=policy, guard=guard)
    examples = data(kind)
    more = {"train_dataset": examples, "eval_dataset": examples[:8], **more}
    return trainer(model, arguments(folder, **(settings or {})), optimizers=(optimizer, scheduler), **more)


class Seen:
    """Losses and rates of all updates, as the decision core is told of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []
        original = DecisionCore.note_update

        def note_update(core: DecisionCore, loss: Tensor) -> None:
            self.losses.append(loss.item())
            self.rates.append([group["lr"] for group in core.optimizer.param_groups])
            original(core, loss)

        monkeypatch.setattr(DecisionCore, "note_update", note_update)

    def clear(self) -> tuple[list[list[float]], list[float]]:
        """Forget, and return, rates and losses."""
        rates, losses = self.rates[:], self.losses[:]
        self.rates.clear()
        self.losses.clear()
        return rates, losses


def logged(trainer: Any, key: str = "loss") -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]
