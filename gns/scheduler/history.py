"""What a scheduler remembers of its decisions, and the figures that pictures of it are drawn from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gns.deciding.config import DecisionConfig
from gns.deciding.phases import Phases
from gns.deciding.rate_control import RateControl
from gns.errors import InvalidSettingError, OutOfOrderError, UnknownNameError
from gns.features import DEFAULT_FEATURE
from gns.features.schemas import get_schema
from gns.graph.layer_graph import LayerGraph
from gns.scheduler.state import plain_graph
from gns.whole_files import written_whole

KINDS = ("rates", "layers", "graph")
POINTS = 10_000  # of a rate path
FORMAT, VERSION, FILE = "gns-history", 1, "history.json"


@dataclass(frozen=True)
class DecisionRecord:
    """One decision, or one rollback of the guard.

    :param update: updates done before it
    :param learning_rate: rate of the first parameter group for the coming update; in action mode ``per-layer`` without
        the group's multiplier
    :param multiplier: factor it put on the scale of the rates
    :param action: what the policy answered for all layers, in [-1, 1]; None at a rollback, where no policy is asked
    :param features: global features that the policy saw, by name; at a rollback those of the undone interval
    :param rollback: whether the guard took the run back here
    :param finite: whether losses, gradients, parameters and optimizer state were all finite
    :param scale: factor on the initial rates, before the profile, from here on; None where it was not recorded
    :param loss: mean loss of the updates since the record before; None where there were none, or it is not finite
    """

    update: int
    learning_rate: float
    multiplier: float
    action: float | None
    features: dict[str, float]
    rollback: bool = False
    finite: bool = True
    scale: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class RunHistory:
    """The decisions of one run, with what is needed to draw them; see :meth:`gns.GNSScheduler.run_history`.

    :param budget: number of updates T of the run
    :param decision: how actions became rates
    :param initial_lrs: initial rate of each parameter group
    :param records: decisions and rollbacks in the order they were made
    :param graph: layer graph of the model; None if it is not known yet
    :param layers: node features at a record, float32 (L, F), by its number; empty where none were recorded
    :param phases: what came before the profile
    """

    budget: int
    decision: DecisionConfig
    initial_lrs: tuple[float, ...]
    records: tuple[DecisionRecord, ...]
    graph: LayerGraph | None = None
    layers: Mapping[int, np.ndarray] = field(default_factory=dict)
    phases: Phases = field(default_factory=Phases)

    # ------------------------------------------------------------------ figures

    def rate_path(self) -> tuple[np.ndarray, np.ndarray]:
        """Return updates from the first record on and the rate of each, to the last bit those that were applied.

        In action mode ``per-layer`` these are the shared rates, without the multipliers of groups.

        Every update, or of a run of more than :data:`POINTS` some of each interval, its first and last among them.

        :return: int (n,), numbers of updates, and float (n,), rates of the first parameter group; up to the end of the
            last interval, whether its updates were made yet or not
        :raises OutOfOrderError: if nothing is recorded
        """
        self.require_records()
        groups = [self.initial_lrs[0], min(self.initial_lrs), max(self.initial_lrs)]  # the last two bound the factor
        control = RateControl(self.budget, self.decision, groups, phases=self.phases)
        memory = control.state_dict()["memory"]
        share = max(2, POINTS // len(self.records))
        updates, rates = [], []
        for number, record in enumerate(self.records):
            last = number + 1 == len(self.records)
            end = min(record.update + control.interval, self.budget) if last else self.records[number + 1].update
            count = max(end - record.update, 0)
            for update in np.unique(
                np.linspace(record.update, end - 1, min(count, share)).round().astype(int)
            ).tolist():
                rate = record.learning_rate
                if record.scale is not None:
                    own = memory | {"update": update, "scale": record.scale}
                    control.load_state_dict({"memory": own, "initial_lrs": groups})
                    rate = control.applied_rate
                updates.append(update)
                rates.append(rate)
        return np.array(updates, dtype=np.int64), np.array(rates)

    def losses(self) -> list[tuple[int, int, float]]:
        """Return the mean training loss of each interval that is known: its first update, the one after it, the loss.

        That of the interval under way, and of the last one, is read at the next decision and so is not among them.
        """
        starts = [0, *(record.update for record in self.records[:-1])]
        pairs = zip(starts, self.records, strict=True)
        return [(start, r.update, r.loss) for start, r in pairs if r.loss is not None and r.update > start]

    def layer_values(self, feature: str = DEFAULT_FEATURE) -> tuple[np.ndarray, np.ndarray]:
        """Return a feature of every layer over time, before it was scaled for the policy.

        :return: int (n,), updates done at each record that has features of layers, rollbacks left out, and float
            (L, n)
        :raises OutOfOrderError: if nothing is recorded
        :raises InvalidSettingError: if no features of layers were recorded
        :raises UnknownNameError: if there is no such feature
        """
        self.require_records()
        schema = get_schema(self.decision.features)
        names = schema.node
        if feature not in names:
            raise UnknownNameError("feature of layers", feature, names)
        numbers = [n for n in sorted(self.layers) if not self.records[n].rollback]
        if self.graph is None or not numbers:
            raise InvalidSettingError(
                "No features of layers were recorded, which pictures of layers need; make the scheduler with "
                "GNSScheduler(..., record_layers=True)."
            )
        column = names.index(feature)
        values = np.stack([self.layers[n][:, column].astype(np.float64) for n in numbers], axis=1)
        return np.array([self.records[n].update for n in numbers]), schema.feature(feature).inverse(values)

    def require_records(self) -> None:
        """Pass a history that has records.

        :raises OutOfOrderError: if it is empty
        """
        if not self.records:
            raise OutOfOrderError(
                "The history is empty: no decision was taken yet. Train first; the first is taken in the first "
                "optimizer.step()."
            )

    # ------------------------------------------------------------------ pictures and files

    def plot(
        self, path: str | Path | None = None, kind: str = "rates", feature: str = DEFAULT_FEATURE, decision: int = -1
    ) -> Any:
        """Draw the run, see :mod:`gns.tools.history_pictures`; return the matplotlib figure.

        :param path: file to write the picture to, in the format that its name ends with; None: none
        :param kind: ``"rates"``: rate over updates with decisions and rollbacks, and losses below it. ``"layers"``: a
            heat map of a feature of every layer over time. ``"graph"``: the layer graph coloured by a feature at one
            decision. The last two need a scheduler with ``record_layers=True``
        :param feature: of layers, see :data:`gns.features.schemas.SCHEMAS`
        :param decision: number of the decision among those recorded, from 0; negative from the end
        :raises OutOfOrderError: if nothing is recorded
        :raises InvalidSettingError: if no features of layers were recorded, there is no such decision, or the file
            cannot be written
        :raises UnknownNameError: if there is no such kind or feature
        """
        from gns.tools import history_pictures

        if kind not in KINDS:
            raise UnknownNameError("kind of picture", kind, KINDS)
        if kind == "rates":
            return history_pictures.draw_rates(self, path)
        if kind == "layers":
            return history_pictures.draw_layers(self, path, feature)
        return history_pictures.draw_graph(self, path, feature, decision)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON and return the file, which is there whole or not at all.

        :param path: the file; a folder that is there gets ``history.json``
        :raises OutOfOrderError: if nothing is recorded
        :raises OSError: if it cannot be written
        """
        self.require_records()
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        plain = {
            "format": FORMAT,
            "version": VERSION,
            "budget": self.budget,
            "decision": asdict(self.decision),
            "initial_lrs": list(self.initial_lrs),
            "phases": asdict(self.phases),
            "records": [asdict(record) for record in self.records],
            "graph": None if self.graph is None else plain_graph(self.graph),
            # float32 written with 9 digits is read back to the last bit
            "layers": [[number, [[float(f"{x:.9g}") for x in row] for row in v]] for number, v in self.layers.items()],
        }
        with written_whole(path) as beside:
            beside.write_text(json.dumps(plain, allow_nan=False), encoding="utf-8")
        return path


def mean_loss(losses: np.ndarray) -> float | None:
    """Return the mean of losses; None where there are none, or it is not finite."""
    mean = float(losses.mean()) if losses.size else math.nan
    return mean if math.isfinite(mean) else None
