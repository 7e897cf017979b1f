"""Reads what Weights & Biases' client wrote offline: a log of records in LevelDB's format, each a protocol buffer."""

import json
import struct
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

_BLOCK = 32768
_HEADER = 7  # of the file, and of each chunk: checksum (4 bytes), length (2), kind (1)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> list[Any]:
    """Return the records of a ``.wandb`` file, once the client's own process has written all that it was given."""
    wandb.teardown()
    data, place, found, parts = path.read_bytes(), _HEADER, [], b""
    assert data[:4] == b":W&B"
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # the rest of a block is padding
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + _HEADER])
        chunk = data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        parts = chunk if kind in (_FULL, _FIRST) else parts + chunk
        if kind in (_FULL, _LAST):
            found.append(wandb_internal_pb2.Record.FromString(parts))
    return found


def run_of(folder: Path) -> dict[str, Any]:
    """Return what the offline runs under a folder hold together: config, history, summary, and artifacts by name."""
    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "artifacts": {}, "ids": set()}
    for path in sorted(folder.rglob("run-*.wandb")):
        if "latest-run" in path.parts:
            continue
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run["ids"].add(record.run.run_id)
                run["config"] |= _values(record.run.config.update)
            elif kind == "config":
                run["config"] |= _values(record.config.update)
            elif kind == "history":
                run["history"].append(_values(record.history.item))
            elif kind == "summary":
                run["summary"] |= _values(record.summary.update)
            elif kind == "artifact":
                run["artifacts"][record.artifact.name] = record.artifact
    return run


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = found
        for name in above:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found
