"""Weights & Biases by its own client, offline by default."""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from agents.trackers.base import Tracker
from agents.trackers.config import WandbConfig
from gns.errors import InvalidSettingError, MissingPackageError
from gns.tools.console import printable

_LONGEST = 121  # characters of a name after "policy-": W&B takes 128


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
    :raises InvalidSettingError: if it is to be online and no account is known
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
        except wandb.errors.UsageError as error:
            raise InvalidSettingError(
                f"tracker.wandb.mode is {config.mode!r} and W&B does not take it ({error}); expected an account, by "
                "wandb login or WANDB_API_KEY. Or set tracker.wandb.mode=offline, and synchronise later."
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
        """Return a policy's files as an artifact that has not been logged."""
        metadata = {key: printable(value) if isinstance(value, str) else value for key, value in card.items()}
        artifact = self._wandb.Artifact(artifact_name(name), type="policy", metadata=metadata)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                artifact.add_file(str(path))
        return artifact

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Update the run's summary."""
        self._run.summary.update(dict(figures))

    def where(self) -> list[str]:
        """Say how the run is looked at."""
        if self._mode == "offline":
            return [f"W&B: wandb sync {self._files / 'wandb' / Path(self._run.dir).parent.name}"]
        return [f"W&B: {self._run.url}"] if self._mode == "online" else []

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def artifact_name(name: str) -> str:
    """Return a name that W&B takes for a policy's artifact: of ASCII, at most 128 characters.

    A name that has to be cut ends with a digest of it, so that two long names stay two.
    """
    own = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
    if len(own) > _LONGEST:
        own = f"{own[: _LONGEST - 9]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"policy-{own}"


def _kept_id(path: Path) -> str:
    """Return the id of the run that is kept in a file, a new one where there is none."""
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
