"""Data sets by their Hugging Face Hub id, from a local folder or from the Hub."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gns.errors import GNSError, needing

DATA_ROOT = "GNS_DATA_ROOT"
_ROWS_READ = 500  # encoded images in memory at a time


class DataNotFoundError(GNSError, FileNotFoundError):
    """A data set is neither in the local folder nor to be had from the Hub."""


def data_root() -> Path | None:
    """Return the folder of data sets and models by Hub id, None if there is none; links and ``..`` are followed."""
    named = os.environ.get(DATA_ROOT)
    return Path(named).expanduser().resolve() if named else None


def without_root(text: str) -> str:
    """Return a message, which reports may quote, with the name of the data root in place of where it is."""
    root = data_root()
    return text.replace(str(root), f"${DATA_ROOT}") if root else text


def load_hub_dataset(hub_id: str, name: str | None = None) -> Any:
    """Return a data set as ``datasets.DatasetDict``.

    A folder of that id under the folder that ``GNS_DATA_ROOT`` names is read first, with no network; it has the layout
    of the Hub, and may be made of links. Otherwise ``datasets`` asks the Hub, or its own cache.

    :param hub_id: such as ``zalando-datasets/fashion_mnist``
    :param name: configuration of the data set, such as ``mrpc``
    :raises DataNotFoundError: if neither has it, or it is a script that would have to be run
    """
    with needing("text"):
        import datasets

    root = data_root()
    folder = root / hub_id if root else None
    local = folder is not None and folder.is_dir()
    try:
        with without_progress_bars():
            if folder is None or not local:
                return datasets.load_dataset(hub_id, name)
            # datasets tells local folders apart by name alone; their files decide here whether a cache is of use.
            cache = Path(datasets.config.HF_DATASETS_CACHE) / f"gns-{_fingerprint(folder)}"
            return datasets.load_dataset(str(folder), name, cache_dir=str(cache))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetNotFoundError) as error:
        missing = f"no folder {folder}" if folder else f"{DATA_ROOT} is not set"
        looked = f"{folder}: {error}" if local else f"{missing}; and on the Hub: {error}"
        raise DataNotFoundError(
            f"No data for {_named(hub_id, name)}. Looked in: {without_root(looked).rstrip('.')}. Either set "
            f"{DATA_ROOT} to a folder that holds {hub_id}/ in the Hub's layout, data files and no script, or run once "
            "with a network so that the Hub's copy is cached."
        ) from error


def load_hub_split(hub_id: str, part: str, columns: Sequence[str], name: str | None = None) -> Any:
    """Return one split of a data set as ``datasets.Dataset``.

    :param hub_id: see :func:`load_hub_dataset`
    :param part: name of the split, such as ``train``
    :param columns: those it must have
    :param name: see there
    :raises DataNotFoundError: if there is no such data set or split, or it has no examples, or lacks a column
    """
    data = load_hub_dataset(hub_id, name)
    where = f"The data of {_named(hub_id, name)}"
    if part not in data:
        raise DataNotFoundError(f"{where} have no split {part!r}, only {', '.join(data)}; expected the Hub's layout.")
    missing = [column for column in columns if column not in data[part].column_names]
    if missing or not len(data[part]):
        raise DataNotFoundError(
            f"{where} have {len(data[part])} examples with columns {', '.join(data[part].column_names) or 'none'} in "
            f"split {part!r}; expected some, with {', '.join(columns)}."
        )
    return data[part]


def _named(hub_id: str, name: str | None) -> str:
    return f"{hub_id!r}{f' ({name})' if name else ''}"


def _fingerprint(folder: Path) -> str:
    """Hash of where a folder and its files are, and of the sizes and times of these; links are followed."""
    about: list[tuple[Any, ...]] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        about.append((place, real))
        if real in seen:  # another link to a folder, or one that leads back
            folders.clear()
            continue
        seen.add(real)
        for path in (os.path.join(place, name) for name in sorted(names)):
            if os.path.isfile(path):
                about.append((path, os.path.realpath(path), os.path.getsize(path), os.stat(path).st_mtime_ns))
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep ``datasets`` from drawing progress bars."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def decode_images(column: Any, order: np.ndarray | None = None) -> np.ndarray:
    """Decode a column of encoded images of one size, a few at a time, into one array of a byte a pixel.

    :param column: a ``datasets.Dataset`` of one image column
    :param order: permutation of the rows, int64 (N,): image i of the result is row ``order[i]``; None: as they are
    :return: uint8 array (N, channels, height, width)
    :raises ValueError: if an image differs from the first in size or channels
    """
    import datasets
    import pyarrow
    from PIL import Image

    pyarrow.default_memory_pool().release_unused()  # what reading Parquet took, which would stay with the process
    name, count = column.column_names[0], len(column)
    encoded = column.cast_column(name, datasets.Image(decode=False))

    def decoded() -> Iterator[np.ndarray]:
        for start in range(0, count, _ROWS_READ):
            for cell in encoded[start : start + _ROWS_READ][name]:
                image = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
                yield image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)

    pixels = np.empty((count, *next(decoded()).shape), dtype=np.uint8)
    places = np.arange(count) if order is None else np.argsort(order)
    for row, (place, image) in enumerate(zip(places, decoded(), strict=True)):
        if image.shape != pixels.shape[1:]:
            raise ValueError(f"Image {row} is {image.shape}; expected {pixels.shape[1:]}, as the first one is.")
        pixels[place] = image
    return pixels
