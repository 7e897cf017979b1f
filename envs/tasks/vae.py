"""A variational autoencoder on MNIST, the VAE-MNIST setting of REX (Chen et al., MLSys 2022, table 7 and appendix A).

Three dense layers encode an image in two latent numbers, three decode it, at batch 100. The paper gives no widths; here
they are 784-512-256-2 and 2-256-512-784. The loss is the negative evidence lower bound in nats an image. The same
network on Fashion-MNIST is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.images import FASHION_MNIST, MNIST, ImageSet, load_split, load_training_data

_EVALUATION_SEED = 20220425


class VAEOutputs(NamedTuple):
    """What a variational autoencoder returns for N images of P pixels and K latent numbers.

    :param logits: of the reconstruction, (N, P)
    :param mean: of the approximate posterior, (N, K)
    :param log_variance: of the approximate posterior, (N, K)
    """

    logits: Tensor
    mean: Tensor
    log_variance: Tensor


class VAE(nn.Module):
    """Variational autoencoder (Kingma and Welling, 2014) of dense layers with ReLU.

    Latent numbers are drawn from torch's global random numbers in training. In evaluation mode they come from a
    generator of a fixed seed, so that the same batch always has the same loss.

    :param pixels: P, pixels of an image
    :param hidden: widths of the encoder's hidden layers; the decoder has them in reverse
    :param latent: K, latent numbers
    """

    def __init__(self, pixels: int, hidden: Sequence[int], latent: int) -> None:
        super().__init__()
        self.encoder = _dense([pixels, *hidden])
        self.mean = nn.Linear(hidden[-1], latent)
        self.log_variance = nn.Linear(hidden[-1], latent)
        self.decoder = nn.Sequential(*_dense([latent, *reversed(hidden)]), nn.Linear(hidden[0], pixels))

    def forward(self, images: Tensor) -> VAEOutputs:
        """Encode images (N, ...) of P pixels in [0, 1], draw latent numbers and decode them."""
        h = self.encoder(images.flatten(1))
        mean, log_variance = self.mean(h), self.log_variance(h)
        if self.training:
            noise = torch.randn_like(mean)
        else:
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(_EVALUATION_SEED)).to(mean)
        return VAEOutputs(self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance)


def _dense(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


def prepare_pixels(pixels: Tensor, training: bool) -> Tensor:
    """Turn uint8 images (N, C, H, W) into float32 in [0, 1]."""
    return pixels.float() / 255.0


def reconstruction_nats(outputs: VAEOutputs, images: Tensor) -> Tensor:
    """Return the binary cross-entropy of each reconstruction, summed over pixels, (N,).

    :param images: uint8 (N, ...); a pixel of 255 is a target of 1
    """
    targets = prepare_pixels(images, False).flatten(1)
    return nn.functional.binary_cross_entropy_with_logits(outputs.logits.float(), targets, reduction="none").sum(1)


def kl_nats(outputs: VAEOutputs) -> Tensor:
    """Return the divergence of each approximate posterior from the standard normal distribution, (N,).

    Kingma and Welling (2014), appendix B.
    """
    mean, log_variance = outputs.mean.float(), outputs.log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)


def elbo_loss(outputs: VAEOutputs, images: Tensor) -> Tensor:
    """Mean negative evidence lower bound, in nats an image."""
    return (reconstruction_nats(outputs, images) + kl_nats(outputs)).mean()


def join_outputs(outputs: VAEOutputs) -> Tensor:
    """Join outputs to one tensor (N, P + 2K)."""
    return torch.cat(outputs, dim=1)


def _part_outputs(joined: Tensor, split: Split) -> VAEOutputs:
    pixels = split.inputs[0].numel()
    mean, log_variance = joined[:, pixels:].chunk(2, dim=1)
    return VAEOutputs(joined[:, :pixels], mean, log_variance)


def mean_elbo_loss(joined: Tensor, split: Split) -> float:
    """Mean negative evidence lower bound of a split, in nats an image."""
    return float(elbo_loss(_part_outputs(joined, split), split.inputs))


def mean_reconstruction(joined: Tensor, split: Split) -> float:
    """Mean cross-entropy of the reconstructions of a split, in nats an image."""
    return float(reconstruction_nats(_part_outputs(joined, split), split.inputs).mean())


def mean_kl(joined: Tensor, split: Split) -> float:
    """Mean divergence of the approximate posteriors of a split from the prior, in nats an image."""
    return float(kl_nats(_part_outputs(joined, split)).mean())


def _its_own_target(split: Split) -> Split:
    return Split(split.inputs, split.inputs)


def _training_data(images: ImageSet) -> TrainingData:
    data = load_training_data(images)
    return TrainingData(_its_own_target(data.train), _its_own_target(data.reward))


def _test_split(images: ImageSet) -> Split:
    return _its_own_target(load_split(images, "test"))


def _register(name: str, images: ImageSet, budget: int) -> Task:
    return register_task(
        Task(
            name=name,
            load_training_data=partial(_training_data, images),
            build_model=VAE,
            model={"pixels": 784, "hidden": [512, 256], "latent": 2},
            batch_size=100,
            budget=budget,
            loss=elbo_loss,
            metrics={"elbo_loss": mean_elbo_loss, "reconstruction": mean_reconstruction, "kl": mean_kl},
            higher_is_better=False,
            prepare=prepare_pixels,
            collect=join_outputs,
        ),
        partial(_test_split, images),
    )


# Budgets: ten passes over the training split.
MNIST_VAE = _register("mnist_vae", MNIST, 5000)
FASHION_MNIST_VAE = _register("fashion_mnist_vae", FASHION_MNIST, 5000)
