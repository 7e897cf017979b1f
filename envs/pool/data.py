"""Data of drawn tasks: parts of the embedded sets, of sets by Hub id, and made-up problems, changed in many ways.

Everything is a function of frozen dataclasses, and the same in every process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, TrainingData, get_task

TOKENS = 24  # of a text
VOCABULARY = 512  # 0 is padding, 1 any token that is not among the most frequent ones
MIXINGS = ("none", "permutation", "rotation", "projection")


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute the same to the last bit in every process: on one thread, denormals flushed; random numbers are put back.

    Threads and denormals are set back as well.
    """
    threads, flushed = torch.get_num_threads(), float(torch.tensor(1e-30) * 1e-10) == 0.0
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Images:
    """Images or signals of a registered task.

    :param task: name of that task
    :param shape: of an example
    :param classes: number of classes
    :param mean: of the stored values; with ``deviation``, what they are normalised by
    """

    task: str
    shape: tuple[int, ...]
    classes: int = 10
    mean: float = 0.0
    deviation: float = 1.0

    def training_data(self) -> TrainingData:
        """Return the registered task's."""
        return get_task(self.task).training_data()

    def view(self, inputs: Tensor) -> Tensor:
        """Return some stored examples as floats of ``shape``."""
        inputs = (inputs.float() - self.mean) / self.deviation
        return inputs if inputs.shape[1:] == self.shape else nn.functional.adaptive_avg_pool2d(inputs, self.shape[-1])


@dataclass(frozen=True)
class Text:
    """Sentences of a GLUE task.

    :param task: name of the registered task
    :param bag: as counts of their tokens over the root of the text's length, (:data:`VOCABULARY`,); otherwise as
        numbers of tokens, (:data:`TOKENS`,)
    :param classes: number of classes
    """

    task: str
    bag: bool
    classes: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (VOCABULARY,) if self.bag else (TOKENS,)

    def training_data(self) -> TrainingData:
        """Return the registered task's, its tokens numbered by how frequent they are."""
        return _numbered(self.task)

    def view(self, inputs: Tensor) -> Tensor:
        """Return some examples, (N, TOKENS), in this form."""
        if not self.bag:
            return inputs
        counts = torch.zeros(len(inputs), VOCABULARY).scatter_add_(1, inputs, torch.ones(inputs.shape))
        counts[:, 0] = 0.0
        return counts / counts.sum(dim=1, keepdim=True).clamp(min=1.0).sqrt()


@lru_cache(maxsize=4)
def _numbered(task: str) -> TrainingData:
    data = get_task(task, model={"max_length": TOKENS}).training_data()
    tokens = data.train.inputs[:, 0][data.train.inputs[:, 1] >= 0].long()
    frequent = tokens.bincount().argsort(descending=True, stable=True)[: VOCABULARY - 2]

    def renumber(split: Split) -> Split:
        ids = split.inputs[:, 0].long()
        table = torch.ones(int(max(ids.max(), frequent.max())) + 1, dtype=torch.long)
        table[frequent] = torch.arange(2, 2 + len(frequent))
        return Split(torch.where(split.inputs[:, 1] >= 0, table[ids], 0), split.targets)

    return TrainingData(renumber(data.train), renumber(data.reward))


