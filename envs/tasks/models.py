"""Small models of the embedded tasks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Sequential:
    """Fully connected ReLU network on inputs (N, ``inputs``)."""
    widths = [inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn_2d(channels: Sequence[int], size: int, classes: int) -> nn.Sequential:
    """3x3 convolutions with ReLU, each but the first followed by 2x2 max pooling, on images (N, 1, size, size)."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise([1, *channels])):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        if number:
            layers.append(nn.MaxPool2d(2))
            size //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * size * size, classes))


def cnn_1d(channels: int, length: int, classes: int) -> nn.Sequential:
    """Three strided convolutions with ReLU on signals (N, 1, length), as in MNIST-1D's reference (Greydanus, 2020)."""
    layers: list[nn.Module] = []
    for before, kernel in ((1, 5), (channels, 3), (channels, 3)):
        layers += [nn.Conv1d(before, channels, kernel, stride=2, padding=1), nn.ReLU()]
        length = (length + 2 - kernel) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * length, classes))
