"""Whether a scheduler's state dict is whole: structure, kinds, ranges and finiteness, before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from gns.deciding.config import DecisionConfig
from gns.deciding.decision import losses_kept
from gns.deciding.guard import Watch
from gns.deciding.rate_control import Memory, initial_rate
from gns.errors import GNSError, InvalidSettingError, StateError
from gns.features.schemas import get_schema
from gns.features.travel import SKETCHED
from gns.graph.layer_graph import LayerGraph
from gns.policy.files import shown
from gns.scheduler.lengths import few_enough
from gns.scheduler.policy_source import fingerprint
from gns.scheduler.state import graph_from_plain
from gns.tools.history_files import checked_graph, checked_phases, checked_record

if TYPE_CHECKING:
    from gns.policy.artefact import GNSPolicy

LONGEST = 10**13  # updates of a budget
_KINDS = {"int": (int,), "float": (int, float), "bool": (bool,), "list[float]": (list, tuple)}


def require_state_of(state: Mapping[str, Any], policy: GNSPolicy, groups: int, model: nn.Module) -> None:
    """Pass the state dict of a scheduler with this policy and model, whose optimizer has so many parameter groups.

    :raises InvalidSettingError: if it is of another policy, or of other parameter groups
    :raises LayerGraphError: if it is of another model
    :raises StateError: if it is damaged
    """
    if not isinstance(state, Mapping):
        raise StateError(f"The state is a {type(state).__name__}; expected what GNSScheduler.state_dict returned.")
    if missing := {"core", "policy", "decision", "budget"} - set(state):
        raise InvalidSettingError(
            f"This state dict lacks {sorted(missing)}; expected one of a GNSScheduler. Load that of the scheduler "
            "that the run was begun with."
        )
    if state["policy"] != fingerprint(policy):
        raise InvalidSettingError(
            "The state dict is of a run with another policy; expected the one given. Make the scheduler with the "
            "policy the run was begun with, or begin a new schedule without the state dict."
        )
    require_sound(state, policy.config.decision)
    if len(state["base_lrs"]) != groups:
        raise InvalidSettingError(
            f"The state dict has {len(state['base_lrs'])} parameter groups and the optimizer {groups}; expected as "
            "many. Make the optimizer as it was."
        )
    if state["graph"] is not None:
        graph_from_plain(state["graph"]).bind(model)


def require_sound(state: Mapping[str, Any], own: DecisionConfig) -> None:
    """Pass a state dict of a scheduler that nothing of is damaged, as far as can be seen.

    :param own: how the policy's actions become rates; a scheduler may have other bounds of the rate
    :raises StateError: on any other
    """
    try:
        _check(state, own)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, GNSError) as error:
        raise StateError(
            f"The state dict is damaged ({type(error).__name__}: {str(error)[:500]}); expected what "
            "GNSScheduler.state_dict returned. Load an earlier one, or begin a new schedule without it."
        ) from error


def _check(state: Mapping[str, Any], own: DecisionConfig) -> None:
    budget = _whole(state["budget"], "budget", 1, LONGEST)
    decision = DecisionConfig(**state["decision"])
    if replace(decision, min_lr=own.min_lr, max_lr=own.max_lr, trust_initial_rate=own.trust_initial_rate) != few_enough(
        own, budget
    ):
        raise ValueError("its decisions are not the policy's")
    interval = decision.interval(budget)
    checked_phases(state.get("phases", {}))
    _whole(state["last_epoch"], "last_epoch", -1, budget)
    _whole(state["_step_count"], "_step_count", 0)
    _whole(state["rollbacks"], "rollbacks", 0)
    watch = Watch(**state.get("watch", {"rollbacks": state["rollbacks"]}))
    _whole(watch.rollbacks, "rollbacks of the watch", 0)
    _whole(watch.doubts, "doubts", 0)
    for name in ("peak", "best", "gradient"):
        if type(getattr(watch, name)) not in (int, float) or math.isnan(getattr(watch, name)):
            raise ValueError(f"{name} is {shown(getattr(watch, name))}; expected a number")
    begun = state["core"] is not None  # before that, no group can have been added in mid-run
    rates = [initial_rate(float(rate), decision, begun) for rate in _list(state["base_lrs"], "base_lrs")]
    last = [float(rate) for rate in _list(state["_last_lr"], "_last_lr")]
    if len(last) != len(rates) or not all(math.isfinite(rate) and rate >= 0.0 for rate in last):
        raise ValueError(f"_last_lr is {shown(last)}")
    if not all(name is None or isinstance(name, str) for name in _list(state.get("parameters", []), "parameters")):
        raise ValueError("parameters are no names")
    graph = None if state["graph"] is None else checked_graph(state["graph"])
    records = [checked_record(record, budget) for record in _list(state["history"], "history")]
    if any(one.update > other.update for one, other in pairwise(records)):
        raise ValueError("its records are not in order")
    for number, values in _list(state.get("layers", ()), "layers"):
        if graph is None or _whole(number, "the number of a record", 0) >= len(records):
            raise ValueError(f"features of layers belong to record {shown(number)}, which is not there")
        _tensor(values, "features of layers", (graph.num_nodes, len(get_schema(decision.features).node)))
        if not values.isfinite().all():
            raise ValueError(f"features of layers at record {number} are not finite")
    if type(state["_pending"]) is not bool or (state["_pending"] and state["core"] is None):
        raise ValueError(f"_pending is {shown(state['_pending'])}")
    if begun:
        _check_core(state["core"], decision, budget, interval, graph, rates)
        if state["core"]["memory"]["update"] != state["last_epoch"]:
            raise ValueError(f"last_epoch is {state['last_epoch']} after {state['core']['memory']['update']} updates")


def _check_core(
    core: Mapping[str, Any],
    decision: DecisionConfig,
    budget: int,
    interval: int,
    graph: LayerGraph | None,
    rates: list[float],
) -> None:
    """Pass the state of a decision core, see :meth:`gns.deciding.decision.DecisionCore.state_dict`."""
    memory = Memory(**core["memory"])
    for field in fields(Memory):
        value, kinds = getattr(memory, field.name), _KINDS.get(str(field.type))
        if kinds and type(value) not in kinds:
            raise ValueError(f"{field.name} is {shown(value)}; expected {field.type}")
    _whole(memory.steps, "steps", 0)
    _whole(memory.update, "update", 0, budget)
    _whole(memory.decided_at, "decided_at", -1, memory.update)
    _whole(memory.interval_updates, "interval_updates", 0, interval)
    for name in ("scale", "anchor"):  # losses may be of any size, and of none
        if not 0.0 < getattr(memory, name) < math.inf:
            raise ValueError(f"{name} is {shown(getattr(memory, name))}")
    count = graph.num_nodes if graph is not None and decision.per_layer else 0
    actions = memory.layer_actions
    if len(actions) not in (0, count) or not all(type(a) in (int, float) and -1.0 <= a <= 1.0 for a in actions):
        raise ValueError(f"layer_actions is {shown(actions)}")
    initial = [initial_rate(float(rate), decision, True) for rate in _list(core["initial_lrs"], "initial_lrs")]
    if len(initial) != len(rates):
        raise ValueError("initial_lrs is of another number of parameter groups than base_lrs")
    if core["losses"] is not None:
        _tensor(core["losses"], "losses", (losses_kept(interval, interval),))
    elif memory.interval_updates:
        raise ValueError("losses of the interval are missing")
    if core["measured"] is not None:
        _tensor(core["measured"], "measured", (len(graph.tensor_sizes) if graph is not None else -1,))
    default = core.get("default_factor", 1.0)
    if type(default) not in (int, float) or not (math.isnan(default) or 0.0 < default < math.inf):
        raise ValueError(f"default_factor is {shown(default)}")
    if type(core.get("pretrained", False)) is not bool:
        raise ValueError(f"pretrained is {shown(core['pretrained'])}")
    if (start := core.get("start")) is not None:
        for part in _list(start, "start"):
            _tensor(part, "start", (min(part.numel(), SKETCHED),))


def _whole(value: Any, name: str, low: int, high: float = math.inf) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}; expected a whole number from {low}{f' to {high}' * (high < 1e99)}")
    return value


def _list(value: Any, name: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {shown(value)}; expected a list")
    return value


def _tensor(value: Any, name: str, shape: tuple[int, ...]) -> None:
    good = isinstance(value, Tensor) and value.is_floating_point() and not value.is_sparse and not value.is_meta
    if not good or tuple(value.shape) != shape:
        what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {what}; expected a tensor of numbers, {shape}")
