"""Scalars for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat

from agents.trackers.base import Tracker


class TensorBoardTracker(Tracker):
    """Writes scalars.

    :param folder: of the events
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def writers(self) -> list[KVWriter]:
        """Return SB3's writer of events."""
        return [TensorBoardOutputFormat(str(self._folder))]

    def where(self) -> list[str]:
        """Say how curves are looked at."""
        return [f"Curves: tensorboard --logdir {self._folder}"]
