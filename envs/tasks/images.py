"""Image classification by Hub id. A whole set is resident as one uint8 tensor; batches are gathered by index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.hub import decode_images, load_hub_split
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
    :param classes: number of classes
    :param pad: pixels of the random crop's padding; 0: no augmentation
    """

    hub_id: str
    image: str
    label: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: int = 10
    pad: int = 0


FASHION_MNIST = ImageSet("zalando-datasets/fashion_mnist", "image", "label", (0.2860,), (0.3530,))
MNIST = ImageSet("ylecun/mnist", "image", "label", (0.1307,), (0.3081,))
CIFAR10 = ImageSet("uoft-cs/cifar10", "img", "label", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), pad=4)
CIFAR100 = ImageSet(
    "uoft-cs/cifar100", "img", "fine_label", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), classes=100, pad=4
)
STL10 = ImageSet("tanganke/stl10", "image", "label", (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713), pad=12)


def load_split(images: ImageSet, part: str, seed: int | None = None) -> Split:
    """Return a published split: images uint8 (N, C, H, W), a byte a pixel, and labels int64 (N,).

    :param part: ``train`` or ``test``
    :param seed: seed of a random order of the examples; None: as they are stored
    :raises DataNotFoundError: if the set is neither in the local folder nor to be had from the Hub
    """
    data = load_hub_split(images.hub_id, part, (images.image, images.label))
    order = np.arange(len(data))
    if seed is not None:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).numpy()
    labels = np.asarray(data[images.label], dtype=np.int64)[order]
    return Split(torch.from_numpy(decode_images(data.select_columns([images.image]), order)), torch.from_numpy(labels))


@lru_cache(maxsize=5)
def load_training_data(images: ImageSet) -> TrainingData:
    """Return the training split less the reward split, which a fixed seed draws from it.

    The two are parts of one array, which images are decoded into in the order drawn: there is never a second copy.
    """
    whole = load_split(images, "train", _SEED)
    cut = min(_REWARD_EXAMPLES, len(whole) // 5)
    return TrainingData(
        train=Split(whole.inputs[cut:], whole.targets[cut:]), reward=Split(whole.inputs[:cut], whole.targets[:cut])
    )


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


def register_image_task(
    name: str,
    images: ImageSet,
    build: Callable[..., nn.Module],
    budget: int,
    batch_size: int = 128,
    optimizer: str = "adam",
    **model: Any,
) -> Task:
    """Register the classification of a set of images by a network.

    :param build: builds it from ``channels``, ``classes`` and the settings in ``model``
    """
    return register_task(
        Task(
            name=name,
            load_training_data=partial(load_training_data, images),
            build_model=build,
            model={"channels": len(images.mean), "classes": images.classes, **model},
            batch_size=batch_size,
            budget=budget,
            optimizer=optimizer,
            prepare=partial(prepare_images, images),
        ),
        partial(load_split, images, "test"),
    )


# Budgets: ten passes over the training split.
register_image_task("fashion_mnist_lenet", FASHION_MNIST, lenet, 3900, size=28)
register_image_task("fashion_mnist_2c2d", FASHION_MNIST, net_2c2d, 3900, size=28)
register_image_task("mnist_lenet", MNIST, lenet, 3900, size=28)
register_image_task("cifar10_3c3d", CIFAR10, net_3c3d, 3120, size=32)
register_image_task("cifar10_resnet20", CIFAR10, resnet, 3120, depth=20, width=16)
register_image_task("cifar10_wrn16_8", CIFAR10, wide_resnet, 3120, depth=16, widen=8)
register_image_task("cifar10_vgg16", CIFAR10, vgg16, 3120, width=64)
register_image_task("cifar100_vgg16", CIFAR100, vgg16, 3120, width=64)
register_image_task("cifar100_resnet38", CIFAR100, resnet, 3120, depth=38, width=16)
register_image_task("stl10_wrn16_8", STL10, wide_resnet, 620, batch_size=64, depth=16, widen=8)
