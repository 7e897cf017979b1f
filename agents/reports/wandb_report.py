"""A W&B report of an evaluation: built from its figures offline, saved to an account now or later.

    python -m agents.reports.wandb_report outputs/NAME

saves the report of an evaluation that was made with ``report=wandb`` offline. Its runs are synchronised before that, by
``wandb sync outputs/NAME/wandb/offline-run-*``. Saved again, the same report is replaced.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from agents.evaluation.comparison import Line
from agents.reports.controller_figures import Compared, start_name
from agents.reports.files import markdown
from agents.reports.html_summary import sentences
from agents.reports.shares_tables import shares_markdown
from agents.reports.transfer_matrix import transfer_markdown
from agents.reports.wandb_blocks import ReportFacts, ReportPart, ReportSetting, blocks
from agents.runtime.settings import build
from agents.trackers import TrackerConfig, WandbConfig
from agents.trackers.evaluation import picture_key
from gns.errors import GNSError, InvalidSettingError, MissingPackageError, ReportError

FILE, SAVED = "wandb-report.json", "wandb-report-id"
_IN_FILTERS = "'\"\\<>="  # which the package's filters cannot have in a name


def check(tracker: TrackerConfig, name: str) -> None:
    """Pass settings that a report can be made with; nothing is asked of W&B.

    :param name: of the evaluation
    :raises InvalidSettingError: if there are no runs in W&B to report on, or no filter finds their group by its name
    :raises MissingPackageError: if wandb-workspaces is not installed
    """
    if tracker.wandb is None or tracker.wandb.mode == "disabled":
        given = "there is no W&B among the trackers" if tracker.wandb is None else "tracker.wandb.mode is 'disabled'"
        raise InvalidSettingError(
            f"report=wandb shows runs of W&B, and {given}; expected tracker=wandb (offline will do), or report=html."
        )
    group = tracker.wandb.group or name
    if set(group) & set(_IN_FILTERS):
        raise InvalidSettingError(
            f"report=wandb finds runs by their group, which is {group!r}; expected a name without {_IN_FILTERS}. Set "
            "name or tracker.wandb.group."
        )
    _workspaces()


def describe(
    parts: Sequence[Compared], wandb: WandbConfig, name: str, about: Mapping[str, Any], evidence: str = ""
) -> ReportFacts:
    """Return what a report is built from.

    :param about: ``versions``, and ``command`` if known
    :param evidence: of a suite, in Markdown
    """
    return ReportFacts(
        name=name,
        project=wandb.project,
        entity=wandb.entity,
        group=wandb.group or name,
        parts=tuple(_part(part) for part in parts),
        evidence=evidence,
        command=about.get("command", ""),
        versions=dict(about["versions"]),
    )


def _part(part: Compared) -> ReportPart:
    lines: list[Line] = list(part.lines)
    settings = []
    evaluation = part.evaluation
    for setting in evaluation.settings:
        key, starts = part.key(setting), dict[str, None]()
        for name in evaluation.controllers:
            rates = sorted(evaluation.counted(setting, name).initial_lr.unique())
            starts |= dict.fromkeys(start_name(key, rate) for rate in rates) if len(rates) > 1 else {}
        metric = str(evaluation.runs_of(setting).metric.iloc[0])
        settings.append(ReportSetting(key, setting.title, part.error(setting), metric, tuple(starts)))
    return ReportPart(
        name=part.name,
        sentences=tuple(sentences(part.evaluation, lines, part.cells)),
        settings=tuple(settings),
        comparison=markdown(lines),
        shares=shares_markdown(part.shares) if part.shares else "",
        transfer=transfer_markdown(part.cells) if part.cells else "",
        pictures=tuple(picture_key(part, path) for path in part.pictures),
    )


def report_of(facts: ReportFacts, entity: str = "") -> Any:
    """Return the report, a ``wandb_workspaces.reports.v2.Report`` that has not been saved.

    Without an entity nothing is asked of W&B.

    :param entity: whose the report is to be
    :raises MissingPackageError: if wandb-workspaces is not installed
    """
    wr = _workspaces()
    return wr.Report(
        project=facts.project,
        entity=entity,
        title=f"Evaluation {facts.name}"[:128],
        description="Controllers of learning rates compared; see the evaluation protocol in the runs' configuration.",
        blocks=blocks(wr, facts, entity),
        width="fluid",
    )


def write(folder: Path, facts: ReportFacts) -> Path:
    """Write wandb-report.json: what the report is built from, and its specification as W&B takes it.

    :return: its path
    """
    specification = report_of(facts)._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    path = folder / FILE
    path.write_text(json.dumps({"facts": asdict(facts), "report": specification}, indent=2), encoding="utf-8")
    return path


def read(folder: Path) -> ReportFacts:
    """Return what a report is built from, as :func:`write` left it.

    :raises InvalidSettingError: if there is no such file, or it lacks entries
    :raises UnknownNameError: if it has others
    """
    path = folder / FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except OSError as error:
        raise InvalidSettingError(
            f"Cannot read {path} ({error}); expected a folder that evaluate.py report=wandb has written to."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSettingError(f"{path} is damaged ({error!r}); write it anew: evaluate.py report=wandb.") from error
    _require(ReportFacts, facts, path)
    for part in _listed(facts["parts"]):
        _require(ReportPart, part, path)
        for setting in _listed(part["settings"]):
            _require(ReportSetting, setting, path)
    return build(ReportFacts, facts)


def _require(kind: type, content: Any, path: Path) -> None:
    needed = [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
    missing = [name for name in needed if not isinstance(content, Mapping) or name not in content]
    if missing:
        raise InvalidSettingError(
            f"{path} lacks {', '.join(missing)} of a {kind.__name__}; expected {', '.join(needed)}. Write it anew: "
            "evaluate.py report=wandb."
        )


def _listed(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []  # what is no list is refused when it is built


def save(folder: Path) -> str:
    """Save the report that a folder holds to W&B, and return its address; the one saved before is replaced.

    :raises ReportError: if there is no account, or W&B does not take it
    :raises InvalidSettingError: see :func:`read`
    :raises MissingPackageError: if wandb-workspaces is not installed
    """
    facts = read(folder)
    _workspaces()
    import wandb

    kept = folder / SAVED
    try:
        report = report_of(facts, facts.entity or str(wandb.Api().default_entity))
        report.id = kept.read_text(encoding="utf-8").strip() if kept.exists() else ""
        report.save()
        kept.write_text(report.id, encoding="utf-8")
        return str(report.url)
    except Exception as error:  # the package raises bare ones
        raise ReportError(
            f"The report in {folder} is not saved to W&B ({error}); expected an account, by wandb login or "
            f"WANDB_API_KEY, and its runs there, by wandb sync {folder}/wandb/offline-run-*. Then: {later(folder)}"
        ) from error


def later(folder: Path) -> str:
    """Return the command that saves a report later."""
    return f"python -m agents.reports.wandb_report {folder}"


def publish(folder: Path, mode: str) -> str:
    """Save a report if W&B is online. Return a line that says whether it is saved, and if not, why."""
    if mode != "online":
        return (
            f"W&B report: written but not saved, since W&B is {mode}. With an account: wandb sync "
            f"{folder}/wandb/offline-run-* and {later(folder)}"
        )
    try:
        return f"W&B report: {save(folder)}"
    except ReportError as error:
        return f"W&B report: {error}"


def _workspaces() -> ModuleType:
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError as error:
        raise MissingPackageError(
            "report=wandb needs the package wandb-workspaces, which is not installed; pip install wandb-workspaces (or "
            "this project's extra 'tracking'), or pick report=html."
        ) from error
    module: ModuleType = reports
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    """Save the report of a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m agents.reports.wandb_report", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("folder", type=Path, help="outputs/NAME of an evaluation made with report=wandb")
    try:
        print(f"W&B report: {save(parser.parse_args(arguments).folder)}")
    except GNSError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
