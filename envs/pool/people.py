"""Drawn tasks as people train: whole data, 1 to 30 passes, budgets to thousands, little noise, all kinds of layers.

Edition 1 of :class:`envs.pool.PoolConfig`. A later edition gets a number of its own, so that whatever was
measured on a task can be measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from envs.pool.common import TRIES, Draws, error, four_decades, in_turn, log_uniform, scaled, with_settings
from envs.pool.config import PoolConfig
from envs.pool.data import MIXINGS, DataSpec, Images, Mixture, Teacher, load
from envs.pool.layers import CELLS, GRAPH_LAYERS
from envs.pool.models import ACTIVATIONS, NetworkSpec, Pretraining, fine_tuned
from envs.pool.sources import (
    CHARACTERS,
    TABLES,
    WORDS,
    Characters,
    Graphs,
    Patterns,
    Reconstruction,
    Table,
    Words,
)
from envs.tasks.base import Metric, Task, accuracy, cross_entropy
from envs.tasks.glue import mean_squared_error
from gns.errors import InvalidSettingError

_LEARNED_FROM = ("digits", "patterns", "mixture")  # sources with classes to spare, which pretraining takes
# What an operator costs beside its arithmetic, in floating-point operations of one of 26 runs side by side; a number
# written to memory; a parameter's update. Measured on one core.
_OPERATOR, _WRITTEN, _UPDATED = 8e3, 12.0, 40.0


@dataclass(frozen=True)
class Training:
    """How a task is trained.

    :param batch_size: examples an update
    :param budget: updates
    """

    batch_size: int
    budget: int


def draw_of_people(config: PoolConfig, number: int) -> Task:
    """Return a task of edition 1, a function of the pool's settings (but for its size) and a number.

    :raises InvalidSettingError: if no network small enough for ``operations`` is found
    """
    draws = np.random.default_rng([config.seed, number, 10])
    source, family = in_turn(config.kinds, config.seed, number, 11)
    optimizer = in_turn(config.optimizers, config.seed, number, 12)
    tuned = bool(draws.random() < config.fine_tuning)
    fine_tuning = tuned and source in _LEARNED_FROM and family in ("mlp", "cnn", "transformer")
    data, pretraining_data = _data(config, source, family, fine_tuning, draws)
    classes = bool(data.classes) or getattr(data.source, "classes", 0) > 0
    loss, steepness, loss_name = _loss(data, classes, config, draws)
    settings = _settings(optimizer, draws)
    matrices = bool(draws.random() < 0.4) and settings["weight_decay"] > 0.0
    groups = partial(with_settings, tuple(settings.items()), matrices)
    clip_norm = 1.0 if draws.random() < config.clipped else None
    metrics: dict[str, Metric] = {"accuracy": accuracy} if classes or _is_text(data) else {"mean_squared_error": error}
    outputs = len(data.classes) or data.source.outputs  # type: ignore[union-attr]
    for tries in range(TRIES):
        network = _network(family, data, outputs, draws)
        batch_size = round(log_uniform(draws, *config.batch_sizes))
        task = Task(
            name=f"people_{number:05d}_{source}{loss_name}_{family}_{optimizer}{'_fine_tuned' if fine_tuning else ''}",
            load_training_data=partial(load, data),
            build_model=network.build,
            batch_size=batch_size,
            budget=config.budgets[0],
            optimizer=optimizer,
            parameter_groups=groups,
            clip_norm=clip_norm,
            loss=loss,
            metrics=metrics,
            higher_is_better="accuracy" in metrics,
            drawn=True,
            learning_rates=four_decades(fine_tuning, settings, 1.0 if fine_tuning else 0.5, steepness),
        )
        training = _training(config, task, draws, whole=tries < TRIES // 2)
        if training is not None:
            break
    else:
        raise InvalidSettingError(
            f"pool.operations is {config.operations:g}; no network for {task.name} of {TRIES} drawn makes "
            f"{config.budgets[0]} updates with so few. Raise it, or lower pool.budgets or pool.batch_sizes."
        )
    low = max(config.budgets[0], round(training.budget / config.budget_spread))
    task = replace(task, batch_size=training.batch_size, budget=training.budget, budgets=(low, training.budget))
    if not fine_tuning:
        return task
    learned = len(pretraining_data.classes)
    pretraining = Pretraining(replace(network, outputs=learned), pretraining_data, cross_entropy, updates=400)
    return replace(task, build_model=partial(fine_tuned, network, pretraining))


# ---------------------------------------------------------------------- data


def _data(config: PoolConfig, name: str, family: str, fine_tuning: bool, draws: Draws) -> tuple[DataSpec, DataSpec]:
    """Return the data of a task, and what its network is pretrained on if it is: the classes left out."""
    source, seed = _source(name, family, draws), int(draws.integers(2**31))
    reconstructed = name in ("digits", "mnist1d", "patterns") and family in ("mlp", "bare") and draws.random() < 0.25
    if reconstructed and not fine_tuning:
        source = Reconstruction(source)
    count = int(getattr(source, "classes", 0))
    order = tuple(int(label) for label in draws.permutation(count)) if count else ()
    kept = order
    if fine_tuning:
        kept = order[: int(draws.integers(2, max(3, count // 2 + 1)))]
    noise = float(draws.uniform(0.02, 0.2)) if count and draws.random() < config.noisy else 0.0
    scale, shift = 1.0, 0.0
    if draws.random() < config.rescaled and name not in ("characters", "words", "graphs"):
        scale = log_uniform(draws, 0.2, 5.0)
        shift = scale * draws.uniform(-0.5, 0.5)
    mixed = family in ("mlp", "bare") and len(source.shape) > 1 and draws.random() < config.mixed
    mixing = str(draws.choice(MIXINGS[1:3])) if mixed and not reconstructed else "none"
    examples = 10**6
    if name in ("teacher", "mixture"):
        examples = round(log_uniform(draws, 1000, 6000))
    data = DataSpec(source, seed, examples, config.reward_examples, 0, kept, noise, scale, shift, mixing)
    rest = order[len(kept) :]
    return data, replace(data, classes=rest if len(rest) > 1 else kept, noise=0.0)


def _source(name: str, family: str, draws: Draws) -> Any:
    seed, examples = (
        int(draws.integers(2**31)),
        round(log_uniform(draws, 1000, 5000 if family in ("mlp", "bare", "cnn") else 2500)),
    )
    if name in TABLES:
        return Table(name)
    if name == "patterns":
        return Patterns(
            int(draws.choice([8, 10, 12])), int(draws.integers(4, 13)), examples, draws.uniform(0.6, 1.6), seed
        )
    if name == "graphs":
        nodes, features = int(draws.integers(8, 15)), int(draws.integers(2, 6))
        return Graphs(nodes, features, draws.uniform(0.0, 0.06), examples, seed)
    if name == "characters":
        return Characters(int(draws.choice([12, 16, 24])), examples, seed)
    if name == "words":
        return Words(int(draws.choice([12, 16, 24])), int(draws.integers(3, 10)), round(examples / 5))
    if name == "teacher":
        width, layers = round(log_uniform(draws, 4, 32)), int(draws.integers(1, 3))
        deviation, outputs = log_uniform(draws, 0.1, 0.5), int(draws.integers(1, 5))
        return Teacher(round(log_uniform(draws, 4, 48)), width, layers, outputs, deviation, seed, seed + 1)
    if name == "mixture":
        inputs, latent = round(log_uniform(draws, 8, 64)), round(log_uniform(draws, 4, 12))
        classes, clusters = int(draws.integers(4, 13)), int(draws.integers(1, 4))
        return Mixture(inputs, latent, classes, clusters, log_uniform(draws, 0.3, 0.8), seed)
    return Images(f"{name}_mlp", {"digits": (1, 8, 8), "mnist1d": (1, 40)}[name])


def _is_text(data: DataSpec) -> bool:
    return isinstance(data.source, Characters)


# ---------------------------------------------------------------------- losses


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits (N, T, C) against the tokens that follow, (N, T)."""
    logs = nn.functional.log_softmax(outputs, dim=-1)
    return -logs.gather(-1, targets.unsqueeze(-1)).mean()


