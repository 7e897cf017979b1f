"""Reports beside tables and plots, by the names that ``report=`` of ``evaluate.py`` takes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from agents.evaluation.comparison import Line
from agents.evaluation.results import Evaluation
from agents.evaluation.transfer import TransferCell
from agents.reports.html_report import write_html
from gns.errors import InvalidSettingError, UnknownNameError

Report = Callable[[Path, Evaluation, Sequence[Line], Sequence[TransferCell], Mapping[str, Any]], Path]
REPORTS: dict[str, Report] = {"html": write_html}  # of one comparison each
WANDB = "wandb"  # of all of an evaluation, on its runs: agents.reports.wandb_report


def chosen_reports(setting: Any) -> list[str]:
    """Return the names of the reports that a setting asks for, each once.

    :param setting: a name, a list of names, or None for none
    :raises UnknownNameError: if there is no such report
    :raises InvalidSettingError: if it is neither a name nor a list
    """
    names = [setting] if isinstance(setting, str) else [] if setting is None else setting
    if not isinstance(names, list | tuple):
        raise InvalidSettingError(
            f"report is {setting!r}; expected a name or a list of names: {', '.join(sorted([*REPORTS, WANDB]))}."
        )
    for name in names:
        if name not in (*REPORTS, WANDB):
            raise UnknownNameError("report", name, [*REPORTS, WANDB])
    return list(dict.fromkeys(names))


def write_reports(
    names: Sequence[str],
    folder: Path,
    evaluation: Evaluation,
    lines: Sequence[Line],
    cells: Sequence[TransferCell],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write the reports of these names on one comparison into a folder and return their paths.

    :param about: ``config`` and ``versions``
    """
    about = {**about, "command": command()}
    return [REPORTS[name](folder, evaluation, lines, cells, about) for name in names if name in REPORTS]


def command() -> str:
    """Return the command line; empty where Hydra was started with none."""
    words = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None
    return "" if words is None else shlex.join(["python", "evaluate.py", *words])
