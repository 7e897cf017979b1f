"""GLUE (Wang et al., 2019): fine-tuning of any sequence-classification encoder of ``transformers``.

The reward split is a tenth of the training split, drawn by a fixed seed; the published development split is the test
split, as labels of the published test splits are withheld.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from envs.tasks.base import FINE_TUNING, Metric, Split, Task, TrainingData, accuracy, cross_entropy, register_task
from envs.tasks.hub import load_hub_split
from envs.tasks.pretrained import load_tokenizer, locate
from envs.tasks.text import (
    BATCH_SIZE_IN_EVALUATION,
    SequenceClassifier,
    build_encoder,
    carve,
    decay_weights_only,
    pad,
    require_known_tokens,
    require_labels,
    require_text_settings,
    rows_of,
    tokenize,
)

HUB_ID = "nyu-mll/glue"
ENCODER = "FacebookAI/roberta-base"
_REWARD_SHARE = 0.1


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of predictions (N,) against scores (N,)."""
    return nn.functional.mse_loss(outputs, targets)


def _classes(outputs: Tensor) -> np.ndarray:
    return outputs.argmax(dim=-1).cpu().numpy()


def f1(outputs: Tensor, split: Split) -> float:
    """F1 of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(split.targets.cpu().numpy(), _classes(outputs), zero_division=0.0))


def matthews(outputs: Tensor, split: Split) -> float:
    """Matthews correlation coefficient; 0 where all predictions agree."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(split.targets.cpu().numpy(), _classes(outputs)))


def _correlation(of: Callable[[np.ndarray, np.ndarray], Any], outputs: Tensor, split: Split) -> float:
    """Correlation of predictions (N,) with scores (N,); 0 where one is constant or predictions are not finite."""
    predictions, scores = outputs.cpu().double().numpy(), split.targets.cpu().double().numpy()
    if not np.isfinite(predictions).all() or np.ptp(predictions) == 0.0 or np.ptp(scores) == 0.0:
        return 0.0
    return float(of(predictions, scores)[0])


def pearson(outputs: Tensor, split: Split) -> float:
    """Pearson correlation of predictions (N,) with scores (N,)."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, outputs, split)


def spearman(outputs: Tensor, split: Split) -> float:
    """Spearman correlation of predictions (N,) with scores (N,)."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, outputs, split)


def _accuracy_on(part: str, outputs: Tensor, split: Split) -> float:
    """Accuracy on one part of MNLI's development split; the training genres, like the reward split's, are matched."""
    if split.references is None:
        return accuracy(outputs, split) if part == "matched" else float("nan")
    rows = torch.from_numpy(split.references == part).to(outputs.device)
    return float((outputs.argmax(dim=-1) == split.targets)[rows].float().mean())


@dataclass(frozen=True)
class GlueTask:
    """What tells one GLUE task from another.

    :param name: of the configuration on the Hub
    :param keys: columns of the one or two sentences
    :param metrics: reported figures; the first is the task's metric
    :param classes: number of classes; 1: regression
    :param report: the splits reported on
    """

    name: str
    keys: tuple[str, ...]
    metrics: Mapping[str, Metric]
    classes: int = 2
    report: tuple[str, ...] = ("validation",)


_ACCURACY: Mapping[str, Metric] = {"accuracy": accuracy}
_ACCURACY_AND_F1: Mapping[str, Metric] = {"accuracy": accuracy, "f1": f1}
_MNLI: Mapping[str, Metric] = {
    "accuracy_matched": partial(_accuracy_on, "matched"),
    "accuracy_mismatched": partial(_accuracy_on, "mismatched"),
}
GLUE_TASKS = [
    GlueTask("cola", ("sentence",), {"matthews": matthews, "accuracy": accuracy}),
    GlueTask("sst2", ("sentence",), _ACCURACY),
    GlueTask("mrpc", ("sentence1", "sentence2"), _ACCURACY_AND_F1),
    GlueTask("stsb", ("sentence1", "sentence2"), {"pearson": pearson, "spearman": spearman}, classes=1),
    GlueTask("qqp", ("question1", "question2"), _ACCURACY_AND_F1),
    GlueTask("mnli", ("premise", "hypothesis"), _MNLI, 3, ("validation_matched", "validation_mismatched")),
    GlueTask("qnli", ("question", "sentence"), _ACCURACY),
    GlueTask("rte", ("sentence1", "sentence2"), _ACCURACY),
    GlueTask("wnli", ("sentence1", "sentence2"), _ACCURACY),
]


