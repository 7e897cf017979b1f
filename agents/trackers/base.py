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
    """Takes tables, curves, pictures and figures of a command. A failure to keep one never ends the command."""

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

        :param rows: a column for each curve, and the column they are drawn against. Values that are not finite
            are left out
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
        """Note that this run tries a policy that was kept before.

        :param name: of the run that made it
        :param folder: see :meth:`policy`
        :param card: see there
        """

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Keep the final figures: plain numbers and strings."""

    def where(self) -> list[str]:
        """Say in a line each where things are and how they are looked at."""
        return []

    def close(self) -> None:
        """Finish writing."""


def _in_each(name: str) -> Any:
    """Return a method that calls the one of that name in each of several trackers."""

    def call(self: Trackers, *arguments: Any) -> None:
        for tracker in self.trackers:
            getattr(tracker, name)(*arguments)

    return call


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

    def where(self) -> list[str]:
        """Return the lines of all."""
        return [line for tracker in self.trackers for line in tracker.where()]

    table, lines, image = (_in_each(name) for name in ("table", "lines", "image"))
    policy, use_policy = (_in_each(name) for name in ("policy", "use_policy"))
    summary, close = (_in_each(name) for name in ("summary", "close"))
