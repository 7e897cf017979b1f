"""A plain PyTorch loop, written out: what a training run must equal bit for bit. Also tasks made for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from envs.tasks import Task, get_task


@dataclass
class PlainRun:
    """What a plain loop leaves behind."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)


def make_optimizer(name: str, parameters: Iterator[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, fused=True)
    if name == "sgdm":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    if name == "nadamw":
        decoupled = {"weight_decay": 0.01, "decoupled_weight_decay": True}
        return torch.optim.NAdam(parameters, lr=lr, **decoupled, foreach=True)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)


def batches(task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pass over the training split in a new order, the incomplete last batch left out."""
    train = task.training_data().train
    size = min(task.batch_size, len(train))
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(train), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield task.prepare(train.inputs[rows], True), train.targets[rows]


def plain_run(
    task: Task,
    optimizer: str,
    learning_rate: float,
    seed: int,
    updates: int,
    rate: Callable[[int], float] | None = None,
) -> PlainRun:
    """Train as anyone would; ``rate`` gives the learning rate of update t, constant if left out.

    The global random numbers are put back afterwards.
    """
    outside = torch.get_rng_state()
    torch.manual_seed(seed)
    model = task.new_model()
    run = PlainRun(model, make_optimizer(optimizer, model.parameters(), learning_rate))
    stream = batches(task, seed)
    for t in range(updates):
        inputs, targets = next(stream)
        run.optimizer.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        if rate is not None:
            for group in run.optimizer.param_groups:
                group["lr"] = rate(t)
        run.optimizer.step()
        run.losses.append(loss.item())
    torch.set_rng_state(outside)
    return run


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether parameters and buffers are equal bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _network(*between: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *(make() for make in between), nn.ReLU(), nn.Linear(24, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": _network,
    "dropout": lambda: _network(lambda: nn.Dropout(0.3)),
    "batch_norm": lambda: _network(lambda: nn.BatchNorm1d(24)),
}


def small_task(kind: str = "plain", **changes: object) -> Task:
    """A small network of one of :data:`MODELS` on digits; in no registry."""
    digits = get_task("digits_mlp")
    settings = {"name": f"test_{kind}", "load_training_data": digits.load_training_data, "build_model": MODELS[kind]}
    settings["budget"] = 300
    return Task(**{**settings, **changes})