def read(task: GlueTask, part: str, encoder: str, max_length: int) -> Split:
    """Return one published split, tokenised.

    :raises DataNotFoundError: if data or tokenizer are nowhere to be had
    :raises UnlabelledDataError: if its labels are withheld
    """
    require_text_settings(encoder, max_length)
    data = load_hub_split(HUB_ID, part, (*task.keys, "label"), task.name)
    labels = np.asarray(data["label"])
    require_labels(labels, f"split {part!r} of {HUB_ID} ({task.name})")
    tokenizer = load_tokenizer(locate(encoder))

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [batch[key] for key in task.keys]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_token_type_ids=True)
        return {"ids": encoded["input_ids"], "segments": encoded["token_type_ids"]}

    encoded = tokenize(data, tokenizer, f"{', '.join(task.keys)}; {max_length} tokens", encode)
    inputs, lengths = pad(encoded, {"ids": tokenizer.pad_token_id, "segments": -1}, max_length)
    require_known_tokens(inputs, encoder)
    return Split(inputs, torch.from_numpy(labels.astype(np.float32 if task.classes == 1 else np.int64)), lengths)


@lru_cache(maxsize=9, typed=True)
def _training_data(name: str, encoder: str, max_length: int) -> TrainingData:
    whole = read(_BY_NAME[name], "train", encoder, max_length)
    contents = [hashlib.blake2b(example, digest_size=16).digest() for example in whole.inputs.numpy()]
    train, reward = carve(contents, _REWARD_SHARE)
    return TrainingData(rows_of(whole, train), rows_of(whole, reward))


def _test_split(name: str, encoder: str, max_length: int) -> Split:
    task = _BY_NAME[name]
    parts = [read(task, part, encoder, max_length) for part in task.report]
    if len(parts) == 1:
        return parts[0]
    labels = [
        np.full(len(split), part.removeprefix("validation_")) for part, split in zip(task.report, parts, strict=True)
    ]
    return Split(
        torch.cat([split.inputs for split in parts]),
        torch.cat([split.targets for split in parts]),
        torch.cat([split.lengths for split in parts if split.lengths is not None]),
        np.concatenate(labels),
    )


def build_classifier(encoder: str, pretrained: bool, max_length: int, classes: int) -> nn.Module:
    """Return an encoder with a new classification head on packed examples; regression where ``classes`` is 1."""
    return SequenceClassifier(
        build_encoder("AutoModelForSequenceClassification", encoder, pretrained, max_length, num_labels=classes)
    )


def _register(task: GlueTask) -> Task:
    return register_task(
        Task(
            name=f"glue_{task.name}",
            load_training_data=partial(_training_data, task.name),
            build_model=build_classifier,
            model={"encoder": ENCODER, "pretrained": True, "max_length": 128, "classes": task.classes},
            data_settings=("encoder", "max_length"),
            batch_size=32,
            epochs=3,
            optimizer="adamw",
            learning_rates=dict(FINE_TUNING),
            parameter_groups=decay_weights_only,
            clip_norm=1.0,  # the HF Trainer's max_grad_norm
            loss=mean_squared_error if task.classes == 1 else cross_entropy,
            metrics=task.metrics,
            evaluation_batch_size=BATCH_SIZE_IN_EVALUATION,
        ),
        partial(_test_split, task.name),
    )


_BY_NAME = {task.name: task for task in GLUE_TASKS}
for _task in GLUE_TASKS:
    _register(_task)
