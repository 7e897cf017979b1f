"""The folder of a command's results: what it may be named, and that one command of a kind works in it at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gns.errors import FolderInUseError, InvalidSettingError

RESULTS = Path("outputs")
_LONGEST = 200  # bytes of a part of a name; files beside and in it have longer ones
_LOGGER = logging.getLogger(__name__)


def folder_of(name: Any) -> Path:
    """Return the folder ``outputs/NAME``.

    :param name: of an output: text or a number. May have parts, as in ``sweep/first``
    :raises InvalidSettingError: if it is nothing of the kind, or would lead out of ``outputs``
    """
    text = str(name)
    parts = text.split("/")
    if (
        isinstance(name, bool | type(None))
        or not isinstance(name, str | int | float)
        or any(part in ("", ".", "..") or len(os.fsencode(part)) > _LONGEST for part in parts)
        or not text.isprintable()
    ):
        raise InvalidSettingError(
            f"name is {text[:200]!r}; expected that of a folder within {RESULTS}, such as first or sweep/first: no '.' "
            "or '..' in it, no '/' at an end, and nothing that cannot be printed."
        )
    return RESULTS / text


def prepare_folder(folder: Path) -> Path:
    """Create a folder for results, before any work is done.

    :raises InvalidSettingError: if it cannot be written to
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidSettingError(
            f"Cannot write to {folder} ({error}); expected a folder to put results in."
        ) from error
    return folder


@contextmanager
def output_folder(name: Any, command: str) -> Iterator[Path]:
    """Make the folder of results and hold it for a command while the block lasts.

    It is held by a lock of the operating system on ``.COMMAND.lock`` there, which ends with the process, however that
    ends. On a file system without locks nothing is held, which is logged.

    :param name: see :func:`folder_of`
    :param command: such as ``evaluate``; another command may work in the same folder
    :raises InvalidSettingError: if the name is none, or the folder cannot be written to
    :raises FolderInUseError: if the same command works there already, in this process or another, on this machine or
        one that shares the folder
    """
    folder = prepare_folder(folder_of(name))
    path = folder / f".{command}.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InvalidSettingError(f"Cannot write to {path} ({error}); expected a folder to put results in.") from error
    with open(handle, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = "".join(filter(str.isprintable, file.read(200))) or "another process"
            raise FolderInUseError(
                f"{folder} is in use: {command} works there, {holder}. Wait for its end, or choose another name."
            ) from error
        except OSError as error:
            _LOGGER.warning("%s cannot be locked (%s): start no second %s of this name.", path, error, command)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        try:
            yield folder
        finally:
            file.truncate(0)
