"""Every registered task, small enough to run through the conformance tests, on data made here.

Tasks on data from the Hub read a made-up folder in the Hub's layout, so that the tests need neither network nor data.
"""

import io
from pathlib import Path

import numpy as np

from envs.tasks import Task, get_task

# Settings that shrink the larger networks; their structure stays.
SMALL = {
    "cifar10_resnet20": {"depth": 8, "width": 4},
    "cifar10_wrn16_8": {"depth": 10, "widen": 1},
    "cifar10_vgg16": {"width": 4},
}
IMAGE_SETS = {
    "zalando-datasets/fashion_mnist": ("image", (28, 28)),
    "ylecun/mnist": ("image", (28, 28)),
    "uoft-cs/cifar10": ("img", (32, 32, 3)),
}
HUB_TASKS = ("fashion_mnist", "mnist_", "cifar10")


def conformance_task(name: str) -> Task:
    if not name.startswith(HUB_TASKS):
        return get_task(name)
    return get_task(name, batch_size=16, model=SMALL.get(name, {}))


def make_hub(root: Path) -> None:
    """Write 600 training and 120 test images of noise for each image set, as the Hub stores them."""
    import datasets
    from PIL import Image

    rng = np.random.default_rng(0)
    for hub_id, (column, shape) in IMAGE_SETS.items():
        for part, count in (("train", 600), ("test", 120)):
            encoded = []
            for pixels in rng.integers(0, 130, (count, *shape), dtype=np.uint8):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, format="PNG")
                encoded.append({"bytes": file.getvalue(), "path": None})
            features = datasets.Features(
                {column: datasets.Image(), "label": datasets.ClassLabel(names=[str(i) for i in range(10)])}
            )
            table = datasets.Dataset.from_dict({column: encoded, "label": [i % 10 for i in range(count)]}, features)
            target = root / hub_id / "data" / f"{part}-00000-of-00001.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(target)
