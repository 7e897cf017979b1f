"""Packages of the extra ``peers``, which the project itself does not need."""

from __future__ import annotations

import importlib
from types import ModuleType

from gns.errors import MissingPackageError


def package(name: str) -> ModuleType:
    """Import an optional package.

    :raises MissingPackageError: if it is not installed
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"The package {name!r} is not installed ({error}); install the extra it belongs to: "
            "pip install 'gns-scheduler[peers]'."
        ) from error
