"""Controllers by name. A method is one file here and one config in ``configs/controller``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agents.controllers.base import Controller, TrainedRun
from agents.controllers.policy import PolicyController
from agents.controllers.schedule import ScheduleController
from gns.errors import UnknownNameError

__all__ = ["Controller", "PolicyController", "ScheduleController", "TrainedRun", "make_controller"]

_KINDS: dict[str, Any] = {"schedule": ScheduleController, "policy": PolicyController}


def make_controller(name: str, settings: Mapping[str, Any]) -> Controller:
    """Return a controller from its config: ``kind`` and the settings of that kind.

    :raises UnknownNameError: if the kind or a setting is unknown
    """
    settings = dict(settings)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise UnknownNameError("kind of controller", str(kind), _KINDS)
    try:
        return _KINDS[kind](name=name, **settings)
    except TypeError as error:
        raise UnknownNameError(f"setting of controller {name}", str(error), settings) from error
