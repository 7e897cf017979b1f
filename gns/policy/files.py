"""Files of anyone's making, read with limits: nothing large is allocated before it is known to belong to a policy."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gns.errors import PolicyFormatError

MAX_CONFIG_BYTES = 2**20
MAX_FILE_BYTES = 256 * 2**20  # no policy comes near; keeps a hostile file from filling the memory
MAX_HEADER_BYTES = 2**20
MAX_DEPTH = 32  # objects and lists within each other, in JSON
FLOAT_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # by safetensors' names
_SHOWN = 200


def own_file(path: Path) -> Path:
    """Return where a file of a folder really lies, links followed.

    :raises PolicyFormatError: if it is no regular file, or a link leads out of the folder. In a cache of the Hub's
        client the files of a snapshot are links to the blobs of its repository, which count as in it
    """
    try:
        folder, real = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
        regular = stat.S_ISREG(real.stat().st_mode)
    except (OSError, ValueError) as error:  # the latter: a name that no file can have
        raise PolicyFormatError(f"{path} cannot be read ({error}); expected a file of a policy.") from error
    if not regular:
        raise PolicyFormatError(f"{path} is no regular file; expected one of a policy's.")
    blobs = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    if real.parent not in [folder, *blobs]:
        raise PolicyFormatError(
            f"{path} is a link out of its folder, to {real}; expected a file of the policy's own. Copy the file there."
        )
    return real


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes, see :func:`own_file`.

    :raises PolicyFormatError: if it is larger, no such file, or cannot be read
    """
    real = own_file(path)
    try:
        # What took its place since is not followed, and not waited for.
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode):
                raise PolicyFormatError(f"{path} is no regular file; expected one of a policy's.")
            if about.st_size > limit:
                raise PolicyFormatError(f"{path} has {about.st_size:,} bytes; expected at most {limit:,} for a policy.")
            content = file.read(about.st_size + 1)  # a buffer of that size is made at once
    except OSError as error:
        raise PolicyFormatError(f"{path} cannot be read ({error}); expected a file of a policy.") from error
    if len(content) > about.st_size:
        raise PolicyFormatError(
            f"{path} grew while it was read; expected a file that nothing writes to. Load it again."
        )
    return content


def parse_json(content: bytes) -> Any:
    """Return what strict JSON says: no key twice in an object, nothing nested deeper than :data:`MAX_DEPTH`.

    NaN and infinity pass, as they do in :mod:`json`.

    :raises ValueError: on anything else
    """
    try:
        data = json.loads(content.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    level = [data]
    for _ in range(MAX_DEPTH):
        inner = [item for item in level if isinstance(item, dict | list)]
        level = [value for item in inner for value in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return data
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def check_weights(content: bytes, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Pass a safetensors file that holds just these tensors, as far as its header says.

    The header is read by itself, before anything of the sizes it claims is allocated.

    :param content: the file
    :param expected: shapes by name
    :raises ValueError: if names, shapes, kinds of number, or the file's length are others, naming the first
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header claims {length:,} bytes of the {len(content):,} that there are")
    header = parse_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    header.pop("__metadata__", None)
    if missing := sorted(set(expected) - set(header)):
        raise ValueError(f"missing: {shown(missing)}")
    if extra := sorted(set(header) - set(expected)):
        raise ValueError(f"not in this policy: {shown(extra)}")
    total = 0
    for name, shape in expected.items():
        about = header[name]
        if not isinstance(about, dict) or not isinstance(about.get("shape"), list):
            raise ValueError(f"its header has no shape of {name}")
        if about["shape"] != list(shape) or any(type(size) is not int for size in about["shape"]):
            raise ValueError(f"size mismatch for {name}: {shown(about['shape'])}, expected {list(shape)}")
        kind = about.get("dtype")
        if not isinstance(kind, str) or kind not in FLOAT_BYTES:
            raise ValueError(f"{name} holds {shown(kind)}; expected one of {', '.join(FLOAT_BYTES)}")
        total += FLOAT_BYTES[kind] * math.prod(shape)
    if 8 + length + total != len(content):
        raise ValueError(f"it has {len(content):,} bytes; its header asks for {8 + length + total:,}")


def shown(value: Any, limit: int = _SHOWN) -> str:
    """Return ``repr(value)``, cut off where it is long: the value may come from a file of any content."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)} comes twice")
        found[key] = value
    return found
