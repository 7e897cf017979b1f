"""The learned rate finder as a controller: a range test, undone, then REX from the rate that it advises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from agents.controllers.base import Controller, Session, new_run
from agents.controllers.schedule import ScheduleSession
from envs.learning_rate_env import Episode
from gns.graph.layer_graph import layer_graph
from gns.schedules.schedule import Schedule
from gns.tools.find_rate import UPDATES, advice_of, range_test


@dataclass(frozen=True)
class LearnedFinderController(Controller):
    """REX from the rate of :func:`gns.find_rate`; the updates of its range test are counted as search."""

    kind: ClassVar[str] = "learned-finder"
    own_rate: ClassVar[bool] = True

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        return _LearnedFinderSession(new_run(episode), replace(episode, learning_rate=math.nan), Schedule("rex"), False)


class _LearnedFinderSession(ScheduleSession):
    """REX from a rate that is not known before the test."""

    def before_gradient(self) -> None:
        """Make the range test before anything else, and undo it."""
        if not math.isnan(self._initial):
            return
        run, before = self.run, self.run.state_dict()
        graph = layer_graph(run.model, run.compute_gradient())
        run.load_state_dict(before)

        def update(rate: float) -> float:
            run.compute_gradient()
            self.set_rate(rate)
            run.apply_update()
            return float(run.loss.detach())

        rates, losses = range_test(run.optimizer, update, lambda: float(run.compute_gradient().detach()))
        run.load_state_dict(before)
        self.ledger.search_updates += UPDATES
        self._initial = advice_of(run.optimizer, run.model, graph, self.budget, rates, losses).rate

    def own_state(self) -> dict[str, Any]:
        """The rate that was found."""
        return {"initial": self._initial}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put it back: no second test is made."""
        self._initial = state["initial"]
