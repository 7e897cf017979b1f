"""Pretrained models and tokenizers by Hub id or folder: read from disk once a process, then restored from memory."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from envs.tasks.hub import DATA_ROOT, DataNotFoundError

_TEMPLATES_KEPT = 4


def locate(hub_id: str) -> str:
    """Return where ``transformers`` is to look: a folder of that id under ``GNS_DATA_ROOT``, else the id itself.

    :param hub_id: a Hub id, or the path of a folder
    """
    root = os.environ.get(DATA_ROOT)
    if root and (Path(root) / hub_id).is_dir():
        return str(Path(root) / hub_id)
    return hub_id


@dataclass(frozen=True)
class Template:
    """A pretrained model as it was read, and the names of the parameters that a new run draws: those of its head."""

    model: nn.Module
    fresh: tuple[str, ...]

    def new(self) -> nn.Module:
        """Return a copy whose head is drawn from torch's global random numbers."""
        model = copy.deepcopy(self.model)
        for name in sorted({name.rpartition(".")[0] for name in self.fresh}):
            model._init_weights(model.get_submodule(name))  # type: ignore[operator]
        return model


@lru_cache(maxsize=_TEMPLATES_KEPT)
def template(auto_class: str, location: str, **settings: Any) -> Template:
    """Return the pretrained model at a location; torch's global random numbers are left as they were.

    :param auto_class: name of one of ``transformers``' Auto classes
    :param location: what :func:`locate` returned
    :param settings: passed to ``from_pretrained``
    :raises DataNotFoundError: if there are no weights to be had
    """
    import transformers

    with quiet(), torch.random.fork_rng(devices=[]), explained(location, "weights"):
        model, report = getattr(transformers, auto_class).from_pretrained(
            location, output_loading_info=True, dtype=torch.float32, ignore_mismatched_sizes=True, **settings
        )
    mismatched = (entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"])
    names, body = [name for name, _ in model.named_parameters()], model.base_model_prefix + "."
    head = [name for name in names if not name.startswith(body)]
    if len(head) == len(names):  # a model without a head is all body
        head = []
    fresh = {*report["missing_keys"], *mismatched, *head}
    return Template(copy.deepcopy(model), tuple(sorted(fresh)))  # the copy is in memory, not mapped from the file


def new_from_config(auto_class: str, location: str, **settings: Any) -> nn.Module:
    """Return a model of the configuration at a location, all weights drawn from torch's global random numbers.

    :raises DataNotFoundError: if there is no configuration to be had
    """
    import transformers

    with quiet():
        with explained(location, "configuration"):
            config = transformers.AutoConfig.from_pretrained(location, **settings)
        return getattr(transformers, auto_class).from_config(config, dtype=torch.float32)


@lru_cache(maxsize=8)
def load_tokenizer(location: str) -> Any:
    """Return the fast tokenizer at a location.

    :raises DataNotFoundError: if there is none to be had
    """
    import transformers

    with quiet(), explained(location, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, use_fast=True)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without one
            raise OSError("There is no vocabulary.")
        return tokenizer


@contextmanager
def explained(location: str, what: str) -> Iterator[None]:
    """Turn what ``transformers`` raises for something that cannot be found into one clear error."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()[:60])
        looked = os.environ.get(DATA_ROOT) or f"{DATA_ROOT} is not set"
        raise DataNotFoundError(
            f"No {what} for {location!r}: {reason} Looked in: {looked}; and on the Hub. Either set {DATA_ROOT} to a "
            "folder that holds them under that id, or run once with a network so that the Hub's copy is cached."
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
