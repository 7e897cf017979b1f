"""A model and a sample batch to take a layer graph from: of a class anyone names, or of a model of transformers."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import InvalidSettingError, UnknownNameError

DTYPES: dict[str, torch.dtype] = {"float": torch.float32, "long": torch.int64, "bool": torch.bool}
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_BATCH, _TOKENS, _SAMPLES = 2, 8, 16_000


@dataclass(frozen=True)
class Target:
    """A model with one batch for it.

    :param model: in the mode its graph is to be taken in
    :param positional: inputs of a forward pass in order
    :param named: inputs of a forward pass by name
    """

    model: nn.Module
    positional: tuple[Tensor, ...] = ()
    named: dict[str, Any] | None = None

    def forward(self) -> Any:
        """Return the outputs of a forward pass.

        :raises InvalidSettingError: if the model does not take these inputs
        """
        try:
            return self.model(*self.positional, **(self.named or {}))
        except Exception as error:  # a model of anyone's making raises whatever it likes
            raise InvalidSettingError(
                f"{type(self.model).__name__} does not take the sample batch {', '.join(self.describe())} "
                f"({type(error).__name__}: {error}). Give the shape of each of its inputs, without the batch, as in "
                "--input 3,32,32, and --input-dtype long for token ids; some models do not allow --meta."
            ) from error

    def describe(self) -> list[str]:
        """Return kind and shape of each input."""
        items = [(str(place), value) for place, value in enumerate(self.positional)] + list((self.named or {}).items())
        return [
            f"{name}: {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            for name, value in items
            if isinstance(value, Tensor)
        ]


def load_target(
    target: str,
    arguments: str | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
    dtypes: Sequence[str] = (),
    auto_class: str | None = None,
    revision: str | None = None,
) -> Target:
    """Build the model that ``target`` names, with random weights, and a batch of two for it.

    :param target: ``package.module:Class`` (anything that returns a ``nn.Module`` when called), which imports that
        module and so runs it; or a local folder or Hub id of a model of transformers, of which the configuration alone
        is read and no code is run
    :param arguments: JSON to call the class with: an object of keyword arguments or a list of positional ones
    :param shapes: shape of each input without its batch; none: those that transformers' models know themselves
    :param dtypes: one of :data:`DTYPES` for each shape, or one for all
    :param auto_class: class of transformers to build a configuration's model with, such as
        ``AutoModelForSequenceClassification``; by default the one the configuration names
    :param revision: branch, tag or commit of a Hub id
    :raises InvalidSettingError, UnknownNameError: if no model or no batch can be had
    """
    if _CLASS.fullmatch(target) and not os.path.exists(target):
        model = _call_class(target, arguments)
    else:
        with _quiet_transformers():
            model = _from_configuration(target, arguments, auto_class, revision)
    if shapes:
        return Target(model, positional=_batch(model, shapes, dtypes))
    if hasattr(model, "main_input_name") and hasattr(model, "config"):
        return Target(model, named=_own_inputs(model))
    raise InvalidSettingError(
        f"No --input is given for {type(model).__name__}; expected the shape of each of its inputs, without the batch, "
        "such as --input 3,32,32, or --input 128 --input-dtype long for token ids."
    )


def _call_class(target: str, arguments: str | None) -> nn.Module:
    module_name, _, path = target.partition(":")
    try:
        called: Any = importlib.import_module(module_name)
    except Exception as error:  # importing runs the module
        raise InvalidSettingError(
            f"{module_name} cannot be imported ({type(error).__name__}: {error}). Expected a module on Python's path: "
            "the current folder, what is installed, PYTHONPATH."
        ) from error
    for name in path.split("."):
        if not hasattr(called, name):
            close = difflib.get_close_matches(name, dir(called), n=3)
            raise InvalidSettingError(
                f"{module_name} has no {path}; expected a class or function there that gives a torch.nn.Module."
                + (f" Did you mean {' or '.join(close)}?" if close else "")
            )
        called = getattr(called, name)
    given = _parse_arguments(arguments)
    try:
        model = called(*given) if isinstance(given, list) else called(**given)
    except Exception as error:
        raise InvalidSettingError(
            f"{target} cannot be called with {given!r} ({type(error).__name__}: {error}). Give its arguments as JSON: "
            """--args '{"hidden": 64}'."""
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidSettingError(f"{target} gave a {type(model).__name__}; expected a torch.nn.Module.")
    return model


def _parse_arguments(arguments: str | None) -> dict[str, Any] | list[Any]:
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidSettingError(
            f"--args is {arguments!r}, which is not JSON ({error}); expected an object."
        ) from error
    if not isinstance(given, dict | list):
        raise InvalidSettingError(f"--args is {arguments!r}; expected a JSON object or list.")
    return given


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep advice on loading and generating off standard error."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _from_configuration(source: str, arguments: str | None, auto_class: str | None, revision: str | None) -> nn.Module:
    """Build a model of transformers with random weights from ``config.json``, the one file that is read."""
    import transformers

    given = _parse_arguments(arguments)
    if not isinstance(given, dict):
        raise InvalidSettingError(f"--args is {arguments!r}; expected an object of settings of the configuration.")
    try:
        config = transformers.AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False, **given)
    except Exception as error:
        raise InvalidSettingError(
            f"No model at {source!r}: it is no package.module:Class, and transformers has no configuration from a "
            f"folder or Hub id of that name ({type(error).__name__}: {error}). Check the name or the network."
        ) from error
    named = (getattr(config, "architectures", None) or ["AutoModel"])[0] if auto_class is None else auto_class
    built: Any = getattr(transformers, str(named), None)
    try:
        if str(named).startswith("Auto") and hasattr(built, "from_config"):
            model = built.from_config(config, trust_remote_code=False, dtype=torch.float32)
        elif isinstance(built, type) and issubclass(built, transformers.PreTrainedModel):
            model = built(config)
        else:
            raise InvalidSettingError(
                f"transformers has no model class {named!r}; expected one such as AutoModel or BertForMaskedLM. Name "
                "one with --auto-class."
            )
    except InvalidSettingError:
        raise
    except Exception as error:
        raise InvalidSettingError(
            f"{named} cannot be built from the configuration of {source!r} ({type(error).__name__}: {error}). Name "
            "another class with --auto-class."
        ) from error
    return model.eval()  # or LayerDrop might leave out a layer


def _batch(model: nn.Module, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> tuple[Tensor, ...]:
    """Two random samples of each shape; ids are within the smallest embedding table."""
    kinds = list(dtypes) or ["float"]
    if len(kinds) not in (1, len(shapes)):
        raise InvalidSettingError(
            f"--input-dtype is given {len(kinds)} times for {len(shapes)} inputs; expected once, or once an input."
        )
    if unknown := [kind for kind in kinds if kind not in DTYPES]:
        raise UnknownNameError("input dtype", unknown[0], DTYPES)
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    inputs = []
    for shape, kind in zip(shapes, kinds * (len(shapes) if len(kinds) == 1 else 1), strict=True):
        size = (_BATCH, *shape)
        inputs.append(torch.randn(size) if kind == "float" else torch.randint(min(tables, default=2), size))
        if kind == "bool":
            inputs[-1] = inputs[-1] % 2 == 0
    return tuple(inputs)


# ---------------------------------------------------------------------- inputs that transformers' models take


def _own_inputs(model: Any) -> dict[str, Any]:
    """Return inputs by the model's own ``dummy_inputs``, or else by its configuration.

    :raises InvalidSettingError: if neither says what it takes
    """
    config, main = model.config, model.main_input_name
    given = dict(model.dummy_inputs)
    if main in given:
        inputs = {name: _within(value, config) if name.endswith("_ids") else value for name, value in given.items()}
    elif main == "pixel_values":
        inputs = {main: _images(config, _BATCH)}
    elif main == "input_features":
        inputs = {main: torch.randn(_BATCH, config.num_mel_bins, 2 * getattr(config, "max_source_positions", 500))}
    elif main == "input_values":
        spectrogram = hasattr(config, "num_mel_bins") and hasattr(config, "max_length")
        size = (config.max_length, config.num_mel_bins) if spectrogram else (_SAMPLES,)
        inputs = {main: torch.randn(_BATCH, *size)}
    else:
        raise InvalidSettingError(
            f"{type(model).__name__} takes {main!r}, of which its configuration does not say the shape. Give the shape "
            "of each input, without the batch, by --input."
        )
    count = len(inputs[main])
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _within(torch.arange(count * _TOKENS).reshape(count, _TOKENS), config)
    if getattr(config, "vision_config", None) is not None and "pixel_values" not in inputs:
        inputs["pixel_values"] = _images(config.vision_config, count)
    return inputs


def _within(ids: Tensor, config: Any) -> Tensor:
    """Keep token ids within the vocabulary."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return ids % size if size else ids


def _images(config: Any, count: int) -> Tensor:
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    frames = [config.num_frames] if hasattr(config, "num_frames") else []
    return torch.randn(count, *frames, getattr(config, "num_channels", 3), height, width)
