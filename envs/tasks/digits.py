"""scikit-learn's 1,797 scans of handwritten digits (8x8 pixels, 10 classes), as an MLP and a CNN task.

The set has no published split. With a fixed seed and equal class shares, 60 % train, 20 % are the reward split and
20 % are the test split.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.models import cnn_2d, mlp

_SEED = 20220425


def _parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers of the train, reward and test split."""
    from sklearn.datasets import load_digits  # takes seconds, which those who train on other tasks need not wait
    from sklearn.model_selection import train_test_split

    targets = load_digits().target
    rest, test = train_test_split(np.arange(len(targets)), test_size=0.2, random_state=_SEED, stratify=targets)
    train, reward = train_test_split(rest, test_size=0.25, random_state=_SEED, stratify=targets[rest])
    return train, reward, test


def _split(rows: np.ndarray) -> Split:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Mean 4.9 and deviation 6.0 of the training pixels, rounded: constants, so that no split depends on another.
    images = (digits.images[rows].astype(np.float32) - 4.9) / 6.0
    return Split(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(digits.target[rows].astype(np.int64)))


@lru_cache(maxsize=1)
def _training_data() -> TrainingData:
    train, reward, _ = _parts()
    return TrainingData(_split(train), _split(reward))


def _test_split() -> Split:
    return _split(_parts()[2])


DIGITS_MLP = register_task(
    Task(
        name="digits_mlp",
        load_training_data=_training_data,
        build_model=mlp,
        model={"inputs": 64, "hidden": [64, 32], "classes": 10},
        budget=300,
    ),
    _test_split,
)
DIGITS_CNN = register_task(
    Task(
        name="digits_cnn",
        load_training_data=_training_data,
        build_model=cnn_2d,
        model={"channels": [16, 32], "size": 8, "classes": 10},
        budget=300,
    ),
    _test_split,
)
