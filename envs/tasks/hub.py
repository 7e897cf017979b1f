"""Data sets by their Hugging Face Hub id, from a local folder or from the Hub."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gns.errors import GNSError

DATA_ROOT = "GNS_DATA_ROOT"
_ROWS_READ = 500  # encoded images in memory at a time


class DataNotFoundError(GNSError, FileNotFoundError):
    """A data set is neither in the local folder nor to be had from the Hub."""


def load_hub_dataset(hub_id: str, name: str | None = None) -> Any:
    """Return a data set as ``datasets.DatasetDict``.

    A folder of that id under the folder that ``GNS_DATA_ROOT`` names is read first, with no network; it has the layout
    of the Hub. Otherwise ``datasets`` asks the Hub, or its own cache.

    :param hub_id: such as ``zalando-datasets/fashion_mnist``
    :param name: configuration of the data set, such as ``mrpc``
    :raises DataNotFoundError: if neither has it
    """
    import datasets

    root = os.environ.get(DATA_ROOT)
    folder = Path(root) / hub_id if root else None
    try:
        with without_progress_bars():
            if folder is None or not folder.is_dir():
                return datasets.load_dataset(hub_id, name)
            # datasets tells local folders apart by name alone; their files decide here whether a cache is of use.
            cache = Path(datasets.config.HF_DATASETS_CACHE) / f"gns-{_fingerprint(folder)}"
            return datasets.load_dataset(str(folder), name, cache_dir=str(cache))
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        looked = f"no folder {folder}" if folder and not folder.is_dir() else str(folder or f"{DATA_ROOT} is not set")
        raise DataNotFoundError(
            f"No data for {hub_id!r}{f' ({name})' if name else ''}. Looked in: {looked}; and on the Hub: {error}. "
            f"Either set {DATA_ROOT} to a folder that holds {hub_id}/ in the Hub's layout, or run once with a network "
            "so that the Hub's copy is cached."
        ) from error


def _fingerprint(folder: Path) -> str:
    """Hash of where a folder is and of the names, sizes and times of its files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    about = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((str(folder.resolve()), about)).encode()).hexdigest()[:16]


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
