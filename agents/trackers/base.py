"""The interface of trackers, one that tracks nothing, and the settings of Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

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


class Tracker:
    """Takes what a command has to tell. A tracker's own failure to keep it never ends the command."""

    def writers(self) -> list[KVWriter]:
        """Return what Stable-Baselines3's logger writes its figures to, once a rollout."""
        return []

    def callbacks(self) -> list[BaseCallback]:
        """Return what PPO is to call."""
        return []

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """Keep a table.

        :param name: letters, digits and underscores
        """

    def lines(self, rows: pd.DataFrame, x: str) -> None:
        """Keep curves.

        :param rows: a column a curve, and one that they are drawn against; what is not finite is no point
        :param x: name of that column, such as ``progress``
        """

    def image(self, name: str, path: Path) -> None:
        """Keep a picture.

        :param path: a PNG file
        """

    def policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Keep a policy.

        :param folder: with ``config.json``, ``model.safetensors`` and its model card
        :param card: what it was trained on
        """

    def use_policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Note a policy that was kept before as what is tried here.

        :param name: of the run that made it
        :param folder: see :meth:`policy`
        :param card: see there
        """

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Keep what the whole came to: plain numbers and strings."""

    def where(self) -> list[str]:
        """Say in a line each where things are and how they are looked at."""
        return []

    def close(self) -> None:
        """Finish writing."""


class Trackers(Tracker):
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def writers(self) -> list[KVWriter]:
        """Return those of all."""
        return [writer for tracker in self.trackers for writer in tracker.writers()]

    def callbacks(self) -> list[BaseCallback]:
        """Return those of all."""
        return [callback for tracker in self.trackers for callback in tracker.callbacks()]

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """Give each the table."""
        for tracker in self.trackers:
            tracker.table(name, rows)

    def lines(self, rows: pd.DataFrame, x: str) -> None:
        """Give each the curves."""
        for tracker in self.trackers:
            tracker.lines(rows, x)

    def image(self, name: str, path: Path) -> None:
        """Give each the picture."""
        for tracker in self.trackers:
            tracker.image(name, path)

    def policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Give each the policy."""
        for tracker in self.trackers:
            tracker.policy(name, folder, card)

    def use_policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Tell each of the policy."""
        for tracker in self.trackers:
            tracker.use_policy(name, folder, card)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Give each the summary."""
        for tracker in self.trackers:
            tracker.summary(figures)

    def where(self) -> list[str]:
        """Return the lines of all."""
        return [line for tracker in self.trackers for line in tracker.where()]

    def close(self) -> None:
        """Close all."""
        for tracker in self.trackers:
            tracker.close()
