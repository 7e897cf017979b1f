"""Every registered task, small enough to run through the conformance tests, on data made here.

Tasks on data from the Hub read a made-up folder in the Hub's layout, so that the tests need neither network nor data.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_hub import TEXT_TASKS
from torch import Tensor

from envs.tasks import Split, Task, get_task, known_tasks
from envs.tasks.vae import VAEOutputs

# Settings that shrink the larger networks; their structure stays.
SMALL = {
    "cifar10_resnet20": {"depth": 8, "width": 4},
    "cifar10_wrn16_8": {"depth": 10, "widen": 1},
    "cifar10_vgg16": {"width": 4},
    "cifar10_resnet50": {"config": {"embedding_size": 8, "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}},
    "cifar10_vit": {
        "config": {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 48,
        }
    },
    "cifar100_vgg16": {"width": 4},
    "cifar100_resnet38": {"depth": 14, "width": 4},
    "stl10_wrn16_8": {"depth": 10, "widen": 1},
    "mnist_vae": {"hidden": [32, 16]},
    "fashion_mnist_vae": {"hidden": [32, 16]},
    "squad": {"max_length": 48, "stride": 12},
    **{name: {"max_length": 32} for name in known_tasks() if name.startswith("glue_")},
}
# Names of the image and of the label column, shape of an image, training and test images.
IMAGE_SETS = {
    "zalando-datasets/fashion_mnist": ("image", "label", (28, 28), 600, 120),
    "ylecun/mnist": ("image", "label", (28, 28), 600, 120),
    "uoft-cs/cifar10": ("img", "label", (32, 32, 3), 600, 120),
    "uoft-cs/cifar100": ("img", "fine_label", (32, 32, 3), 600, 120),
    "tanganke/stl10": ("image", "label", (96, 96, 3), 500, 100),
}
HUB_TASKS = ("fashion_mnist", "mnist_", "cifar10", "stl10", *TEXT_TASKS)


def conformance_task(name: str) -> Task:
    if not name.startswith(HUB_TASKS):
        return get_task(name)
    batch_size = 4 if name.startswith("stl10") else 16  # its images are large
    return get_task(name, batch_size=batch_size, model=SMALL.get(name, {}))


def make_hub(root: Path) -> None:
    """Write some training and test images of noise for each image set, as the Hub stores them."""
    import datasets
    from PIL import Image

    rng = np.random.default_rng(0)
    for hub_id, (image, label, shape, *counts) in IMAGE_SETS.items():
        classes = {label: 100, "coarse_label": 20} if label == "fine_label" else {label: 10}
        for part, count in zip(("train", "test"), counts, strict=True):
            encoded = []
            for pixels in rng.integers(0, 130, (count, *shape), dtype=np.uint8):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, format="PNG")
                encoded.append({"bytes": file.getvalue(), "path": None})
            labels = {column: [i % number for i in range(count)] for column, number in classes.items()}
            features = {
                column: datasets.ClassLabel(names=[str(i) for i in range(number)]) for column, number in classes.items()
            }
            table = datasets.Dataset.from_dict(
                {image: encoded, **labels}, datasets.Features({image: datasets.Image(), **features})
            )
            target = root / hub_id / "data" / f"{part}-00000-of-00001.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(target)


def answers(task: Task, split: Split) -> tuple[Any, Any]:
    """Return the outputs of a model that is right about every example of a split, and of one that is wrong."""
    if task.name.endswith("mnist_vae"):
        logits = torch.logit(split.inputs.flatten(1) / 255, eps=1e-3)
        nothing = torch.zeros(len(split), 2)
        return VAEOutputs(logits, nothing, nothing), VAEOutputs(-logits, nothing, nothing)
    if task.name == "glue_stsb":
        return split.targets, 5.0 - split.targets
    if task.name == "squad":
        one_hot = torch.nn.functional.one_hot(split.targets, split.inputs.shape[-1]).float()
        context = split.inputs[:, 2:].float()
        return torch.cat([10 * one_hot, context], 1), torch.cat([10 * one_hot.roll(3, dims=2), context], 1)
    classes = int(split.targets.max()) + 1
    one_hot = torch.nn.functional.one_hot(split.targets, classes).float()
    return 10 * one_hot, 10 * one_hot.roll(1, dims=1)


def rows_of(outputs: Any, rows: slice) -> Any:
    """Return some examples' part of outputs, which are a tensor or a named tuple of tensors."""
    return outputs[rows] if isinstance(outputs, Tensor) else type(outputs)(*(part[rows] for part in outputs))
