"""Profiles: pure functions of progress ``z = t/T`` in [0, 1] that multiply the initial learning rate.

Formulas are those of Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved
Schedule", MLSys 2022, section 3, with the one-cycle ramp made continuous: the printed formula jumps at
half time; here the rate climbs with ``2z`` and falls with ``2 - 2z``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gns.errors import UnknownNameError

Profile = Callable[[float], float]


def constant(progress: float) -> float:
    """``1``: the initial rate throughout."""
    return 1.0


def step(progress: float) -> float:
    """Times 0.1 at 50 % and again at 75 % of the budget."""
    if progress < 0.5:
        return 1.0
    return 0.1 if progress < 0.75 else 0.1 * 0.1


def linear(progress: float) -> float:
    """``1 - z``."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """``(1 + cos(pi z)) / 2``."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def exponential(progress: float) -> float:
    """``exp(-3 z)``: ends at 5 % of the initial rate."""
    return math.exp(-3.0 * progress)


def onecycle(progress: float) -> float:
    """From 0.1 up to 1 at half time and back to 0.1, linearly; the initial rate given is the peak."""
    return 0.1 + 0.9 * (2.0 * progress if progress <= 0.5 else 2.0 - 2.0 * progress)


def onecycle_momentum(progress: float) -> float:
    """Momentum (beta) of the one-cycle schedule: 0.95 down to 0.85 at half time and back."""
    return 0.95 - 0.1 * (2.0 * progress if progress <= 0.5 else 2.0 - 2.0 * progress)


def rex(progress: float) -> float:
    """``(1 - z) / (1/2 + (1 - z)/2)``, the reflected exponential (REX)."""
    return (1.0 - progress) / (0.5 + 0.5 * (1.0 - progress))


PROFILES: dict[str, Profile] = {
    "constant": constant,
    "step": step,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "onecycle": onecycle,
    "rex": rex,
}


def get_profile(name: str) -> Profile:
    """Return the profile of that name.

    :raises UnknownNameError: if there is none; the message lists those there are
    """
    if name not in PROFILES:
        raise UnknownNameError("profile", name, PROFILES)
    return PROFILES[name]
