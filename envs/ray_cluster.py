"""Ray (Moritz et al., OSDI 2018), imported when it is first needed."""

from __future__ import annotations

import logging
import math
import os
from types import ModuleType

from envs.engine import EngineConfig
from gns.errors import InvalidSettingError, needing

_LOGGER = logging.getLogger(__name__)


def start_ray(engine: EngineConfig, count: int) -> ModuleType:
    """Return Ray, connected to a cluster.

    One that this process is connected to already is used. Without an address (and ``RAY_ADDRESS`` in the environment) a
    cluster of this machine alone is started, with a CPU for whoever asks for one even if that is more than there are.

    :param engine: its ``address`` is that of the cluster, as ``ray.init`` takes it: ``auto``, ``HOST:PORT``,
        ``ray://HOST:PORT``
    :param count: how many actors or tasks there are at once
    :raises MissingPackageError: if Ray is not installed
    :raises InvalidSettingError: if there is no such cluster
    """
    with needing("cluster"):
        import ray
    needed = math.ceil(count * engine.resources.get("num_cpus", 1))
    if not ray.is_initialized():
        if engine.address is None and not os.environ.get("RAY_ADDRESS"):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by itself; here the workers do the work
            ray.init("local", num_cpus=max(needed, os.cpu_count() or 1), include_dashboard=False)
        else:
            try:
                ray.init(address=engine.address)
            except (ConnectionError, ValueError) as error:
                raise InvalidSettingError(
                    f"engine.address is {engine.address!r} ({error}); expected that of a running Ray cluster, or "
                    "null for this machine alone. Start one by ray start --head."
                ) from error
    there = ray.cluster_resources().get("CPU", 0.0)
    if there < needed:
        _LOGGER.warning("Ray has %g CPUs and is asked for %d; some workers wait until there are more.", there, needed)
    return ray
