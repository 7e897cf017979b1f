"""A learned policy where ``CosineAnnealingLR`` stood."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from gns.deciding.decision import DecisionCore
from gns.deciding.guard import GuardConfig
from gns.deciding.rate_control import initial_rate
from gns.errors import InvalidSettingError, OutOfOrderError
from gns.graph.layer_graph import LayerGraph, unwrap
from gns.parallel.distributed import require_group
from gns.scheduler import advice
from gns.scheduler.checks import require_kinds, require_that_it_trains
from gns.scheduler.closures import closure_of, followed_by, updating
from gns.scheduler.hooks import attach, is_share, left_out, loss_in, others_on, unscale, without_gradient
from gns.scheduler.lengths import Progress, few_enough, planned
from gns.scheduler.losses import Losses, scalar
from gns.scheduler.policy_source import frozen_policy
from gns.scheduler.rates import WrittenRates, make_own, plain, rates_of
from gns.scheduler.run import ScheduledRun
from gns.scheduler.run_view import RunView
from gns.scheduler.state import names_held
from gns.scheduler.state_check import require_state_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gns.policy.artefact import GNSPolicy


_OWN_STATE = ("last_epoch", "base_lrs", "_pending", "_step_count", "_last_lr")  # the rest of its state is the run's


class GNSScheduler(RunView):
    """Sets the rates of a training run by a pretrained policy; stands where ``CosineAnnealingLR`` stood::

        scheduler = GNSScheduler(optimizer, model, total_steps=10_000, policy="folder or Hub id")
        ...
        loss.backward(); optimizer.step(); scheduler.step(loss)

    It decides in a hook of ``optimizer.step``, on the gradient as it is then (accumulated, clipped, unscaled), before
    the update is applied; an update counts once it was made and :meth:`step` was called after it. Thus a step that a
    ``GradScaler`` leaves out, or a second call of :meth:`step`, counts as nothing. The first parameter group has rate
    :meth:`get_last_lr` ``[0]``, that of the last update made; groups keep their ratios, but for a policy of action mode
    ``per-layer``, see :func:`gns.parameter_groups`. Past ``total_steps`` updates the last rate stays.

    The loss comes from ``step(loss)``; where a framework calls ``step()``, it is the mean of what :meth:`report_loss`
    was given since the last step, else what the optimizer's closure returned, else the mean ``.loss`` of the model's
    outputs since (their sum, where the model was told ``num_items_in_batch``). It is not copied to the host but with
    everything else at a decision, the only wait for the device that is added (a fused optimizer under a ``GradScaler``
    apart: whether it makes an update is read each time).

    The layer graph is taken from the output of the model's first forward pass with gradients. Where several processes
    train the model, all take the same decisions: see ``docs/distributed.md``.

    :param optimizer: its rates now, or ``initial_lr`` where a group has it, are the initial ones
    :param model: the model it trains; best as it is called, compiled or not
    :param total_steps: number of updates T of the run; :meth:`extend` and :attr:`budget` change it later. None: not
        known. The rate then has no profile, decisions are those of a run in its first half, ever longer ones, and
        :meth:`cooldown` brings the rate down once the end is known
    :param policy: folder or Hub id of a policy, or one in memory, which is copied; None: the prior, REX from
        a default rate, see :mod:`gns.policy.prior`
    :param min_lr: lowest rate of any group; None: the policy's
    :param max_lr: highest rate of any group; None: the policy's
    :param guard: when to take the run back after a divergence; None: never; ``auto``: as ``GuardConfig()`` says, unless
        a snapshot of model and optimizer might take more than 1 GiB. See ``docs/scheduler.md``
    :param last_epoch: index of the last update when a run is resumed without a state dict, see PyTorch: the run is
        taken to have made ``last_epoch + 1`` updates and to stand at the optimizer's rates; losses are unknown
    :param graph: layer graph of the model, where it cannot be taken from the output
    :param process_group: ranks that train this model together; None: all of ``torch.distributed``, if it is in use by
        the first update; False: this process decides alone
    :param record_layers: keep the features of every layer at every decision for :meth:`plot`: 4 bytes a layer, feature
        and decision. Changes no rate
    :param warmup_steps: number of updates, the first of T, over which the rate climbs linearly to what the policy
        decided on first; it decides again after them
    :param trust_initial_rate: of a policy that begins at a default rate, as the prior does: begin at the optimizer's
        rates instead, such as those that :func:`gns.find_rate` advised
    :raises InvalidSettingError: on a value outside its domain; if the optimizer holds another whose rates it does not
        share
    :raises LayerGraphError: if the optimizer holds none of the model's trainable parameters
    :raises PolicyFormatError: if the policy cannot be loaded, or needs what a scheduler does not have
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        total_steps: int | None,
        policy: str | Path | GNSPolicy | None = None,
        min_lr: float | None = None,
        max_lr: float | None = None,
        guard: GuardConfig | Literal["auto"] | None = "auto",
        last_epoch: int = -1,
        graph: LayerGraph | None = None,
        process_group: ProcessGroup | Literal[False] | None = None,
        record_layers: bool = False,
        warmup_steps: int = 0,
        trust_initial_rate: bool = False,
    ) -> None:
        require_kinds(optimizer, model)
        require_group(process_group)
        policy = frozen_policy(policy)
        bounds = {name: plain(rate) for name, rate in (("min_lr", min_lr), ("max_lr", max_lr)) if rate is not None}
        decision = replace(policy.config.decision, **bounds)
        if trust_initial_rate:
            decision = replace(decision, trust_initial_rate=True)
        budget, phases = planned(total_steps, warmup_steps, decision)
        decision = few_enough(decision, budget)
        updating(optimizer)
        require_that_it_trains(optimizer, model)
        if graph is not None:
            graph.bind(model)
        if isinstance(guard, GuardConfig) and not guard.enabled:
            guard = None
        self._run = ScheduledRun(model, budget, policy, decision, guard, graph, process_group, record_layers, phases)
        self._applying = self._pending = False  # an update is being made; was made, and step() is yet to come
        self._closure_waits = self._past_end = False  # a closure is yet to be called; an update came past the budget
        self._graph_of_evaluation = False  # the layer graph is that of a model in evaluation mode
        self._written = WrittenRates()
        self._progress = Progress()
        self._losses = Losses()
        self.shared_by = 1  # processes whose items are counted by the num_items_in_batch that a model is called with
        self._warned: set[str] = set()
        make_own(optimizer)
        super().__init__(optimizer, last_epoch)
        for group in optimizer.param_groups:
            initial_rate(group["initial_lr"], decision)
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
                self._warn(advice.NO_UPDATE_YET)
            if self._past_end:
                self._warn(advice.PAST_END, budget=self.budget)
            self._past_end = False
            self._losses.clear()
            return
        given = self._losses.of_update() if given is None else given
        if given is None:
            raise OutOfOrderError(
                "No loss is known for the last update: step() was given none, report_loss() was not called, and "
                f"{type(unwrap(self.model)).__name__} returned none under the name 'loss'. Call scheduler.step(loss), "
                "or scheduler.report_loss(loss) before a framework calls scheduler.step()."
            )
        core = self._run.core or self._begin(updating(self.optimizer))  # a state was loaded after the update
        core.note_update(given)
        self._pending = False
        self._losses.clear()
        self._step_count += 1
        done = self.last_epoch = self.last_epoch + 1
        run = self._run
        self._progress.note(done, run.budget if run.end_known else None, self._last_lr[0])
        if core.finished or done + run.rollbacks == run.budget:  # a rollback leaves one update out
            run.check_end()

    def report_loss(self, loss: Tensor | float, share: bool = False) -> None:
        """Tell the loss of a forward pass, where a framework calls :meth:`step` without it.

        From one that is not detached the layer graph is taken, if no output of the model gave it; its backward pass may
        be done.

        :param share: of several between two updates, as under gradient accumulation, whether their sum is the loss of
            the update, as where each was divided by the number of parts or of items; otherwise their mean is
        :raises InvalidSettingError: if it is neither a tensor of one element nor a float; at :meth:`step`, if only some
            since the last were shares
        """
        self._run.take_graph_of_loss(loss, self.optimizer)
        self._add_loss("reported", loss, share)

    def forget_losses(self) -> None:
        """Forget losses told since the last step: where a framework drops an update and then does not call it."""
        self._losses.clear()

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
        """Set the rates of the coming update, with a decision if one is due, as soon as its gradients are pending.

        :param optimizer: the one that is stepped, which may stand inside a wrapper that was given
        :return: the arguments that its step is to have in place of these
        """
        done = self.last_epoch
        self._applying = self._closure_waits = False
        self._past_end = done >= self._run.budget
        if done < 0 or self._past_end:
            return None  # another scheduler's turn, or the end
        if self._pending:
            if done + 1 < self.budget:  # else another scheduler may have taken over
                self._warn(advice.NOT_STEPPED)
            return None
        if closure_of(args, kwargs) is None:
            self._set_rates(optimizer)
            return None

        def decide(loss: Any) -> None:
            self._closure_waits = False
            if isinstance(loss, Tensor | float):
                self._add_loss("closure", loss)
            self._set_rates(optimizer)

        self._closure_waits = True
        return followed_by(args, kwargs, decide, at_once=isinstance(optimizer, torch.optim.LBFGS))

    def _set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Decide, if it is time, and write the rates, unless there will be no update.

        What is done here at every update, and in what it calls, is felt in training of small models.

        :raises InvalidSettingError: if the optimizer has fewer parameter groups than it had
        """
        groups, known = optimizer.param_groups, len(self.base_lrs)
        if len(groups) < known:
            raise InvalidSettingError(
                f"The optimizer has {len(groups)} parameter groups and its scheduler knows {known}; expected as many, "
                "or more. Leave groups where they are, or make a new scheduler without them."
            )
        if without_gradient(optimizer):
            return
        run = self._run
        core = run.core
        if core is None:
            core = self._begin(optimizer)
        else:
            if self._written.changed(optimizer):
                self._warn(advice.CHANGED_RATES)
            if core.decision_due or run.falls_behind or len(groups) > known:
                core = run.keep_up(core)
        if len(groups) > known:
            for group, initial in zip(groups[known:], core.initial_lrs[known:], strict=True):
                group["initial_lr"] = initial
                self.base_lrs.append(initial)
        if left_out(optimizer):
            return
        if core.decision_due:
            unscale(optimizer)
            if not run.decide():
                return
        core.set_rates()
        self._last_lr = self._written.note(optimizer)
        self._applying = True

    def _begin(self, optimizer: torch.optim.Optimizer) -> DecisionCore:
        if any(other._run.begun and other.last_epoch < other.budget for other in others_on(optimizer, self)):
            self._warn(advice.ANOTHER_SCHEDULER)
        updating(optimizer)
        make_own(optimizer)
        if self._at_start and list(map(float, rates_of(optimizer))) != list(map(float, self.base_lrs)):
            self._warn(advice.CHANGED_RATES)
        return self._run.begin(optimizer, self.base_lrs, self.last_epoch)

    def _after_optimizer_step(self) -> None:
        if self._closure_waits:
            self._warn(advice.CLOSURE_LEFT)
        self._closure_waits = False
        self._pending = self._pending or self._applying
        self._applying = False

    def _after_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, module: nn.Module) -> None:
        """Take the graph from the first output, best of one in training mode, and the loss from those that have one."""
        run = self._run
        if run.core is not None and not run.wants_graph and isinstance(output, Tensor):
            return
        training = unwrap(module).training
        if training and self._graph_of_evaluation and not run.begun:
            run.graph = None
        unknown = run.graph is None
        run.take_graph_of_forward(args, kwargs, output)
        self._graph_of_evaluation = not training and (unknown or self._graph_of_evaluation)
        loss = loss_in(output)
        if loss is not None:
            loss, share = loss.detach().mean(), is_share(kwargs)
            loss = loss * self.shared_by if share and self.shared_by > 1 else loss
            self._add_loss("output" if training else "evaluation", loss, share)

    def _begin_at_rates_found(self) -> None:
        """Begin at the rates that the optimizer has by now, if no update was made; for frameworks that look for one."""
        if not self._at_start:
            return
        for group, rate in zip(self.optimizer.param_groups, rates_of(self.optimizer), strict=True):
            initial_rate(rate, self.decision)
            group["initial_lr"] = plain(rate)
        self.base_lrs = [group["initial_lr"] for group in self.optimizer.param_groups]
        self._note_rates()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run needs to go on exactly: numbers, text and small tensors, no pickled object.

        Not in it: the policy (but a digest of it), the guard, and its snapshot, which is taken anew when a run goes on.
        """
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            **self._run.state_dict(),
            "_pending": self._pending,
            "_step_count": self._step_count,
            "_last_lr": list(self._last_lr),
            "parameters": names_held(self.optimizer, self.model),
        }

    def load_state_dict(self, state_dict: dict[str, Any], total_steps: int | None = None) -> None:
        """Go on from a :meth:`state_dict`, whose budget, bounds and layer graph take the place of those given.

        :param total_steps: number of updates T of the whole run, where it is another than it was begun with
        :raises InvalidSettingError: if it is of no such scheduler, of another policy, or of other parameter groups
        :raises LayerGraphError: if it is of another model
        :raises StateError: if it is damaged; nothing is changed then
        """
        require_state_of(state_dict, self.policy, len(self.optimizer.param_groups), self.model)
        given, known = self.budget, self._run.end_known
        self._run.load_state_dict(state_dict)
        self._run.names_saved = state_dict.get("parameters")
        self._applying = False
        self._losses.clear()
        self._written.forget()
        vars(self).update({name: state_dict[name] for name in _OWN_STATE})
        if total_steps is not None:
            self.budget = total_steps
        elif self.budget != given and (known or self._run.end_known):
            self._warn(advice.OTHER_LENGTH, given=given, budget=self.budget, done=self.last_epoch)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out hooks, which are made anew; a shallow copy, too, has a run of its own."""
        anew = {"_run": copy.copy(self._run), "_written": WrittenRates(), "_progress": Progress()}
        return {name: value for name, value in vars(self).items() if name != "_remove"} | anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._remove = attach(self, self.optimizer, self.model)

    @property
    def _at_start(self) -> bool:
        return self.last_epoch == 0 and not self._run.begun

    def _add_loss(self, source: str, loss: Tensor | float, share: bool = False) -> None:
        if self.last_epoch >= 0:  # else a warm-up's
            self._losses.add(source, loss, share)

    def _note_rates(self) -> None:
        self._last_lr = rates_of(self.optimizer)

    def _warn(self, message: str, **numbers: Any) -> None:
        advice.warn_once(self._warned, message, **numbers)
