"""Named errors. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real


class GNSError(Exception):
    """Base class of every error this project raises on purpose."""


class InvalidSettingError(GNSError, ValueError):
    """A setting has a value outside its domain (a rate of 0, a budget of -5, an unknown key, ...)."""


class UnknownNameError(GNSError, ValueError):
    """A name is in no registry.

    :param kind: what the name should name, such as ``"task"``
    :param name: the name given
    :param known: the names that exist
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"Unknown {kind} {name!r}; expected one of: {', '.join(names)}.{hint}")


class LayerGraphError(GNSError, ValueError):
    """No layer graph can be taken from this model and loss."""


class PolicyFormatError(GNSError, ValueError):
    """A policy folder is damaged, or holds a policy this version cannot use."""


class SnapshotError(GNSError, OSError):
    """A snapshot of a run cannot be written to disk, not be read back, or does not restore all of the model."""


class StateError(GNSError, ValueError):
    """A saved state is damaged, or of something else than what it is to be loaded into."""


class MissingPackageError(GNSError, ImportError):
    """An optional package is not installed."""


class ReportError(GNSError, RuntimeError):
    """A report cannot be saved where it is to be shown."""


class CheckpointError(GNSError, OSError):
    """A checkpoint or a trained policy cannot be written to disk, or the folder of checkpoints not be read."""


class CheckpointMismatchError(GNSError, ValueError):
    """A checkpoint belongs to another configuration than the one that asks for it."""


class FolderInUseError(GNSError, RuntimeError):
    """A command of the same kind works in the folder already."""


class OutOfOrderError(GNSError, RuntimeError):
    """A call came before one it needs, or after the end."""


class WorkerError(GNSError, RuntimeError):
    """A worker raised, or was lost too often."""


class WorkerLostError(GNSError, RuntimeError):
    """A worker died or did not answer in time."""


class RanksDisagreeError(GNSError, RuntimeError):
    """Processes that train one model together were given different settings, or are not at the same update."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import optional packages within this, which says what to install where there is none.

    :param extra: of this project, that the packages belong to
    :raises MissingPackageError: if one is not installed
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"The package {error.name!r} is not installed; expected what the extra {extra!r} brings. Install it by "
            f"pip install 'gns-scheduler[{extra}]'."
        ) from error


def require_positive(name: str, value: float) -> None:
    """Pass a finite number above zero.

    :raises InvalidSettingError: on anything else
    """
    highest = sys.float_info.max if isinstance(value, int) else math.inf  # of narrow floats the former is out of range
    within = isinstance(value, Real) and (0 < value <= highest if isinstance(value, int) else 0 < value < highest)
    if isinstance(value, bool) or not within:
        raise InvalidSettingError(f"{name} is {value!r}; expected a finite number above 0.")


def require_count(name: str, value: int) -> None:
    """Pass a whole number above zero.

    :raises InvalidSettingError: on anything else
    """
    require_positive(name, value)
    if int(value) != value:
        raise InvalidSettingError(f"{name} is {value!r}; expected a whole number above 0.")
