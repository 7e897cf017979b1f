"""MNIST-1D (Greydanus, "Scaling down deep learning", 2020): 40-point signals of 10 classes, generated, no download.

4,000 published training examples, of which the last 1,000 are the reward split, and 1,000 published test examples.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.models import cnn_1d, mlp

_REWARD_EXAMPLES = 1000


def _generate() -> dict[str, Any]:
    """Generate the published set; the generator seeds global random numbers, which are put back."""
    from mnist1d.data import get_dataset_args, make_dataset  # imports matplotlib.pyplot

    outside = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        return make_dataset(get_dataset_args())
    finally:
        random.setstate(outside[0])
        np.random.set_state(outside[1])
        torch.set_rng_state(outside[2])


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    inputs = torch.from_numpy(x.astype(np.float32).copy()).unsqueeze(1)
    return Split(inputs, torch.from_numpy(y.astype(np.int64).copy()))


@lru_cache(maxsize=1)
def _training_data() -> TrainingData:
    data = _generate()
    cut = len(data["x"]) - _REWARD_EXAMPLES
    return TrainingData(_split(data["x"][:cut], data["y"][:cut]), _split(data["x"][cut:], data["y"][cut:]))


def _test_split() -> Split:
    data = _generate()
    return _split(data["x_test"], data["y_test"])


MNIST1D_MLP = register_task(
    Task(
        name="mnist1d_mlp",
        load_training_data=_training_data,
        build_model=mlp,
        model={"inputs": 40, "hidden": [100, 100], "classes": 10},
        budget=1000,
    ),
    _test_split,
)
MNIST1D_CNN = register_task(
    Task(
        name="mnist1d_cnn",
        load_training_data=_training_data,
        build_model=cnn_1d,
        model={"channels": 25, "length": 40, "classes": 10},
        budget=1000,
    ),
    _test_split,
)
