"""Figures as CSV files: readable without any package."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from agents.trackers.base import Tracker

STEP = "decisions"  # of all episodes, made so far


class ProgressFile(KVWriter):
    """A file with a row for each rollout. It is continued where an interrupted training is continued.

    :param path: of the file. Rows of decisions that are made again are replaced
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row; a figure that no row had gets a column, empty before."""
        figures = filter_excluded_keys(key_values, key_excluded, "csv")
        self._rows = [row for row in self._rows if int(row[STEP]) < step]
        self._rows.append({STEP: step, **figures})
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows)

    def close(self) -> None:
        """Do nothing: the file is complete after every row."""


class CSVTracker(Tracker):
    """Writes ``progress.csv``, a file a table, and ``summary.json``.

    :param folder: of the files
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def writers(self) -> list[KVWriter]:
        """Return the writer of ``progress.csv``."""
        return [ProgressFile(self._folder / "progress.csv")]

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """Write ``NAME.csv``."""
        rows.to_csv(self._folder / f"{name}.csv", index=False)

    def lines(self, rows: pd.DataFrame, x: str) -> None:
        """Add to ``x.csv``, a row a point: curve, place and value."""
        long = rows.melt(x, var_name="curve").dropna()
        path = self._folder / f"{x}.csv"
        known = [pd.read_csv(path)] if path.exists() else []
        known = [old[~old.curve.isin(long.curve)] for old in known]
        pd.concat([*known, long[["curve", x, "value"]]]).to_csv(path, index=False)

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        (self._folder / "summary.json").write_text(json.dumps(dict(figures), indent=2), encoding="utf-8")

    def where(self) -> list[str]:
        """Say where the files are."""
        return [f"Figures: {self._folder}"]
