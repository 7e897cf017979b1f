"""Profiles: pure functions of progress ``z = t/T`` in [0, 1] that multiply the initial learning rate.

Formulas are those of Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved
Schedule", MLSys 2022, section 4.1, with the one-cycle ramp made continuous: the printed formula jumps at
half time; here the rate climbs with ``2z`` and falls with ``2 - 2z``. Profiles from elsewhere name their source.

Keyword arguments are a profile's settings; :func:`get_profile` checks and fixes them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

from gns.errors import InvalidSettingError, UnknownNameError

Profile = Callable[[float], float]


def constant(progress: float) -> float:
    """``1``: the initial rate throughout."""
    return 1.0


def step(progress: float, *, factor: float = 0.1, milestones: tuple[float, ...] = (0.5, 0.75)) -> float:
    """Times ``factor`` at each of the ``milestones``: by default times 0.1 at 50 % and again at 75 % of the budget."""
    value = 1.0
    for milestone in milestones:
        if progress < milestone:
            break
        value *= factor
    return value


def linear(progress: float) -> float:
    """``1 - z``."""
    return 1.0 - progress


def delayed_linear(progress: float, *, delay: float = 0.5) -> float:
    """``1`` until ``delay``, then linearly to 0 (section 3, figure 2 of the REX paper); a delay of 0 is ``linear``."""
    return 1.0 if progress <= delay else (1.0 - progress) / (1.0 - delay)


def polynomial(progress: float, *, power: float = 2.0) -> float:
    """``(1 - z)^power``, as PyTorch's ``PolynomialLR``."""
    return (1.0 - progress) ** power


def cosine(progress: float) -> float:
    """``(1 + cos(pi z)) / 2``."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_restarts(progress: float, *, cycles: int = 4, decay: float = 1.0) -> float:
    """``cycles`` cosines of equal length, each from the top; cycle i, from 0, is times ``decay^i``.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, equation 5. It jumps at
    ``k / cycles``, where the value is that of the new cycle; at the end of the budget it is 0.
    """
    place = progress * cycles
    cycle = place // 1.0
    if (cycle + 1.0) / cycles <= progress:  # the product may round to below a whole number, the quotient does not
        cycle += 1.0
    if cycle == cycles:
        cycle -= 1.0
    value = 0.5 * (1.0 + math.cos(math.pi * (place - cycle)))
    return value if decay == 1.0 else decay**cycle * value


def exponential(progress: float, *, gamma: float = -3.0) -> float:
    """``exp(gamma z)``: ends at 5 % of the initial rate by default.

    Sampled at 50 % and 75 %, a steeper one approximates ``step`` (table 2 of the REX paper, which does not print the
    value it tuned): ``gamma = 2 ln 0.1 = -4.6`` meets it at 50 %, ``4/3 ln 0.01 = -6.1`` at 75 %.
    """
    return math.exp(gamma * progress)


def inverse_square_root(progress: float, *, timescale: float = 0.1) -> float:
    """``sqrt(s / (s + z))`` with ``s`` the ``timescale``, a share of the budget.

    Vaswani et al., "Attention Is All You Need", 2017, equation 3, starting where the warm-up ends: after a warm-up over
    the share ``w`` of the budget, ``s = w / (1 - w)`` makes the rate proportional to ``1/sqrt(t)``.
    """
    return math.sqrt(timescale / (timescale + progress))


def warmup_stable_decay(progress: float, *, decay: float = 0.2) -> float:
    """``1``, then over the last ``decay`` of the budget linearly to 0.

    Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies", 2024. The
    warm-up is that of :class:`gns.schedules.schedule.Schedule`; ``decay`` is a share of what follows it.
    """
    return 1.0 if progress <= 1.0 - decay else min((1.0 - progress) / decay, 1.0)


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
    "delayed-linear": delayed_linear,
    "polynomial": polynomial,
    "cosine": cosine,
    "cosine-restarts": cosine_restarts,
    "exponential": exponential,
    "inverse-square-root": inverse_square_root,
    "onecycle": onecycle,
    "warmup-stable-decay": warmup_stable_decay,
    "rex": rex,
}


def get_profile(name: str, **settings: Any) -> Profile:
    """Return the profile of that name, with these settings.

    :raises UnknownNameError: if there is no such profile or setting; the message lists those there are
    :raises InvalidSettingError: if a setting has a value outside its domain
    """
    if name not in PROFILES:
        raise UnknownNameError("profile", name, PROFILES)
    if not settings:
        return PROFILES[name]
    return partial(PROFILES[name], **_checked(name, settings))


def profile_settings(name: str, **settings: Any) -> dict[str, Any]:
    """Return all settings of a profile: those given, and the defaults of the others. Errors as :func:`get_profile`.

    Only plain values: numbers, and ``milestones`` a tuple of numbers.
    """
    if name not in PROFILES:
        raise UnknownNameError("profile", name, PROFILES)
    return {**_defaults(name), **_checked(name, settings)}


def jumps(name: str, **settings: Any) -> tuple[float, ...]:
    """Return where in (0, 1) a profile jumps, in ascending order. Errors as :func:`get_profile`."""
    known = profile_settings(name, **settings)
    if name == "step":
        return known["milestones"]
    if name == "cosine-restarts":
        return tuple(cycle / known["cycles"] for cycle in range(1, known["cycles"]))
    return ()


# ---------------------------------------------------------------------- settings

_DOMAINS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "cycles": ("a whole number above 0", lambda value: value >= 1 and value == int(value)),
    "decay": ("a number in (0, 1]", lambda value: 0 < value <= 1),
    "delay": ("a number in [0, 1)", lambda value: 0 <= value < 1),
    "factor": ("a number in (0, 1]", lambda value: 0 < value <= 1),
    "gamma": ("a finite number, 0 or below", lambda value: value <= 0),
    "power": ("a finite number above 0", lambda value: value > 0),
    "timescale": ("a finite number above 0", lambda value: value > 0),
}


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(PROFILES[name]).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY}


def _checked(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as plain values, each within its domain."""
    defaults = _defaults(name)
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in defaults:
            raise UnknownNameError(f"setting of profile {name}", key, defaults)
        checked[key] = _milestones(name, value) if key == "milestones" else _number(name, key, value)
    return checked


def _number(name: str, key: str, value: Any) -> float:
    expected, inside = _DOMAINS[key]
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or not inside(value):
        raise InvalidSettingError(f"{key} of profile {name} is {value!r}; expected {expected}.")
    return int(float(value)) if key == "cycles" else float(value)


def _milestones(name: str, value: Any) -> tuple[float, ...]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(point, Real) and not isinstance(point, bool) for point in given)
    if not (given and numbers and all(a < b for a, b in zip([0.0, *given], [*given, 1.0], strict=True))):
        raise InvalidSettingError(
            f"milestones of profile {name} are {value!r}; expected a list of ascending numbers between 0 and 1."
        )
    return tuple(float(point) for point in given)
