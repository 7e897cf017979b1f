"""A small language model of English prose: next characters of the language reference that comes with Python.

The text is the beginning of ``pydoc_data.topics``, in every Python, and differs a little between versions. Lines and
examples that come again are left out, so that no split repeats another. Its first four fifths train; of the rest the
first half is the reward split and the second the test split.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task, TrainingData, accuracy, register_task

CHARACTERS = 64  # 0 stands for any that is not among the most frequent ones of the training text
LENGTH = 32  # of an example
_TEXT = 200_000  # characters of all splits
_SHARES = (0.8, 0.1)  # of the text, to train on and for the reward split


@lru_cache(maxsize=1)
def _parts() -> list[Split]:
    """Training, reward and test split: inputs and targets are numbers of characters, (N, LENGTH)."""
    from pydoc_data.topics import topics

    lines = "\n".join(topics[name] for name in sorted(topics)).split("\n")
    text = "\n".join(dict.fromkeys(line.strip() for line in lines if re.search("[a-z]{3}", line)))[:_TEXT]
    first = round(_SHARES[0] * len(text))
    second = first + round(_SHARES[1] * len(text))
    counted = sorted(Counter(text[:first]).items(), key=lambda item: (-item[1], item[0]))
    numbers = {character: number + 1 for number, (character, _) in enumerate(counted[: CHARACTERS - 1])}
    splits: list[Split] = []
    seen: set[str] = set()  # all that earlier splits have, wherever it begins
    for part in (text[:first], text[first:second], text[second:]):
        found = torch.tensor([numbers.get(character, 0) for character in part])
        count = (len(found) - 1) // LENGTH
        inputs, targets = (found[begin : begin + count * LENGTH].view(count, -1) for begin in (0, 1))
        written = "".join(map(chr, found.tolist()))
        windows = {written[row * LENGTH : (row + 1) * LENGTH]: row for row in reversed(range(count))}
        new = sorted(row for window, row in windows.items() if window not in seen)
        seen |= {written[begin : begin + LENGTH] for begin in range(len(written) - LENGTH + 1)}
        splits.append(Split(inputs[new].int(), targets[new]))
    return splits


def _training_data() -> TrainingData:
    return TrainingData(*_parts()[:2])


def _test_split() -> Split:
    return _parts()[2]


def next_token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits (N, T, C) against numbers of tokens (N, T)."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


class _Block(nn.Module):
    """Pre-norm block of GPT-2 (Radford et al., 2019), its attention written out so that many runs share a pass."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.attention, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (N, T, width); no token reads a later one."""
        parts = self.attention(self.norm(tokens)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts)
        count = tokens.shape[-2]
        later = torch.ones(count, count, dtype=torch.bool, device=tokens.device).triu(1)
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(later, -1e9)
        tokens = tokens + self.out((scores.softmax(dim=-1) @ value).transpose(-2, -3).flatten(-2))
        return tokens + self.feed(tokens)


class GPT(nn.Module):
    """Decoder of a few blocks over characters, with learned positions.

    :param tokens: number of different ones
    :param length: most tokens of an example
    :param width: of a token's vector
    :param heads: of each attention
    :param blocks: how many
    """

    def __init__(self, tokens: int, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(blocks)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (N, T, tokens) of the next token at each place of (N, T)."""
        return self.head(self.blocks(self.tokens(tokens) + self.positions[: tokens.shape[-1]]))


register_task(
    Task(
        name="python_reference_gpt",
        load_training_data=_training_data,
        build_model=GPT,
        model={"tokens": CHARACTERS, "length": LENGTH, "width": 32, "heads": 4, "blocks": 2},
        batch_size=16,
        epochs=1,
        optimizer="adamw",
        loss=next_token_loss,
        metrics={"accuracy": accuracy},
        evaluation_batch_size=256,
    ),
    _test_split,
)
