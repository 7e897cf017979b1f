"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file, or a folder of files, beside its place, and rename it when the block has ended.

    Until then whatever was there is untouched, and so it stays if the block raises: what was written is removed. A
    folder that is there keeps what else lies in it, and its files are replaced one after the other.

    :param path: of the file or folder
    :return: what the block writes to: ``.NAME.PROCESS.tmp`` in the same folder
    :raises OSError: if it cannot be renamed
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        if beside.is_dir() and path.is_dir():
            for file in sorted(beside.iterdir(), reverse=True):  # a policy's weights, then its config
                os.replace(file, path / file.name)
            beside.rmdir()
        else:
            os.replace(beside, path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        raise


def synchronise(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on the disk.

    :raises OSError: if they cannot be
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that have no such thing
            raise
    finally:
        os.close(handle)
