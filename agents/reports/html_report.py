"""The HTML report of an evaluation: one file that asks for nothing else, to be read on any screen or read aloud.

Its plots are SVG that is written here, with a page of script for sorting and switching: plotly's script alone has
nearly 5 MB. A content security policy forbids every request, and every script and style but its own, which it names
by their hashes. All names and figures go through a template that escapes them.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from agents.evaluation.comparison import Line, by_setting
from agents.evaluation.results import SETTING, Evaluation
from agents.evaluation.transfer import TransferCell
from agents.reports.html_summary import sentences, standing_table
from agents.reports.html_tables import Column, Table, cost_table, failures_tables, results_table
from agents.reports.plots import BOX, OFF_MARK, Look, Plot, looks, loss_against_rate, metric_against_rate
from agents.reports.plots_over_time import rate_paths, training_losses
from agents.reports.transfer_matrix import LEGEND, outcomes

FILE = "report.html"
PLOTTED_SETTINGS = 40  # beyond these only tables, so that the file stays small
_PATH_POINTS = 240_000  # of all rate paths and losses together
_SHADES = 5  # classes h-5 .. h5 of the style sheet


def write_html(
    folder: Path, evaluation: Evaluation, lines: Sequence[Line], cells: Sequence[TransferCell], about: Mapping[str, Any]
) -> Path:
    """Write report.html and return its path.

    :param folder: where results are
    :param about: what made the results: ``config``, ``versions``, and ``command`` where known
    """
    path = folder / FILE
    path.write_text(html(evaluation, lines, cells, about), encoding="utf-8", newline="\n")
    return path


def html(evaluation: Evaluation, lines: Sequence[Line], cells: Sequence[TransferCell], about: Mapping[str, Any]) -> str:
    """Return the report; see :func:`write_html`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("agents.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (templates.loader.get_source(templates, f"report.{end}")[0] for end in ("css", "js"))  # type: ignore[union-attr]
    return templates.get_template("report.html").render(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        **content(evaluation, lines, cells, about),
    )


def content(
    evaluation: Evaluation, lines: Sequence[Line], cells: Sequence[TransferCell], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the template shows, as plain text and figures."""
    style = looks(evaluation)
    config = dict(about["config"])
    settings = _settings(evaluation, lines, style)
    return {
        "name": str(config.get("name", "")),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "sentences": sentences(evaluation, lines, cells),
        "standing": standing_table(lines) if len(settings) > 1 else None,
        "looks": list(style.values()),
        "off_mark": OFF_MARK,
        "box": BOX,
        "settings": settings,
        "unplotted": max(0, len(settings) - PLOTTED_SETTINGS),
        "transfer": transfer_map(cells),
        "legend": LEGEND,
        "cost": cost_table(evaluation, lines),
        "failures": failures_tables(evaluation),
        "command": about.get("command", ""),
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "versions": Table(
            "Versions",
            [Column("package"), Column("version")],
            [[(str(name), None), (str(version), None)] for name, version in about["versions"].items()],
        ),
    }


def transfer_map(cells: Sequence[TransferCell]) -> dict[str, Any] | None:
    """Return the transfer of policies (rows) to settings (columns), with a shade from -5 (better) to 5 (worse) each.

    Shades are of the regret, and full from ln 2 on, as in transfer.png. None where there is nothing to show.
    """
    if not cells:
        return None
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    by_place = {(cell.policy, cell.setting): cell for cell in cells}
    rows = []
    for policy, trained_on in {cell.policy: cell.trained_on for cell in cells}.items():
        places = [by_place.get((policy, setting)) for setting in settings]
        rows.append((policy, trained_on, [cell and _place(cell) for cell in places]))
    return {"settings": settings, "rows": rows, "limit": math.log(2.0)}


def _place(cell: TransferCell) -> dict[str, Any]:
    shade = _SHADES if math.isnan(cell.regret) else min(max(cell.regret / math.log(2.0), -1.0), 1.0) * _SHADES
    known = math.isfinite(cell.regret)
    return {
        "shade": round(shade),
        "regret": f"{cell.regret:+.2f}" if known else "diverged",
        "interval": f"{cell.regret_low:+.2f} to {cell.regret_high:+.2f}" if math.isfinite(cell.regret_low) else "",
        "metric": f"{cell.metric} {cell.test_metric:.3f}" if math.isfinite(cell.test_metric) else "",
        "outcomes": outcomes(cell),
        "home": cell.home,
    }


def _settings(evaluation: Evaluation, lines: Sequence[Line], style: dict[str, Look]) -> list[dict[str, Any]]:
    paths = len(evaluation.runs[[*SETTING, "controller", "initial_lr"]].drop_duplicates())
    points = min(60, max(8, _PATH_POINTS // (2 * paths)))
    groups, result = by_setting(lines), []
    for place, setting in enumerate(evaluation.settings):
        plots: list[list[Plot]] = []  # those of one list stand below each other
        if place < PLOTTED_SETTINGS:
            over_time = (draw(evaluation, setting, style, points) for draw in (rate_paths, training_losses))
            plots = [
                [draw(evaluation, setting, style) for draw in (loss_against_rate, metric_against_rate)],
                [plot for plot in over_time if plot is not None],
            ]
        table = results_table(f"Results: {setting.title}", groups[setting])
        result.append({"title": setting.title, "table": table, "plots": plots})
    return result


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
