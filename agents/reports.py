"""Reports beside tables and plots, by the names that ``report=`` of ``evaluate.py`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from agents.comparison import Line
from agents.evaluation import Evaluation
from agents.html_report import write_html
from agents.transfer import Cell
from gns.errors import InvalidSettingError, UnknownNameError

Report = Callable[[Path, Evaluation, Sequence[Line], Sequence[Cell], Mapping[str, Any]], Path]
REPORTS: dict[str, Report] = {"html": write_html}


def chosen_reports(setting: Any) -> list[str]:
    """Return the names of the reports that a setting asks for, each once.

    :param setting: a name, a list of names, or None for none
    :raises UnknownNameError: if there is no such report
    :raises InvalidSettingError: if it is neither a name nor a list
    """
    names = [setting] if isinstance(setting, str) else [] if setting is None else setting
    if not isinstance(names, list | tuple):
        raise InvalidSettingError(
            f"report is {setting!r}; expected a name or a list of names: {', '.join(sorted(REPORTS))}."
        )
    for name in names:
        if name not in REPORTS:
            raise UnknownNameError("report", name, REPORTS)
    return list(dict.fromkeys(names))


def write_reports(
    names: Sequence[str],
    folder: Path,
    evaluation: Evaluation,
    lines: Sequence[Line],
    cells: Sequence[Cell],
    about: Mapping[str, Any],
) -> list[Path]:
    """Write the reports of these names into a folder and return their paths.

    :param about: ``config`` and ``versions``; words of the command line are added where Hydra was started with any
    """
    if HydraConfig.initialized():
        about = {**about, "overrides": list(HydraConfig.get().overrides.task)}
    return [REPORTS[name](folder, evaluation, lines, cells, about) for name in names]
