"""Pretrained models and tokenizers by Hub id or folder: read from disk once a process, then restored from memory."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from envs.tasks.hub import DATA_ROOT, DataNotFoundError, data_root, without_root
from gns.errors import InvalidSettingError, needing

_TEMPLATES_KEPT = 4


def locate(hub_id: str) -> str:
    """Return where ``transformers`` is to look: a folder of that id under ``GNS_DATA_ROOT``, else the id itself.

    :param hub_id: a Hub id, or the path of a folder
    """
    root = data_root()
    return str(root / hub_id) if root and (root / hub_id).is_dir() else hub_id


def asked_for(location: str) -> str:
    """Return what :func:`locate` was asked for: the id of a folder under ``GNS_DATA_ROOT``, else the location."""
    root = data_root()
    return Path(location).relative_to(root).as_posix() if root and Path(location).is_relative_to(root) else location


@dataclass(frozen=True)
class Template:
    """A pretrained model as it was read, to be copied and never used.

    :param model: a ``transformers.PreTrainedModel``
    :param fresh: names of the parameters and buffers that each copy draws anew, those of its head above all
    """

    model: Any
    fresh: frozenset[str]

    def new(self) -> Any:
        """Return a copy; what is fresh is drawn from torch's global random numbers, as ``transformers`` does it."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            module._is_hf_initialized = False
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            tensor._is_hf_initialized = name not in self.fresh
        model.initialize_weights()
        return model


def read_template(auto_class: str, location: str, **settings: Any) -> Template:
    """Read a pretrained model; fresh is what its weights lack or do not fit.

    Torch's global random numbers are left as they were.

    :param auto_class: name of one of ``transformers``' Auto classes
    :param settings: passed to ``from_pretrained``
    """
    with needing("text"):
        import transformers

    with torch.random.fork_rng(devices=[]):
        model, report = getattr(transformers, auto_class).from_pretrained(
            location,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **settings,
        )
    mismatched = {entry[0] for entry in report["mismatched_keys"]}
    return Template(copy.deepcopy(model), frozenset(report["missing_keys"] | mismatched))  # not mapped from the file


@lru_cache(maxsize=_TEMPLATES_KEPT)
def template(auto_class: str, location: str, **settings: Any) -> Template:
    """Return the pretrained model at a location, its head fresh; torch's global random numbers stay as they were.

    :param auto_class: name of one of ``transformers``' Auto classes
    :param location: what :func:`locate` returned
    :param settings: passed to ``from_pretrained``
    :raises DataNotFoundError: if there are no weights to be had
    """
    with quiet(), explained(location, "weights"):
        read = read_template(auto_class, location, **settings)
    names, body = {name for name, _ in read.model.named_parameters()}, read.model.base_model_prefix + "."
    head = {name for name in names if not name.startswith(body)}
    return read if head == names else replace(read, fresh=read.fresh | head)  # without a head it is all body


def new_from_config(auto_class: str, location: str, **settings: Any) -> nn.Module:
    """Return a model of the configuration at a location, all weights drawn from torch's global random numbers.

    :raises DataNotFoundError: if there is no configuration to be had
    """
    with needing("text"):
        import transformers

    config = load_config(location, **settings)
    with quiet():
        return getattr(transformers, auto_class).from_config(config, dtype=torch.float32, trust_remote_code=False)


def load_config(location: str, **settings: Any) -> Any:
    """Return the configuration of the model at a location.

    :param settings: to be changed in it
    :raises DataNotFoundError: if there is none to be had
    """
    with needing("text"):
        import transformers

    with quiet(), explained(location, "configuration"):
        return transformers.AutoConfig.from_pretrained(location, trust_remote_code=False, **settings)


@lru_cache(maxsize=8)
def load_tokenizer(location: str) -> Any:
    """Return the fast tokenizer at a location.

    :raises DataNotFoundError: if there is none to be had
    :raises InvalidSettingError: if it cannot pad
    """
    with needing("text"):
        import transformers

    with quiet(), explained(location, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, use_fast=True, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
            raise OSError("There is no vocabulary.")
    if tokenizer.pad_token_id is None or not tokenizer.is_fast:
        lacks = "has no token to pad with" if tokenizer.is_fast else "is not a fast one"
        raise InvalidSettingError(
            f"The tokenizer of {asked_for(location)!r} {lacks}; expected one such as BERT's or RoBERTa's. A "
            "decoder gets a token to pad with by tokenizer.add_special_tokens, model.resize_token_embeddings and "
            "model.config.pad_token_id; save both, and name their folder."
        )
    return tokenizer


@contextmanager
def explained(location: str, what: str) -> Iterator[None]:
    """Turn what ``transformers`` raises for something that cannot be found into one clear error.

    :param location: what :func:`locate` returned
    :param what: what is looked for
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        hub_id, reason = asked_for(location), " ".join(str(error).split()[:60]).rstrip(".")
        missing = f"no folder ${DATA_ROOT}/{hub_id}" if data_root() else f"{DATA_ROOT} is not set"
        looked = location if Path(location).is_dir() else f"{missing}; and on the Hub"
        raise DataNotFoundError(
            f"No {what} for {hub_id!r}. Looked in: {without_root(f'{looked}: {reason}')}. Either set {DATA_ROOT} to a "
            f"folder that holds {hub_id}/ as save_pretrained writes it, or give the path of such a folder, or run once "
            "with a network so that the Hub's copy is cached."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ``transformers`` from reporting on a head that is new, which is as intended, and from progress bars."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
