"""Text as tensors: tokenised once, cached on disk, padded, and batched without the padding that a batch needs not.

An example is an int32 matrix (rows, length). Row 0 holds token ids; row 1 the segment of each token (0 or 1, of models
that tell segments apart), -1 where there is only padding; question answering adds row 2, 1 at tokens of the context.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import Split
from envs.tasks.hub import without_progress_bars
from envs.tasks.pretrained import load_config, locate, new_from_config, template
from gns.errors import GNSError, InvalidSettingError, require_count

SEED = 20220425
_SHORTEST = 8  # tokens: two sentences of two tokens and what stands around them
BATCH_SIZE_IN_EVALUATION = 64


class UnlabelledDataError(GNSError, ValueError):
    """Examples whose labels are withheld."""


def tokenize(data: Any, tokenizer: Any, about: str, encode: Callable[[Mapping[str, list[Any]]], dict[str, Any]]) -> Any:
    """Return a ``datasets.Dataset`` tokenised, from the cache of ``datasets`` where it was done before.

    :param data: a ``datasets.Dataset``
    :param tokenizer: a fast tokenizer
    :param about: says how ``encode`` uses it; data, tokenizer and this decide whether the cache is of use
    :param encode: turns a batch of columns into new columns of lists, which take the place of the old
    """
    # datasets' own fingerprint of a tokenizer changes with use: the state of its truncation is part of it.
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    key = json.dumps([data._fingerprint, state, tokenizer.truncation_side, tokenizer.padding_side, about])
    with without_progress_bars():
        return data.map(
            encode,
            batched=True,
            remove_columns=data.column_names,
            new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        )


def pad(data: Any, columns: Mapping[str, int], max_length: int) -> tuple[Tensor, Tensor]:
    """Return columns of lists of one length an example as one padded tensor, and those lengths.

    :param data: a ``datasets.Dataset`` of N examples without an index mapping
    :param columns: names of the columns, and what each is padded with
    :return: int32 (N, len(columns), max_length) and int64 (N,)
    """
    padded = np.empty((len(data), len(columns), max_length), dtype=np.int32)
    lengths = np.zeros(len(data), dtype=np.int64)
    for number, (column, value) in enumerate(columns.items()):
        lists = data.data.table.column(column).combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        padded[:, number] = value
        padded[:, number][np.arange(max_length) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(padded), torch.from_numpy(lengths)


def carve(contents: Sequence[Hashable], share: float) -> tuple[Tensor, Tensor]:
    """Return the rows of the training and of the reward split, drawn by a fixed seed; each ascending.

    An example drawn for the reward split that the training split holds too (GLUE repeats some sentences) goes there.

    :param contents: what each example holds
    :param share: share of the reward split
    """
    order = torch.randperm(len(contents), generator=torch.Generator().manual_seed(SEED))
    cut = max(1, round(share * len(contents)))
    learned = {contents[row] for row in order[cut:].tolist()}
    twice = torch.tensor([contents[row] in learned for row in order[:cut].tolist()], dtype=torch.bool)
    train = torch.cat([order[cut:], order[:cut][twice]])
    return train.sort().values, order[:cut][~twice].sort().values


def rows_of(split: Split, rows: Tensor, references: Any = None) -> Split:
    """Return some rows of a split."""
    assert split.lengths is not None
    return Split(split.inputs[rows], split.targets[rows], split.lengths[rows], references)


def require_labels(labels: np.ndarray, where: str) -> None:
    """Pass labels none of which is withheld.

    :raises UnlabelledDataError: if some are -1, as in the test splits of GLUE
    """
    missing = int((np.asarray(labels) == -1).sum())
    if missing:
        raise UnlabelledDataError(
            f"{missing} of {len(labels)} examples of {where} have the label -1, which means that it is withheld. "
            "Expected labels: train and report on splits that have them (GLUE: train and validation)."
        )


class TextModel(nn.Module):
    """A model of ``transformers`` on packed examples.

    :param model: an encoder with a head
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.segments = getattr(model.config, "type_vocab_size", 0) > 1

    def call(self, packed: Tensor) -> Any:
        """Return the model's output on packed examples (B, rows, length)."""
        ids, segments = packed[:, 0].long(), packed[:, 1].long()
        extra = {"token_type_ids": segments.clamp(min=0)} if self.segments else {}
        return self.model(input_ids=ids, attention_mask=(segments >= 0).long(), **extra)


