"""Results of training runs kept by what made them: an interrupted sweep goes on, a repeated one trains nothing.

Data sets are known by the task's name and settings, code by the version of gns: after a change of either that leaves
these as they were, delete the file or evaluate with ``cache: false``.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import torch

import gns
from agents.controllers.base import Controller
from envs.learning_rate_env import Episode
from gns.errors import InvalidSettingError

CACHE_FORMAT = 2  # another number and no earlier row is found
LONGEST = 2**20  # bytes of a line; a row has some 10,000
_TOLD = 10  # damaged lines that are told of one by one
_LOGGER = logging.getLogger(__name__)


class ResultsCache:
    """Rows of :func:`agents.evaluation.sweep.run_job` by key, in a file of JSON lines that only grows.

    One process writes. A row is on the disk when :meth:`put` returns; a line cut off by a crash costs that row alone.
    Where a key comes twice the later line counts. A line longer than :data:`LONGEST` is damaged, and passed over.

    :param path: the file; need not exist yet
    :raises InvalidSettingError: if it cannot be read
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        self._torn, self._damaged = False, 0
        try:
            if path.exists():
                with path.open("rb") as file:
                    self._read_lines(file)
        except OSError as error:
            raise InvalidSettingError(
                f"Cannot read {path} ({error}); expected a file of results, or none. Move it away, or set cache: false."
            ) from error
        if self._damaged > _TOLD:
            _LOGGER.warning("%d more lines of %s are damaged.", self._damaged - _TOLD, path)

    def __len__(self) -> int:
        return len(self._rows)

    def _read_lines(self, file: BinaryIO) -> None:
        number = 0
        while line := file.readline(LONGEST):
            number, rest = number + 1, line
            while not rest.endswith(b"\n") and (rest := file.readline(LONGEST)):
                line = b""
            self._torn = not rest
            if not line:
                self._tell(number, f"it is longer than {LONGEST:,} bytes")
            elif line.strip():
                self._read(line, number)

    def _tell(self, number: int, why: object) -> None:
        self._damaged += 1
        if self._damaged <= _TOLD:
            _LOGGER.warning("Line %d of %s is damaged (%s); its run will be trained again.", number, self.path, why)

    def _read(self, line: bytes, number: int) -> None:
        try:
            entry = json.loads(line.decode("utf-8"))
            key, row = entry["key"], entry["row"]
            if not (isinstance(key, str) and isinstance(row, dict)):
                raise ValueError("it is no row by its key")
            if entry["check"] != _check(key, row):
                raise ValueError("its checksum is wrong")
            row["path"] = [(progress, rate) for progress, rate in row["path"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._tell(number, error)
            return
        self._rows[key] = row

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the row kept under a key, or None."""
        return self._rows.get(key)

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Keep a row.

        :raises InvalidSettingError: if it cannot be written
        """
        line = json.dumps({"key": key, "check": _check(key, row), "row": row}) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(b"\n" * self._torn + line.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InvalidSettingError(
                f"Cannot write to {self.path} ({error}); expected a file results can be added to, on a disk with room. "
                "Make room and start again, it goes on from here, or set cache: false."
            ) from error
        self._torn = False
        self._rows[key] = row


def _check(key: str, row: dict[str, Any]) -> int:
    """Checksum of an entry; floats, NaN and infinity come back from JSON as they were, so it can be taken again."""
    return zlib.crc32(json.dumps([key, row], sort_keys=True).encode("utf-8"))


def result_key(controller: Controller, episode: Episode, report: bool) -> str | None:
    """Return a name for all that a training run's row depends on: 64 hex digits (sha256 over canonical JSON).

    The controller's name is left out: renaming it costs nothing.

    :param report: whether the test split is measured
    :return: None where a setting is no plain JSON value: such a run is not kept
    """
    task = episode.task
    content = {
        "format": CACHE_FORMAT,
        "gns": gns.__version__,
        "torch": torch.__version__,
        "controller": controller.identity(),
        "task": [task.name, task.settings(), list(task.metrics)],
        "optimizer": episode.optimizer,
        "budget": episode.budget,
        "learning_rate": repr(float(episode.learning_rate)),
        "seed": episode.seed,
        "device": str(episode.device),
        "report": report,
    }
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        return None
    return sha256(text.encode("utf-8")).hexdigest()
