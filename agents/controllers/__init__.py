"""Controllers by name. A method is one file here, found by itself, and one config in ``configs/controller``."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from agents.controllers.base import Controller, Ledger, Session, TrainedRun
from agents.controllers.policy import PolicyController
from agents.controllers.schedule import ScheduleController
from agents.runtime.settings import build
from gns.errors import InvalidSettingError, UnknownNameError
from gns.tools.console import printable

LONGEST_NAME = 80  # characters of a policy's name; files and runs of trackers are named after it

__all__ = [
    "Controller",
    "Ledger",
    "PolicyController",
    "ScheduleController",
    "Session",
    "TrainedRun",
    "controller_kinds",
    "make_controller",
    "make_controllers",
    "policy_name",
]


@lru_cache(maxsize=1)
def controller_kinds() -> dict[str, type[Controller]]:
    """Return every kind of controller by name: the classes with a ``kind`` in the modules beside this one."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    found: list[Any] = [Controller]
    for cls in found:
        found.extend(cls.__subclasses__())
    return {cls.kind: cls for cls in found if cls.kind}


def make_controllers(settings: Mapping[str, Mapping[str, Any]]) -> list[Controller]:
    """Return the controllers of a configuration, in its order.

    A policy controller whose ``policy`` is a list of folders and Hub ids, or a mapping of names to them, becomes one
    controller each: named after the run it came from (:func:`policy_name`), or by the mapping. A name that another
    controller has gets a number.

    :param settings: configs of :func:`make_controller` by name
    :raises UnknownNameError: if a kind or a setting is unknown
    :raises InvalidSettingError: if a policy is named in any other way
    :raises PolicyFormatError: if a policy cannot be loaded
    """
    several = {name for name, about in settings.items() if isinstance(about.get("policy"), list | Mapping)}
    taken = set(settings) - several
    controllers = []
    for name, about in settings.items():
        if name not in several:
            controllers.append(make_controller(name, about))
            continue
        for wanted, source in _sources(name, about["policy"]):
            own = _free(wanted, taken)
            taken.add(own)
            controllers.append(make_controller(own, {**about, "policy": source}))
    return controllers


def make_controller(name: str, settings: Mapping[str, Any]) -> Controller:
    """Return a controller from its config: ``kind`` and the settings of that kind.

    :raises UnknownNameError: if the kind or a setting is unknown
    :raises InvalidSettingError: if a setting has a value it cannot have
    """
    settings = dict(settings)
    kind, kinds = settings.pop("kind", None), controller_kinds()
    if kind not in kinds:
        raise UnknownNameError("kind of controller", str(kind), kinds)
    return build(kinds[kind], {"name": name, **settings}, where=f"controller.{name}")


def policy_name(source: str) -> str:
    """Return the name of the run that a policy came from: ``outputs/a/policy`` is ``a``, ``user/gns-x`` is ``gns-x``.

    :param source: folder or Hub id
    """
    if not os.path.isdir(source):
        return Path(source).name
    path = Path(os.path.abspath(source))
    return (path.parent.name if path.name == "policy" else path.name) or path.name


def _sources(name: str, policies: Any) -> list[tuple[str, str]]:
    """Return names wished for and folders or Hub ids."""
    by_name = isinstance(policies, Mapping)
    sources = list(policies.values() if by_name else policies)
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise InvalidSettingError(
            f"controller.{name}.policy is {policies!r}; expected a folder or Hub id, a list of them, or a mapping "
            "of names to them."
        )
    names = map(str, policies) if by_name else map(policy_name, sources)
    return [(printable(own, LONGEST_NAME), source) for own, source in zip(names, sources, strict=True)]


def _free(name: str, taken: Collection[str]) -> str:
    """Return the name, or the first of name_2, name_3, ... that is not taken."""
    return next(own for number in count(1) if (own := name if number == 1 else f"{name}_{number}") not in taken)
