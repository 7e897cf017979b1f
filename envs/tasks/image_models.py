"""Convolutional networks of the papers, written out: no torchvision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def lenet(channels: int, size: int, classes: int) -> nn.Sequential:
    """LeNet-like network (LeCun et al., 1998) with ReLU and max pooling, on images (N, channels, size, size)."""
    left = (size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * left * left, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def net_2c2d(channels: int, size: int, classes: int) -> nn.Sequential:
    """DeepOBS's ``2c2d`` (Schneider et al., 2019): weights truncated normal of deviation 0.05, biases 0.05."""
    model = nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (size // 4) ** 2, 1024),
        nn.ReLU(),
        nn.Linear(1024, classes),
    )
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.05, a=-0.1, b=0.1)
            nn.init.constant_(module.bias, 0.05)  # type: ignore[arg-type]
    return model


def net_3c3d(channels: int, size: int, classes: int) -> nn.Sequential:
    """DeepOBS's ``3c3d`` (Schneider et al., 2019): Xavier-normal weights, biases 0, 3x3 pooling that pads below."""
    left = size - 4
    left = (left + 1) // 2 - 2
    left = ((left + 1) // 2 + 1) // 2
    pool = (nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, stride=2))
    model = nn.Sequential(
        *(nn.Conv2d(channels, 64, 5), nn.ReLU(), *pool),
        *(nn.Conv2d(64, 96, 3), nn.ReLU(), *pool),
        *(nn.Conv2d(96, 128, 3, padding=1), nn.ReLU(), *pool),
        nn.Flatten(),
        *(nn.Linear(128 * left * left, 512), nn.ReLU()),
        *(nn.Linear(512, 256), nn.ReLU()),
        nn.Linear(256, classes),
    )
    for module in model:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters: strided, new channels zero (He et al., option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.stride, self.more = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return torch.relu(h + nn.functional.pad(shortcut, (0, 0, 0, 0, 0, self.more)))


def resnet(channels: int, classes: int, depth: int = 20, width: int = 16) -> nn.Sequential:
    """Residual network for small images (He et al., 2016, section 4.2): depth 6n + 2, widths 16, 32, 64."""
    count = (depth - 2) // 6
    blocks: list[nn.Module] = []
    before = width
    for stage, after in enumerate((width, 2 * width, 4 * width)):
        for number in range(count):
            blocks.append(_Residual(before, after, stride=2 if stage and not number else 1))
            before = after
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


class _WideBlock(nn.Module):
    """Pre-activation residual block (Zagoruyko and Komodakis, 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if before != after else None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(x))
        shortcut = self.shortcut(h) if self.shortcut is not None else x
        return shortcut + self.conv2(torch.relu(self.norm2(self.conv1(h))))


def wide_resnet(channels: int, classes: int, depth: int = 16, widen: int = 8) -> nn.Sequential:
    """Wide residual network WRN-depth-widen (Zagoruyko and Komodakis, 2016), depth 6n + 4; REX uses WRN-16-8."""
    count = (depth - 4) // 6
    widths = [16, 16 * widen, 32 * widen, 64 * widen]
    blocks: list[nn.Module] = []
    for stage in range(3):
        for number in range(count):
            before = widths[stage] if number == 0 else widths[stage + 1]
            blocks.append(_WideBlock(before, widths[stage + 1], stride=2 if stage and not number else 1))
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        *blocks,
        nn.BatchNorm2d(widths[-1]),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], classes),
    )


def vgg16(channels: int, classes: int, width: int = 64) -> nn.Sequential:
    """VGG-16 for 32x32 images (Simonyan and Zisserman, 2015) with batch norm and one linear layer."""
    plan: Sequence[int] = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)
    layers: list[nn.Module] = []
    before = channels
    for factor in plan:
        if factor == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width), nn.ReLU()]
        before = factor * width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, classes))
