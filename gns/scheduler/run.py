"""The decisions of a scheduler: what policy and guard do to its training run, and what is remembered of it."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gns.deciding.decision import DecisionConfig, DecisionCore
from gns.deciding.guard import GuardConfig, Judgement, Watch, guard_for
from gns.deciding.guarded_run import GuardedRun
from gns.deciding.phases import Phases
from gns.deciding.rate_control import initial_rate
from gns.errors import LayerGraphError
from gns.features.moments import group_of_each, optimizer_kind
from gns.features.schemas import get_schema
from gns.graph.layer_graph import LayerGraph, layer_graph, unwrap
from gns.parallel.distributed import group_of_run, ranks_of
from gns.scheduler.checks import no_graph_known, require_that_it_trains
from gns.scheduler.history import DecisionRecord, mean_loss
from gns.scheduler.hooks import graph_of_forward
from gns.scheduler.lengths import few_enough
from gns.scheduler.policy_source import fingerprint
from gns.scheduler.state import (
    graph_from_plain,
    graph_of_first_rank,
    on_device_of,
    plain_graph,
    put_state_in_order,
    require_state_of_its_parameters,
)
from gns.scheduler.trackers import Listener, tell

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gns.policy.artefact import GNSPolicy

_logger = logging.getLogger("gns.scheduler.scheduler")  # the name that its users know


class ScheduledRun:
    """One training run: its layer graph and, from the first update on, its decision core, asked and watched over.

    It knows nothing of the training loop: :class:`gns.scheduler.scheduler.GNSScheduler` sees that and says when.

    :param model: the model being trained
    :param budget: number of updates T
    :param policy: asked at every decision
    :param decision: how its actions become rates
    :param guard: when the run is taken back; None: never; ``auto``: see :class:`gns.scheduler.scheduler.GNSScheduler`
    :param graph: layer graph of the model; None: to be taken from an output or a loss
    :param process_group: as a scheduler is given it
    :param record_layers: whether to keep the features of every layer at every decision
    :param phases: what comes before the profile
    """

    def __init__(
        self,
        model: nn.Module,
        budget: int,
        policy: GNSPolicy,
        decision: DecisionConfig,
        guard: GuardConfig | Literal["auto"] | None,
        graph: LayerGraph | None,
        process_group: ProcessGroup | bool | None,
        record_layers: bool = False,
        phases: Phases = Phases(),  # noqa: B008 (it is frozen)
    ) -> None:
        self.phases = phases
        self.model, self.budget, self.policy, self.decision = model, budget, policy, decision
        self.guard = guard_for(model) if guard == "auto" else guard
        self.graph = graph
        self.process_group: Any = process_group
        self.history: list[DecisionRecord] = []
        self.listeners: list[Listener] = []  # told of every record
        self.record_layers = record_layers
        self.layers: dict[int, np.ndarray] = {}  # node features by the number of the record in the history
        self._guarded: GuardedRun | None = None  # made at the first update, once the layer graph is known
        self._core_state: dict[str, Any] | None = None  # what it goes on from
        self.names_saved: list[str | None] | None = None  # of the parameters, in the order of the state it goes on from
        self._watch = Watch()
        self._graph_problem: LayerGraphError | None = None
        self.falls_behind = False  # model or optimizer were found to have other parameters than the core decides on
        self._graph_is_old = False  # and no forward pass gave the graph with them yet
        self._logged: set[str] = set()

    @property
    def core(self) -> DecisionCore | None:
        """Its decision core, from the first update on."""
        return None if self._guarded is None else self._guarded.core

    @property
    def rollbacks(self) -> int:
        """How often it was taken back."""
        return self._watch.rollbacks

    @property
    def end_known(self) -> bool:
        """Whether the budget is the run's, and not what its decisions are taken for by now."""
        return self.phases.steady is not None

    @property
    def begun(self) -> bool:
        """Whether its first update came, here or before it was resumed."""
        return self.core is not None or self._core_state is not None

    # ------------------------------------------------------------------ its beginning

    def take_graph_of_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take the layer graph from what the model returned for these arguments, if it is unknown."""
        if self.wants_graph:
            try:
                self._take(graph_of_forward(self.model, args, kwargs, output))
            except LayerGraphError as problem:  # the next output may do; if none does, the first update says so
                self._graph_problem = problem

    def take_graph_of_loss(self, loss: Any, optimizer: torch.optim.Optimizer) -> None:
        """Take the layer graph from a loss, if it is unknown and the loss came from parameters of the optimizer."""
        if not self.wants_graph or not isinstance(loss, Tensor) or loss.grad_fn is None:
            return
        try:
            graph = layer_graph(self.model, loss)
        except LayerGraphError as problem:
            self._graph_problem = problem
            return
        if max(group_of_each(optimizer, [p for layer in graph.bind(self.model) for p in layer])) >= 0:
            self._take(graph)  # else it is the loss of another optimizer

    @property
    def wants_graph(self) -> bool:
        """Whether the next output of the model is to give the layer graph."""
        return self.graph is None or self._graph_is_old

    def _take(self, graph: LayerGraph | None) -> None:
        if graph is not None:
            self.graph, self._graph_is_old = graph, False

    def keep_up(self, core: DecisionCore) -> DecisionCore:
        """Return the decision core for the coming update, kept up with model and optimizer.

        Where parameters were added, replaced, frozen, unfrozen or renamed since, the layer graph is taken anew from the
        next forward pass; until then decisions are taken on the layers known before.

        :param core: its decision core
        :raises LayerGraphError: if the optimizer holds none of the model's parameters now
        :raises InvalidSettingError: if the rate of a parameter group that was added is out of bounds
        """
        added = len(core.optimizer.param_groups) > len(core.initial_lrs)
        if added:
            core.take_up_groups()
        if self.falls_behind and self._guarded is not None:
            self.falls_behind = False
            return self._follow(self._guarded)
        if added or (core.decision_due and core.outdated):
            require_that_it_trains(core.optimizer, self.model)
            self.falls_behind = self._graph_is_old = True
        return core

    def _follow(self, guarded: GuardedRun) -> DecisionCore:
        """Let the decision core be one of the model as it is now, with what it remembers."""
        core, group = guarded.core, group_of_run(self.process_group)
        if group is not None:
            given = {"the number of updates done": core.update}
            self._take(graph_of_first_rank(None if self._graph_is_old else self.graph, self.model, given, group))
        if self._graph_is_old or self.graph is None:
            if "graph" not in self._logged:
                self._logged.add("graph")
                _logger.warning(
                    "Other parameters train than before, and no forward pass of %s with a gradient was seen since: "
                    "decisions are taken on the layers known before. Call the model itself, or give "
                    "scheduler.report_loss the losses, undetached.",
                    type(unwrap(self.model)).__name__,
                )
            return core
        rates = core.initial_lrs
        guarded.core = self._new_core(core.optimizer, group, rates)
        guarded.core.load_state_dict(core.state_dict())
        self.layers.clear()  # they are of other layers
        return guarded.core

    def begin(self, optimizer: torch.optim.Optimizer, initial_lrs: list[float | Tensor], updates: int) -> DecisionCore:
        """Make the decision core, as all ranks agree on it, and the guard's snapshot; return the core.

        :param optimizer: the optimizer of the run
        :param initial_lrs: initial rate of each parameter group
        :param updates: updates done so far
        :raises LayerGraphError: if no layer graph is known
        :raises RanksDisagreeError: if ranks were given different runs
        """
        group = group_of_run(self.process_group)
        if group is not None:
            given = {
                "total_steps": self.budget if self.end_known else None,
                "warmup_steps": self.phases.warmup,
                "the number of updates done": updates,
                "the policy's digest": fingerprint(self.policy),
                "the decision config": asdict(self.decision),
                "guard": self.guard and asdict(replace(self.guard, folder=None)),  # which may be each machine's own
            }
            self.graph = graph_of_first_rank(self.graph, self.model, given, group)
        if self.graph is None:
            raise no_graph_known(self.model, self._graph_problem) from self._graph_problem
        now = [float(group["lr"]) for group in optimizer.param_groups]
        initial = [*map(float, initial_lrs), *(initial_rate(r, self.decision) for r in now[len(initial_lrs) :])]
        put_state_in_order(optimizer, self.model, self.names_saved)
        self.names_saved = None
        require_state_of_its_parameters(optimizer, self.model)
        core = self._new_core(optimizer, group, initial)
        if self._core_state is not None:
            core.load_state_dict(self._core_state)
            core.take_up_groups()
        elif updates:
            core.go_on_after(updates, now)
        self._core_state = None
        if self.decision.per_layer and len(optimizer.param_groups) == 1:
            _logger.warning(
                "The policy has a multiplier for each layer's rate and the optimizer one parameter group, which gets "
                "the shared rate. Make the optimizer on gns.parameter_groups(model)."
            )
        guard = self.guard or GuardConfig(enabled=False)
        self._guarded = GuardedRun(core, guard, self._watch)
        if core.update:
            self._guarded.keep()  # of a run that goes on, where it goes on
        if not core.update:
            self._log_outside(self.policy.config.trained_on.outside(self.graph, optimizer_kind(optimizer), self.budget))
        return core

    def _new_core(self, optimizer: torch.optim.Optimizer, group: Any, rates: list[float]) -> DecisionCore:
        assert self.graph is not None
        return DecisionCore(self.model, optimizer, self.graph, self.budget, self.decision, group, rates, self.phases)

    def _log_outside(self, found: list[str]) -> None:
        """Say that the run is none like those that the policy was trained on, where it is not."""
        if found:
            _logger.warning(
                "This run is outside of what the policy was trained on, and its rates may be far off: %s.",
                "; ".join(found),
            )

    # ------------------------------------------------------------------ its decisions

    def decide(self) -> bool:
        """Take the decision that is due, on the pending gradients, which are unscaled.

        :return: False if the run was taken back instead, and the coming update is to be left out
        """
        assert self._guarded is not None
        core = self._guarded.core
        observation = core.observe()
        names = get_schema(self.decision.features).globals
        features = dict(zip(names, observation.globals.tolist(), strict=True))
        if self._taken_back(self._guarded, features, observation.nodes):
            return False
        if not core.finite and "finite" not in self._logged:
            self._logged.add("finite")
            _logger.warning("At update %d a loss, gradient, parameter or optimizer state is not finite.", core.update)
        with torch.autocast("cpu", enabled=False):  # whatever the training loop has it at
            action = self.policy.act(observation)
        known = core.memory.first_loss
        multiplier = core.decide(action)
        if math.isnan(known) and (unusual := self.policy.config.trained_on.unusual_loss(core.memory.first_loss)):
            self._log_outside([unusual])
        self._record(core, multiplier, float(np.ravel(action)[0]), features, observation.nodes)
        if not self.end_known and 2 * core.update >= self.budget:  # such a run is always in the first half of one
            self.budget *= 2
            core.stretch(self.budget)
        return True

    def check_end(self) -> None:
        """Take the run back, once as many updates were begun as its budget has, if its last interval went wrong."""
        if self._guarded is not None and self._guarded.guard.enabled:
            nodes = self._guarded.core.observe().nodes
            self._taken_back(self._guarded, {}, nodes, last=True)

    def _taken_back(
        self, guarded: GuardedRun, features: dict[str, float], nodes: np.ndarray, last: bool = False
    ) -> bool:
        """Judge the interval observed last; return True, and tell, where the run was taken back."""
        core, guard = guarded.core, guarded.guard
        judgement = guarded.check(last=last)
        if judgement.goes_on or not guard.enabled:
            return False
        held = (parameter for group in core.optimizer.param_groups for parameter in group["params"])
        for parameter in (*core.model.parameters(), *held):
            parameter.grad = None  # it belongs to the state that was undone; an optimizer skips what has no gradient
        self._record(core, guard.cut, None, features, nodes, rollback=True)
        where = (core.update, core.budget, guarded.good_steps, guard.cut)
        if judgement is Judgement.TAKE_BACK:
            _logger.warning(
                "Diverged at update %d of %d: the state after %d updates is restored, the rate is cut by %g (rollback "
                "%d of %d).",
                *where,
                guarded.rollbacks,
                guard.max_rollbacks,
            )
        elif "lost" not in self._logged:
            self._logged.add("lost")
            _logger.error(
                "Diverged at update %d of %d: the state after %d updates is restored, the rate is cut by %g, and this "
                "run is lost: it diverged more often than max_rollbacks = %d allows. Whenever it diverges again it is "
                "restored again, without a word. Stop it, look for data and losses that are not finite, and train "
                "again; or give GuardConfig another loss_multiple or more rollbacks.",
                *where,
                guard.max_rollbacks,
            )
        return True

    def _record(
        self,
        core: DecisionCore,
        multiplier: float,
        action: float | None,
        features: dict[str, float],
        nodes: np.ndarray,
        rollback: bool = False,
    ) -> None:
        finite, loss = core.finite, mean_loss(core.statistics.losses)
        rate, scale = core.learning_rate, core.memory.scale
        record = DecisionRecord(core.update, rate, multiplier, action, features, rollback, finite, scale, loss)
        if self.record_layers:
            self.layers[len(self.history)] = nodes.copy()
        self.history.append(record)
        _logger.debug("%s", record)
        tell(self, record, core.applied_rate)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return what a scheduler's state dict has of its run: of the policy a digest, no guard and no snapshot."""
        outdated = self.core is not None and self.core.outdated  # then it is taken anew where the run goes on
        core = self._state_of_core()
        if core is not None and outdated:
            core["memory"]["layer_actions"] = []
        return {
            "budget": self.budget,
            "policy": fingerprint(self.policy),
            "decision": asdict(self.decision),
            "graph": None if outdated or self.graph is None else plain_graph(self.graph),
            "core": core,
            "history": [asdict(record) for record in self.history],
            "layers": [[n, torch.from_numpy(nodes.copy())] for n, nodes in self.layers.items() if not outdated],
            "rollbacks": self.rollbacks,
            "watch": asdict(self._watch),
            "phases": asdict(self.phases),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a scheduler's state dict of the same policy; its budget, bounds and graph take these' place."""
        if state["graph"] is not None:
            self.graph = graph_from_plain(state["graph"])
            self.graph.bind(self.model)
        self.budget, self.decision = state["budget"], DecisionConfig(**state["decision"])
        self.phases = Phases(**state.get("phases", {}))
        self.history = [DecisionRecord(**record) for record in state["history"]]
        self.layers = {number: nodes.cpu().numpy().copy() for number, nodes in state.get("layers", ())}
        self._guarded, self._watch = None, Watch(**state.get("watch", {"rollbacks": state["rollbacks"]}))
        self._core_state = on_device_of(self.model, state["core"])

    def change_budget(self, budget: int, done: int) -> None:
        """Go on as a run of another number of updates; the losses since the last decision are forgotten.

        :param done: updates done, at which the profile of a run begins whose end was not known
        """
        if not self.end_known:
            self.phases = replace(self.phases, steady=max(done, self.phases.warmup))
        taken = replace(self.decision, num_decisions=self.policy.config.decision.num_decisions)
        core = self._state_of_core()
        if core is not None:
            core = core | {"memory": core["memory"] | {"interval_updates": 0}, "losses": None}
        self.budget, self.decision = budget, few_enough(taken, budget)
        self._guarded, self._core_state = None, core

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made anew; the core is kept as its state."""
        anew = {
            "_guarded": None,
            "_core_state": self._state_of_core(),
            "_watch": replace(self._watch),
            "_graph_problem": None,
            "listeners": [],
            "process_group": ranks_of(self.process_group),  # a group itself is of this process only
        }
        return vars(self) | anew

    def _state_of_core(self) -> dict[str, Any] | None:
        return self.core.state_dict() if self.core is not None else self._core_state
