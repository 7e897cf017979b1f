"""GNS: learning-rate schedules that are learned. What a training script imports; no RL package is needed."""

from gns.decision import DecisionConfig, DecisionCore, Observation
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
from gns.guard import GuardConfig, Snapshot
from gns.layer_graph import LayerGraph, layer_graph
from gns.layer_groups import parameter_groups
from gns.lr_schedulers import REXLR, ProfileLR
from gns.network import NetworkConfig
from gns.policy import GNSPolicy, PolicyConfig
from gns.schedule import Schedule
from gns.scheduler import GNSScheduler
from gns.scheduler_history import DecisionRecord

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
    "Schedule",
    "Snapshot",
    "SnapshotError",
    "UnknownNameError",
    "layer_graph",
    "parameter_groups",
]
