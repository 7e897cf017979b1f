"""Checkpoints of a training in a folder of its own: the newest whole one is found, whatever moment a crash chose.

A file is ``MAGIC``, the sha256 of all that follows, then format number, step, lengths of identity and state
(big-endian, :data:`_HEADER`), the identity in UTF-8, and the state as ``torch.save`` writes it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import CheckpointError, CheckpointMismatchError, InvalidSettingError, require_count
from gns.whole_files import synchronise, written_whole

CHECKPOINT_FORMAT = 1
MAGIC = b"GNSCKPT\n"
_HEADER = struct.Struct(">IQIQ")  # format, step, length of the identity, length of the state
_START = len(MAGIC) + hashlib.sha256().digest_size
_NAME = re.compile(r"(\d{8,})-step-\d+\.checkpoint")
_TEMPORARY = re.compile(r"\.\d{8,}-step-\d+\.checkpoint\.\d+\.tmp")
_MAX_DEPTH, _MAX_INTEGER_BITS = 100, 2000  # past the latter torch.load reads no integer
_LOGGER = logging.getLogger(__name__)


class CheckpointStore:
    """The newest checkpoints of one training. One process writes; any may read.

    A checkpoint is the newest by the order of saving, not by its step: a training that went back counts as it went on.

    :param folder: where they lie; made when the first is saved
    :param keep: how many stay
    :raises InvalidSettingError: if ``keep`` is no positive whole number
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        require_count("keep", keep)
        self.folder, self.keep = Path(folder), int(keep)

    def save(self, state: Mapping[str, Any], step: int, identity: str = "") -> Path:
        """Write a checkpoint, on the disk when this returns, and remove what is older than the newest ``keep``.

        Until then the earlier ones are untouched, and a crash at any moment leaves them or the new one to be found.

        :param state: nested mappings, lists and tuples of text, flags, numbers, None and tensors, keys text or whole
            numbers. Tensors are copied, without gradients; subclasses of the kinds come back as the kinds themselves
        :param step: how far the training is, 0 or more: part of the file's name
        :param identity: what the training is of, such as a digest of its configuration
        :return: the file
        :raises CheckpointError: if the disk is full or the folder cannot be written to; no earlier checkpoint is lost
        :raises InvalidSettingError: if the state holds anything else, naming where
        """
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
            raise InvalidSettingError(f"step is {step!r}; expected a whole number of 0 or more.")
        content = _encode(state, step, identity)
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                synchronise(self.folder.parent)
            earlier = self._files()
            number = 1 + (earlier[0][0] if earlier else 0)
            path = self.folder / f"{number:08d}-step-{step}.checkpoint"
            self._write(path, content)
        except OSError as error:
            full = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "it cannot be written to"
            raise CheckpointError(
                f"No checkpoint of step {step} ({sum(map(len, content)):,} bytes) can be kept in {self.folder}: {full} "
                f"({error}). Earlier checkpoints are as they were. Make room or name another folder, and start again: "
                "training goes on from the newest."
            ) from error
        self._remove([old for _, old in earlier[self.keep - 1 :]])
        return path

    def newest(self, identity: str = "") -> tuple[dict[str, Any], Path] | None:
        """Return the newest whole checkpoint's state, its tensors on the CPU, and its file; None if there is none.

        One that is torn or wrong is skipped with a warning. Nothing in a file is run.

        :param identity: what :meth:`save` was given
        :raises CheckpointMismatchError: if the newest whole one belongs to another configuration
        :raises CheckpointError: if the folder cannot be read
        """
        try:
            files = self._files() if self.folder.exists() else []
        except OSError as error:
            raise CheckpointError(
                f"The checkpoints in {self.folder} cannot be listed ({error}); expected a folder that can be read."
            ) from error
        for _, path in files:
            try:
                found, payload = _open(path)
                if found == identity:
                    return _decode(payload), path
            except _DamagedError as error:
                _LOGGER.warning("Checkpoint %s is not used: %s.", path, error)
                continue
            raise CheckpointMismatchError(
                f"{path} is a checkpoint of another configuration ({found!r}, not {identity!r}). Train under another "
                "name, go on with the configuration it was made with, or start anew with resume=never."
            )
        return None

    def _files(self) -> list[tuple[int, Path]]:
        """Number and path of each checkpoint, newest first."""
        found = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return sorted(found, reverse=True)

    def _write(self, path: Path, content: Iterable[bytes | memoryview]) -> None:
        with written_whole(path) as beside:
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                for part in content:
                    left = memoryview(part)
                    while left:
                        left = left[os.write(handle, left) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        synchronise(self.folder)

    def _remove(self, old: list[Path]) -> None:
        """Remove checkpoints, and what saves that were cut off left behind. What cannot be removed costs room alone."""
        try:
            stale = [path for path in self.folder.iterdir() if _TEMPORARY.fullmatch(path.name)]
            for path in (*reversed(old), *stale):
                path.unlink(missing_ok=True)
        except OSError as error:
            _LOGGER.warning("Not all in %s that is no longer needed can be removed (%s).", self.folder, error)


# ---------------------------------------------------------------------- one file


class _DamagedError(Exception):
    """A file is no whole checkpoint; the message says why, as the end of a sentence."""


def _encode(state: Mapping[str, Any], step: int, identity: str) -> tuple[bytes, memoryview]:
    """Return what a file begins with, and the payload that follows."""
    if not isinstance(state, Mapping):
        raise InvalidSettingError(f"The state is a {type(state).__name__}; expected a mapping.")
    buffer, name = io.BytesIO(), identity.encode("utf-8", "surrogatepass")
    torch.save(_plain(state, "state", 0), buffer)
    payload = buffer.getbuffer()
    start = _HEADER.pack(CHECKPOINT_FORMAT, step, len(name), len(payload)) + name
    digest = hashlib.sha256(start)
    digest.update(payload)
    return MAGIC + digest.digest() + start, payload


def _open(path: Path) -> tuple[str, memoryview]:
    """Return identity and payload of a whole file.

    :raises _DamagedError: on any other
    """
    try:
        with path.open("rb") as file:
            start = file.read(_START + _HEADER.size)
            if len(start) < _START + _HEADER.size:
                raise _DamagedError(f"it ends after {len(start)} bytes")
            if not start.startswith(MAGIC):
                raise _DamagedError("it does not begin as a checkpoint does")
            version, _, name, payload = _HEADER.unpack(start[_START:])
            expected, actual = len(start) + name + payload, os.fstat(file.fileno()).st_size
            if actual != expected:  # before any of it is read into memory
                raise _DamagedError(f"it has {actual:,} bytes, expected {expected:,}")
            rest = memoryview(file.read(name + payload))
    except OSError as error:
        raise _DamagedError(f"it cannot be read ({error})") from error
    digest = hashlib.sha256(start[_START:])
    digest.update(rest)
    if digest.digest() != start[len(MAGIC) : _START]:
        raise _DamagedError("its checksum is wrong")
    if version != CHECKPOINT_FORMAT:
        raise _DamagedError(f"it has format {version}, and this version reads {CHECKPOINT_FORMAT}")
    try:
        return bytes(rest[:name]).decode("utf-8", "surrogatepass"), rest[name:]
    except UnicodeDecodeError as error:
        raise _DamagedError(f"its identity is no text ({error})") from error


def _decode(payload: memoryview) -> dict[str, Any]:
    try:
        state = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises many kinds for what it does not read, or would have to run
        reason = str(error).strip().partition("\n")[0]
        raise _DamagedError(f"its state cannot be read ({type(error).__name__}: {reason})") from error
    if not isinstance(state, dict):
        raise _DamagedError(f"its state is a {type(state).__name__}, expected a dict")
    return state


def _plain(value: Any, where: str, depth: int) -> Any:
    """Return a copy that is read back without running anything: plain containers, numbers and tensors.

    :raises InvalidSettingError: on anything else
    """
    if depth > _MAX_DEPTH:
        raise InvalidSettingError(f"{where[:200]} is nested deeper than {_MAX_DEPTH} levels; expected a flatter state.")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, float):
        if isinstance(value, kind):  # numpy's float64 is a float, and would be written as numpy's
            return kind(value)
    if isinstance(value, int) and value.bit_length() <= _MAX_INTEGER_BITS:
        return int(value)
    if type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_meta:
        tensor = value.detach()
        # A file holds all the memory that is behind a tensor.
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise InvalidSettingError(f"A key of {where} is {key!r}; expected text or a whole number.")
        return {_plain(key, where, 0): _plain(item, f"{where}[{key!r}]", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise InvalidSettingError(
        f"{where} is a {type(value).__name__}, which a checkpoint does not hold; expected text, a flag, a number, "
        "None, a dense tensor, or mappings, lists and tuples of them. Of numpy: torch.from_numpy(array), or .tolist()."
    )
