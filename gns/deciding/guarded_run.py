"""A training run under decisions, with the last good state to go back to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gns.deciding.decision import DecisionCore
from gns.deciding.guard import GuardConfig, Judgement, Watch
from gns.deciding.snapshot import Snapshot


class GuardedRun:
    """The decision core of a run and its last good state: environment, controller and scheduler drive one of these.

    :param core: decides on the run's rates
    :param guard: when the run is taken back
    :param watch: of a run that goes on, what the guard remembers of it
    :raises SnapshotError: if snapshots cannot be kept where the guard says
    """

    def __init__(self, core: DecisionCore, guard: GuardConfig, watch: Watch | None = None) -> None:
        self.core, self.guard, self.watch = core, guard, watch or Watch()
        self.position: Any = None  # what puts back the rest of the last good state, if anything does
        self._snapshot = Snapshot(core.model, core.optimizer, guard.folder) if guard.enabled else None

    @property
    def rollbacks(self) -> int:
        """How often the run was taken back."""
        return self.watch.rollbacks

    @property
    def good_steps(self) -> int:
        """Updates that the last good state holds."""
        return self._snapshot.steps if self._snapshot is not None else 0

    def check(self, position: Callable[[], None] | None = None, last: bool = False) -> Judgement:
        """Judge the interval that the core observed last, and act on it.

        A good state becomes the one to go back to, unless the budget is spent. Of any other the last good one is put
        back and the rate is cut, at the last rollback too; then the pending gradient belongs to what was undone.

        :param position: puts back what lies outside model and optimizer, from before the pending gradient
        :param last: whether no update follows, the budget spent or not
        :raises OutOfOrderError: before any observation
        :raises SnapshotError: if the state cannot be kept or put back
        """
        judgement = self.watch.judge(self.core, self.guard, last)
        if self._snapshot is None:
            return judgement
        if not judgement.goes_on:
            self._snapshot.restore()
            self.core.roll_back(self.guard.cut, self._snapshot.steps)
        elif judgement is Judgement.GOOD and not (last or self.core.finished):
            self.keep(position)
        return judgement

    def keep(self, position: Callable[[], None] | None = None) -> None:
        """Make the present state the one to go back to, where there is a guard.

        :param position: as at :meth:`check`
        """
        if self._snapshot is not None:
            self._snapshot.take(self.core.steps, *([] if position is None else [position]))
            self.position = position

    def snapshot_state(self) -> dict[str, Any] | None:
        """Return copies of the last good state, but for the position; None without a guard.

        :raises OutOfOrderError: if none was kept yet
        """
        return None if self._snapshot is None else self._snapshot.state_dict()

    def load_snapshot_state(self, state: dict[str, Any], position: Callable[[], None]) -> None:
        """Let the last good state be that of a :meth:`snapshot_state` of such a run.

        :param position: as at :meth:`check`
        """
        if self._snapshot is not None:
            self._snapshot.load_state_dict(state, position)
            self.position = position
