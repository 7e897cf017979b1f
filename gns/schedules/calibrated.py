"""Calibrated default rates: the one rate an optimizer that drawn tasks were served best by, with no tuning.

The rates stand in ``calibrated.json`` with the day and the tasks they come from; none of these tasks is reported on.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

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
    ``static`` has what static facts move these rates by, see :mod:`gns.schedules.static`.
    """
    return json.loads(_FILE.read_text())


def calibrated_rate(optimizer: torch.optim.Optimizer, profile: str = "rex", fine_tuning: bool = False) -> float:
    """Return the default initial rate of an optimizer.

    :param optimizer: SGD, Adam or AdamW, or NAdam, which gets Adam's rate; momentum is read from its first parameter
        group, and SGD's rate is such that ``lr / (1 - momentum)`` is the calibrated one
    :param profile: the schedule that the rate is for
    :param fine_tuning: whether the network is pretrained
    :raises UnknownNameError: if there is none for this optimizer or profile
    """
    profiles = calibration()["profiles"]
    chosen = profile if profile in profiles else _INSTEAD.get(profile, profile)
    if chosen not in profiles:
        raise UnknownNameError("profile with calibrated rates", profile, (*profiles, *_INSTEAD))
    rates, kind = profiles[chosen], "adam" if isinstance(optimizer, torch.optim.NAdam) else optimizer_kind(optimizer)
    kind = _SHARED.get(kind, kind)
    if kind not in rates:
        raise UnknownNameError(
            "kind of optimizer with a calibrated rate", kind, (k for k in rates if k != "fine-tuning")
        )
    rate = rates[kind]["rate"] * (rates["fine-tuning"]["rate"] if fine_tuning else 1.0)
    return rate * (1.0 - optimizer.param_groups[0]["momentum"]) if kind == "sgd" else rate


def measured_profile(profile: str) -> str:
    """Return the profile whose calibrated rates a profile has: its own where it was measured, else those of REX."""
    return profile if profile in (*calibration()["profiles"], *_INSTEAD) else "rex"