class SequenceClassifier(TextModel):
    """Logits (B, classes) of packed examples (B, 2, length); predictions (B,) where there is one class."""

    def forward(self, packed: Tensor) -> Tensor:
        """Return logits."""
        logits = self.call(packed).logits
        return logits[:, 0] if logits.shape[-1] == 1 else logits


def build_encoder(
    auto_class: str, encoder: str, pretrained: bool, max_length: int | None = None, **settings: Any
) -> nn.Module:
    """Return an encoder with a new head, drawn from torch's global random numbers.

    :param auto_class: name of one of ``transformers``' Auto classes
    :param encoder: Hub id or folder
    :param pretrained: restore pretrained weights; otherwise draw all
    :param max_length: tokens it must take; None: as many as it can
    :param settings: of the configuration, such as ``num_labels``
    :raises DataNotFoundError: if weights or configuration are nowhere to be had
    :raises InvalidSettingError: if the encoder has fewer positions, is a decoder that knows no padding, or a setting is
        of another kind
    """
    require_text_settings(encoder, _SHORTEST if max_length is None else max_length)
    if not isinstance(pretrained, bool):
        raise InvalidSettingError(f"pretrained is {pretrained!r}; expected true or false.")
    location = locate(encoder)
    if pretrained:
        model = template(auto_class, location, **settings).new()
    else:
        model = new_from_config(auto_class, location, **settings)
    if hasattr(model, "score") and model.config.pad_token_id is None:  # a decoder's head: it reads the last token
        raise InvalidSettingError(
            f"The configuration of {encoder} names no token to pad with (pad_token_id), which its head needs to find "
            "the end of a text; expected an encoder such as BERT, or a decoder saved with config.pad_token_id set."
        )
    positions = _positions(model)
    if positions is not None and max_length is not None and max_length > positions:
        raise InvalidSettingError(
            f"max_length is {max_length}; expected at most {positions}, the positions that {encoder} knows."
        )
    return model


def _positions(model: nn.Module) -> int | None:
    """Longest input of an encoder, None where it learns no positions. RoBERTa's begin after that of padding."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def require_text_settings(encoder: str, max_length: int) -> None:
    """Pass the id of an encoder and a length that holds special tokens and text.

    :raises InvalidSettingError: on anything else
    """
    if not isinstance(encoder, str | os.PathLike) or not str(encoder):
        raise InvalidSettingError(f"encoder is {encoder!r}; expected a Hub id or the path of a folder.")
    require_count("max_length", max_length)
    if not isinstance(max_length, int) or max_length < _SHORTEST:
        raise InvalidSettingError(f"max_length is {max_length!r}; expected a whole number of at least {_SHORTEST}.")


def require_known_tokens(inputs: Tensor, encoder: str) -> None:
    """Pass examples whose tokens the model of an encoder has embeddings for.

    :param inputs: int32 (N, rows, length), ids in row 0
    :raises InvalidSettingError: if there are others: tokenizer and model are not of each other
    """
    known = getattr(load_config(locate(encoder)), "vocab_size", None)
    highest = int(inputs[:, 0].max())
    if known is not None and highest >= known:
        raise InvalidSettingError(
            f"The tokenizer of {encoder} gives tokens up to number {highest} and its model knows {known}; expected the "
            "two of one another. After tokenizer.add_tokens, call model.resize_token_embeddings and save both."
        )


def decay_weights_only(model: nn.Module) -> Iterable[dict[str, Any]]:
    """Return two parameter groups: matrices, and biases and norms (all vectors), which no weight decay shrinks."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
