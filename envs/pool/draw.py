"""Training distributions: many different tasks drawn from a seed, so that a policy is trained broadly.

A drawn task is an ordinary :class:`envs.tasks.base.Task` in no registry: it has training data, and no test split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from envs.batched.composite import forward_operations
from envs.pool.common import TRIES, Draws, error, four_decades, in_turn, log_uniform, scaled, with_settings
from envs.pool.config import SOURCES, PoolConfig
from envs.pool.data import MIXINGS, DataSpec, Images, Mixture, Source, Teacher, Text, load
from envs.pool.models import ACTIVATIONS, NetworkSpec, Pretraining, fine_tuned
from envs.pool.people import draw_of_people
from envs.tasks.base import Metric, Task, accuracy, cross_entropy
from envs.tasks.glue import mean_squared_error
from gns.errors import InvalidSettingError

_PRETRAINING_EXAMPLES = 2000


def draw_pool(config: PoolConfig) -> list[Task]:
    """Return drawn tasks; the same ones in every process.

    :raises DataNotFoundError: if a source that is drawn is a set by Hub id and nowhere to be had
    :raises InvalidSettingError: if no network small enough for ``operations`` is found
    """
    return [draw_task(config, number) for number in range(config.size)]


def draw_task(config: PoolConfig, number: int) -> Task:
    """Return one task of a pool. Errors as :func:`draw_pool`."""
    if config.edition == 0:
        return _draw(config, number)
    return draw_of_people(config, number)


def _draw(config: PoolConfig, number: int) -> Task:
    draws = np.random.default_rng([config.seed, number, 0])
    source, family = in_turn(config.kinds, config.seed, number, 1)
    optimizer = in_turn(config.optimizers, config.seed, number, 2)
    fine_tuning = bool(draws.random() < config.fine_tuning)
    data, pretraining_data = _data(config, source, family, fine_tuning, draws)
    outputs, learned = _outputs(data), _outputs(pretraining_data)
    loss: Callable[[Any, Tensor], Tensor] = cross_entropy if data.classes else mean_squared_error
    scale = log_uniform(draws, 0.1, 10.0) if draws.random() < config.scaled_loss else 1.0
    metrics: dict[str, Metric] = {"accuracy": accuracy} if data.classes else {"mean_squared_error": error}
    name = f"pool_{number:03d}_{source}_{family}_{optimizer}{'_fine_tuned' if fine_tuning else ''}"
    settings, groups = _groups(optimizer, draws)
    clip_norm = 1.0 if draws.random() < config.clipped else None
    shift = draws.uniform(-0.5, 0.5)
    for _ in range(TRIES):
        network = _network(family, data.shape, outputs, draws)
        task = Task(
            name=name,
            load_training_data=partial(load, data),
            build_model=network.build,
            batch_size=round(log_uniform(draws, *config.batch_sizes)),
            budget=config.budgets[1],
            optimizer=optimizer,
            parameter_groups=groups,
            clip_norm=clip_norm,
            loss=loss if scale == 1.0 else partial(scaled, loss, scale),
            metrics=metrics,
            higher_is_better=bool(data.classes),
            drawn=True,
            learning_rates=four_decades(fine_tuning, settings, shift, scale * max(1.0, data.scale)),
        )
        update = 3.0 * forward_operations(task)
        if update * config.budgets[0] <= config.operations:
            break
    else:
        raise InvalidSettingError(
            f"pool.operations is {config.operations:g}; no network for {name} of {TRIES} drawn makes "
            f"{config.budgets[0]} updates with so few. Raise it, or lower pool.budgets or pool.batch_sizes."
        )
    budgets = _budgets(config, update, fine_tuning, draws)
    task = replace(task, budgets=budgets, budget=budgets[1])
    if not fine_tuning:
        return task
    pretraining = Pretraining(replace(network, outputs=learned), pretraining_data, loss)
    return replace(task, build_model=partial(fine_tuned, network, pretraining))


# ---------------------------------------------------------------------- data


def _data(config: PoolConfig, name: str, family: str, fine_tuning: bool, draws: Draws) -> tuple[DataSpec, DataSpec]:
    """Return the data of a task, and what its network is pretrained on if it is: other classes, outputs or examples."""
    source, other = _source(name, family, draws)
    seed, noise, scale, shift = int(draws.integers(2**31)), 0.0, 1.0, 0.0
    classes: tuple[int, ...] = ()
    rest: tuple[int, ...] = ()
    if source.classes:
        order = [int(label) for label in draws.permutation(source.classes)]
        # Pretraining takes the classes left over; of two there are none, and it takes other examples.
        most = source.classes // 2 if fine_tuning and source.classes > 3 else source.classes
        kept = int(draws.integers(min(2, most), most + 1))
        classes, rest = tuple(order[:kept]), tuple(order[kept:])
        noise = float(draws.uniform(0.0, 0.3)) if draws.random() < config.noisy else 0.0
    if draws.random() < config.rescaled and not (isinstance(source, Text) and not source.bag):
        scale = log_uniform(draws, 0.1, 10.0)
        shift = scale * draws.uniform(-1.0, 1.0)
    mixing = str(draws.choice(MIXINGS[1:])) if family == "mlp" and draws.random() < config.mixed else "none"
    numbers = math.prod(source.shape)
    width = int(draws.integers(min(8, numbers), min(numbers, 128) + 1)) if mixing == "projection" else 0
    examples = round(log_uniform(draws, min(200, SOURCES[name][1]), SOURCES[name][1]))
    data = DataSpec(source, seed, examples, config.reward_examples, 0, classes, noise, scale, shift, mixing, width)
    skip = 0 if len(rest) > 1 or not classes else examples
    learned = rest if len(rest) > 1 else classes
    pretraining = replace(data, source=other, classes=learned, noise=0.0, examples=_PRETRAINING_EXAMPLES, skip=skip)
    return data, pretraining


def _source(name: str, family: str, draws: Draws) -> tuple[Source, Source]:
    """Return a source, and the one that pretraining learns from."""
    source: Source
    if name == "teacher":
        outputs, seeds = int(draws.integers(1, 5)), [int(seed) for seed in draws.integers(2**31, size=3)]
        width, layers = round(log_uniform(draws, 4, 32)), int(draws.integers(1, 3))
        inputs, deviation = round(log_uniform(draws, 4, 48)), log_uniform(draws, 0.1, 0.7)
        source = Teacher(inputs, width, layers, outputs, deviation, seeds[0], seeds[1])
        return source, replace(source, outputs=8, output_seed=seeds[2])
    if name == "mixture":
        inputs, latent = round(log_uniform(draws, 4, 64)), round(log_uniform(draws, 2, 12))
        clusters, spread = int(draws.integers(1, 4)), log_uniform(draws, 0.15, 0.8)
        source = Mixture(inputs, latent, int(draws.integers(2, 13)), clusters, spread, int(draws.integers(2**31)))
    elif name == "fashion_mnist":
        side = int(draws.choice([8, 14]))
        source = Images("fashion_mnist_lenet", (1, side, side), 10, 0.2860 * 255.0, 0.3530 * 255.0)
    elif name in ("sst2", "cola"):
        source = Text(f"glue_{name}", bag=family == "mlp")
    else:
        source = Images(f"{name}_mlp", {"digits": (1, 8, 8), "mnist1d": (1, 40)}[name])
    return source, source


def _outputs(data: DataSpec) -> int:
    return len(data.classes) or data.source.outputs  # type: ignore[union-attr]


# ---------------------------------------------------------------------- networks


def _network(family: str, shape: tuple[int, ...], outputs: int, draws: Draws) -> NetworkSpec:
    activation = str(draws.choice(list(ACTIVATIONS)))
    residual = bool(draws.random() < 0.4)
    norm = str(draws.choice(["none", "batch", "layer"], p=[0.5, 0.3, 0.2]))
    dropout = round(float(draws.uniform(0.05, 0.4)), 2) if draws.random() < 0.25 else 0.0
    pooling, flat = str(draws.choice(["average", "max", "stride"])), bool(draws.random() < 0.5)
    depth, largest = {"mlp": (5, 128), "cnn": (4, 32), "transformer": (2, 32)}[family]
    layers = int(draws.integers(1, depth + 1))
    if family == "transformer":
        widths = (int(draws.choice([16, 24, 32])),) * layers
    elif family == "cnn":
        channels = sorted(int(width) for width in draws.choice([4, 8, 16, 32], size=layers))
        widths = (channels[-1],) * layers if residual else tuple(channels)
    elif residual:
        widths = (round(log_uniform(draws, 8, largest)),) * layers
    else:
        widths = tuple(round(log_uniform(draws, 8, largest)) for _ in range(layers))
    return NetworkSpec(
        family, shape, outputs, widths, activation, norm, residual, dropout, pooling, flat, int(draws.choice([4, 5, 8]))
    )


# ---------------------------------------------------------------------- training


def _groups(optimizer: str, draws: Draws) -> tuple[dict[str, Any], Callable[[nn.Module], Iterable[Any]]]:
    """Return settings for the optimizer, and what gives parameters with them."""
    settings: dict[str, Any] = {}
    first = 1.0 - log_uniform(draws, 0.01, 0.2)
    if optimizer == "sgdm":
        settings["momentum"] = first
    elif optimizer in ("adam", "adamw", "nadamw"):
        settings["betas"] = (first, 1.0 - log_uniform(draws, 1e-4, 5e-2))
    # Beyond 0.01 an L2 term is most of the loss.
    decay = log_uniform(draws, 1e-5, 1e-1 if optimizer in ("adamw", "nadamw") else 1e-2)
    settings["weight_decay"] = decay if draws.random() < 0.5 else 0.0
    matrices = bool(draws.random() < 0.5) and settings["weight_decay"] > 0.0
    return settings, partial(with_settings, tuple(settings.items()), matrices)


def _budgets(config: PoolConfig, update: float, fine_tuning: bool, draws: Draws) -> tuple[int, int]:
    """Return a task's smallest and largest budget.

    :param update: operations of one
    """
    low, high = config.budgets
    high = max(low, min(high, int(config.operations / max(update, 1.0))))
    if fine_tuning:
        high = min(high, max(low, round(math.sqrt(low * config.budgets[1]))))
    middle, spread = log_uniform(draws, low, high), math.sqrt(config.budget_spread)
    return max(low, round(middle / spread)), min(high, max(low, round(middle * spread)))
