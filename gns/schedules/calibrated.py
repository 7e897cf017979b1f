"""Calibrated default rates: the one rate an optimizer that drawn tasks were served best by, with no tuning.

The rates stand in ``calibrated.json`` with the day and the tasks they come from; none of these tasks is reported on.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gns.errors import UnknownNameError
from gns.features.moments import optimizer_kind

_FILE = Path(__file__).parent / "calibrated.json"
_INSTEAD = {"linear": "cosine"}  # whose rate a profile gets where it was not measured apart
_SHARED = {"adamw": "adam"}  # kinds that are calibrated as one
ENCODER_RATE = 5e-5  # of Adam and its kin on pretrained encoders: the default of transformers' TrainingArguments


@cache
def calibration() -> dict[str, Any]:
    """Return all that is known of the calibrated rates: plain values, not to be changed.

    ``profiles`` has by name of a profile, then of a kind of optimizer, ``rate`` (of SGD the effective one,
    ``lr / (1 - momentum)``), ``low`` and ``high`` (95 % over tasks) and ``tasks``; ``fine-tuning`` is a factor on them.
    """
    return json.loads(_FILE.read_text())


def calibrated_rate(optimizer: torch.optim.Optimizer, profile: str = "rex", fine_tuning: bool = False) -> float:
    """Return the default initial rate of an optimizer.

    :param optimizer: SGD, Adam or AdamW; momentum is read from its first parameter group, and SGD's rate is such that
        ``lr / (1 - momentum)`` is the calibrated one
    :param profile: the schedule that the rate is for
    :param fine_tuning: whether the network is pretrained
    :raises UnknownNameError: if there is none for this optimizer or profile
    """
    profiles = calibration()["profiles"]
    chosen = profile if profile in profiles else _INSTEAD.get(profile, profile)
    if chosen not in profiles:
        raise UnknownNameError("profile with calibrated rates", profile, (*profiles, *_INSTEAD))
    rates, kind = profiles[chosen], optimizer_kind(optimizer)
    kind = _SHARED.get(kind, kind)
    if kind not in rates:
        raise UnknownNameError(
            "kind of optimizer with a calibrated rate", kind, (k for k in rates if k != "fine-tuning")
        )
    rate = rates[kind]["rate"] * (rates["fine-tuning"]["rate"] if fine_tuning else 1.0)
    return rate * (1.0 - optimizer.param_groups[0]["momentum"]) if kind == "sgd" else rate


def default_rate(optimizer: torch.optim.Optimizer, model: nn.Module, profile: str = "rex") -> float:
    """Return the rate that somebody who tunes nothing starts a model from: :func:`calibrated_rate`, and for pretrained
    encoders under Adam and its kin :data:`ENCODER_RATE`. A profile that was not measured has the rate of REX.

    :raises UnknownNameError: if no rate was calibrated for the optimizer
    """
    pretrained = is_pretrained(model)
    measured = profile in (*calibration()["profiles"], *_INSTEAD)
    rate = calibrated_rate(optimizer, profile if measured else "rex", pretrained)
    adaptive, encoder = not isinstance(optimizer, torch.optim.SGD), any(map(_attends, model.modules()))
    return ENCODER_RATE if pretrained and adaptive and encoder else rate


@torch.no_grad()
def is_pretrained(model: nn.Module) -> bool:
    """Whether a model came with weights of another training, as far as its normalisation layers tell.

    These begin with the same number in every place of their weights, and of their biases, in every common library; a
    training changes that. Of a model without such layers nothing is known, and it counts as new.
    """
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
    found = (m for m in model.modules() if isinstance(m, kinds) or type(m).__name__.endswith(("LayerNorm", "RMSNorm")))
    held = (p for m in found for p in m.parameters(recurse=False) if p.numel() > 1 and not p.is_meta)
    return any(bool((p.detach() != p.detach().flatten()[0]).any()) for p in held)


def _attends(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or "Attention" in type(module).__name__
