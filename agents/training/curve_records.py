"""Records of cost curves: a file of one JSON object a line that only grows. See :mod:`agents.training.curves`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.runtime.settings import build
from envs.pool import PoolConfig

TUNING, BRANCH, FAILED, RECIPE = "tuning", "branch", "failed", "recipe"


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, plain or with gzip; a last line that was cut off is left out."""
    if path.exists():
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for line in text.split("\n")[:-1]:
            yield json.loads(line)


class Records:
    """A file of records that only grows; a last line that was cut off by a kill is dropped.

    :param path: the file, made if it is not there
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("r+b") as file:
                    file.truncate(whole)
        self.all: list[dict[str, Any]] = list(read_records(path))

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records, in one go."""
        with self.path.open("ab") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self.all += [dict(record) for record in records]

    def numbers(self, recipe: str, *kinds: str) -> set[int]:
        """Return the tasks of a pool that there are records of some kinds of."""
        return {record["number"] for record in self.all if record["kind"] in kinds and record["recipe"] == recipe}


def recipe_of(pool: PoolConfig) -> tuple[str, dict[str, Any]]:
    """Return what identifies a pool whatever its size, and its settings."""
    settings = {name: value for name, value in asdict(pool).items() if name != "size"}
    text = json.dumps(settings, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}", json.loads(text)


def pool_of(settings: Mapping[str, Any]) -> PoolConfig:
    """Return the pool of a ``recipe`` record's settings."""
    return build(PoolConfig, dict(settings), "pool")


def rounded(values: np.ndarray, digits: int, significant: bool = True) -> Any:
    """Return plain numbers, to some significant digits or decimals; what is not finite becomes None."""
    if values.ndim > 1:
        return [rounded(row, digits, significant) for row in values]
    text = f"{{:.{digits}g}}" if significant else f"{{:.{digits}f}}"
    return [float(text.format(value)) if np.isfinite(value) else None for value in values.tolist()]
