"""Image classification by Hub id. The whole set is resident as one uint8 tensor; batches are gathered by index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.hub import decode_images, load_hub_dataset
from envs.tasks.image_models import lenet, net_2c2d, net_3c3d, resnet, vgg16, wide_resnet

_SEED = 20220425
_REWARD_EXAMPLES = 10_000  # the paper's setting; a fifth of smaller training splits


@dataclass(frozen=True)
class ImageSet:
    """An image data set on the Hub.

    :param hub_id: its id
    :param image: name of the image column
    :param label: name of the label column
    :param mean: mean of each channel of the training images, in [0, 1]
    :param deviation: standard deviation of each channel
    :param pad: pixels of the random crop's padding; 0: no augmentation
    """

    hub_id: str
    image: str
    label: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    pad: int = 0


FASHION_MNIST = ImageSet("zalando-datasets/fashion_mnist", "image", "label", (0.2860,), (0.3530,))
MNIST = ImageSet("ylecun/mnist", "image", "label", (0.1307,), (0.3081,))
CIFAR10 = ImageSet("uoft-cs/cifar10", "img", "label", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), pad=4)


def _read(images: ImageSet, part: str) -> Split:
    data = load_hub_dataset(images.hub_id)[part]
    pixels = decode_images(data.select_columns([images.image]))
    return Split(torch.from_numpy(pixels.copy()), torch.tensor(np.asarray(data[images.label]), dtype=torch.int64))


@lru_cache(maxsize=2)
def _training_data(images: ImageSet) -> TrainingData:
    """Training split less the reward split, which a fixed seed draws from it."""
    whole = _read(images, "train")
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(_SEED))
    cut = min(_REWARD_EXAMPLES, len(whole) // 5)
    parts = [Split(whole.inputs[rows], whole.targets[rows]) for rows in (order[cut:], order[:cut])]
    return TrainingData(*parts)


def prepare_images(images: ImageSet, pixels: Tensor, training: bool) -> Tensor:
    """Turn uint8 images (N, C, H, W) into normalised float32, cropped and flipped at random where training asks for it.

    Padding has the value 0 of the normalised image, and everything happens on the images' own device.
    """
    shape = (1, len(images.mean), 1, 1)
    mean = torch.tensor(images.mean, device=pixels.device).reshape(shape)
    deviation = torch.tensor(images.deviation, device=pixels.device).reshape(shape)
    x = (pixels.float() / 255.0 - mean) / deviation
    return crop_and_flip(x, images.pad) if training and images.pad else x


def crop_and_flip(x: Tensor, pad: int) -> Tensor:
    """Shift each image by up to ``pad`` pixels each way and mirror half of them; one gather for the whole batch."""
    count, channels, height, width = x.shape
    device = x.device
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = left + torch.where(mirrored, width - 1 - columns, columns)
    padded = nn.functional.pad(x, (pad, pad, pad, pad))
    example = torch.arange(count, device=device)[:, None, None, None]
    channel = torch.arange(channels, device=device)[None, :, None, None]
    return padded[example, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _register(name: str, images: ImageSet, build: Callable[..., nn.Module], budget: int, **model: Any) -> Task:
    return register_task(
        Task(
            name=name,
            load_training_data=partial(_training_data, images),
            build_model=build,
            model={"channels": len(images.mean), "classes": 10, **model},
            batch_size=128,
            budget=budget,
            prepare=partial(prepare_images, images),
        ),
        partial(_read, images, "test"),
    )


# Budgets: ten passes over the training split at batch 128.
_register("fashion_mnist_lenet", FASHION_MNIST, lenet, 3900, size=28)
_register("fashion_mnist_2c2d", FASHION_MNIST, net_2c2d, 3900, size=28)
_register("mnist_lenet", MNIST, lenet, 3900, size=28)
_register("cifar10_3c3d", CIFAR10, net_3c3d, 3120, size=32)
_register("cifar10_resnet20", CIFAR10, resnet, 3120, depth=20, width=16)
_register("cifar10_wrn16_8", CIFAR10, wide_resnet, 3120, depth=16, widen=8)
_register("cifar10_vgg16", CIFAR10, vgg16, 3120, width=64)
