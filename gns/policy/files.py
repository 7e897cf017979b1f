"""Files of anyone's making, read with limits: nothing large is allocated before it is known to belong to a policy."""

from __future__ import annotations

import json
import math
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


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    :raises PolicyFormatError: if it is larger, no regular file, or cannot be read
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise PolicyFormatError(f"{path} is no regular file; expected one of a policy's.")
        if about.st_size > limit:
            raise PolicyFormatError(f"{path} has {about.st_size:,} bytes; expected at most {limit:,} for a policy.")
        with path.open("rb") as file:
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
