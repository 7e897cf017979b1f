"""Same model, data and seed: a policy sets the same rates in the environment and in every kind of training loop."""

import copy
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from plain_loop import batches, make_optimizer
from scheduler_loop import Watch, lively_policy
from torch import nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import Trainer, TrainingArguments

from envs import EnvConfig, LearningRateEnv, get_task
from gns import GNSScheduler, GuardConfig
from gns.integrations.transformers import GNSTrainer

BUDGET, SEED = 23, 9
RATES = {"sgdm": 0.01, "adam": 1e-3, "adamw": 1e-3}
POLICY = lively_policy()


class Model(nn.Module):
    """A task's network, whose output has a loss as that of a transformer has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.task = get_task(kind)
        self.network = self.task.build_model(**self.task.model)

    def forward(self, inputs, labels):
        logits = self.network(inputs)
        return {"loss": self.task.loss(logits, labels), "logits": logits}


class Rows(Dataset):
    """The rows of the environment's first batches, in its order."""

    def __init__(self, kind: str) -> None:
        stream = batches(get_task(kind), SEED)
        pairs = [next(stream) for _ in range(BUDGET)]
        self.size = len(pairs[0][0])
        assert {len(inputs) for inputs, _ in pairs} == {self.size}
        self.inputs, self.labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}

    def loader(self) -> DataLoader:
        return DataLoader(self, batch_size=self.size)


class Start:
    """A model as the environment draws it, its optimizer and its scheduler."""

    def __init__(self, kind: str, optimizer: str) -> None:
        torch.manual_seed(SEED)
        self.model, self.rows = Model(kind), Rows(kind)
        self.optimizer = make_optimizer(optimizer, self.model.parameters(), RATES[optimizer])
        self.watch = Watch(self.optimizer)

    def scheduler(self, model: nn.Module) -> GNSScheduler:
        return GNSScheduler(self.optimizer, model, total_steps=BUDGET, policy=POLICY)


def in_the_environment(kind: str, optimizer: str, folder) -> tuple[list[list[float]], nn.Module]:
    config = EnvConfig(budgets=(BUDGET, BUDGET), decision=POLICY.config.decision, guard=GuardConfig())
    env = LearningRateEnv([kind], config)
    options = {"seed": SEED, "optimizer": optimizer, "learning_rate": RATES[optimizer]}
    env.reset(seed=0, options=options)
    watch, terminated = Watch(env.run.optimizer), False
    while not terminated:
        _, _, terminated, _, _ = env.step(np.array([POLICY.act(env.observation)]))
    assert env.rollbacks == 0
    return watch.rates, env.run.model


def in_a_plain_loop(kind: str, optimizer: str, folder) -> tuple[list[list[float]], nn.Module]:
    start = Start(kind, optimizer)
    scheduler = start.scheduler(start.model)
    for batch in start.rows.loader():
        loss = start.model(**batch)["loss"]
        start.optimizer.zero_grad()
        loss.backward()
        start.optimizer.step()
        scheduler.step(loss)
    return start.watch.rates, start.model.network


class InOrder(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)


class InOrderToo(InOrder, GNSTrainer):
    pass


def in_the_trainer(kind: str, optimizer: str, folder, trainer: type[Trainer] = InOrder) -> tuple[list, nn.Module]:
    start = Start(kind, optimizer)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=BUDGET,
        per_device_train_batch_size=start.rows.size,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    given = (start.optimizer, start.scheduler(start.model))
    trainer(start.model, arguments, train_dataset=start.rows, optimizers=given).train()
    return start.watch.rates, start.model.network


def in_our_trainer(kind: str, optimizer: str, folder) -> tuple[list[list[float]], nn.Module]:
    return in_the_trainer(kind, optimizer, folder, InOrderToo)


def in_lightning(kind: str, optimizer: str, folder) -> tuple[list[list[float]], nn.Module]:
    start = Start(kind, optimizer)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = start.model

        def training_step(self, batch, index):
            return self.model(**batch)["loss"]

        def configure_optimizers(self):
            scheduler = {"scheduler": start.scheduler(self), "interval": "step"}
            return {"optimizer": start.optimizer, "lr_scheduler": scheduler}

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the number of workers that load data
        trainer = pl.Trainer(
            max_steps=BUDGET, accelerator="cpu", enable_model_summary=False, default_root_dir=folder, **quiet
        )
        trainer.fit(Module(), start.rows.loader())
    return start.watch.rates, start.model.network


def in_accelerate(kind: str, optimizer: str, folder) -> tuple[list[list[float]], nn.Module]:
    start = Start(kind, optimizer)
    accelerator = Accelerator(cpu=True)
    model, prepared, loader, scheduler = accelerator.prepare(
        start.model, start.optimizer, start.rows.loader(), start.scheduler(start.model)
    )
    for batch in loader:
        loss = model(**batch)["loss"]
        prepared.zero_grad()
        accelerator.backward(loss)
        prepared.step()
        scheduler.step(loss)
    return start.watch.rates, start.model.network


LOOPS = (in_a_plain_loop, in_the_trainer, in_our_trainer, in_lightning, in_accelerate)


@pytest.mark.parametrize("optimizer", sorted(RATES))
@pytest.mark.parametrize("kind", ["digits_mlp", "digits_cnn"])
def test_the_environment_and_every_framework_give_the_same_rates_and_weights(kind, optimizer, tmp_path):
    rates, network = in_the_environment(kind, optimizer, tmp_path)
    assert len(rates) == BUDGET and len({rate for (rate,) in rates}) > 4
    assert max(rates) > [2 * RATES[optimizer]] or min(rates) < [RATES[optimizer] / 2]  # the policy does act
    weights = copy.deepcopy(network.state_dict())
    for loop in LOOPS:
        found, trained = loop(kind, optimizer, tmp_path / loop.__name__)
        assert found == rates, loop.__name__
        for name, value in trained.state_dict().items():
            assert torch.equal(value, weights[name]), (loop.__name__, name)
