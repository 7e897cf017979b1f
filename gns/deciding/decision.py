"""The decision core: when a rate is decided, what the policy sees then, and what its action does to the rate.

The Gymnasium environment, the evaluation and the drop-in scheduler all drive this one class, so that a policy meets
in use exactly what it met in training. Per update the order is::

    loss.backward()                  # the gradient of the coming update is pending
    if core.decision_due:
        core.decide(policy(core.observe()))
    core.set_rates()                 # writes the rate of this update into every parameter group
    optimizer.step()
    core.note_update(loss)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from gns.deciding.action_modes import ACTION_MODES
from gns.deciding.config import DecisionConfig, Observation
from gns.deciding.phases import Phases
from gns.deciding.rate_control import RateControl, initial_rate
from gns.errors import LayerGraphError, OutOfOrderError, UnknownNameError
from gns.features.held_out import ValidationStatistics
from gns.features.moments import as_real, group_of_each, optimizer_kind
from gns.features.schemas import compute_features, get_schema
from gns.features.statistics import OPTIMIZER_KINDS, SUM_G2, SUM_U2, RunStatistics
from gns.features.sums import beside, read_sums
from gns.features.travel import sketch, travel_sums
from gns.features.update_rules import SETTINGS
from gns.graph.layer_graph import LayerGraph, unwrap
from gns.parallel.distributed import all_reduced, gathered, is_distributed, local, local_optimizer, shares
from gns.schedules.static import default_rate, is_pretrained

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_logger = logging.getLogger(__name__)
__all__ = ["ACTION_MODES", "DecisionConfig", "DecisionCore", "Observation"]
_MOST_LOSSES = 2**20  # kept of an interval; of a longer one those of evenly spaced updates
_PAST_START = 10_000  # updates an optimizer that comes with state is taken to have done
_COUNTS = ("update", "steps", "interval_updates")  # of the memory: must be the same on all ranks
_TAKEN_OVER = ("scale", "anchor", "first_loss", "start_loss", "previous_loss")  # of the memory: rank 0's on all ranks


class DecisionCore(RateControl):
    """Decides on, and keeps, the learning rates of one training run.

    :param model: the model being trained
    :param optimizer: its optimizer. Where layers have actions, its groups are what has multipliers of its own, see
        :func:`gns.graph.layer_groups.parameter_groups`
    :param graph: layer graph of the model
    :param budget: number of updates T of the run
    :param config: how actions become rates
    :param process_group: ranks that train this model together and must decide alike, see
        :mod:`gns.parallel.distributed`; None: this process decides alone, and communicates with no other
    :param initial_lrs: initial rate of each parameter group; None: the rates they have now, within the bounds
    :param phases: what comes before the profile
    :raises InvalidSettingError: if the budget is too small, or an initial rate is not positive or out of bounds; if the
        model is sharded over other ranks than these
    :raises LayerGraphError: if the optimizer holds none of the model's trainable parameters
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        graph: LayerGraph,
        budget: int,
        config: DecisionConfig,
        process_group: ProcessGroup | None = None,
        initial_lrs: Sequence[float | Tensor] | None = None,
        phases: Phases = Phases(),  # noqa: B008 (it is frozen)
    ) -> None:
        rates = list(initial_lrs or (initial_rate(group["lr"], config) for group in optimizer.param_groups))
        bound = graph.bind(model)
        self._parameters = [p for layer in bound for p in layer]
        self._groups = group_of_each(optimizer, self._parameters)
        self._sizes = [len(layer) for layer in bound]
        layers = _layers_of_groups(self._sizes, self._groups, len(rates))
        default = default_factor(config, optimizer, unwrap(model), graph, budget, rates)
        super().__init__(budget, config, rates, _PAST_START if optimizer.state else 0, layers, default, phases)
        self.model, self.optimizer, self.graph = unwrap(model), optimizer, graph
        self._group, self._shares = process_group, shares(self._parameters, process_group)
        self._sharded = any(map(is_distributed, self._parameters))
        if all(group < 0 for group in self._groups):
            raise LayerGraphError(
                "The optimizer holds none of the model's trainable parameters. Expected an optimizer built on this "
                "model's parameters; pass the model that the optimizer trains."
            )
        self._kind = optimizer_kind(optimizer)
        self._trained = trained_by(optimizer, self.model)
        self._losses: Tensor | None = None
        self._loss_spacing = _spacing(self.interval)
        self._before_last: list[Tensor] | None = None
        self._measured: Tensor | None = None
        self._start: list[Tensor] | None = None  # a sketch of the parameters as the run began, where features need it
        self._pretrained = get_schema(config.features).needs_start and is_pretrained(self.model)
        self.statistics: RunStatistics  # of the last observe()

    # ------------------------------------------------------------------ the four calls of an update

    def observe(self, validation: ValidationStatistics | None = None) -> Observation:
        """Read the pending gradients and the losses since the last decision.

        One copy to the host, and one all-reduce where ranks decide together: all must call it. Changes nothing but
        :attr:`statistics`; other ranks than the first take over what rank 0 remembers of scale and losses.

        :param validation: figures of held-out data now, for a feature schema that needs them; others ignore them
        :raises OutOfOrderError: if the schema needs them and there are none
        :raises RanksDisagreeError: if the ranks are not at the same update
        """
        needed = get_schema(self.config.features).needs_validation
        if needed and validation is None:
            raise OutOfOrderError(
                f"observe() came without validation figures, which features {self.config.features!r} need. Evaluate "
                "the model on held-out data first and pass observe() what "
                "gns.features.held_out.validation_statistics makes of its loss and predictions; "
                "or use a policy whose features need none."
            )
        statistics = self._collect()
        if needed:
            figures: Any = {name: np.asarray(value, dtype=np.float64) for name, value in vars(validation).items()}
            statistics = replace(statistics, **figures)
        self.statistics = statistics
        gradient = float(np.sqrt(statistics.sums[:, SUM_G2].sum()))
        self.note_observation(statistics.losses, bool(statistics.finite), gradient, bool(statistics.state_finite))
        nodes, global_features = compute_features(self.config.features, self.graph, self.statistics)
        return Observation(nodes, self.graph.type_ids, self.graph.block_ids, self.graph.edges, global_features)

    def set_rates(self) -> None:
        """Write the rate of the coming update into every parameter group.

        :raises OutOfOrderError: if a decision is due first, or the budget is spent
        """
        if self._memory.update >= self.budget or self.decision_due:
            problem = "the budget is spent" if self.finished else "a decision is due, call decide()"
            raise OutOfOrderError(f"No update can begin after {self.update} of {self.budget}: {problem}.")
        factors = self.group_factors
        for group, initial, factor in zip(self.optimizer.param_groups, self.initial_lrs, factors, strict=True):
            rate = self._applied(initial, factor)
            if isinstance(group["lr"], Tensor):  # capturable optimizers keep their rate on the device
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if self._kind == "other" and self._memory.interval_updates == self._interval_length() - 1:
            self._before_last = [as_real(local(p.detach())).clone() for p in self._parameters]

    def note_update(self, loss: Tensor) -> None:
        """Note the loss of the update just done, this rank's: a scalar tensor, not copied to the host."""
        loss = gathered(loss.detach() if loss.requires_grad else loss)
        if self._losses is None:
            room = losses_kept(self.interval, self.interval)
            self._losses = torch.zeros(room, dtype=torch.float32, device=loss.device)
        place, spacing = self._memory.interval_updates, self._loss_spacing
        if place % spacing == 0 and self._counts:
            self._losses[place // spacing].copy_(loss)
        if self._before_last is not None:
            changes = torch._foreach_sub([as_real(local(p.detach())) for p in self._parameters], self._before_last)
            factors = self._of_tensors(self.group_factors) * self.phases.ramp(self._memory.update)
            per_rate = torch._foreach_div(changes, factors.tolist())
            self._measured = beside(torch._foreach_powsum(per_rate, 2, dtype=torch.float32))
            self._before_last = None
        self.count_updates()

    def roll_back(self, cut: float, steps: int) -> None:
        """Note that the last interval was undone, see :meth:`gns.deciding.rate_control.RateControl.roll_back`."""
        super().roll_back(cut, steps)
        self._measured = None

    # ------------------------------------------------------------------ what is replaced or added in mid-run

    @property
    def outdated(self) -> bool:
        """Whether model or optimizer have other trainable parameters, or other names of them, than it decides on."""
        return trained_by(self.optimizer, self.model) != self._trained

    def stretch(self, budget: int) -> None:
        """Go on for another number of updates, right after a decision, when no loss of an interval is kept yet."""
        self.budget, self.interval = budget, self.config.interval(budget)
        self._losses = None

    def take_up_groups(self) -> None:
        """Let parameter groups that were added to the optimizer keep the ratio to the others that they have now.

        :raises InvalidSettingError: if the rate of one is not positive or out of bounds
        """
        factor, known = self.factor * self.phases.ramp(self.update), len(self.initial_lrs)
        added = [initial_rate(group["lr"], self.config) for group in self.optimizer.param_groups[known:]]
        self._take_initial([*self.initial_lrs, *(rate / factor for rate in added)])
        self._groups = group_of_each(self.optimizer, self._parameters)
        self._hold(_layers_of_groups(self._sizes, self._groups, len(self.initial_lrs)))

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly: plain numbers and at most two small tensors.

        The tensors are this rank's: its losses of the interval under way, and its shards' part of a measured update.
        """
        return {
            **super().state_dict(),
            "losses": None if self._losses is None else self._losses.clone(),
            "measured": None if self._measured is None else self._measured.clone(),
            "pretrained": self._pretrained,  # which a later look would take a trained model for
            "start": None if self._start is None else [part.clone() for part in self._start],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. What it has of each layer is left out where it is of other layers."""
        layers = len(self._memory.layer_actions)
        super().load_state_dict(state)
        if len(self._memory.layer_actions) != layers:
            self._memory.layer_actions = [0.0] * layers
        self._before_last = None
        self._losses = None if state["losses"] is None else state["losses"].clone()
        measured = state["measured"]
        self._measured = measured.clone() if measured is not None and len(measured) == len(self._parameters) else None
        self._pretrained = state.get("pretrained", self._pretrained)
        start, now = state.get("start"), self._sketched()
        self._start = None
        if start is not None and [len(x) for x in start] == [len(x) for x in now]:  # else it is of other parameters
            self._start = [x0.to(x.device, copy=True) for x0, x in zip(start, now, strict=True)]

    # ------------------------------------------------------------------ inside

    def _losses_of_interval(self) -> np.ndarray | None:
        """Losses since the last decision; :meth:`observe` has usually brought them to the host."""
        observed = super()._losses_of_interval()
        if observed is None and self._losses is not None:
            return self._losses[: losses_kept(self.interval, self._memory.interval_updates)].cpu().double().numpy()
        return observed

    def _collect(self) -> RunStatistics:
        memory = self._memory
        present = [local(p.grad.detach(), p) if p.grad is not None else None for p in self._parameters]
        parameters, optimizer = self._parameters, self.optimizer
        if self._sharded:
            parameters = [local(p.detach()) for p in self._parameters]
            optimizer = local_optimizer(optimizer, self._parameters, parameters)
        schema, groups = get_schema(self.config.features), self.optimizer.param_groups
        read = read_sums(optimizer, parameters, present, memory.steps, schema.products)
        sums, travel = read.sums, np.asarray(math.nan)
        if schema.needs_start:
            if self._start is None:  # of a run that goes on without a state, where it goes on
                self._start = [part.clone() for part in self._sketched()]
            sums = torch.cat([sums, travel_sums(self._start, parameters, present).to(sums.device)], dim=1)
        table, measured, losses = self._on_host(sums)
        if schema.needs_start:
            table, travel = np.split(table, [read.sums.shape[1]], axis=1)
        initial = self._of_tensors(self.initial_lrs)
        if self._measured is not None:
            table[:, SUM_U2] = measured / np.square(initial)  # per unit of rate
        return RunStatistics(
            sums=table,
            learning_rates=initial * self._of_tensors(self.group_factors),
            momentum_scale=read.momentum_scale,
            second_scale=read.second_scale,
            losses=losses,
            first_loss=np.asarray(memory.first_loss, dtype=np.float64),
            previous_loss=np.asarray(memory.previous_loss, dtype=np.float64),
            learning_rate=np.asarray(self.learning_rate, dtype=np.float64),
            progress=np.asarray(min(self.update / self.budget, 1.0), dtype=np.float64),
            budget=np.asarray(self.budget, dtype=np.float64),
            rolled_back=np.asarray(memory.rolled_back, dtype=np.float64),
            optimizer_kind=np.asarray(OPTIMIZER_KINDS.index(self._kind)),
            level=np.asarray(self.level, dtype=np.float64),
            pretrained=np.asarray(self._pretrained, dtype=np.float64),
            travel=travel,
            settings={
                name: self._of_tensors([float(SETTINGS[name](self._kind, group)) for group in groups])
                for name in schema.settings
            },
        )

    def _sketched(self) -> list[Tensor]:
        return sketch([local(p.detach()) for p in self._parameters])

    def _of_tensors(self, of_groups: list[float]) -> np.ndarray:
        """Spread values of parameter groups over the tensors, (P,); one that no group holds has the first group's."""
        return np.array(of_groups)[np.maximum(self._groups, 0)]

    def _on_host(self, sums: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bring the sums, the measured update's and the losses of the interval to the host, in one copy.

        Of all ranks, where they decide together; then the memory is brought in line with rank 0's.
        """
        memory, count = self._memory, losses_kept(self.interval, self._memory.interval_updates)
        losses = self._losses[:count].to(sums.device) if self._losses is not None else sums.new_zeros(0)
        measured = self._measured if self._measured is not None else sums.new_zeros(0)
        if self._group is None:
            host = torch.cat([sums.flatten(), measured, losses]).cpu().numpy().astype(np.float64)
            table, measured_host, losses_host = np.split(host, [sums.numel(), sums.numel() + len(measured)])
            return table.reshape(sums.shape), measured_host, losses_host
        if self._kind == "other" and self._measured is None:
            measured = sums.new_zeros(len(sums))
        counts, own = ({name: getattr(memory, name) for name in names} for names in (_COUNTS, _TAKEN_OVER))
        table, measured_host, losses_host, taken = all_reduced(
            self._group,
            self._shares,
            sums,
            measured,
            losses,
            losses_kept(self.interval, self.interval),
            counts,
            [*own.values(), *memory.layer_actions],
        )
        vars(memory).update(zip(own, taken[: len(own)], strict=True))
        memory.layer_actions = taken[len(own) :]
        return table, measured_host, losses_host


def default_factor(
    config: DecisionConfig,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    graph: LayerGraph,
    budget: int,
    rates: Sequence[float | Tensor],
) -> float:
    """Return the default rate of a run over its initial one, where decisions or features ask for it; else NaN.

    Parameter groups keep their ratios; the group with the most scalars gets the default.

    :param rates: initial rate of each parameter group
    """
    if not (config.action_mode.from_default or get_schema(config.features).needs_start):
        return math.nan
    try:
        rate = default_rate(optimizer, model, graph, budget, config.profile)
    except UnknownNameError as problem:
        if config.action_mode.from_default:
            _logger.warning("The initial rate is taken as it is given: %s", problem)
        return math.nan
    sizes = [sum(p.numel() for p in group["params"]) for group in optimizer.param_groups[: len(rates)]]
    return rate / float(rates[int(np.argmax(sizes))])


def trained_by(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[str, int, int]]:
    """Return name, identity and parameter group of each trainable parameter of a model that an optimizer holds."""
    groups = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    named = model.named_parameters()
    return [(name, id(p), groups[id(p)]) for name, p in named if p.requires_grad and id(p) in groups]


def losses_kept(interval: int, updates: int) -> int:
    """Return how many losses are kept of so many updates of an interval, those done first."""
    return -(-updates // _spacing(interval))


def _spacing(interval: int) -> int:
    """Updates from one loss that is kept to the next."""
    return -(-interval // _MOST_LOSSES)


def _layers_of_groups(sizes: list[int], groups: list[int], count: int) -> tuple[int, list[list[int]]]:
    """Return how many layers there are, and which of them each of ``count`` parameter groups holds, by number.

    :param sizes: number of parameter tensors of each layer
    :param groups: parameter group of each tensor, layer after layer; -1: none
    """
    layers = np.repeat(np.arange(len(sizes)), sizes).tolist()
    pairs = sorted(set(zip(groups, layers, strict=True)))
    return len(sizes), [[layer for group, layer in pairs if group == number] for number in range(count)]
