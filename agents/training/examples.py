"""Examples that a policy is fitted to: a state that a run may be in, and what each level from there on would cost.

They come from records of cost curves (:mod:`agents.training.curves`): of kind ``branch``, at a state in the middle of a
run, and of kind ``tuning``, at the start of a run at the default rate. What a policy sees there is found by replaying
the run, which takes seconds a task, and kept in a file beside the records.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.training.curve_records import BRANCH, RECIPE, TUNING, pool_of
from agents.training.curves import DECISIONS, FACTORS, begin_trunk, replays
from agents.training.regression import prior_rate
from agents.training.tuning_curves import GRID, effective, learnable, regret_curve, smoothed
from envs.batched.env import BatchedEnv
from envs.padding import unpad
from envs.pool import PoolConfig, draw_task
from envs.pool import data as pool_data
from gns import Observation
from gns.errors import GNSError

_LOGGER = logging.getLogger(__name__)
PROFILE = "rex"  # of the prior
REACH = np.log10(FACTORS)  # levels of a curve over the present one, log10
_LARGEST_REGRET = 2.0  # of a log loss: one lost run must not decide
_SAVED_EVERY = 10  # tasks


@dataclass(frozen=True)
class Example:
    """A state and the costs of levels.

    :param task: names the task
    :param decision: its number, 0 before the first update
    :param level: present level over the default rate, log10
    :param costs: log loss at the end of training over the least one, at most 2, (9,), at levels of ``level + REACH``
    :param observation: what a policy sees
    """

    task: str
    decision: int
    level: float
    costs: np.ndarray
    observation: Observation

    def costs_at(self, levels: np.ndarray) -> np.ndarray:
        """Return the costs of levels over the default rate, log10, any shape; beyond the ends those of the ends."""
        return np.interp(levels, self.level + REACH, self.costs)


def branch_costs(record: Mapping[str, Any]) -> np.ndarray | None:
    """Return the costs of a ``branch`` record, see :class:`Example`; None where every run was lost."""
    losses, lost = np.array(record["losses"], dtype=float), np.array(record["diverged"], dtype=bool)
    found = np.where(lost | ~np.isfinite(losses), np.inf, np.log(np.maximum(losses, 1e-8)))
    if not np.isfinite(found).any():
        return None
    return smoothed(np.minimum(found - found.min(), _LARGEST_REGRET))


def tuning_costs(record: Mapping[str, Any], default: float) -> np.ndarray:
    """Return the costs of a ``tuning`` record at :data:`REACH` from the default rate."""
    costs = np.interp(np.log10(default * effective(record["facts"])) + REACH, GRID, regret_curve(record, PROFILE))
    return costs - costs.min()


def examples_of(records: Sequence[Mapping[str, Any]], features: str, cache: Path | None = None) -> list[Example]:
    """Return the examples of records, in the order of tasks; runs that a replay loses are left out.

    :param records: of all kinds
    :param features: schema of observations
    :param cache: file of the observations that were found before, which new ones are added to
    """
    pools = {record["recipe"]: pool_of(record["pool"]) for record in records if record["kind"] == RECIPE}
    known = torch.load(cache, weights_only=True) if cache and cache.exists() else {}
    branches: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == BRANCH:
            branches.setdefault((record["recipe"], record["number"]), []).append(record)
    found, unsaved = [], 0
    for tuning in learnable(records):
        if PROFILE not in tuning["profiles"]:
            continue
        of_task = branches.get((tuning["recipe"], tuning["number"]), [])
        if any(_key(record) not in known for record in [tuning, *of_task]):
            known |= _observations(tuning, of_task, pools[tuning["recipe"]], features)
            unsaved += 1
            _LOGGER.info("%s: %d states", tuning["task"], 1 + len(of_task))
            if cache and unsaved % _SAVED_EVERY == 0:
                _save(known, cache)
        found += _examples(tuning, of_task, known)
    if cache and unsaved:
        _save(known, cache)
    return found


def _default(tuning: Mapping[str, Any]) -> float:
    return prior_rate(tuning["facts"])


def _key(record: Mapping[str, Any]) -> str:
    state = "default" if record["kind"] == TUNING else f"{record['seed']}/{record['decision']}"
    return f"{record['recipe']}/{record['number']}/{state}"


def _examples(
    tuning: Mapping[str, Any], branches: Sequence[Mapping[str, Any]], known: Mapping[str, Mapping[str, Any]]
) -> list[Example]:
    """Return the examples of one task from what is known of its states; a lost state is empty."""
    found, task, default = [], f"{tuning['recipe']}/{tuning['number']}", _default(tuning)
    for record in [tuning, *branches]:
        costs = tuning_costs(record, default) if record["kind"] == TUNING else branch_costs(record)
        state = known[_key(record)]
        if costs is None or not state:
            continue
        seen = Observation(**{name: value.numpy() for name, value in state.items() if name != "level"})
        level = float(np.log10(state["level"].item() / default))
        found.append(Example(task, record.get("decision", 0), level, costs, seen))
    return found


def _observations(
    tuning: Mapping[str, Any], branches: Sequence[Mapping[str, Any]], pool: PoolConfig, features: str
) -> dict[str, dict[str, torch.Tensor]]:
    """Replay a task's runs and return what is seen at each record, and its level; nothing of a state not reached."""
    task, budget = draw_task(pool, tuning["number"]), tuning["facts"]["budget"]
    fresh = {"budget": budget, "start_rate": _default(tuning), "seed": 0, "profile": PROFILE, "decisions": DECISIONS}
    found: dict[str, dict[str, torch.Tensor]] = {_key(record): {} for record in branches}
    found[_key(tuning)] = _state(begin_trunk(task, fresh, features))
    ordered = sorted(branches, key=lambda record: (record["seed"], record["decision"]))
    for _, run in groupby(ordered, key=lambda record: record["seed"]):
        of_run = list(run)
        try:
            for record, env in zip(of_run, replays(of_run, pool, features), strict=True):
                found[_key(record)] = _state(env)
        except GNSError as problem:
            _LOGGER.warning("%s: %s", tuning["task"], problem)
    pool_data.load.cache_clear()
    return found


def _state(env: BatchedEnv) -> dict[str, torch.Tensor]:
    """Return what an environment's only run shows, and its level."""
    observed, control = env.observed, env.controls[0]  # type: ignore[attr-defined]
    seen = unpad({name: torch.as_tensor(value) for name, value in observed.items()})._asdict()
    del seen["graph"]
    level = torch.tensor(control.memory.scale * control.initial_lrs[0], dtype=torch.float64)
    return {**seen, "globals": seen["globals"][0], "level": level}


def _save(known: Mapping[str, Any], cache: Path) -> None:
    beside = cache.with_name(cache.name + ".new")
    torch.save(dict(known), beside)
    beside.replace(cache)