def _loss(
    data: DataSpec, classes: bool, config: PoolConfig, draws: Draws
) -> tuple[Callable[[Any, Tensor], Tensor], float, str]:
    """Return a loss, how much larger than usual its gradients are, and what it adds to the task's name."""
    is_scaled, summed = draws.random() < config.scaled_loss, draws.random() < 0.4
    factor, name = (log_uniform(draws, 0.2, 5.0), "") if is_scaled else (1.0, "")
    steepness = max(1.0, data.scale)
    if _is_text(data):
        loss: Callable[[Any, Tensor], Tensor] = next_token
    elif classes:
        loss = cross_entropy
    else:
        loss = mean_squared_error
        name = "_reconstructed" if isinstance(data.source, Reconstruction) else ""
        if summed:  # over the numbers of an example, as autoencoders have it
            factor, name = factor * data.source.outputs, f"{name}_summed"  # type: ignore[union-attr]
            steepness = max(1.0, steepness * factor / 3.0)
    return (loss if factor == 1.0 else partial(scaled, loss, factor)), steepness, name


# ---------------------------------------------------------------------- networks


def _network(family: str, data: DataSpec, outputs: int, draws: Draws) -> NetworkSpec:
    activation = str(draws.choice(list(ACTIVATIONS), p=[0.5, 0.3, 0.2]))
    residual = bool(draws.random() < 0.4)
    norm = str(draws.choice(["none", "batch", "group" if family == "cnn" else "layer"], p=[0.35, 0.45, 0.2]))
    dropout = round(float(draws.uniform(0.05, 0.3)), 2) if draws.random() < 0.2 else 0.0
    pooling, flat = str(draws.choice(["average", "max", "stride"])), bool(draws.random() < 0.5)
    parametrised = family in ("mlp", "cnn", "transformer") and bool(draws.random() < 0.06)
    deepest = {"mlp": 6, "cnn": 4, "transformer": 2, "language": 2, "recurrent": 2, "bag": 3, "graph": 3, "bare": 4}
    layers = int(draws.integers(1, deepest[family] + 1))
    width = int(draws.choice([16, 24, 32]))
    if family in ("transformer", "language"):
        widths: tuple[int, ...] = (width,) * layers
    elif family == "cnn":
        channels = sorted(int(width) for width in draws.choice([4, 6, 8, 12, 16, 24], size=layers))
        widths = (channels[-1],) * layers if residual else tuple(channels)
    else:
        most = 48 if family in ("recurrent", "graph") else 128
        drawn = [round(log_uniform(draws, 8, most)) for _ in range(layers)]
        widths = (drawn[0],) * layers if residual else tuple(drawn)
    cell = (
        str(draws.choice(list(CELLS), p=[0.5, 0.3, 0.2])) if family == "recurrent" else str(draws.choice(GRAPH_LAYERS))
    )
    text = isinstance(data.source, Characters)
    return NetworkSpec(
        family,
        data.shape,
        outputs,
        widths,
        activation,
        norm,
        residual,
        0.0 if text else dropout,
        pooling,
        flat,
        int(draws.choice([2, 4, 8])),
        cell,
        CHARACTERS if text else WORDS,
        text,
        parametrised,
    )


