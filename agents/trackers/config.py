"""Which trackers a command has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.trackers.base import Tracker, Trackers, WandbConfig
from agents.trackers.csv_files import CSVTracker
from agents.trackers.tensorboard import TensorBoardTracker
from agents.trackers.weights_and_biases import WandbTracker


@dataclass(frozen=True)
class TrackerConfig:
    """Which trackers there are.

    :param tensorboard: scalars for TensorBoard
    :param csv: CSV files
    :param wandb: a run of Weights & Biases; None: none
    """

    tensorboard: bool = False
    csv: bool = False
    wandb: WandbConfig | None = None


def make_tracker(
    config: TrackerConfig,
    folder: Path,
    name: str,
    kind: str,
    settings: Mapping[str, Any],
    wandb_folder: Path | None = None,
) -> Tracker:
    """Return the trackers of a command as one.

    :param folder: of the command's outputs
    :param name: of what it makes
    :param kind: what it does, such as ``train``
    :param settings: its resolved configuration
    :param wandb_folder: where several runs of Weights & Biases are together, in a folder ``wandb``; None: ``folder``
    :raises MissingPackageError: if a tracker's package is not installed
    :raises InvalidSettingError: if Weights & Biases is to be online and no account is known
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoardTracker(folder / "tensorboard"))
    if config.csv:
        trackers.append(CSVTracker(folder / "csv"))
    if config.wandb is not None:
        trackers.append(WandbTracker(folder, config.wandb, name, kind, settings, wandb_folder))
    return Trackers(trackers)
