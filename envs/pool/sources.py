"""More sources of drawn tasks: tables, text of Python's standard library, made-up images, and made-up graphs.

Each has what :class:`envs.pool.data.DataSpec` asks of a source: ``shape``, ``classes`` or ``outputs``,
``training_data()`` and ``view()``; all are the same in every process of one version of Python and scikit-learn.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, TrainingData

TABLES = {"breast_cancer": (30, 2, 0), "wine": (13, 3, 0), "diabetes": (10, 0, 1)}  # inputs, classes, outputs
CHARACTERS = 96  # 0 stands for any that is not among the most frequent ones
WORDS = 512  # likewise
PACKAGES = ("asyncio", "email", "encodings", "idlelib", "importlib", "json", "multiprocessing", "unittest", "xml")
_REWARD_SHARE = 0.25  # of a source that comes in one piece


@dataclass(frozen=True)
class Table:
    """A table of scikit-learn's, its columns standardised; targets of a regression too.

    :param name: a name in :data:`TABLES`
    """

    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (TABLES[self.name][0],)

    @property
    def classes(self) -> int:
        """Number of classes; 0: it is a regression."""
        return TABLES[self.name][1]

    @property
    def outputs(self) -> int:
        """Targets an example."""
        return TABLES[self.name][2]

    def training_data(self) -> TrainingData:
        """Return three quarters of the rows to train on, and the others."""
        return _table(self.name)

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@lru_cache(maxsize=4)
def _table(name: str) -> TrainingData:
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    inputs = torch.tensor(table.data, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    if TABLES[name][1]:
        targets = torch.tensor(table.target, dtype=torch.long)
    else:
        targets = torch.tensor(table.target, dtype=torch.float32).unsqueeze(1)
        targets = (targets - targets.mean(0)) / targets.std(0)
    return _parted(inputs, targets, seed=0)


@dataclass(frozen=True)
class Patterns:
    """Classification of made-up images: a smooth pattern a class, shifted round the edges, with noise.

    :param side: of an image
    :param classes: number of classes
    :param examples: how many there are
    :param deviation: of the noise, over that of the patterns
    :param seed: of all
    """

    side: int
    classes: int
    examples: int
    deviation: float
    seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (1, self.side, self.side)

    def training_data(self) -> TrainingData:
        """Return images drawn from the seed."""
        generator, side = torch.Generator().manual_seed(self.seed), self.side
        coarse = torch.randn(self.classes, 1, side // 3, side // 3, generator=generator)
        patterns = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
        patterns = (patterns / patterns.std(dim=(2, 3), keepdim=True))[:, 0]
        labels = torch.randint(self.classes, (self.examples,), generator=generator)
        shifts = torch.randint(side, (2, self.examples, 1, 1), generator=generator)
        places = torch.arange(side)
        rows, columns = (places.view(1, -1, 1) + shifts[0]) % side, (places.view(1, 1, -1) + shifts[1]) % side
        images = patterns[labels.view(-1, 1, 1), rows, columns]
        images = images + self.deviation * torch.randn(images.shape, generator=generator)
        return _parted((images / (1.0 + self.deviation**2) ** 0.5).unsqueeze(1), labels, self.seed)

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@dataclass(frozen=True)
class Graphs:
    """Classification of made-up graphs by how they were made: at random, ring, tree, or two communities.

    An example is (nodes, features + nodes): what is known of each node beside the matrix of edges.

    :param nodes: of a graph
    :param features: of a node, noise but for the first, which is its number of edges with noise
    :param rewired: share of pairs of nodes whose edge, or lack of one, is turned over
    :param examples: how many there are
    :param seed: of all
    """

    nodes: int
    features: int
    rewired: float
    examples: int
    seed: int
    classes = 4

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (self.nodes, self.features + self.nodes)

    def training_data(self) -> TrainingData:
        """Return graphs drawn from the seed."""
        generator, n, count = torch.Generator().manual_seed(self.seed), self.nodes, self.examples
        uniform = torch.rand(count, n, n, generator=generator)
        labels = torch.randint(self.classes, (count,), generator=generator)
        places = torch.arange(n)
        ring = ((places.view(-1, 1) - places) % n == 1).float().expand(count, n, n)
        parents = (torch.rand(count, n, generator=generator) * places).long()  # of node i one below it
        tree = nn.functional.one_hot(parents, n).float() * (places > 0).float().view(1, n, 1)
        same = ((places.view(-1, 1) < n // 2) == (places < n // 2)).float()
        kinds = torch.stack([(uniform < 2.0 / n).float(), ring, tree, (uniform < 3.0 / n).float() * same])
        edges = kinds[labels, torch.arange(count)]
        turned = (torch.rand(count, n, n, generator=generator) < self.rewired).float()
        edges = (edges + turned - 2.0 * edges * turned).tril(-1) + (edges * ring).triu(1) * (1.0 - turned)
        edges = (edges + edges.transpose(1, 2)).clamp(max=1.0)
        order = torch.rand(count, n, generator=generator).argsort(dim=1)
        edges = edges.gather(1, order.unsqueeze(2).expand(-1, -1, n)).gather(2, order.unsqueeze(1).expand(-1, n, -1))
        known = torch.randn(count, n, self.features, generator=generator)
        known[..., 0] = 0.5 * known[..., 0] + edges.sum(2) - 2.0
        return _parted(torch.cat([known, edges], dim=2), labels, self.seed)

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@dataclass(frozen=True)
class Characters:
    """Next characters of Python's standard library: inputs and targets are numbers of characters, (length,).

    :param length: of an example
    :param examples: how many, at most
    :param seed: which
    """

    length: int
    examples: int
    seed: int
    classes = 0
    outputs = CHARACTERS

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (self.length,)

    def training_data(self) -> TrainingData:
        """Return stretches of files; those of the reward split are of other files."""
        return TrainingData(*(self._stretches(part) for part in range(2)))

    def _stretches(self, part: int) -> Split:
        text, generator = _numbered_characters()[part], torch.Generator().manual_seed(self.seed + part)
        count = self.examples if part == 0 else max(200, round(_REWARD_SHARE * self.examples))
        begins = torch.randint(len(text) - self.length - 1, (count, 1), generator=generator)
        found = text[begins + torch.arange(self.length + 1)].long()
        return Split(found[:, :-1].contiguous(), found[:, 1:].contiguous())

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@dataclass(frozen=True)
class Words:
    """Classification of stretches of Python's standard library by their package; inputs are numbers of words.

    :param length: words of an example
    :param classes: packages, the first of :data:`PACKAGES`
    :param most: stretches of a package, at most
    """

    length: int
    classes: int
    most: int = 1000

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return (self.length,)

    def training_data(self) -> TrainingData:
        """Return stretches one after the other; those of the reward split are of other files."""
        return _numbered_words(self.length, self.classes, self.most)

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


@dataclass(frozen=True)
class Reconstruction:
    """Examples of another source that are their own targets, (numbers of an example,).

    :param source: the other one
    """

    source: Any
    classes = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an example."""
        return self.source.shape

    @property
    def outputs(self) -> int:
        """Targets an example."""
        return int(torch.Size(self.shape).numel())

    def training_data(self) -> TrainingData:
        """Return the other source's."""
        data = self.source.training_data()
        parts = (self.source.view(split.inputs) for split in (data.train, data.reward))
        return TrainingData(*(Split(inputs, inputs.flatten(1)) for inputs in parts))

    def view(self, inputs: Tensor) -> Tensor:
        """Return examples as they are."""
        return inputs


