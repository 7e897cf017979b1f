"""From YAML to dataclasses: every key checked, every value of the declared kind."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from gns.errors import InvalidSettingError, UnknownNameError

T = TypeVar("T")
CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


def check_choices(overrides: Sequence[str], folder: Path = CONFIG_FOLDER) -> None:
    """Check the names picked from configuration groups, such as ``task=[digits_mlp,mnist1d_mlp]``.

    Hydra's own message for an unknown name in a list does not say which names there are.

    :param overrides: arguments of a command line; what is no override of a group is left to Hydra
    :raises UnknownNameError: if a group has no config of that name
    """
    for argument in overrides:
        group, _, value = argument.partition("=")
        if not value or not (folder / group).is_dir() or not group:
            continue
        known = [path.stem for path in (folder / group).glob("*.yaml")]
        for name in value.strip("[]'\"").split(","):
            if name.strip() and name.strip() not in known:
                raise UnknownNameError(group, name.strip(), known)


def build(cls: type[T], settings: DictConfig | Mapping[str, Any], where: str = "") -> T:
    """Build a (nested) dataclass from a mapping.

    Lists become tuples where a tuple is declared; whole numbers pass for floats and numbers in strings such as
    ``1e-3`` (which YAML reads as text) for floats.

    :param where: path of the mapping in the configuration, for messages
    :raises UnknownNameError: on a key the dataclass has not
    :raises InvalidSettingError: on a value of another kind
    """
    if isinstance(settings, DictConfig):
        settings = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    if not isinstance(settings, Mapping):
        raise InvalidSettingError(f"{where or cls.__name__} is {settings!r}; expected settings by name.")
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key, value in settings.items():
        path = f"{where}.{key!s}" if where else str(key)
        if key not in known:
            raise UnknownNameError("setting", path, [f"{where}.{name}" if where else name for name in known])
        values[key] = _convert(hints[key], value, path)
    return cls(**values)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, path)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, path)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return tuple(_convert(a, item, f"{path}[{i}]") for i, (a, item) in enumerate(pairs))
    elif origin is not None and isinstance(value, Mapping):
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    elif hint is Any or (isinstance(hint, type) and isinstance(value, hint) and not _bool_for_number(hint, value)):
        return value
    elif hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise InvalidSettingError(f"{path} is {value!r}; expected {getattr(hint, '__name__', None) or hint}.")


def _bool_for_number(hint: type, value: Any) -> bool:
    return hint is int and isinstance(value, bool)
