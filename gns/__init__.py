"""GNS: learning-rate schedules that are learned. What a training script imports; no RL package is needed."""

from gns.decision import DecisionConfig, DecisionCore, Observation
from gns.errors import (
    GNSError,
    InvalidSettingError,
    LayerGraphError,
    OutOfOrderError,
    PolicyFormatError,
    UnknownNameError,
)
from gns.guard import GuardConfig, Snapshot
from gns.layer_graph import LayerGraph, layer_graph
from gns.network import NetworkConfig
from gns.policy import GNSPolicy, PolicyConfig

__version__ = "0.1.0.dev0"

__all__ = [
    "DecisionConfig",
    "DecisionCore",
    "GNSError",
    "GNSPolicy",
    "GuardConfig",
    "InvalidSettingError",
    "LayerGraph",
    "LayerGraphError",
    "NetworkConfig",
    "Observation",
    "OutOfOrderError",
    "PolicyConfig",
    "PolicyFormatError",
    "Snapshot",
    "UnknownNameError",
    "layer_graph",
]
