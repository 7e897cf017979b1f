"""What trackers keep of an evaluation: one run for each controller, and a summary run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from agents.controllers import Controller, PolicyController, policy_name
from agents.reports.controller_figures import Compared, controllers, curves, figures, word
from agents.reports.files import plain_json
from agents.trackers.base import Tracker
from agents.trackers.config import TrackerConfig, make_tracker
from gns.scheduler.policy_source import fingerprint
from gns.tools.console import printable

EVALUATE, REPORT = "evaluate", "report"  # kinds of runs
SUMMARY = "summary"  # name of the summary run
_POLICY_KEYS = ("tasks", "optimizers", "budgets", "episodes", "seed")


class EvaluationTracker:
    """Keeps an evaluation when it is done.

    The summary run begins at once, so that bad settings are refused before work. All runs are in one group. Their ids
    are kept in the folder ``tracking``, so that an evaluation that is repeated goes on in the same runs.

    :param config: which trackers there are
    :param folder: of the evaluation's outputs
    :param name: of the evaluation, and of the group where the configuration names none
    :param settings: its resolved configuration
    :ivar config: which trackers there are, W&B with the group that is taken
    :raises GNSError: see :func:`agents.trackers.make_tracker`
    """

    def __init__(self, config: TrackerConfig, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        if config.wandb is not None:
            config = replace(config, wandb=replace(config.wandb, group=config.wandb.group or name))
        self.config, self._folder, self._place = config, folder, folder / "tracking"
        self._summary = make_tracker(config, self._place / SUMMARY, SUMMARY, REPORT, settings, folder)

    def keep(
        self,
        parts: Sequence[Compared],
        methods: Sequence[Controller],
        about: Mapping[str, Any],
        tables: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """Keep the results.

        :param parts: all comparisons
        :param methods: the controllers; of others that were run, such as controls, the name is kept
        :param about: ``config`` and ``versions``
        :param tables: more tables of the summary run, a dataclass a row
        """
        if self.config == TrackerConfig():
            return
        by_name = {method.name: method for method in methods}
        rows = []
        for name in controllers(parts):
            place = self._place / EVALUATE / quote(name, safe="").replace(".", "%2E")
            settings = _settings(name, by_name.get(name), parts, about)
            with closing(make_tracker(self.config, place, name, EVALUATE, settings, self._folder)) as tracker:
                rows.append(self._keep_controller(tracker, name, by_name.get(name), parts))
        self._keep_summary(parts, pd.DataFrame(rows), tables or {})

    def _keep_controller(
        self, tracker: Tracker, name: str, method: Controller | None, parts: Sequence[Compared]
    ) -> dict[str, Any]:
        for part in parts:
            for table, x in curves(part, name):
                tracker.lines(table, x)
        tracker.table("results", _together(parts, name))
        found = figures(parts, name)
        tracker.summary({key: value for key, value in found.items() if key != "controller"})
        if isinstance(method, PolicyController) and Path(method.policy).is_dir():
            training = method.network.config.training
            tracker.use_policy(policy_name(method.policy), Path(method.policy), training)
        return {key: value for key, value in found.items() if "/" not in key}

    def _keep_summary(self, parts: Sequence[Compared], rows: pd.DataFrame, tables: Mapping[str, Sequence[Any]]) -> None:
        if len(rows):
            self._summary.table("controllers", rows)
        own: dict[str, list[tuple[str, Any]]] = {
            "comparison": [(part.name, line) for part in parts for line in part.lines],
            "transfer": [(part.name, cell) for part in parts for cell in part.cells],
            "shares": [(part.name, item) for part in parts for item in part.shares],
        }
        for name, items in (own | {name: [("", item) for item in items] for name, items in tables.items()}).items():
            if items:
                self._summary.table(name, pd.DataFrame([_row(part, item) for part, item in items]))
        for part in parts:
            for path in part.pictures:
                self._summary.image(picture_key(part, path), path)
        runs = sum(len(part.evaluation.runs) for part in parts)
        self._summary.summary({"controllers_compared": len(rows), "runs": runs})

    def where(self) -> list[str]:
        """Say in a line each where things are and how they are looked at."""
        lines = []
        if self.config.tensorboard:
            lines.append(f"Curves: tensorboard --logdir {self._place}")
        if self.config.csv:
            lines.append(f"Figures: {self._place}")
        if self.config.wandb is not None and self.config.wandb.mode == "offline":
            lines.append(f"W&B: wandb sync {self._folder}/wandb/offline-run-*")
        elif self.config.wandb is not None:
            lines += [line for line in self._summary.where() if line.startswith("W&B")]
        return lines

    def close(self) -> None:
        """Finish the summary run."""
        self._summary.close()


def picture_key(part: Compared, path: Path) -> str:
    """Return the name that a picture is kept under."""
    return word("_".join(["picture", *([part.name] if part.name else []), path.stem]))  # tables have other names


def _settings(
    name: str, method: Controller | None, parts: Sequence[Compared], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the configuration of a controller's run: its settings, the protocol, the tasks and the versions."""
    own: dict[str, Any] = {"name": name}
    if method is not None:
        own |= {"kind": method.kind, **asdict(method)}
    protocols = {part.name: plain_json(asdict(part.protocol)) for part in parts}
    settings: dict[str, Any] = {
        "controller": plain_json(own),
        "protocol": protocols[""] if list(protocols) == [""] else protocols,
        "tasks": about["config"]["task"],
        "versions": about["versions"],
    }
    if isinstance(method, PolicyController):
        training = method.network.config.training
        settings["policy"] = {
            "source": str(method.policy),
            "fingerprint": fingerprint(method.network),
            **{key: _shown(training[key]) for key in _POLICY_KEYS if key in training},
        }
    return settings


def _shown(value: Any) -> Any:
    """Return an entry of a policy's card, text cut where it is long."""
    return value if isinstance(value, int | float) else printable(value if isinstance(value, str) else repr(value))


def _together(parts: Sequence[Compared], name: str) -> pd.DataFrame:
    """Return the rows of a controller's training runs, with their part where there are several."""
    tables = []
    for part in parts:
        runs = part.evaluation.runs
        tables.append(runs[runs.controller == name].assign(**({"part": part.name} if part.name else {})))
    return pd.concat(tables, ignore_index=True)


def _row(part: str, item: Any) -> dict[str, Any]:
    """Return a dataclass as a row. A mapping has a column for each entry, a pair is of Top-1 and Top-3."""
    row: dict[str, Any] = {"part": part} if part else {}
    for key, value in asdict(item).items():
        entries = (
            {f"{key}_{name}": entry for name, entry in value.items()} if isinstance(value, Mapping) else {key: value}
        )
        for name, entry in entries.items():
            top = isinstance(entry, tuple)
            row |= {f"{name}_{k}": share for k, share in zip((1, 3), entry, strict=True)} if top else {name: entry}
    return row
