"""Scalars for TensorBoard."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat

from agents.trackers.base import Tracker
from gns.errors import MissingPackageError

STEPS = 1000  # of a curve over progress: TensorBoard takes integer steps


class TensorBoardTracker(Tracker):
    """Writes scalars and pictures.

    :param folder: of the events
    :raises MissingPackageError: if tensorboard is not installed
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingPackageError(
                "tracker=tensorboard needs the package tensorboard, which is not installed; pip install tensorboard, "
                "or pick another tracker: csv, wandb or none."
            ) from error
        self._folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def writers(self) -> list[KVWriter]:
        """Return SB3's writer of events."""
        return [TensorBoardOutputFormat(str(self._folder))]

    def lines(self, rows: pd.DataFrame, x: str) -> None:
        """Write curves over progress, at thousandths of the budget; others have no place there."""
        if x == "progress":
            for name in rows.columns.drop(x):
                for place, value in zip(rows[x], rows[name], strict=True):
                    if math.isfinite(value):
                        self._events().add_scalar(name, value, round(STEPS * place))

    def image(self, name: str, path: Path) -> None:
        """Write a picture."""
        from matplotlib.image import imread

        self._events().add_image(name, imread(path), dataformats="HWC")

    def where(self) -> list[str]:
        """Say how curves are looked at."""
        return [f"Curves: tensorboard --logdir {self._folder}"]

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _events(self) -> Any:
        if self._writer is None:
            self._writer = self._make(str(self._folder))
        return self._writer
