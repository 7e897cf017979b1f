"""Data sets by their Hugging Face Hub id, from a local folder or from the Hub."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from gns.errors import GNSError

DATA_ROOT = "GNS_DATA_ROOT"


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
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(str(folder) if folder and folder.is_dir() else hub_id, name)
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        looked = f"no folder {folder}" if folder and not folder.is_dir() else str(folder or f"{DATA_ROOT} is not set")
        raise DataNotFoundError(
            f"No data for {hub_id!r}{f' ({name})' if name else ''}. Looked in: {looked}; and on the Hub: {error}. "
            f"Either set {DATA_ROOT} to a folder that holds {hub_id}/ in the Hub's layout, or run once with a network "
            "so that the Hub's copy is cached."
        ) from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def decode_images(column: Any) -> np.ndarray:
    """Decode a column of encoded images of one size.

    :param column: a ``datasets.Dataset`` of one image column
    :return: uint8 array (N, channels, height, width)
    """
    import datasets
    from PIL import Image

    name = column.column_names[0]
    encoded = column.cast_column(name, datasets.Image(decode=False))
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in encoded[name]])
    return images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
