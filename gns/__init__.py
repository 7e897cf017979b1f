"""GNS: learning-rate schedules that are learned. What a training script imports; no RL package is needed."""

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
