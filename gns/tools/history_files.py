"""A run's history read back from JSON. Nothing is unpickled; a file of anyone's making is checked before it is used."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gns.deciding.config import DecisionConfig
from gns.deciding.phases import Phases
from gns.errors import GNSError, StateError
from gns.features.schemas import get_schema
from gns.graph.layer_graph import NODE_TYPES, LayerGraph
from gns.policy.files import parse_json, shown
from gns.scheduler.history import FILE, FORMAT, VERSION, DecisionRecord, RunHistory
from gns.scheduler.state import graph_from_plain

MAX_BYTES = 256 * 2**20
MAX_COUNT = 10**15  # updates of a budget, or numbers of a parameter
MAX_RECORDS, MAX_GROUPS = 100_000, 10_000


def load_history(path: str | Path) -> RunHistory:
    """Return the history in a file that :meth:`gns.scheduler.history.RunHistory.save` wrote.

    :param path: the file, or a folder with ``history.json``
    :raises StateError: if there is none, or it is damaged
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    try:
        if path.exists() and not path.is_file():
            raise StateError(f"{path} is no regular file; expected one that scheduler.save_history wrote.")
        if path.stat().st_size > MAX_BYTES:
            raise StateError(f"{path} has {path.stat().st_size:,} bytes; expected at most {MAX_BYTES:,} for a history.")
        content = path.read_bytes()
    except OSError as error:
        raise StateError(
            f"{path} cannot be read ({error}); expected a file that scheduler.save_history wrote."
        ) from error
    try:
        plain = parse_json(content)
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ValueError("it is not of the format gns-history")
        if plain.get("version") != VERSION:
            raise ValueError(f"its version is {shown(plain.get('version'))}, and this reads {VERSION}")
        return _history(plain)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, GNSError) as error:
        raise StateError(
            f"{path} is no history of a scheduler, or damaged ({type(error).__name__}: {error}); expected a file that "
            "scheduler.save_history wrote."
        ) from error


def is_history(source: str) -> bool:
    """Say whether a path is meant as a history: a file that begins like JSON, or a folder with one and no policy."""
    path = Path(source)
    if path.is_dir():
        return (path / FILE).is_file() and not (path / "config.json").exists()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] == b"{"


def _history(plain: dict[str, Any]) -> RunHistory:
    budget = _whole(plain["budget"], "budget")
    decision = DecisionConfig(**plain["decision"])
    decision.interval(budget)
    for name, most in (("records", MAX_RECORDS), ("initial_lrs", MAX_GROUPS)):
        if not isinstance(plain[name], list) or not 0 < len(plain[name]) <= most:
            raise ValueError(f"{name} is {shown(plain[name])}, and no list of 1 to {most:,}")
    records = tuple(checked_record(record, budget) for record in plain["records"])
    if any(one.update > other.update for one, other in pairwise(records)):
        raise ValueError("its records are not in order")
    graph = None if plain["graph"] is None else checked_graph(plain["graph"])
    width, layers = len(get_schema(decision.features).node), {}
    for number, values in plain["layers"]:
        with np.errstate(over="ignore"):  # it is infinite then, and refused below without numpy's warning
            layers[_whole(number, "the number of a record")] = array = np.array(values, dtype=np.float32)
        if graph is None or number >= len(records) or array.shape != (graph.num_nodes, width):
            raise ValueError(f"features of layers at record {number} have shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"features of layers at record {number} are not finite")
    rates = tuple(_finite(rate, "an initial rate") for rate in plain["initial_lrs"])
    phases = checked_phases(plain.get("phases", {}))
    history = RunHistory(budget, decision, rates, records, graph, layers, phases)
    history.rate_path()  # raises where rates are out of bounds
    return history


def checked_graph(plain: dict[str, Any]) -> LayerGraph:
    """Return the layer graph in what :func:`gns.scheduler.state.plain_graph` returned.

    :raises LookupError, TypeError, ValueError: if it is damaged
    """
    graph = graph_from_plain(plain)
    count = len(graph.names)
    texts = [*graph.names, *(name for names in graph.parameters for name in names)]
    if not all(isinstance(text, str) for text in texts) or not set(graph.types) <= set(NODE_TYPES):
        raise ValueError("names or types of its layers are none")
    if not len(graph.types) == len(graph.parameters) == len(graph.depths) == count > 0:
        raise ValueError("its layer graph has lists of different lengths")
    depths = graph.depths
    if len(graph.tensor_sizes) != sum(map(len, graph.parameters)) or not ((depths >= 0) & (depths <= 1)).all():
        raise ValueError("sizes or depths of its layers are none")
    for size in graph.tensor_sizes:
        _whole(size, "the size of a parameter")
    if graph.edges.size and not 0 <= graph.edges.min() <= graph.edges.max() < count:
        raise ValueError("an edge of its layer graph leads nowhere")
    return graph


def checked_phases(plain: dict[str, Any]) -> Phases:
    """Return what comes before a run's profile, from plain values; those of earlier versions have none.

    :raises TypeError, ValueError: if they are damaged
    """
    phases = Phases(**plain)
    _whole(phases.warmup, "warmup")
    if phases.steady is not None and _whole(phases.steady, "steady") < phases.warmup:
        raise ValueError(f"steady is {phases.steady}, within a warm-up of {phases.warmup}")
    return phases


def checked_record(plain: dict[str, Any], budget: int) -> DecisionRecord:
    """Return one of the records of a history, as plain values.

    :raises LookupError, TypeError, ValueError: if it is damaged
    """
    record = DecisionRecord(**plain)
    if _whole(record.update, "update") > budget:
        raise ValueError(f"a record is of update {record.update}, beyond the budget of {budget}")
    for name in ("learning_rate", "multiplier", "scale"):
        value = getattr(record, name)
        if not (name == "scale" and value is None) and _finite(value, name) <= 0.0:
            raise ValueError(f"{name} is {shown(value)}")
    if not isinstance(record.features, dict):
        raise ValueError(f"features of a record are {shown(record.features)}")
    for value in (record.action, record.loss, *record.features.values()):
        if value is not None:
            _finite(value, "a figure of a record")
    if type(record.rollback) is not bool or type(record.finite) is not bool:
        raise ValueError("rollback and finite are not true or false")
    return record


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is {shown(value)}")
    if value > MAX_COUNT:
        raise ValueError(f"{name} is {shown(value)}, and {MAX_COUNT:,} is the most")
    return value


def _finite(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{name} is {shown(value)}")
    return float(value)