def _parted(inputs: Tensor, targets: Tensor, seed: int) -> TrainingData:
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    cut = round(len(inputs) * (1.0 - _REWARD_SHARE))
    train, reward = order[:cut], order[cut:]
    return TrainingData(Split(inputs[train], targets[train]), Split(inputs[reward], targets[reward]))


def _library_files(folder: str = "") -> tuple[list[str], list[str]]:
    """Return texts of the standard library to train on, and every fourth file for the reward split."""
    root = Path(sysconfig.get_path("stdlib"))
    pattern = "*.py" if not folder else "**/*.py"
    paths = sorted(
        path
        for path in (root / folder).glob(pattern)
        if "test" not in path.relative_to(root).parts[:-1] and not path.name.startswith("_sysconfigdata")
    )
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    reward = [text for number, text in enumerate(texts) if number % 4 == 3]
    return [text for number, text in enumerate(texts) if number % 4 != 3], reward


@lru_cache(maxsize=1)
def _numbered_characters() -> tuple[Tensor, Tensor]:
    parts = ["\n".join(texts) for texts in _library_files()]
    counted = sorted(Counter(parts[0]).items(), key=lambda item: (-item[1], item[0]))
    numbers = {character: number + 1 for number, (character, _) in enumerate(counted[: CHARACTERS - 1])}
    train, reward = (torch.tensor([numbers.get(c, 0) for c in part], dtype=torch.uint8) for part in parts)
    return train, reward


@lru_cache(maxsize=4)
def _numbered_words(length: int, classes: int, most: int) -> TrainingData:
    parts: list[list[list[str]]] = [[], []]
    for package in PACKAGES[:classes]:
        for part, texts in zip(parts, _library_files(package), strict=True):
            part.append([word for text in texts for word in re.findall(r"[A-Za-z_]+", text)])
    counts = Counter(word for words in parts[0] for word in words)
    counted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    numbers = {word: number + 1 for number, (word, _) in enumerate(counted[: WORDS - 1])}
    splits = []
    for packages in parts:
        rows, labels = [], []
        for label, words in enumerate(packages):
            found = torch.tensor([numbers.get(word, 0) for word in words])
            rows.append(found[: len(found) // length * length].view(-1, length)[:most])
            labels.append(torch.full((len(rows[-1]),), label))
        splits.append(Split(torch.cat(rows), torch.cat(labels)))
    return TrainingData(*splits)
