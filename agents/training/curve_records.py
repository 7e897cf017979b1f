"""Records of cost curves: a file of one JSON object a line that only grows. See :mod:`agents.training.curves`."""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from agents.runtime.settings import build
from envs.pool import PoolConfig
from gns.errors import InvalidSettingError

TUNING, BRANCH, RANGE, FAILED, RECIPE = "tuning", "branch", "range", "failed", "recipe"


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file, plain or ``.xz``; a last line that was cut off is left out."""
    if path.exists():
        text = lzma.decompress(path.read_bytes()).decode() if path.suffix == ".xz" else path.read_text()
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


# ---------------------------------------------------------------------- what is kept beside the code


def pack(records: Sequence[Mapping[str, Any]], path: Path, most: int = 1_000_000) -> None:
    """Write records compressed, and their card beside them.

    Where they take more than ``most`` bytes, branches lose the features of their layers, which a replay shows again,
    then features altogether.

    :param path: a file that ends in ``.xz``
    :raises InvalidSettingError: if even that takes more
    """
    left_out: tuple[str, ...] = ()
    for left_out in ((), ("nodes",), ("nodes", "globals")):
        kept = [{key: value for key, value in record.items() if key not in left_out} for record in records]
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept)
        content = lzma.compress(text.encode(), preset=9)
        if len(content) <= most:
            break
    else:
        raise InvalidSettingError(f"{len(records)} records take {len(content)} bytes; expected at most {most}.")
    path.write_bytes(content)
    path.with_suffix("").with_suffix(".md").write_text(card_of(records, path.name, left_out))


def card_of(records: Sequence[Mapping[str, Any]], name: str, left_out: Sequence[str] = ()) -> str:
    """Return what is to be known of a file of records.

    :param name: of the file
    :param left_out: fields that branches lack
    """
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in (TUNING, BRANCH, FAILED, RECIPE)}
    tuning, branches = kinds[TUNING], kinds[BRANCH]
    runs = sum(len(r["profiles"]) * len(r["rates"]) for r in tuning) + sum(len(r["factors"]) for r in branches)
    spent = {(r["kind"], r["recipe"], r["number"]): r["seconds"] for r in tuning + branches}
    hours = sum(spent.values()) / 3600.0
    branched = {(r["recipe"], r["number"]) for r in branches}
    lacking = f" Branches lack {' and '.join(left_out)}: replay shows them." if left_out else ""
    recipes = "\n".join(f"- `{r['recipe']}` (PyTorch {r['torch']}): `{json.dumps(r['pool'])}`" for r in kinds[RECIPE])
    return f"""# Cost curves of drawn tasks

`{name}` holds {len(tuning)} tuning curves of as many tasks (final loss over the initial rate, for two or three profiles
and one or two seeds) and {len(branches)} cost curves of decisions, at states of runs on {len(branched)} of these tasks:
{runs} training runs in all. {len(kinds[FAILED])} more tasks were given up, most of them since none of five rates
taught them anything.{lacking}

- **Made by** `python -m agents.training.curves OUT`, read by `agents.training.curve_records.read_records`; what a
  record says is told in `agents/training/curves.py`, whose `replay` reaches a branch's state again.
- **Rate**: {(len(tuning) + len(branches)) / hours:.0f} curves or {runs / hours:.0f} runs an hour of one process that
  had less than one of two cores, beside other work.
- **Losses** are those on the reward split; drawn tasks have no test split.
- **Sources**: scikit-learn's digits, breast cancer, wine and diabetes tables (BSD-3-Clause), MNIST-1D as its package
  makes it (Apache-2.0), source text of Python's standard library as installed (PSF licence), and made-up data. No
  example of any is in the file. Text, and so its tasks, follow the version of Python.
- **Pools**, by their number in the records; a task is a function of these settings and its number:

{recipes}
"""
