"""A learned policy where ``CosineAnnealingLR`` stood."""

from __future__ import annotations

import logging
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from gns.decision import DecisionConfig, DecisionCore
from gns.distributed import group_of_run, ranks_of, require_group
from gns.errors import InvalidSettingError, LayerGraphError, OutOfOrderError, require_count
from gns.features import get_schema
from gns.guard import GuardConfig, Snapshot
from gns.layer_graph import LayerGraph, layer_graph, trainable_parameters, unwrap
from gns.moments import group_of_each
from gns.policy import GNSPolicy
from gns.rate_control import initial_rate
from gns.scheduler_history import DecisionRecord, draw_history
from gns.scheduler_hooks import (
    attach,
    graph_of_forward,
    is_lightning,
    is_share,
    left_out,
    loss_in,
    unscale,
    with_closure_done,
    without_gradient,
)
from gns.scheduler_losses import Losses, scalar
from gns.scheduler_policy import fingerprint, frozen_policy
from gns.scheduler_state import graph_from_plain, graph_of_first_rank, make_core, on_device_of, plain_graph

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_logger = logging.getLogger(__name__)


class GNSScheduler(LRScheduler):
    """Sets the rates of a training run by a pretrained policy; stands where ``CosineAnnealingLR`` stood::

        scheduler = GNSScheduler(optimizer, model, total_steps=10_000, policy="folder or Hub id")
        ...
        loss.backward(); optimizer.step(); scheduler.step(loss)

    It decides in a hook of ``optimizer.step``, on the gradient as it is then (accumulated, clipped, unscaled), before
    the update is applied; an update counts once it was made and :meth:`step` was called after it. Thus a step that a
    ``GradScaler`` leaves out, or a second call of :meth:`step`, counts as nothing. The first parameter group has rate
    :meth:`get_last_lr` ``[0]``, that of the last update made; groups keep their ratios. Past ``total_steps`` updates
    the last rate stays.

    The loss comes from ``step(loss)``; where a framework calls ``step()``, it is the mean of what :meth:`report_loss`
    was given since the last step, else what the optimizer's closure returned, else the mean ``.loss`` of the model's
    outputs since (their sum, where the model was told ``num_items_in_batch``). It is not copied to the host but with
    everything else at a decision, the only wait for the device that is added (a fused optimizer under a ``GradScaler``
    apart: whether it makes an update is read each time).

    The layer graph is taken from the output of the model's first forward pass with gradients.

    Where several processes train the model, all take the same decisions: see ``docs/distributed.md``.

    :param optimizer: its rates now, or ``initial_lr`` where a group has it, are the initial ones
    :param model: the model it trains; best as it is called, compiled or not
    :param total_steps: number of updates T of the run
    :param policy: folder or Hub id of a policy, or one in memory, which is copied; None: the bundled one
    :param min_lr: lowest rate of any group; None: the policy's
    :param max_lr: highest rate of any group; None: the policy's
    :param guard: when to take the run back after a divergence; None: never. See ``docs/scheduler.md``
    :param last_epoch: index of the last update when a run is resumed without a state dict, see PyTorch: the run is
        taken to have made ``last_epoch + 1`` updates and to stand at the optimizer's rates; losses are unknown
    :param graph: layer graph of the model, where it cannot be taken from the output
    :param process_group: ranks that train this model together; None: all of ``torch.distributed``, if it is in use by
        the first update; False: this process decides alone
    :raises InvalidSettingError: on a value outside its domain, or fewer updates than the policy takes decisions
    :raises LayerGraphError: if the optimizer holds none of the model's trainable parameters
    :raises PolicyFormatError: if the policy cannot be loaded, or needs what a scheduler does not have
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        total_steps: int,
        policy: str | Path | GNSPolicy | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        guard: GuardConfig | None = None,
        last_epoch: int = -1,
        graph: LayerGraph | None = None,
        process_group: ProcessGroup | Literal[False] | None = None,
    ) -> None:
        for name, given, kind in (("optimizer", optimizer, torch.optim.Optimizer), ("model", model, nn.Module)):
            if not isinstance(given, kind):
                raise InvalidSettingError(
                    f"{name} is a {type(given).__name__}; expected a {kind.__module__}.{kind.__name__}. Call "
                    "GNSScheduler(optimizer, model, total_steps=...)."
                )
        require_count("total_steps", total_steps)
        require_group(process_group)
        self.process_group: Any = process_group
        self.budget = int(
            total_steps
        )  # not total_steps: by that name Accelerate stops stepping early when it accumulates
        self.policy = frozen_policy(policy)
        trained = self.policy.config.decision
        self.decision = replace(
            trained,
            min_lr=trained.min_lr if min_lr is None else min_lr,
            max_lr=trained.max_lr if max_lr is None else max_lr,
        )
        self.decision.interval(self.budget)
        _require_that_it_trains(optimizer, model)
        if graph is not None:
            graph.bind(model)
        self.model, self.graph = model, graph
        self.guard = guard if guard is not None and guard.enabled else None
        self.history: list[DecisionRecord] = []
        self.rollbacks = 0
        self._core: DecisionCore | None = None  # made at the first update, once the layer graph is known
        self._core_state: dict[str, Any] | None = None  # what it goes on from
        self._applying = self._pending = False  # an update is being made; was made, and step() is yet to come
        self._losses = Losses()
        self.shared_by = 1  # processes whose items are counted by the num_items_in_batch that a model is called with
        self._warned: set[str] = set()
        self._graph_problem: LayerGraphError | None = None
        super().__init__(optimizer, last_epoch)
        for group in optimizer.param_groups:
            initial_rate(group["initial_lr"], self.decision)
        self._remove = attach(self, optimizer, model)

    # ------------------------------------------------------------------ what a training loop calls

    def step(self, loss: Tensor | float | None = None) -> None:
        """Count the update just made. Without an update since the last call, do nothing.

        :param loss: loss of that update: a tensor of one element, best still on its device, or a float
        :raises InvalidSettingError: if the loss is of another kind; an epoch, as PyTorch's schedulers take, is refused
        :raises OutOfOrderError: if no loss is given and none came in any other way
        """
        if self._step_count == 0:  # PyTorch's own call, as the scheduler is made
            self._step_count = 1
            self._update_lr()
            return
        given = None if loss is None else scalar(loss)
        if not self._pending:
            if self._step_count == 1 and not getattr(self.optimizer, "_opt_called", False):
                self._warn(
                    "scheduler.step() came before any optimizer.step(), and counts as nothing. Call it after "
                    "optimizer.step(); if a GradScaler left that one out, all is well.",
                    stacklevel=3,
                )
            self._losses.clear()
            return
        given = self._losses.of_update() if given is None else given
        if given is None:
            raise OutOfOrderError(
                "No loss is known for the last update: step() was given none, report_loss() was not called, and "
                f"{type(unwrap(self.model)).__name__} returned none under the name 'loss'. Call scheduler.step(loss), "
                "or scheduler.report_loss(loss) before a framework calls scheduler.step()."
            )
        core = self._core
        assert core is not None
        core.after_update(given)
        self._pending = False
        self._losses.clear()
        self._step_count += 1
        self.last_epoch += 1
        if core.finished and self.guard is not None:
            core.observe()
            if core.diverged(self.guard.loss_multiple):
                self._roll_back(core, {})

    def report_loss(self, loss: Tensor | float, share: bool = False) -> None:
        """Tell the loss of a forward pass, where a framework calls :meth:`step` without it.

        From one that is not detached the layer graph is taken, if no output of the model gave it; its backward pass may
        be done.

        :param share: of several between two updates, as under gradient accumulation, whether their sum is the loss of
            the update, as where each was divided by the number of parts or of items; otherwise their mean is
        :raises InvalidSettingError: if it is neither a tensor of one element nor a float; at :meth:`step`, if only some
            since the last were shares
        """
        self._take_graph(loss)
        self._add_loss("reported", loss, share)

    def forget_losses(self) -> None:
        """Forget losses told since the last step: where a framework drops an update and then does not call it."""
        self._losses.clear()

    def plot(self, axis: Any = None) -> Any:
        """Draw :attr:`history`, see :func:`gns.scheduler_history.draw_history`; returns matplotlib axes."""
        return draw_history(self.history, axis)

    def remove(self) -> None:
        """Take all hooks off optimizer and model; the rates stay. With the scheduler's end they go by themselves."""
        self._remove()

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates as they stand; for PyTorch's machinery, see :meth:`get_last_lr`."""
        rates = self.base_lrs if self._at_start else [group["lr"] for group in self.optimizer.param_groups]
        return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]

    # ------------------------------------------------------------------ what the hooks call

    def _before_update(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Set the rates of the coming update, with a decision if one is due.

        :param optimizer: the one that is stepped, which may stand inside a wrapper that was given
        :return: the arguments that its step is to have in place of these
        """
        self._applying = False
        if self.last_epoch < 0 or self.last_epoch >= self.budget:
            return None  # another scheduler's turn, or the end
        if self._pending:
            if self.last_epoch + 1 < self.budget:  # else another scheduler may have taken over
                self._warn(
                    "optimizer.step() came twice with no scheduler.step() between; the rates stay as they are until it "
                    "is called. Call it after every optimizer.step(), not once an epoch.",
                    stacklevel=6,  # through hook, optimizer and PyTorch's watch over the order of calls
                )
            return None
        count, before = len(self.optimizer.param_groups), len(self.base_lrs)
        if count != before:
            raise InvalidSettingError(
                f"The optimizer has {count} parameter groups and had {before} as its scheduler was made; expected as "
                "many. Add groups first, or make a new scheduler afterwards."
            )
        args, kwargs, loss = with_closure_done(args, kwargs)
        if isinstance(loss, Tensor | float):
            self._add_loss("closure", loss)
        if without_gradient(optimizer):
            return args, kwargs
        core = self._core or self._make_core()
        if not left_out(optimizer) and (not core.decision_due or self._decide(core, optimizer)):
            core.before_update()
            self._note_rates()
            self._applying = True
        return args, kwargs

    def _after_optimizer_step(self) -> None:
        self._pending = self._pending or self._applying
        self._applying = False

    def _after_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take the graph from the first output, and the loss from those that have one."""
        if self.graph is None:
            try:
                self.graph = graph_of_forward(self.model, args, kwargs, output)
            except LayerGraphError as problem:  # the next output may do; if none does, the first update says so
                self._graph_problem = problem
        loss = loss_in(output)
        if loss is not None:
            loss, share = loss.detach().mean(), is_share(kwargs)
            self._add_loss("output", loss * self.shared_by if share and self.shared_by > 1 else loss, share)

    def _take_graph(self, loss: Any) -> None:
        """Take the graph from a loss, where it is unknown and the loss came from parameters of the optimizer."""
        if self.graph is not None or not isinstance(loss, Tensor) or loss.grad_fn is None:
            return
        try:
            graph = layer_graph(self.model, loss)
        except LayerGraphError as problem:
            self._graph_problem = problem
            return
        if max(group_of_each(self.optimizer, [p for layer in graph.bind(self.model) for p in layer])) >= 0:
            self.graph = graph  # else it is the loss of another optimizer

    def _begin_at_rates_found(self) -> None:
        """Begin at the rates that the optimizer has by now, if no update was made; for frameworks that look for one."""
        if not self._at_start:
            return
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            initial_rate(rate, self.decision)
            group["initial_lr"] = rate.clone() if isinstance(rate, Tensor) else rate
        self.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        self._note_rates()

    # ------------------------------------------------------------------ decisions

    def _decide(self, core: DecisionCore, optimizer: torch.optim.Optimizer) -> bool:
        """Take a decision; return False if the run was taken back instead, and the coming update is to be left out."""
        unscale(optimizer)
        observation = core.observe()
        names = get_schema(self.decision.features).globals
        features = dict(zip(names, observation.globals.tolist(), strict=True))
        if self.guard is not None:
            if core.update == 0 or not core.diverged(self.guard.loss_multiple):
                self._snapshot.take(core.steps)
            elif self._roll_back(core, features):
                return False
        if not core.statistics.finite and "finite" not in self._warned:
            self._warned.add("finite")
            _logger.warning("At update %d a loss, gradient, parameter or optimizer state is not finite.", core.update)
        with torch.autocast("cpu", enabled=False):  # whatever the training loop has it at
            action = self.policy.act(observation)
        multiplier = core.decide(action)
        self._record(core, multiplier, action, features)
        return True

    def _roll_back(self, core: DecisionCore, features: dict[str, float]) -> bool:
        """Put back the last good snapshot and cut the rate; return False once that was done as often as allowed."""
        guard = self.guard
        assert guard is not None
        if self.rollbacks >= guard.max_rollbacks:
            if "lost" not in self._warned:
                self._warned.add("lost")
                _logger.error(
                    "The run diverged at update %d after %d rollbacks; it is not taken back any more.",
                    core.update,
                    self.rollbacks,
                )
            return False
        self.rollbacks += 1
        self._snapshot.restore()
        core.roll_back(guard.cut, self._snapshot.steps)
        held = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        for parameter in (*self.model.parameters(), *held):
            parameter.grad = None  # it belongs to the state that was undone; an optimizer skips what has no gradient
        self._record(core, guard.cut, None, features, rollback=True)
        _logger.warning(
            "Diverged at update %d of %d: the state after %d updates is restored, the rate is cut by %g (rollback %d "
            "of %d).",
            core.update,
            core.budget,
            self._snapshot.steps,
            guard.cut,
            self.rollbacks,
            guard.max_rollbacks,
        )
        return True

    def _record(
        self,
        core: DecisionCore,
        multiplier: float,
        action: float | None,
        features: dict[str, float],
        rollback: bool = False,
    ) -> None:
        finite = bool(core.statistics.finite)
        record = DecisionRecord(core.update, core.learning_rate, multiplier, action, features, rollback, finite)
        self.history.append(record)
        _logger.debug("%s", record)

    def _make_core(self) -> DecisionCore:
        group = group_of_run(self.process_group)
        if group is not None:
            given = {
                "total_steps": self.budget,
                "the number of updates done": self.last_epoch,
                "the policy's digest": fingerprint(self.policy),
                "the decision config": asdict(self.decision),
                "guard": self.guard and asdict(replace(self.guard, folder=None)),  # which may be each machine's own
            }
            self.graph = graph_of_first_rank(self.graph, self.model, given, group)
        if self.graph is None:
            seen, advice = "forward pass of", "Call the model itself, make the scheduler before the first forward pass"
            if is_lightning(self.model):
                seen, advice = "loss of", "Make the scheduler in configure_optimizers, call self.manual_backward(loss)"
            raise LayerGraphError(
                f"No layer graph is known at the first update: no {seen} {type(unwrap(self.model)).__name__} was seen "
                f"that has a gradient ({self._graph_problem or 'none at all'}). {advice}, call "
                "scheduler.report_loss(loss) before the first update, or pass graph=gns.layer_graph(model, loss)."
            ) from self._graph_problem
        core = make_core(
            self.model,
            self.optimizer,
            self.graph,
            self.budget,
            self.decision,
            self.base_lrs,
            self._core_state,
            self.last_epoch,
            group,
        )
        self._core_state = None
        if self.guard is not None:
            self._snapshot = Snapshot(unwrap(self.model), self.optimizer, self.guard.folder)
            if core.update:
                self._snapshot.take(core.steps)  # of a run that goes on, where it goes on
        self._core = core
        return core

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run needs to go on exactly: numbers, text and small tensors, no pickled object.

        Not in it: the policy (but a digest of it), the guard, and its snapshot, which is taken anew when a run goes on.
        """
        core = self._core.state_dict() if self._core is not None else self._core_state
        return {
            "last_epoch": self.last_epoch,
            "budget": self.budget,
            "base_lrs": list(self.base_lrs),
            "policy": fingerprint(self.policy),
            "decision": asdict(self.decision),
            "graph": None if self.graph is None else plain_graph(self.graph),
            "core": core,
            "history": [asdict(record) for record in self.history],
            "rollbacks": self.rollbacks,
            "_pending": self._pending,
            "_step_count": self._step_count,
            "_last_lr": list(self._last_lr),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, whose budget, bounds and layer graph take the place of those given.

        :raises InvalidSettingError: if it is of no such scheduler, of another policy, or of other parameter groups
        """
        state = dict(state_dict)
        if missing := {"core", "policy", "decision", "budget"} - set(state):
            raise InvalidSettingError(
                f"This state dict lacks {sorted(missing)}; expected one of a GNSScheduler. Load that of the scheduler "
                "that the run was begun with."
            )
        if state.pop("policy") != fingerprint(self.policy):
            raise InvalidSettingError(
                "The state dict is of a run with another policy; expected the one given. Make the scheduler with the "
                "policy the run was begun with, or begin a new schedule without the state dict."
            )
        if len(state["base_lrs"]) != len(self.optimizer.param_groups):
            raise InvalidSettingError(
                f"The state dict has {len(state['base_lrs'])} parameter groups and the optimizer "
                f"{len(self.optimizer.param_groups)}; expected as many. Make the optimizer as it was."
            )
        graph = state.pop("graph")
        if graph is not None:
            self.graph = graph_from_plain(graph)
            self.graph.bind(self.model)
        self.decision = DecisionConfig(**state.pop("decision"))
        self.history = [DecisionRecord(**record) for record in state.pop("history")]
        self._core, self._core_state = None, on_device_of(self.model, state.pop("core"))
        self._applying = False
        self._losses.clear()
        self.__dict__.update(state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out hooks and what is made anew; the core is kept as its state."""
        own = {key: value for key, value in self.__dict__.items() if key not in ("_remove", "_snapshot")}
        core = self._core.state_dict() if self._core is not None else self._core_state
        ranks = ranks_of(self.process_group)  # a group itself is of this process only
        return own | {"_core": None, "_core_state": core, "_graph_problem": None, "process_group": ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remove = attach(self, self.optimizer, self.model)

    # ------------------------------------------------------------------ inside

    @property
    def _at_start(self) -> bool:
        return self.last_epoch == 0 and self._core is None and self._core_state is None

    def _add_loss(self, source: str, loss: Tensor | float, share: bool = False) -> None:
        if self.last_epoch >= 0:  # else a warm-up's
            self._losses.add(source, loss, share)

    def _note_rates(self) -> None:
        rates = (group["lr"] for group in self.optimizer.param_groups)
        self._last_lr = [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]

    def _warn(self, message: str, stacklevel: int) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=stacklevel)


def _require_that_it_trains(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    if all(group < 0 for group in group_of_each(optimizer, list(trainable_parameters(model).values()))):
        raise LayerGraphError(
            f"The optimizer holds none of the trainable parameters of {type(unwrap(model)).__name__}. Expected an "
            "optimizer built on this model's parameters; pass the model that the optimizer trains."
        )
