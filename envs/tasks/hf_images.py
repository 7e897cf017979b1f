"""Image classifiers of ``transformers``: by type and configuration, or pretrained by Hub id.

Pretrained weights are read from disk once a process. Pixels are normalised by their data set's figures, whatever a
pretrained network saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from envs.tasks.images import CIFAR10, register_image_task
from envs.tasks.pretrained import Template, explained, locate, quiet, read_template
from gns.errors import InvalidSettingError, UnknownNameError, needing, require_count


class HFImageClassifier(nn.Module):
    """An image classifier of ``transformers`` that takes images of any size and returns logits.

    :param network: it
    :param size: pixels a side that images are resized to, on their device; None: they stay as they are
    """

    def __init__(self, network: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (N, classes) of float images (N, C, H, W)."""
        if self.size is not None:
            pixels = nn.functional.interpolate(pixels, size=(self.size, self.size), mode="bilinear")
        return self.network(pixel_values=pixels).logits


def hf_image_classifier(
    channels: int,
    classes: int,
    type: str | None = None,
    config: Mapping[str, Any] | None = None,
    id: str | None = None,
    size: int | None = None,
) -> HFImageClassifier:
    """Build an image classifier of ``transformers``, from torch's global random numbers.

    :param channels: channels of the images
    :param classes: number of classes
    :param type: such as ``resnet`` or ``vit``, for a network trained from scratch
    :param config: what its configuration, or that of the pretrained network, is to have otherwise
    :param id: Hub id, or path of a folder, of a pretrained network; what its weights do not fit, the head above all, is
        drawn anew at each build. A folder of that id under ``GNS_DATA_ROOT`` is read first
    :param size: pixels a side that images are resized to, bilinearly; None: they stay as they are
    :raises InvalidSettingError: if not exactly one of ``type`` and ``id`` is given, or it is no image classifier, or a
        setting has a value it cannot have
    :raises UnknownNameError: if its configuration has no such setting
    :raises DataNotFoundError: if there are no weights to be had for ``id``
    """
    if (type is None) == (id is None):
        raise InvalidSettingError(f"type is {type!r} and id is {id!r}; expected one of the two, null for the other.")
    if size is not None:
        require_count("size", size)
    if type is not None:
        network = _new(type, channels, classes, config or {})
    else:
        assert id is not None
        overrides = json.dumps(dict(config or {}), sort_keys=True)
        network = _pretrained(id, locate(id), channels, classes, overrides).new()
    return HFImageClassifier(network.train(), size)


def _new(type: str, channels: int, classes: int, config: Mapping[str, Any]) -> Any:
    with needing("text"):
        from transformers import AutoConfig, AutoModelForImageClassification

    _require_image_classifier("type", type)
    settings = _settings(AutoConfig.for_model(type), channels, classes, config)
    with _valid_settings(f"type {type!r}"):
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(type, **settings))


@lru_cache(maxsize=2)
def _pretrained(id: str, location: str, channels: int, classes: int, config: str) -> Template:
    with needing("text"):
        from transformers import AutoConfig

    with quiet():
        with explained(location, "weights"):
            own = AutoConfig.from_pretrained(location, trust_remote_code=False)
        _require_image_classifier(f"Model type of id {id!r}", own.model_type)
        with _valid_settings(f"id {id!r}"):
            changes = _settings(own, channels, classes, json.loads(config))
            wanted = AutoConfig.from_pretrained(location, trust_remote_code=False, **changes)
        with explained(location, "weights"):
            return read_template("AutoModelForImageClassification", location, config=wanted)


def _settings(default: Any, channels: int, classes: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a configuration, by names that it has."""
    for name in config:
        if not hasattr(default, name):
            raise UnknownNameError(f"config setting of model type {default.model_type}", name, default.to_dict())
    own = {"num_channels": channels} if hasattr(default, "num_channels") else {}
    return {"num_labels": classes, **own, **config}


def _require_image_classifier(what: str, type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    if type not in KNOWN:
        raise InvalidSettingError(
            f"{what} is {type!r}; expected a type of image classifier: {', '.join(sorted(KNOWN))}."
        )


@contextmanager
def _valid_settings(what: str) -> Iterator[None]:
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except StrictDataclassError as error:
        raise InvalidSettingError(f"config of {what} is not valid: {' '.join(str(error).split())}") from error


_SMALL_VIT = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": 192,
    "num_hidden_layers": 12,
    "num_attention_heads": 3,
    "intermediate_size": 768,
}
_FROM_SCRATCH: dict[str, Any] = {"id": None, "size": None}

# Budgets: ten passes over the training split.
register_image_task("cifar10_resnet50", CIFAR10, hf_image_classifier, 3120, type="resnet", config={}, **_FROM_SCRATCH)
register_image_task(
    "cifar10_vit", CIFAR10, hf_image_classifier, 3120, optimizer="adamw", type="vit", config=_SMALL_VIT, **_FROM_SCRATCH
)
