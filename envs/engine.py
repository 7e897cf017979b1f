"""What runs workers: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gns.errors import InvalidSettingError, UnknownNameError, require_positive

ENGINES = ("processes", "ray")
RESOURCES = ("num_cpus", "num_gpus", "memory", "resources", "scheduling_strategy", "accelerator_type")


@dataclass(frozen=True)
class EngineConfig:
    """What runs the workers of a training or an evaluation, and when one of them counts as lost. Changes no result.

    :param name: ``processes`` of this machine, or ``ray`` (actors that hold environments, tasks of a sweep)
    :param timeout: seconds a worker may take for one answer, a step of all its environments; ten minutes at least
        where it is only just starting. None: for ever
    :param job_timeout: seconds one training run of a sweep may take. None: for ever
    :param max_restarts: restarts of one worker before all ends
    :param address: of a Ray cluster, see :func:`envs.ray_cluster.start_ray`; None: this machine
    :param resources: of each Ray actor or task, a few of its options: :data:`RESOURCES`. ``num_gpus`` may be a share
    :raises UnknownNameError: if the engine or a resource is unknown
    :raises InvalidSettingError: on a limit that is none
    """

    name: str = "processes"
    timeout: float | None = 600.0
    job_timeout: float | None = None
    max_restarts: int = 10
    address: str | None = None
    resources: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UnknownNameError("engine", self.name, ENGINES)
        for name in ("timeout", "job_timeout"):
            if getattr(self, name) is not None:
                require_positive(name, getattr(self, name))
        if self.max_restarts < 0:
            raise InvalidSettingError(f"max_restarts is {self.max_restarts}; expected 0 or more.")
        for name in self.resources:
            if name not in RESOURCES:
                raise UnknownNameError("resource of a Ray worker", str(name), RESOURCES)


PROCESSES, RAY = EngineConfig(), EngineConfig("ray")
