"""A learned policy as a controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from agents.controllers.base import Controller, Session, new_run
from envs.learning_rate_env import Episode
from envs.tasks import Task
from envs.training_run import Position, TrainingRun
from gns.deciding.decision import DecisionCore, Observation
from gns.deciding.guard import GuardConfig, Judgement, Watch
from gns.deciding.guarded_run import GuardedRun
from gns.errors import InvalidSettingError
from gns.features.held_out import ValidationStatistics, validation_statistics
from gns.features.schemas import get_schema
from gns.graph.layer_graph import layer_graph
from gns.policy.artefact import GNSPolicy
from gns.scheduler.policy_source import fingerprint

UNKNOWN = "unknown"


@dataclass(frozen=True)
class PolicyController(Controller):
    """A frozen policy: one run from any initial rate, no tuning, no pass over the reward split but the last.

    It decides as in :class:`envs.learning_rate_env.LearningRateEnv`, through the same features and decision core, and
    its runs equal that environment's to the last bit. (A policy whose features need validation, such as SRLS, pays a
    pass at every decision.)

    :param policy: folder or Hub id of a policy, read once
    :param guard: when a run is taken back
    :raises InvalidSettingError: if ``policy`` is neither text nor a path
    :raises PolicyFormatError: if the policy cannot be loaded
    """

    kind: ClassVar[str] = "policy"

    policy: str = ""
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, str | Path) or not str(self.policy):
            raise InvalidSettingError(
                f"policy of controller {self.name} is {self.policy!r}; expected a folder or a Hub id."
            )
        self.network  # noqa: B018  (read now: a policy that cannot be loaded is refused before any run)

    @cached_property
    def network(self) -> GNSPolicy:
        """The policy itself."""
        return GNSPolicy.from_pretrained(self.policy)

    @property
    def trained_on(self) -> str:
        """Names of the tasks the policy was trained on, comma-separated; ``unknown`` if it does not say."""
        tasks = self.network.config.training.get("tasks")
        return tasks if tasks and isinstance(tasks, str) else UNKNOWN

    @property
    def rate_bounds(self) -> tuple[float, float]:
        """Lowest and highest rate of the policy's decisions."""
        decision = self.network.config.decision
        return decision.min_lr, decision.max_lr

    def start(self, episode: Episode) -> Session:
        """Begin a training run."""
        run = new_run(episode, decision=self.network.config.decision)
        return _PolicySession(run, episode, self.network, self.guard)

    def check(self, task: Task, optimizer: str, budget: int) -> None:
        """Pass a budget of at least one update a decision.

        :raises InvalidSettingError: on a smaller one
        """
        self.network.config.decision.interval(budget)

    def identity(self) -> dict[str, Any]:
        """Return the kind, the guard and a digest of the policy's settings and weights, not its path."""
        guard = asdict(self.guard)
        del guard["folder"]  # where snapshots lie changes no run; here they are part of a session's state
        return {"kind": self.kind, "guard": guard, "policy": fingerprint(self.network)}


class _PolicySession(Session):
    def __init__(self, run: TrainingRun, episode: Episode, policy: GNSPolicy, guard: GuardConfig) -> None:
        super().__init__(run, episode.budget)
        self._policy, self._guard = policy, guard
        self._guarded: GuardedRun | None = None  # made on the first gradient, off which the layer graph is read
        self._coming: Position | None = None  # the run before the gradient that a decision is taken on
        self._lost = False
        self._schema = get_schema(policy.config.decision.features)
        self._validation: ValidationStatistics | None = None
        self._predictions: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the run diverged more often than the guard allows."""
        return self._lost or super().finished

    def before_gradient(self) -> None:
        """Remember where the run is now, in case it is good."""
        if self._guard.enabled and (self._guarded is None or self._guarded.core.decision_due):
            self._coming = self.run.position()

    def before_update(self) -> None:
        """Take a decision if one is due, on the pending gradient."""
        guarded = self._guarded or self._make_guarded()
        core = guarded.core
        if core.decision_due:
            observation = self._observe(guarded)
            if self._lost:
                return
            core.decide(self._policy.act(observation))
        core.set_rates()
        self.rates.append(core.learning_rate)

    def after_update(self, loss: Tensor) -> None:
        """Note the loss; the last interval is checked like every other."""
        super().after_update(loss)
        assert self._guarded is not None
        self._guarded.core.note_update(loss)
        if self._guarded.core.finished:
            self._observe(self._guarded)

    def _make_guarded(self) -> GuardedRun:
        graph, decision = layer_graph(self.run.model, self.run.loss), self._policy.config.decision
        core = DecisionCore(self.run.model, self.run.optimizer, graph, self.budget, decision)
        self._guarded = GuardedRun(core, self._guard)
        return self._guarded

    def _observe(self, guarded: GuardedRun) -> Observation:
        """Observe, and take the run back to the last good state if it diverged.

        Validation figures, where the features need them, are those of the run that goes on: to tell whether it diverged
        the last ones do, and no pass is spent on a state that is undone.
        """
        core = guarded.core
        if core.update == 0:
            self._validate()
        observation = core.observe(self._validation)
        judgement = guarded.check(self._coming)
        self.ledger.rollbacks, self._lost = guarded.rollbacks, judgement is Judgement.LOST
        if not judgement.goes_on:
            if not (self._lost or core.finished):
                self.run.compute_gradient()
            observation = core.observe(self._validation)
        if self._schema.needs_validation and core.update and not (self._lost or core.finished):
            self._validate()
            observation = core.observe(self._validation)
        return observation

    def _validate(self) -> None:
        """Pass over the reward split for the features, where they need it."""
        if self._schema.needs_validation:
            figures = self.run.evaluate_reward_split()
            self.ledger.evaluations += 1
            assert figures.predictions is not None
            self._validation = validation_statistics(figures.loss, figures.predictions, self._predictions)
            self._predictions = figures.predictions

    def own_state(self) -> dict[str, Any]:
        """The decision core's state, the last good one of the run and the last validation figures."""
        guarded = self._guarded
        guard = None
        if guarded is not None and guarded.position is not None:
            guard = {"snapshot": guarded.snapshot_state(), "position": guarded.position.state}
        return {
            "core": None if guarded is None else guarded.core.state_dict(),
            "guard": guard,
            "watch": None if guarded is None else asdict(guarded.watch),
            "lost": self._lost,
            "validation": None if self._validation is None else asdict(self._validation),
            "predictions": None if self._predictions is None else self._predictions.clone(),
        }

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Put them back; the layer graph is read off a gradient that nobody applies."""
        self._guarded = None
        if state["core"] is not None:
            before = self.run.state_dict()
            self.run.compute_gradient()
            guarded = self._make_guarded()
            self.run.load_state_dict(before)
            guarded.core.load_state_dict(state["core"])
            guarded.watch = Watch(**state["watch"])
            if state["guard"] is not None:
                position = Position(self.run, state["guard"]["position"])
                guarded.load_snapshot_state(state["guard"]["snapshot"], position)
        self._lost, self._predictions = state["lost"], state["predictions"]
        self._validation = None if state["validation"] is None else ValidationStatistics(**state["validation"])