# ---------------------------------------------------------------------- training


def _settings(optimizer: str, draws: Draws) -> dict[str, Any]:
    """Return settings for the optimizer: people's usual ones, or drawn, momentum from 0 to 0.99."""
    usual, first, second = draws.random(3)
    momentum, decay, decayed = draws.uniform(0.0, 1.0), draws.random(), draws.random()
    settings: dict[str, Any] = {}
    if optimizer == "sgdm":
        settings["momentum"] = 0.9 if usual < 0.4 else round(1.0 - 10.0 ** (-2.0 * momentum), 4)
    elif optimizer in ("adam", "adamw", "nadamw"):
        betas = (round(1.0 - 0.5 * 0.04**first, 4), round(1.0 - 0.1 * 0.005**second, 5))
        settings["betas"] = (0.9, 0.999) if usual < 0.5 else betas
    decoupled = optimizer in ("adamw", "nadamw")
    largest = 1e-1 if decoupled else 3e-3  # beyond 0.01 an L2 term is most of the loss
    drawn = 1e-5 * (largest / 1e-5) ** decay
    if decoupled:
        settings["weight_decay"] = 0.01 if decayed < 0.5 else drawn
    else:
        settings["weight_decay"] = 0.0 if decayed < 0.6 else drawn
    return settings


def _training(config: PoolConfig, task: Task, draws: Draws, whole: bool) -> Training | None:
    """Return batch size and budget for a number of passes; None if that takes too many operations.

    Passes are drawn first. Budgets that a batch size within bounds makes of them are what the budget is drawn from;
    where there are none, because a data set is small or large, passes follow the nearest.

    :param whole: whether the fewest passes must be made
    """
    examples = len(task.training_data().train)
    passes = log_uniform(draws, *config.passes)
    lowest, highest = config.batch_sizes
    smallest, largest = config.budgets
    seen = passes * examples
    low, high = max(smallest, seen / highest), min(largest, seen / lowest)
    place = draws.random()
    low, high = (low, high) if low <= high else ((smallest, smallest) if high < smallest else (largest, largest))
    budget = round(low * (high / low) ** place)
    batch_size = int(min(max(round(seen / budget), lowest), highest, max(examples // 2, 1)))
    update = cost_of_update(replace(task, batch_size=batch_size))
    affordable = config.operations * 10.0 ** -draws.random()  # or most tasks would cost the most that is allowed
    if update * budget <= affordable:
        return Training(batch_size, budget)
    fewer = int(affordable / update)  # the same passes in larger batches rarely cost less: fewer passes
    if fewer < smallest or (whole and fewer * batch_size < examples * config.passes[0]):
        return None
    return Training(batch_size, fewer)


class _Operators(TorchDispatchMode):
    """Counts operators, and the numbers they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.written = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        if isinstance(result, Tensor) and not func.is_view:
            self.written += result.numel()
        return result


def cost_of_update(task: Task) -> float:
    """Return what an update of a run costs, as floating-point operations that would take a core as long.

    Products and convolutions of the forward pass, thrice; operators, numbers written and parameters updated. It is
    counted and not timed, so that a task is the same on every machine.
    """
    train = task.training_data().train
    with torch.random.fork_rng(devices=[]):
        model = task.new_model()
        inputs = task.prepare(train.batch(torch.arange(min(task.batch_size, len(train))))[0], False)
        with torch.no_grad(), _Operators() as operators, FlopCounterMode(display=False) as counter:
            model(inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    forward = counter.get_total_flops() + _OPERATOR * operators.calls + _WRITTEN * operators.written
    return 3.0 * forward + _UPDATED * parameters + 1e5


def passes_of(task: Task) -> float:
    """Return how many passes over the training split the task's largest budget makes."""
    examples = len(task.training_data().train)
    batches = max(1, math.floor(examples / min(task.batch_size, examples)))
    assert task.budget is not None
    return task.budget / batches
