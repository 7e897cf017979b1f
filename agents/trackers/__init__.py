"""Trackers keep a command's figures: TensorBoard, CSV files, Weights & Biases, several of them, or none."""

from agents.trackers.base import Tracker, Trackers, WandbConfig
from agents.trackers.config import TrackerConfig, make_tracker

__all__ = ["Tracker", "TrackerConfig", "Trackers", "WandbConfig", "make_tracker"]
