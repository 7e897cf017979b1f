"""A scheduler's run as its user sees it: how long it is, and what was decided on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from gns.deciding.config import DecisionConfig
from gns.deciding.guard import GuardConfig
from gns.errors import InvalidSettingError
from gns.features import DEFAULT_FEATURE
from gns.graph.layer_graph import LayerGraph
from gns.scheduler.history import DecisionRecord, RunHistory
from gns.scheduler.lengths import updates_of
from gns.scheduler.rates import WrittenRates
from gns.scheduler.run import ScheduledRun
from gns.scheduler.trackers import listener_for

if TYPE_CHECKING:
    from gns.policy.artefact import GNSPolicy


def _of_run(name: str) -> Any:
    """Return an attribute that a scheduler has from its run: it is read, and set, there."""
    return property(lambda self: getattr(self._run, name), lambda self, value: setattr(self._run, name, value))


class RunView(LRScheduler):
    """What :class:`gns.GNSScheduler` has beside what a training loop calls."""

    _run: ScheduledRun
    _written: WrittenRates
    model: nn.Module = _of_run("model")
    policy: GNSPolicy = _of_run("policy")
    decision: DecisionConfig = _of_run("decision")
    guard: GuardConfig | None = _of_run("guard")
    graph: LayerGraph | None = _of_run("graph")
    process_group: Any = _of_run("process_group")
    history: list[DecisionRecord] = _of_run("history")
    rollbacks: int = _of_run("rollbacks")

    # ------------------------------------------------------------------ its length

    # Not total_steps: by that name Accelerate stops stepping early when it accumulates.
    @property
    def budget(self) -> int:
        """Number of updates T of the run; may be set at any time, on all ranks alike, and at the end to go on.

        Progress, and with it the profile, is then that of the longer or shorter run, which decides at other updates. Of
        a run whose end is not known it is the number that its decisions are taken for by now; setting it makes the end
        known, as :meth:`cooldown` does.

        :raises InvalidSettingError: if set to what is no number of updates
        """
        return self._run.budget

    @budget.setter
    def budget(self, total_steps: int) -> None:
        self._run.change_budget(updates_of(total_steps), max(self.last_epoch, 0))
        self._written.forget()

    def extend(self, total_steps: int) -> None:
        """Go on beyond the end that was planned, see :attr:`budget`.

        :param total_steps: number of updates T of the whole run, those done among them
        :raises InvalidSettingError: if that is no longer than it was, as where further updates alone are given
        """
        total_steps = updates_of(total_steps)
        if self._run.end_known and total_steps <= self.budget:
            raise InvalidSettingError(
                f"total_steps is {total_steps}, and the run has {self.budget} updates already; expected more: those of "
                "the whole run, not the further ones. To end earlier, set scheduler.budget."
            )
        self.budget = total_steps

    def cooldown(self, steps: int) -> None:
        """Let a run whose end was not known end after so many further updates, over which the rate comes down.

        It does so along the policy's profile; decisions go on if their interval, that of the whole run, is shorter.

        :param steps: number of updates from here to the end
        :raises InvalidSettingError: if it is no number of updates, or the end is known
        """
        steps = updates_of(steps, "steps")
        if self._run.end_known:
            raise InvalidSettingError(
                f"cooldown({steps}) came in a run of {self.budget} updates, whose rate comes down by itself; expected "
                f"one of unknown length, total_steps=None. To end after {steps} further updates, set scheduler.budget."
            )
        self.budget = max(self.last_epoch, 0) + steps

    # ------------------------------------------------------------------ what was decided

    def run_history(self) -> RunHistory:
        """Return the decisions so far with all that is needed to draw or keep them."""
        run = self._run
        rates = tuple(float(rate) for rate in self.base_lrs)
        records, layers = tuple(self.history), dict(run.layers)
        return RunHistory(self.budget, self.decision, rates, records, self.graph, layers, run.phases)

    def plot(
        self, path: str | Path | None = None, kind: str = "rates", feature: str = DEFAULT_FEATURE, decision: int = -1
    ) -> Any:
        """Draw the run so far, see :meth:`gns.scheduler.history.RunHistory.plot`; returns a matplotlib figure."""
        return self.run_history().plot(path, kind, feature, decision)

    def save_history(self, path: str | Path) -> Path:
        """Write :meth:`run_history` as JSON for ``python -m gns inspect``, and return the file."""
        return self.run_history().save(path)

    def log_to(self, target: Any, prefix: str = "gns/") -> None:
        """Tell a tracker at every decision and rollback: learning rate, multiplier, numbers of decisions and rollbacks.

        The rate is the first parameter group's for the coming update; the multiplier of a rollback is what it cut by.
        Where several processes train together, give a target on one of them. Targets are in no state dict and no copy.

        :param target: a run of W&B, whose charts then have the update, ``gns/update``, as their axis; a
            ``SummaryWriter`` of TensorBoard; an ``Accelerator``; or a function of the figures (names to numbers) and
            the number of updates done, as ``lambda figures, update: run.log(figures, step=update)`` where W&B is given
            steps of your own
        :param prefix: of the names
        :raises InvalidSettingError: if the target is nothing of these
        """
        self._run.listeners.append(listener_for(target, prefix))

    def __repr__(self) -> str:
        """Say where the run stands."""
        run, done = self._run, max(self.last_epoch, 0)
        decided = sum(not record.rollback for record in self.history)
        parts = [
            f"update {done} of {self.budget if run.end_known else 'an unknown number'}",
            f"learning rate {float(self._last_lr[0]):.3g} (from {float(self.base_lrs[0]):.3g})",
            f"{decided} decision{'s' * (decided != 1)}",
            f"{self.rollbacks} rollback{'s' * (self.rollbacks != 1)}",
            f"mode {self.decision.mode}" + f", profile {self.decision.profile}" * self.decision.action_mode.has_profile,
        ]
        parts += [f"warm-up of {run.phases.warmup}"] if run.phases.warmup else []
        return f"GNSScheduler({', '.join(parts)})"