@dataclass(frozen=True)
class Teacher:
    """Regression on what a random network gives for normal inputs, with noise; targets have a variance near 1.

    :param inputs: numbers an example
    :param hidden: width of its layers
    :param layers: how many it has
    :param outputs: targets an example
    :param deviation: of the noise, the floor of the loss
    :param seed: of its hidden layers, which are shared by teachers that are asked for other outputs
    :param output_seed: of its last layer, the examples and the noise
    """

    inputs: int
    hidden: int
    layers: int
    outputs: int
    deviation: float
    seed: int
    output_seed: int
    classes = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (self.inputs,)

    def training_data(self) -> TrainingData:
        """Return examples drawn from the seeds."""
        body, rest = torch.Generator().manual_seed(self.seed), torch.Generator().manual_seed(self.output_seed)
        x = torch.randn(_MADE_UP, self.inputs, generator=rest)
        h = x
        for _ in range(self.layers):
            weights = torch.randn(h.shape[1], self.hidden, generator=body) * 1.5 / h.shape[1] ** 0.5
            h = torch.tanh(h @ weights + 0.5 * torch.randn(self.hidden, generator=body))
        y = h @ torch.randn(self.hidden, self.outputs, generator=rest)
        y = (y - y.mean(0)) / y.std(0)
        return _parted(x, y + self.deviation * torch.randn(y.shape, generator=rest))

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@dataclass(frozen=True)
class Mixture:
    """Classification of Gaussian clusters that lie in a subspace; inputs have a variance near 1.

    :param inputs: numbers an example
    :param latent: dimensions of the subspace
    :param classes: number of classes
    :param clusters: of each class
    :param spread: deviation within a cluster, over that of the centres
    :param seed: of all
    """

    inputs: int
    latent: int
    classes: int
    clusters: int
    spread: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (self.inputs,)

    def training_data(self) -> TrainingData:
        """Return examples drawn from the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        centres = torch.randn(self.classes * self.clusters, self.latent, generator=generator)
        cluster = torch.randint(len(centres), (_MADE_UP,), generator=generator)
        latent = centres[cluster] + self.spread * torch.randn(_MADE_UP, self.latent, generator=generator)
        basis = torch.randn(self.latent, self.inputs, generator=generator) / self.latent**0.5
        x = latent @ basis + 0.3 * torch.randn(_MADE_UP, self.inputs, generator=generator)
        return _parted(x / x.std(), cluster % self.classes)

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


_MADE_UP, _MADE_UP_REWARD = 7000, 1000  # examples of a made-up problem; of its reward split


def _parted(inputs: Tensor, targets: Tensor) -> TrainingData:
    cut = len(inputs) - _MADE_UP_REWARD
    return TrainingData(Split(inputs[:cut], targets[:cut]), Split(inputs[cut:], targets[cut:]))


Source = Images | Text | Teacher | Mixture


@dataclass(frozen=True)
class DataSpec:
    """What a task is given of a source.

    :param source: where examples come from
    :param seed: of all that is drawn here
    :param examples: training examples, at most
    :param reward_examples: those of the reward split, at most
    :param skip: training examples that come first in another's: those after them are taken, as far as there are any
    :param classes: those kept of the source's; empty where it has none
    :param noise: share of labels, of both splits, replaced by one of the other classes
    :param scale: inputs are multiplied by it
    :param shift: and this is added
    :param mixing: what is done to flattened inputs first, of :data:`MIXINGS`: a permutation, a rotation or a random
        projection to ``width`` numbers
    :param width: see there; 0: the source's
    """

    source: Source
    seed: int
    examples: int
    reward_examples: int
    skip: int = 0
    classes: tuple[int, ...] = ()
    noise: float = 0.0
    scale: float = 1.0
    shift: float = 0.0
    mixing: str = "none"
    width: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        if self.mixing == "none":
            return self.source.shape
        return (self.width or int(torch.Size(self.source.shape).numel()),)

    def generator(self, number: int) -> torch.Generator:
        """Return random numbers for one purpose."""
        return torch.Generator().manual_seed(self.seed * 10 + number)


@cache
def load(spec: DataSpec) -> TrainingData:
    """Return the training and the reward split.

    :raises DataNotFoundError: if the source is a set by Hub id and nowhere to be had
    """
    data = spec.source.training_data()
    with reproducible():
        mixing = _mixing(spec)
        train = _part(data.train, spec, spec.examples, spec.skip, mixing, 0)
        return TrainingData(train, _part(data.reward, spec, spec.reward_examples, 0, mixing, 1))


def _part(split: Split, spec: DataSpec, count: int, skip: int, mixing: Any, number: int) -> Split:
    generator, targets = spec.generator(number), split.targets
    rows = torch.randperm(len(split), generator=generator)
    if spec.classes:
        classes = torch.tensor(spec.classes)
        rows = rows[torch.isin(targets[rows], classes)]
        new = torch.full((spec.source.classes,), -1)
        new[classes] = torch.arange(len(classes))
        targets = new[targets]
    rows = rows.roll(-skip)[:count]
    inputs, targets = spec.source.view(split.inputs[rows]), targets[rows].clone()
    if mixing is not None:
        inputs = mixing(inputs.flatten(1))
    if spec.scale != 1.0 or spec.shift != 0.0:
        inputs = inputs * spec.scale + spec.shift
    if spec.noise:
        wrong = torch.rand(len(rows), generator=generator) < spec.noise
        away = torch.randint(1, len(spec.classes), (len(rows),), generator=generator)
        targets = torch.where(wrong, (targets + away) % len(spec.classes), targets)
    return Split(inputs.contiguous(), targets)


def _mixing(spec: DataSpec) -> Any:
    if spec.mixing == "none":
        return None
    numbers, generator = int(torch.Size(spec.source.shape).numel()), spec.generator(2)
    if spec.mixing == "permutation":
        order = torch.randperm(numbers, generator=generator)
        return lambda inputs: inputs[:, order]
    matrix = torch.randn(numbers, spec.shape[0], generator=generator)
    matrix = torch.linalg.qr(matrix)[0] if spec.mixing == "rotation" else matrix / spec.shape[0] ** 0.5
    return lambda inputs: inputs @ matrix
