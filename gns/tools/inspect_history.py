"""What a run's history says, printed and drawn: ``python -m gns inspect RUN``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gns.errors import InvalidSettingError, needing
from gns.scheduler.history import RunHistory
from gns.tools.console import print_line, print_table
from gns.tools.history_files import FILE, load_history


def inspect_history(source: str, folder: str | None, feature: str, decision: int) -> dict[str, Any]:
    """Draw a history and describe it in plain JSON values.

    :param source: file, or folder with ``history.json``
    :param folder: where the pictures go; None: beside the file
    :param feature: of layers, for the pictures of layers
    :param decision: which decision the layer graph is coloured by
    :raises StateError: if there is no history, or it is damaged
    :raises InvalidSettingError: if a picture cannot be drawn or written
    """
    history = load_history(source)
    file = Path(source) / FILE if Path(source).is_dir() else Path(source)
    target = file.parent if folder is None else Path(folder)
    if not target.is_dir():
        raise InvalidSettingError(f"--pictures is {str(target)!r} and no folder; expected one that is there.")
    return {
        "history": str(file),
        "budget": history.budget,
        "layers": 0 if history.graph is None else history.graph.num_nodes,
        "decisions": [_described(number, history) for number in range(len(history.records))],
        "pictures": [str(path) for path in _draw(history, target, file.stem, feature, decision)],
    }


def print_history(report: dict[str, Any]) -> None:
    """Print what :func:`inspect_history` returned as text."""
    print_line(f"history {report['history']}: budget {report['budget']:,} updates, {report['layers']:,} layers")
    rows = [
        (
            row["update"],
            f"{row['learning_rate']:.4g}",
            f"{row['multiplier']:.4g}",
            "" if row["action"] is None else f"{row['action']:+.3f}",
            "" if row["loss"] is None else f"{row['loss']:.4g}",
            ", ".join(["rollback"] * row["rollback"] + ["not finite"] * (not row["finite"])),
        )
        for row in report["decisions"]
    ]
    print_table("decisions", ("update", "rate", "multiplier", "action", "loss before", "note"), rows)
    for path in report["pictures"]:
        print_line(f"wrote {path}")


def _described(number: int, history: RunHistory) -> dict[str, Any]:
    record = history.records[number]
    names = ("update", "learning_rate", "multiplier", "action", "loss", "rollback", "finite")
    return {name: getattr(record, name) for name in names}


def _draw(history: RunHistory, folder: Path, stem: str, feature: str, decision: int) -> list[Path]:
    with needing("plots"):
        import matplotlib

    matplotlib.use("Agg")
    paths = [folder / f"{stem}_rates.png"]
    history.plot(paths[0])
    if history.layers:
        paths += [folder / f"{stem}_layers.png", folder / f"{stem}_graph.png"]
        history.plot(paths[1], "layers", feature)
        history.plot(paths[2], "graph", feature, decision)
    return paths
