"""A schedule is a profile times a sampling rate: the shape of the rate, and how often that shape is read.

Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule", MLSys 2022, section 3 and
table 2. A schedule is a pure function of progress, so that no state is kept and any update's rate can be asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from numbers import Real
from types import FunctionType
from typing import Any

from gns.errors import InvalidSettingError, UnknownNameError
from gns.schedules.profiles import PROFILES, Profile, jumps, profile_settings

EVERY_UPDATE = "every-update"
SAMPLING_RATES: dict[str, tuple[float, ...]] = {
    "50-75": (0.0, 0.5, 0.75),
    "33-66": (0.0, 1 / 3, 2 / 3),
    "25-50-75": (0.0, 0.25, 0.5, 0.75),
    "10-10": tuple(k / 10 for k in range(11)),
    "5-25": tuple(k / 20 for k in range(21)),
    "1-100": tuple(k / 100 for k in range(101)),
    EVERY_UPDATE: (),
}
"""Progress at which a profile is read: table 2 of the REX paper, by the names there. ``10-10`` is once every 10 % of
the budget, ``5-25`` every 5 %, ``1-100`` every 1 %; ``every-update`` needs no list."""

SMALLEST = 1e-300  # in place of a 0 that only rounding made, before the end


@dataclass(frozen=True)
class Schedule:
    """Factor on the initial learning rate as a function of progress.

    The rate at progress ``z`` is the profile at the latest sampling point that is not after ``z``; 0 is one of the
    points. Update t of T meets a point ``p`` exactly where ``t/T = p`` as fractions.

    With a warm-up, the factor rises linearly over the first ``warmup`` of the budget, at every update and whatever the
    sampling rate, from ``warmup_start`` to 1 times the profile's value at 0. The profile then has what is left to
    itself: it is read at ``(z - warmup) / (1 - warmup)``.

    Above 0 at every ``z < 1``.

    :param profile: a name in :data:`gns.schedules.profiles.PROFILES`
    :param sampling: a name in :data:`SAMPLING_RATES`
    :param warmup: share of the budget in [0, 1); 0: no warm-up
    :param warmup_start: what the warm-up starts from, in (0, 1]
    :param settings: of the profile, see :mod:`gns.schedules.profiles`; part of equality, not of the hash
    :raises UnknownNameError: on an unknown profile, sampling rate or setting
    :raises InvalidSettingError: on a value outside its domain
    """

    profile: str = "rex"
    sampling: str = EVERY_UPDATE
    warmup: float = 0.0
    warmup_start: float = 0.01
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.settings, Mapping):
            raise InvalidSettingError(f"settings is {self.settings!r}; expected a mapping of names to values.")
        known = profile_settings(self.profile, **self.settings)
        object.__setattr__(self, "settings", {key: known[key] for key in self.settings})
        if self.sampling not in SAMPLING_RATES:
            raise UnknownNameError("sampling rate", self.sampling, SAMPLING_RATES)
        if not (_is_number(self.warmup) and 0 <= self.warmup < 1):
            raise InvalidSettingError(f"warmup is {self.warmup!r}; expected a share of the budget in [0, 1).")
        if not (_is_number(self.warmup_start) and 0 < self.warmup_start <= 1):
            raise InvalidSettingError(
                f"warmup_start is {self.warmup_start!r}; expected a number in (0, 1]: a first update at rate 0 is lost."
            )
        for name in ("warmup", "warmup_start"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def __call__(self, progress: float) -> float:
        """Return the factor at a progress.

        :raises InvalidSettingError: if the progress is not in [0, 1]
        """
        if not 0.0 <= progress <= 1.0:
            raise InvalidSettingError(f"The progress is {progress!r}; expected a number in [0, 1].")
        return self.function(progress)

    @cached_property
    def function(self) -> Profile:
        """The same function without the check, for a loop that calls it at every update."""
        profile = _fixed(PROFILES[self.profile], self.settings)
        at_zero, warmup, start = profile(0.0), self.warmup, self.warmup_start
        climb, share, exact = 1.0 - start, 1.0 - warmup, self._moved_jumps

        def at_every_update(progress: float) -> float:
            value = profile(progress)
            return value if value > 0.0 or progress >= 1.0 else SMALLEST

        def after_warmup(progress: float) -> float:
            if progress < warmup:
                return at_zero * (start + climb * (progress / warmup))
            # Here and in position(): a call between would cost a step of a scheduler 5 %.
            value = profile(exact[progress] if progress in exact else (progress - warmup) / share)
            return value if value > 0.0 or progress >= 1.0 else SMALLEST

        def at_points(progress: float) -> float:
            if progress < warmup:
                return at_zero * (start + climb * (progress / warmup))
            return values[bisect_right(later, progress)]

        if self.sampling != EVERY_UPDATE:
            points, later = SAMPLING_RATES[self.sampling], self._later_points
            values = [at_every_update(point) for point in points]
            return at_points
        return after_warmup if warmup else at_every_update

    @cached_property
    def position(self) -> Callable[[float], float]:
        """Where on the profile the schedule stands at a progress in [0, 1]: after warm-up and sampling."""
        warmup, share, exact = self.warmup, 1.0 - self.warmup, self._moved_jumps

        def after_warmup(progress: float) -> float:
            if progress <= warmup:
                return 0.0
            return exact[progress] if progress in exact else (progress - warmup) / share

        if self.sampling != EVERY_UPDATE:
            points, later = SAMPLING_RATES[self.sampling], self._later_points
            return lambda progress: points[bisect_right(later, progress)]
        return after_warmup if warmup else lambda progress: progress

    @property
    def _later_points(self) -> list[float]:
        return [self._moved(point) for point in SAMPLING_RATES[self.sampling][1:]]

    @property
    def _moved_jumps(self) -> dict[float, float]:
        return {self._moved(point): point for point in jumps(self.profile, **self.settings)}

    def _moved(self, point: float) -> float:
        """Progress at which the profile comes to a point, correctly rounded from fractions.

        So is the progress t/T of an update that meets it, and the two are the same float.
        """
        begin = _fraction(self.warmup)
        return float(begin + (1 - begin) * _fraction(point))

    def __reduce__(self) -> tuple[Any, ...]:
        # What is computed from the fields is computed anew, since functions made here do not pickle.
        return type(self), (self.profile, self.sampling, self.warmup, self.warmup_start, dict(self.settings))


def _fixed(function: Any, settings: Mapping[str, Any]) -> Profile:
    """Return a function with other defaults; a call of ``functools.partial`` takes 0.1 microseconds longer."""
    if not settings:
        return function
    fixed = FunctionType(function.__code__, function.__globals__, function.__name__)
    fixed.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **settings}
    return fixed


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _fraction(share: float) -> Fraction:
    """Return the fraction that was meant by a float: 0.1 is 1/10, and 1/3 as a float is 1/3."""
    return Fraction(share).limit_denominator(10**9)
