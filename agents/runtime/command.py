"""What the two commands share: compose a configuration, call one function, end with a message and not a stack trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents.runtime.output_folder import folder_of
from agents.runtime.settings import CONFIG_FOLDER, check_choices, refuse_code, store_task_defaults
from agents.runtime.stopping import StoppedError
from envs.engine import EngineConfig
from envs.tasks.hub import DATA_ROOT
from gns.errors import GNSError, InvalidSettingError


def launch(name: str, run: Callable[[DictConfig], Any]) -> None:
    """Compose ``configs/NAME.yaml`` with the command line and call ``run`` on it.

    :param name: name of the root configuration
    :param run: what to do with it
    """

    @hydra.main(version_base=None, config_path=str(CONFIG_FOLDER), config_name=name)
    def main(config: DictConfig) -> None:
        try:
            run(config)
        except StoppedError as stopped:
            print(f"Stopped; the same command goes on from here (exit code {stopped.exit_code}).", file=sys.stderr)
            sys.exit(stopped.exit_code)
        except KeyboardInterrupt:  # while nothing that is to be kept is under way
            print("Stopped (exit code 130).", file=sys.stderr)
            sys.exit(130)
        except GNSError as error:
            sys.exit(f"{type(error).__name__}: {error}")
        except OmegaConfBaseException as error:
            sys.exit(f"InvalidSettingError: {error}; expected settings that can be resolved, see --cfg job.")

    try:
        check_choices(sys.argv[1:])
        check_folder(sys.argv[1:], name)
    except GNSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    store_task_defaults()
    main()


def check_folder(arguments: Sequence[str], name: str) -> None:
    """Pass a command line whose folder ``outputs/NAME`` can be written to: Hydra makes it before it calls anything.

    :param arguments: of the command line
    :param name: of the root configuration, which names the folder where they do not
    :raises InvalidSettingError: if the name is none, there is a file in its place, or it is not ours to write
    """
    given = [argument.lstrip("+") for argument in arguments if argument.lstrip("+").startswith("name=")]
    settings = OmegaConf.load(CONFIG_FOLDER / f"{name}.yaml")
    if given:
        settings.name = given[-1].removeprefix("name=").strip("'\"")
    try:
        folder = folder_of(settings.name)
    except OmegaConfBaseException:  # it refers to what is not there; which is told where the whole is composed
        return
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        why = "is not ours to write to" if nearest.is_dir() else "is no folder"
        raise InvalidSettingError(
            f"Cannot write to {folder}, since {nearest} {why}; expected a folder to put results in. Move it away, "
            "choose another name, or start in another folder."
        )


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, references resolved.

    :raises InvalidSettingError: on a key that names code
    """
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    refuse_code(content)
    return content


def use_data_root(folder: str | None) -> None:
    """Read data sets from a folder that holds them by Hub id, in this process and in the workers it starts from now on.

    :param folder: the folder; None: what the environment variable ``GNS_DATA_ROOT`` says
    :raises InvalidSettingError: if it is no folder
    """
    if folder is None:
        return
    path = os.path.realpath(os.path.expanduser(str(folder)))
    if not os.path.isdir(path):
        raise InvalidSettingError(f"data_root is {folder!r}; expected a folder of data sets by Hub id, or null.")
    os.environ[DATA_ROOT] = path


def require_device(device: str, setting: str, engine: EngineConfig) -> None:
    """Pass the name of a device that is there. Of Ray's workers, which may be elsewhere, the name alone is checked.

    :param device: such as ``cpu`` or ``cuda:1``
    :param setting: that has it
    :param engine: of the workers that use it
    :raises InvalidSettingError: on any other
    """
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidSettingError(f"{setting} is {device!r}; expected a device, such as cpu or cuda:0.") from error
    if wanted.type == "cpu" or engine.name == "ray":
        return
    backend: Any = getattr(torch, wanted.type, None)
    count = backend.device_count() if hasattr(backend, "device_count") else 0
    if (wanted.index or 0) >= count:
        there = f"{count} of that kind" if count else "none of that kind"
        raise InvalidSettingError(
            f"{setting} is {device!r}, and PyTorch finds {there} here; expected cpu, or a device that is there. See "
            "its drivers, and which build of PyTorch is installed."
        )
