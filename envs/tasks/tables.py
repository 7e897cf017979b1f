"""Tables: scikit-learn's breast cancer data with an MLP, and a generated table with a residual network. No download.

Neither has a published split: with a fixed seed and equal class shares, 60 % train, 20 % are the reward split and 20 %
are the test split. Columns are standardised by the training rows.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import Split, Task, TrainingData, register_task
from envs.tasks.models import mlp

_SEED = 20220425
_HASTIE_EXAMPLES = 12_000


@lru_cache(maxsize=2)
def _parts(name: str) -> list[Split]:
    """Training, reward and test split."""
    from sklearn import datasets  # takes seconds, which those who train on other tasks need not wait
    from sklearn.model_selection import train_test_split

    if name == "hastie_10_2":
        table, labels = datasets.make_hastie_10_2(_HASTIE_EXAMPLES, random_state=_SEED)
        labels = (labels > 0).astype(np.int64)
    else:
        table, labels = datasets.load_breast_cancer(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=_SEED, stratify=labels)
    train, reward = train_test_split(rest, test_size=0.25, random_state=_SEED, stratify=labels[rest])
    table = (table - table[train].mean(0)) / table[train].std(0)
    inputs, targets = torch.from_numpy(table.astype(np.float32)), torch.from_numpy(labels.astype(np.int64))
    return [Split(inputs[rows], targets[rows]) for rows in (train, reward, test)]


def _training_data(name: str) -> TrainingData:
    return TrainingData(*_parts(name)[:2])


def _test_split(name: str) -> Split:
    return _parts(name)[2]


class _Block(nn.Module):
    """``x + Dropout(Linear(Dropout(ReLU(Linear(BatchNorm(x))))))``."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width)."""
        return x + self.body(x)


def table_resnet(inputs: int, classes: int, width: int, hidden: int, blocks: int, dropout: float) -> nn.Sequential:
    """Residual network for tables (Gorishniy et al., "Revisiting deep learning models for tabular data", 2021)."""
    body = [_Block(width, hidden, dropout) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *body, nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


register_task(
    Task(
        name="cancer_mlp",
        load_training_data=partial(_training_data, "breast_cancer"),
        build_model=mlp,
        model={"inputs": 30, "hidden": [64, 32], "classes": 2},
        batch_size=16,
        epochs=20,
    ),
    partial(_test_split, "breast_cancer"),
)
register_task(  # Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, example 10.2
    Task(
        name="hastie_resnet",
        load_training_data=partial(_training_data, "hastie_10_2"),
        build_model=table_resnet,
        model={"inputs": 10, "classes": 2, "width": 32, "hidden": 64, "blocks": 2, "dropout": 0.1},
        batch_size=64,
        epochs=4,
    ),
    partial(_test_split, "hastie_10_2"),
)
