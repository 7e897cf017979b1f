"""What the two commands share: compose a configuration, call one function, end with a message and not a stack trace."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from agents.settings import CONFIG_FOLDER, check_choices
from gns.errors import GNSError


def launch(name: str, run: Callable[[DictConfig], Any]) -> None:
    """Compose ``configs/NAME.yaml`` with the command line and call ``run`` on it.

    :param name: name of the root configuration
    :param run: what to do with it
    """

    @hydra.main(version_base=None, config_path=str(CONFIG_FOLDER), config_name=name)
    def main(config: DictConfig) -> None:
        try:
            run(config)
        except GNSError as error:
            sys.exit(f"{type(error).__name__}: {error}")

    try:
        check_choices(sys.argv[1:])
    except GNSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    main()


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, references resolved."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
