"""Which trackers a command has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.trackers.base import Tracker, Trackers
from gns.errors import UnknownNameError

MODES = ("offline", "online", "disabled")


@dataclass(frozen=True)
class WandbConfig:
    """How a run of Weights & Biases is kept.

    :param mode: ``offline`` (files, for ``wandb sync``), ``online`` (needs an account) or ``disabled``
    :param project: where runs belong
    :param entity: user or team; None: the account's own
    :param group: of runs; None: the command's name
    :param tags: of the run
    """

    mode: str = "offline"
    project: str = "gns-scheduler"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UnknownNameError("mode of tracker.wandb", self.mode, MODES)


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
        from agents.trackers.tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(folder / "tensorboard"))
    if config.csv:
        from agents.trackers.csv_files import CSVTracker

        trackers.append(CSVTracker(folder / "csv"))
    if config.wandb is not None:
        from agents.trackers.weights_and_biases import WandbTracker

        trackers.append(WandbTracker(folder, config.wandb, name, kind, settings, wandb_folder))
    return Trackers(trackers)
