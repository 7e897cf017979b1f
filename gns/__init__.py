"""GNS: learning-rate schedules that are learned. What a training script imports; no RL package is needed.

Each name is imported when it is first asked for, so that ``import gns``, and a command that only shows its help, waits
for nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gns.deciding.decision import DecisionConfig, DecisionCore, Observation
    from gns.deciding.guard import GuardConfig
    from gns.deciding.snapshot import Snapshot
    from gns.errors import (
        GNSError,
        InvalidSettingError,
        LayerGraphError,
        OutOfOrderError,
        PolicyFormatError,
        RanksDisagreeError,
        SnapshotError,
        UnknownNameError,
    )
    from gns.graph.layer_graph import LayerGraph, layer_graph
    from gns.graph.layer_groups import parameter_groups
    from gns.policy.artefact import GNSPolicy, PolicyConfig
    from gns.policy.network import NetworkConfig
    from gns.scheduler.history import DecisionRecord
    from gns.scheduler.scheduler import GNSScheduler
    from gns.schedules.lr_schedulers import REXLR, ProfileLR
    from gns.schedules.schedule import Schedule
    from gns.tools.find_rate import RateAdvice, find_rate

__version__ = "0.1.0.dev0"

__all__ = [
    "REXLR",
    "DecisionConfig",
    "DecisionCore",
    "DecisionRecord",
    "GNSError",
    "GNSPolicy",
    "GNSScheduler",
    "GuardConfig",
    "InvalidSettingError",
    "LayerGraph",
    "LayerGraphError",
    "NetworkConfig",
    "Observation",
    "OutOfOrderError",
    "PolicyConfig",
    "PolicyFormatError",
    "ProfileLR",
    "RanksDisagreeError",
    "RateAdvice",
    "Schedule",
    "Snapshot",
    "SnapshotError",
    "UnknownNameError",
    "find_rate",
    "layer_graph",
    "parameter_groups",
]
_HOMES = {
    "deciding.decision": ("DecisionConfig", "DecisionCore", "Observation"),
    "deciding.guard": ("GuardConfig",),
    "deciding.snapshot": ("Snapshot",),
    "errors": (
        "GNSError",
        "InvalidSettingError",
        "LayerGraphError",
        "OutOfOrderError",
        "PolicyFormatError",
        "RanksDisagreeError",
        "SnapshotError",
        "UnknownNameError",
    ),
    "graph.layer_graph": ("LayerGraph", "layer_graph"),
    "graph.layer_groups": ("parameter_groups",),
    "policy.artefact": ("GNSPolicy", "PolicyConfig"),
    "policy.network": ("NetworkConfig",),
    "scheduler.history": ("DecisionRecord",),
    "scheduler.scheduler": ("GNSScheduler",),
    "schedules.lr_schedulers": ("REXLR", "ProfileLR"),
    "schedules.schedule": ("Schedule",),
    "tools.find_rate": ("RateAdvice", "find_rate"),
}


def __getattr__(name: str) -> Any:
    """Import a name that is asked for."""
    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = found = getattr(import_module(f"gns.{module}"), name)
            return found
    raise AttributeError(f"module 'gns' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
