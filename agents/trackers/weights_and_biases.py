"""Weights & Biases by its own client, offline by default."""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import requests
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from agents.trackers.base import Tracker, WandbConfig
from gns.errors import InvalidSettingError, MissingPackageError, PolicyFormatError
from gns.policy.files import own_file
from gns.policy.finding import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from gns.tools.console import printable

_LONGEST_NAME = 128  # of an artifact
_ANSWER = 10.0  # seconds that the server may take to be reached


class _History(KVWriter):
    """Writes figures into a run's history."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log a rollout's figures at the decisions made so far."""
        self._run.log(filter_excluded_keys(key_values, key_excluded, "wandb"), step=step)

    def close(self) -> None:
        """Do nothing: the tracker closes the run."""


class WandbTracker(Tracker):
    """A run of Weights & Biases.

    The run's id is kept in the folder, so that a command that was interrupted goes on in the same run.

    :param folder: of the run's files
    :param config: how and where it is kept
    :param name: of the run
    :param kind: what it does, such as ``train``
    :param settings: the resolved configuration
    :param files: where the folder ``wandb`` is that several runs of one command share; None: ``folder``, and the run is
        the one that ``wandb.run`` names
    :raises MissingPackageError: if wandb is not installed
    :raises InvalidSettingError: if it is to be online and no account is known, or the server is out of reach; if W&B
        takes no such project, group or tag
    """

    def __init__(
        self,
        folder: Path,
        config: WandbConfig,
        name: str,
        kind: str,
        settings: Mapping[str, Any],
        files: Path | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingPackageError(
                "tracker=wandb needs the package wandb, which is not installed; pip install wandb, or pick another "
                "tracker: tensorboard, csv or none."
            ) from error
        self._wandb, self._mode, self._files = wandb, config.mode, files or folder
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # or it takes our package agents for one of that name
        if config.mode == "online":
            _require_server(wandb.setup().settings)
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=name,
                group=config.group,
                tags=list(config.tags),
                job_type=kind,
                config=dict(settings),
                mode=config.mode,  # type: ignore[arg-type]
                dir=str(self._files.resolve()),  # whoever writes may be a process started elsewhere
                id=_kept_id(folder / "wandb-run-id"),
                resume="allow",
                reinit="default" if files is None else "create_new",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
            )
        except (wandb.errors.Error, ValueError) as error:
            said = " ".join(str(error).split())[:500]
            raise InvalidSettingError(
                f"tracker.wandb.mode is {config.mode!r} and W&B does not take it ({said}); expected an account, by "
                "wandb login or WANDB_API_KEY, and a project and tags that W&B takes. Or set "
                "tracker.wandb.mode=offline, and synchronise later."
            ) from error

    def writers(self) -> list[KVWriter]:
        """Return the writer of the run's history."""
        return [_History(self._run)]

    def callbacks(self) -> list[BaseCallback]:
        """Return wandb's callback for Stable-Baselines3, which notes the agent's settings."""
        from wandb.integration.sb3 import WandbCallback

        return [] if self._mode == "disabled" else [WandbCallback()]

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """Log a ``wandb.Table``."""
        self._run.log({name: self._wandb.Table(dataframe=rows)})

    def lines(self, rows: pd.DataFrame, x: str) -> None:
        """Log into the run's history, each curve with ``x`` as its own axis; no last value goes into the summary."""
        self._run.define_metric(x, hidden=True, summary="none")
        for name in rows.columns.drop(x):
            self._run.define_metric(name, step_metric=x, summary="none")
        for row in rows.to_dict(orient="records"):
            points = {str(name): value for name, value in row.items() if math.isfinite(value)}
            if len(points) > 1:
                self._run.log(points)

    def image(self, name: str, path: Path) -> None:
        """Log a ``wandb.Image``."""
        self._run.log({name: self._wandb.Image(str(path))})

    def policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Log the folder as a version of an artifact of type ``policy``, made by this run."""
        self._run.log_artifact(self._artifact(name, folder, card))

    def use_policy(self, name: str, folder: Path, card: Mapping[str, Any]) -> None:
        """Note the artifact's name and digest in the run's config, and that the run uses it.

        The client can declare its use online only. The server then finds files that were kept before by their digest.
        """
        artifact = self._artifact(name, folder, card)
        self._run.config.update({"policy_artifact": artifact.name, "policy_digest": artifact.digest})
        if self._mode == "online":
            self._run.use_artifact(artifact)

    def _artifact(self, name: str, folder: Path, card: Mapping[str, Any]) -> Any:
        """Return a policy's own files, and nothing that lies beside them, as an artifact that has not been logged."""
        metadata = {key: printable(value) if isinstance(value, str) else value for key, value in card.items()}
        artifact = self._wandb.Artifact(artifact_name(name), type="policy", metadata=metadata)
        for own in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE):
            try:
                path = own_file(folder / own)
            except PolicyFormatError:
                if own == CARD_FILE:
                    continue
                raise
            artifact.add_file(str(path), name=own)
        return artifact

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Update the run's summary."""
        self._run.summary.update(dict(figures))

    def where(self) -> list[str]:
        """Say how the run is looked at."""
        if self._mode == "offline":
            # A run that was gone on with has a folder for each time it was begun; all are needed, oldest first.
            folders = sorted((self._files / "wandb").glob(f"offline-run-*-{self._run.id}"))
            return [f"W&B: wandb sync {shlex.join(map(str, folders))}"]
        return [f"W&B: {self._run.url}"] if self._mode == "online" else []

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def artifact_name(name: str) -> str:
    """Return the name of a policy's artifact: letters and digits of ASCII, dots, dashes, underscores, at most 128.

    Where a name is none of the kind, a digest keeps it apart from others.
    """
    safe = "policy-" + re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
    if len(safe) <= _LONGEST_NAME and safe == f"policy-{name}":
        return safe
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{safe[: _LONGEST_NAME - len(digest) - 1]}-{digest}"


def _require_server(settings: Any) -> None:
    """Pass settings of W&B's client whose server answers, whatever it says: the client tries for minutes.

    Where no account is known nothing is asked: the client says so at once.

    :raises InvalidSettingError: if it cannot be reached
    """
    hosts = (settings.base_url, "https://api.wandb.ai")  # what the account is kept under may be the older name
    if not (os.environ.get("WANDB_API_KEY") or any(map(requests.utils.get_netrc_auth, hosts))):
        return
    proxies = {kind: address for kind in ("http", "https") if (address := getattr(settings, f"{kind}_proxy", None))}
    try:
        requests.head(settings.base_url, timeout=_ANSWER, proxies=proxies or None)
    except requests.RequestException as error:
        raise InvalidSettingError(
            f"tracker.wandb.mode is 'online' and the server {settings.base_url} cannot be reached "
            f"({type(error).__name__}: {str(error)[:300]}); expected a network, and its address in WANDB_BASE_URL if "
            "it is not W&B's own. Or set tracker.wandb.mode=offline, and synchronise later."
        ) from error


def _kept_id(path: Path) -> str:
    """Return the id of the run that is kept in a file, a new one where there is none."""
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
