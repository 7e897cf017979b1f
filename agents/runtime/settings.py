"""From YAML to dataclasses: every key checked, every value of the declared kind, and nothing that names code."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from envs.tasks import get_task, known_tasks
from gns.errors import InvalidSettingError, UnknownNameError

T = TypeVar("T")
CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "configs"


# What Hydra itself reads from its own settings may import anything: callbacks, launchers, log handlers, search paths.
_HYDRA_SETTINGS = ("run.dir", "sweep.dir", "sweep.subdir", "job.name", "output_subdir", "verbose", "mode")
_FLAGS = ("--config-path", "--config-dir", "--config-name", "--experimental-rerun")  # other files; the last a pickle
_SHORT_FLAGS = ("-cp", "-cd", "-cn")
_WITH_VALUE = ("--cfg", "-c", "--info", "-i", "--package", "-p")  # options of Hydra that show, as --cfg job
_CODE_KEYS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_", "_method_")


def check_choices(overrides: Sequence[str], folder: Path = CONFIG_FOLDER) -> None:
    """Check a command line before Hydra reads it.

    Names picked from configuration groups, such as ``task=[digits_mlp,mnist1d_mlp]``, must be of configs there: Hydra's
    own message for an unknown name in a list does not say which names there are, and it would follow ``../`` to files
    elsewhere. What would have Hydra import objects, or read other files of configuration, is refused.

    :param overrides: arguments of a command line; options of Hydra's own are left to it
    :raises UnknownNameError: if a group has no config of that name
    :raises InvalidSettingError: on what is no override, a key that names code, a setting of Hydra other than where it
        writes, or an option that brings other configuration files
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # takes long, and workers need none
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for before, argument in zip(["", *overrides], overrides, strict=False):
        if before in _WITH_VALUE and argument.isidentifier():
            continue
        _check_flag(argument)
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            if argument.startswith("-"):
                continue
            raise InvalidSettingError(
                f"{argument[:200]} is no setting; expected KEY=VALUE, with quotes around a value that has braces, "
                f"brackets, commas, spaces or the like in it, as in name='a b' ({str(error).splitlines()[0][:200]})."
            ) from error
        except RecursionError as error:
            raise InvalidSettingError(f"{argument[:100]}... is nested too deeply; expected a flatter value.") from error
        _check_override(override, argument, folder)


def _check_flag(argument: str) -> None:
    name = argument.partition("=")[0]
    abbreviates = len(name) > 2 and name != "--cfg" and any(flag.startswith(name) for flag in _FLAGS)
    if abbreviates or name in _SHORT_FLAGS:
        raise InvalidSettingError(
            f"{argument} would read configuration from elsewhere; expected settings such as seed=1. Put a YAML file of "
            f"your own into a folder under {CONFIG_FOLDER}, and name it as in task=[mine]."
        )


def _check_override(override: Any, argument: str, folder: Path) -> None:
    group, package, value = str(override.key_or_group), str(override.package or ""), override.value()
    first, _, setting = group.partition(".")
    of_hydra = first.partition("/")[0] == "hydra"
    if (of_hydra and (setting not in _HYDRA_SETTINGS or override.is_delete())) or "hydra" in package.split("."):
        raise InvalidSettingError(
            f"{argument} changes Hydra itself, which may then import any object; expected only where it writes: "
            f"{', '.join(f'hydra.{name}' for name in _HYDRA_SETTINGS)}."
        )
    if any(part in _CODE_KEYS for part in re.split(r"[./]", f"{group}.{package}")) or _names_code(value):
        raise InvalidSettingError(_refusal(argument))
    if "/" in group and not (folder / group).is_dir():
        raise UnknownNameError("group of configurations", group, [p.name for p in folder.iterdir() if p.is_dir()])
    if group and (folder / group).is_dir():
        known = [path.stem for path in (folder / group).glob("*.yaml")]
        if override.is_delete():  # Hydra takes one name or none, and says which are there to be left out
            names = [] if value is None or isinstance(value, str) else [str(value)]
        else:
            names = _choices(value)
        for name in names:
            if name not in known:
                raise UnknownNameError(group, name, known)


def store_task_defaults() -> None:
    """Give Hydra the settings of every registered task, from which its file in ``configs/task`` begins.

    To be called before a configuration is composed. The task ``NAME`` is the config ``task/registered/NAME``.
    """
    from hydra.core.config_store import ConfigStore

    for name in known_tasks():
        ConfigStore.instance().store(name, {name: get_task(name).settings()}, group="task/registered")


def _choices(value: Any) -> list[str]:
    """Names in the value of an override of a group: one, a list, or a sweep over them; patterns pick known ones."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob

    if isinstance(value, ChoiceSweep):
        value = value.list
    if isinstance(value, list):
        return [name for item in value for name in _choices(item)]
    if value is None:  # which Hydra, too, takes for no choice, without saying what one is
        return ["null"]
    return [] if isinstance(value, Glob) else [str(getattr(value, "text", value))]


def refuse_code(settings: Any, where: str = "") -> None:
    """Pass a configuration, resolved, that names no code. Nothing here imports by the name in a setting.

    :param settings: nested mappings and lists
    :param where: path of it in the whole
    :raises InvalidSettingError: on a key such as ``_target_``
    """
    if _names_code(settings):
        raise InvalidSettingError(_refusal(where or "The configuration"))


def _names_code(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(str(key) in _CODE_KEYS or _names_code(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return any(map(_names_code, value))
    return _names_code(getattr(value, "list", None) or ())  # of a sweep


def _refusal(where: str) -> str:
    return (
        f"{where} has a key that names code ({', '.join(_CODE_KEYS)}), and no setting here names any; expected values "
        "alone. A new kind of task or controller is registered in Python, see CONTRIBUTING.md."
    )


def build(cls: type[T], settings: DictConfig | Mapping[str, Any], where: str = "") -> T:
    """Build a (nested) dataclass from a mapping.

    Lists become tuples where a tuple is declared; whole numbers pass for floats and numbers in strings such as
    ``1e-3`` (which YAML reads as text) for floats.

    :param where: path of the mapping in the configuration, for messages
    :raises UnknownNameError: on a key the dataclass has not
    :raises InvalidSettingError: on a value of another kind, or a key that names code
    """
    if isinstance(settings, DictConfig):
        settings = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    if not isinstance(settings, Mapping):
        raise InvalidSettingError(f"{where or cls.__name__} is {settings!r}; expected settings by name.")
    refuse_code(settings, where)
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
    raise InvalidSettingError(f"{path} is {value!r}; expected {_expected(hint, value, path)}.")


def _expected(hint: Any, value: Any, path: str) -> str:
    """Say what a setting of a kind looks like."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        one = value if isinstance(value, int | float | str) else "..."
        entries = str(one) if several else ",".join([str(one), *["..."] * (len(arguments) - 1)])
        return f"a list{'' if several else f' of {len(arguments)}'}, as in {path}=[{entries}]"
    if origin is not None:
        return f"settings by name, as in '{path}={{name: value}}'"
    return _KINDS.get(hint) or getattr(hint, "__name__", None) or str(hint)


_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _bool_for_number(hint: type, value: Any) -> bool:
    return hint is int and isinstance(value, bool)
