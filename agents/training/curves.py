"""Collects cost curves: what a training run ends at, for many rates, from its start and from states in its middle.

``python -m agents.training.curves OUT`` goes on where the files in OUT end, and may be stopped at any time. Tasks are
those of a pool (:mod:`envs.pool`), so that a record names its task by the pool's settings and a number. There are
two kinds of record, one JSON object a line:

- ``tuning``: rates over four decades, and beyond where the best is at an end, for several profiles and seeds;
- ``branch``: at a state that a policy may reach, factors on the rate that it has, each trained to the end with the same
  data order. The run before it is a list of actions, so that :func:`replay` reaches the state again, bit for bit on one
  machine, and shows whatever observation a later schema asks for.

Losses are those on the reward split.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from agents.training import curve_facts
from agents.training.curve_records import (
    BRANCH,
    FAILED,
    RANGE,
    RECIPE,
    TUNING,
    Records,
    pack,
    pool_of,
    recipe_of,
    rounded,
)
from agents.training.tuning_curves import LEARNS_BELOW, calibrate, judged, starting_rate
from envs import EnvConfig
from envs.batched.branches import Ends, begin_all, branch, rates_to_the_end, train_to_the_end
from envs.batched.env import BatchedEnv
from envs.batched.runs import BatchedRuns
from envs.pool import PoolConfig, draw_task
from envs.pool import data as pool_data
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns import DecisionConfig, GuardConfig
from gns.errors import GNSError, StateError
from gns.tools.find_rate import EFFECTIVE, UPDATES, kind_and_share

_LOGGER = logging.getLogger(__name__)

RATES, BEYOND = 13, 6  # rates of a tuning curve; rates added where its best one is at an end
FACTORS = tuple(10.0 ** (quarter / 4.0) for quarter in range(-4, 5))
DECISIONS, BRANCHED_AT = 20, (1, 2, 4, 7, 10, 14)  # of a run; decisions that are branched, about 5 to 70 % of it
BASE = 10.0  # what an action of 1 multiplies the rate by
TESTED = (11, 12)  # seeds of range tests
TRUNKS = 3  # runs of a task that are branched
_TRUNK_PROFILES = {"rex": 0.6, "cosine": 0.3, "linear": 0.1}
PROBED = slice(0, RATES, 3)  # rates of one run each that tell whether the whole curve is worth its cost
PROBE_LEARNS_BELOW = 0.5 + 0.5 * LEARNS_BELOW  # of the loss at the start; the best rate may lie between two


# ---------------------------------------------------------------------- tuning curves


def tuning_curve(task: Task, number: int) -> dict[str, Any]:
    """Return where a task's runs end, over rates, profiles and seeds.

    :param number: of the task; every fourth has more profiles and seeds
    """
    often = [("rex", 0), ("rex", 1), ("cosine", 0)]
    lines = often if number % 4 else [*often, ("cosine", 1), ("linear", 0)]
    low, high = task.range_of(task.optimizer)
    rates = np.geomspace(low, high, RATES)
    assert task.budget is not None
    found = [_ends_at(task, lines, rates)]
    step = (high / low) ** (1.0 / (RATES - 1))
    for _ in range(2):
        means = np.log(np.concatenate([part for part in found], axis=2)[0]).mean(axis=0)
        best = int(np.argmin(means))
        if 1 <= best <= len(rates) - 2:
            break
        more = step ** np.arange(1, BEYOND + 1)
        if best == 0:
            added = (rates[0] / more)[::-1]
            rates, found = np.concatenate([added, rates]), [_ends_at(task, lines, added), *found]
        else:
            added = rates[-1] * more
            rates, found = np.concatenate([rates, added]), [*found, _ends_at(task, lines, added)]
    losses, metrics, diverged = np.concatenate(found, axis=2)
    return {
        "profiles": [profile for profile, _ in lines],
        "seeds": [seed for _, seed in lines],
        "rates": rounded(rates, 6),
        "losses": rounded(losses, 5),  # (profile and seed, rate)
        "metrics": rounded(metrics, 4),
        "diverged": diverged.astype(int).tolist(),
    }


def probe_learning(task: Task, start_loss: float) -> None:
    """Pass a task that learns something at one of a few rates.

    :raises NothingLearnedError: if it does not
    """
    low, high = task.range_of(task.optimizer)
    losses = _ends_at(task, [("rex", 0)], np.geomspace(low, high, RATES)[PROBED])[0]
    if not losses.min() < PROBE_LEARNS_BELOW * start_loss:
        raise NothingLearnedError(f"The best of {losses.size} rates ends at {losses.min():.4g} from {start_loss:.4g}.")


class NothingLearnedError(GNSError):
    """No rate that was tried teaches this task anything."""


def _ends_at(task: Task, lines: Sequence[tuple[str, int]], rates: np.ndarray) -> np.ndarray:
    """Return losses, metrics and whether runs diverged, (3, lines, rates)."""
    runs = BatchedRuns(task, task.optimizer, len(lines) * len(rates))
    begin_all(runs, [seed for _, seed in lines for _ in rates])
    profiles = [profile for profile, _ in lines for _ in rates]
    assert task.budget is not None
    ends = train_to_the_end(runs, rates_to_the_end(list(rates) * len(lines), profiles, task.budget))
    return np.stack([ends.losses, ends.metrics, ends.diverged]).reshape(3, len(lines), len(rates))


# ---------------------------------------------------------------------- branches


def begin_trunk(task: Task, trunk: Mapping[str, Any], features: str = "gns-1") -> BatchedEnv:
    """Return the environment of one run, before its first decision.

    :param trunk: what a ``branch`` record says of it: seed, start_rate, profile, budget, decisions
    :param features: schema of its observations
    """
    decision = DecisionConfig(
        mode="profile", profile=trunk["profile"], base=BASE, num_decisions=trunk["decisions"], features=features
    )
    config = EnvConfig(
        optimizers=(task.optimizer,),
        budgets=None,
        decision=decision,
        guard=GuardConfig(enabled=False),
        reward_probability=0.0,
    )
    env = BatchedEnv(task, config, task.optimizer, 1)
    env.set_options({name: trunk[key] for name, key in _OPTIONS.items()})
    env.seed(0)
    env.observed = env.reset()  # type: ignore[attr-defined]
    return env


_OPTIONS = {"budget": "budget", "learning_rate": "start_rate", "seed": "seed"}


def replay(record: Mapping[str, Any], pool: PoolConfig, features: str = "gns-1") -> BatchedEnv:
    """Return the environment of a ``branch`` record's run where its decision is to be taken.

    ``env.runs`` holds the run's state, ``env.observed`` what it shows; weights, optimizer state and pending gradient
    are those that were branched, bit for bit on the same machine.

    :param record: of kind ``branch``
    :param pool: settings of the pool that it names
    :param features: schema of observations
    :raises StateError: if the record is of another kind, or its run is lost on the way
    """
    return next(replays([record], pool, features))


def replays(records: Sequence[Mapping[str, Any]], pool: PoolConfig, features: str = "gns-1") -> Iterator[BatchedEnv]:
    """Yield the environment of one run at each of its ``branch`` records in turn, see :func:`replay`.

    It is the same environment, trained on between them: what is asked of it is to be read before the next.

    :param records: of one run, by decision
    """
    env, taken = None, 0
    for record in records:
        if record.get("kind") != BRANCH:
            raise StateError(f"The record is of kind {record.get('kind')!r}; expected {BRANCH!r}.")
        env = env or begin_trunk(draw_task(pool, record["number"]), record, features)
        for action in record["actions"][taken:]:
            if not _go_on(env, action):
                raise StateError(f"The run of {record['task']} is lost on the way to decision {record['decision']}.")
        taken = len(record["actions"])
        yield env


def _go_on(env: BatchedEnv, action: float) -> bool:
    """Take a decision and train to the next; say whether the run still lives."""
    env.step_async(np.array([[action]]))
    env.observed, _, dones, _ = env.step_wait()  # type: ignore[attr-defined]
    return not dones[0]


def branches(task: Task, prior: float, draws: np.random.Generator) -> list[dict[str, Any]]:
    """Return the cost curves of decisions of some runs of a task.

    Runs begin at the prior's rate times 10^U(-1.5, 1), and now and then change their level, so that states are like a
    policy's own.

    :param prior: rate of the optimizer's calibrated default
    :param draws: where seeds, rates and changes come from
    """
    copies = BatchedRuns(task, task.optimizer, TRUNKS * len(FACTORS))
    names, shares = list(_TRUNK_PROFILES), list(_TRUNK_PROFILES.values())
    trunks = []
    for _ in range(TRUNKS):
        rate = float(np.clip(prior * 10.0 ** draws.uniform(-1.5, 1.0), 1e-7, 10.0))
        trunk = {
            "seed": int(draws.integers(2**31)),
            "start_rate": float(f"{rate:.6g}"),
            "profile": str(draws.choice(names, p=shares)),
            "budget": task.budget,
            "decisions": DECISIONS,
        }
        changed, sizes = draws.random(DECISIONS) < 0.15, draws.normal(0.0, 0.4, DECISIONS)
        actions = np.round(np.where(changed, np.clip(sizes, -1.0, 1.0), 0.0), 3).tolist()
        trunks.append((trunk, actions, begin_trunk(task, trunk)))
    alive, records = [True] * TRUNKS, []
    for decision in range(max(BRANCHED_AT)):
        for number, (_, actions, env) in enumerate(trunks):
            alive[number] = alive[number] and _go_on(env, actions[decision])
        if decision + 1 not in BRANCHED_AT or not any(alive):
            continue
        ends = _branched(copies, [env for _, _, env in trunks], [str(trunk["profile"]) for trunk, _, _ in trunks])
        for lives, (trunk, actions, env), its in zip(alive, trunks, ends, strict=True):
            if lives:
                done = {"decision": decision + 1, "update": env.controls[0].update, "actions": actions[: decision + 1]}
                records.append({**trunk, **done, **observed(env), **_curve(its)})
    return records


def _branched(copies: BatchedRuns, envs: Sequence[BatchedEnv], profiles: Sequence[str]) -> list[Ends]:
    """Return the ends of each run at each factor on its present level; those of lost runs mean nothing."""
    controls, count = [env.controls[0] for env in envs], len(FACTORS)
    update = max(control.update for control in controls)
    lives = [i for i, control in enumerate(controls) if control.update == update]
    # Copies of a lost run are filled up with those of a living one: the number of runs side by side stays.
    chosen = [i if i in lives else lives[0] for i in range(len(envs))]
    levels = [
        envs[i].controls[0].memory.scale * envs[i].controls[0].initial_lrs[0] * f for i in chosen for f in FACTORS
    ]
    names = [profiles[i] for i in chosen for _ in FACTORS]
    rates = rates_to_the_end(levels, names, controls[lives[0]].budget, update)
    ends = branch(copies, [(envs[i].runs, 0) for i in chosen for _ in FACTORS], rates)
    return [ends[place * count : (place + 1) * count] for place in range(len(envs))]


def observed(env: BatchedEnv) -> dict[str, Any]:
    """Return what a run shows at its decision: its rate, its layers' types, blocks and features, and its own."""
    nodes = env.observed["nodes"][0][: env.graph.num_nodes]  # type: ignore[attr-defined]
    globals_ = env.observed["globals"][0]  # type: ignore[attr-defined]
    return {
        "rate": float(f"{env.controls[0].learning_rate:.6g}"),
        "nodes": rounded(nodes, 3, False),
        "globals": rounded(globals_, 3, False),
    }


def _curve(ends: Ends) -> dict[str, Any]:
    return {
        "factors": rounded(np.array(FACTORS), 5),
        "losses": rounded(ends.losses, 5),
        "metrics": rounded(ends.metrics, 4),
        "diverged": ends.diverged.astype(int).tolist(),
    }


# ---------------------------------------------------------------------- range tests


def range_test_of(task: Task) -> dict[str, Any]:
    """Return the losses of a range test of several seeds, see :mod:`gns.tools.find_rate`; null where they are lost."""
    run = TrainingRun(task, task.optimizer, 1e-3, seed=0)
    kind, share = kind_and_share(run.optimizer)
    runs, everyone = BatchedRuns(task, task.optimizer, len(TESTED)), torch.ones(len(TESTED), dtype=torch.bool)
    begin_all(runs, TESTED)
    losses = []
    for rate in np.geomspace(*EFFECTIVE[kind], UPDATES) * share:
        losses.append(runs.losses[runs.rows].numpy().copy())
        runs.apply_updates(torch.full((len(TESTED),), float(rate), dtype=torch.float64), everyone)
        runs.compute_gradients(everyone)
    losses.append(runs.losses[runs.rows].numpy().copy())
    return {"seeds": list(TESTED), "losses": rounded(np.array(losses).T, 4)}


def add_range_tests(records: Records) -> None:
    """Add range tests of the tasks that have tuning curves and none of these."""
    pools = {record["recipe"]: pool_of(record["pool"]) for record in records.all if record["kind"] == RECIPE}
    done = {(record["recipe"], record["number"]) for record in records.all if record["kind"] == RANGE}
    for record in [record for record in records.all if record["kind"] == TUNING and judged(record) == ""]:
        recipe, number = record["recipe"], record["number"]
        if (recipe, number) not in done:
            task = draw_task(pools[recipe], number)
            records.add([{"kind": RANGE, "recipe": recipe, "number": number, "task": task.name, **range_test_of(task)}])
            pool_data.load.cache_clear()


# ---------------------------------------------------------------------- the command


def collect(records: Records, pool: PoolConfig, until: int, first: int = 0, every: int = 20) -> None:
    """Collect the curves of a pool's tasks: tuning curves of ``every`` tasks, then branches of those that teach.

    :param until: number of the last task, which is left out
    :param first: number of the first
    """
    recipe, settings = recipe_of(pool)
    if all(record["recipe"] != recipe for record in records.all):
        records.add([{"kind": RECIPE, "recipe": recipe, "pool": settings, "torch": torch.__version__}])
    for begin in range(first, until, every):
        numbers = range(begin, min(begin + every, until))
        for number in numbers:
            if number not in records.numbers(recipe, TUNING, FAILED):
                _collect_one(records, pool, recipe, number, None)
        tuned = [record for record in records.all if record["kind"] == TUNING]
        rates = calibrate(tuned).get("rex", {})
        done = records.numbers(recipe, BRANCH, FAILED)
        for record in tuned:
            teaches = record["recipe"] == recipe and record["number"] in numbers and judged(record) == ""
            if teaches and record["number"] not in done:
                _collect_one(records, pool, recipe, record["number"], starting_rate(record["facts"], rates))


def _collect_one(records: Records, pool: PoolConfig, recipe: str, number: int, prior: float | None) -> None:
    """Collect a task's tuning curve, or its branches if there is a prior's rate."""
    began = time.time()
    base: dict[str, Any] = {"recipe": recipe, "number": number}
    try:
        task = draw_task(pool, number)
        base["task"] = task.name
        if prior is None:
            facts = curve_facts.facts_of(task)
            probe_learning(task, facts["start_loss"])
            found = [{"kind": TUNING, **base, "facts": facts, **tuning_curve(task, number)}]
        else:
            draws = np.random.default_rng([pool.seed, number, 20])
            found = [{"kind": BRANCH, **base, **record} for record in branches(task, prior, draws)]
    except GNSError as problem:
        found = []
        base["reason"] = str(problem)[:300]
    seconds = round(time.time() - began, 1)
    if not found:
        found = [{"kind": FAILED, **base, "of": BRANCH if prior else TUNING}]
    records.add([{**record, "seconds": seconds} for record in found])
    pool_data.load.cache_clear()
    _LOGGER.info("%s %s: %d records, %.1f s", found[0]["kind"], base.get("task", number), len(found), seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m agents.training.curves", description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder; goes on where its curves.jsonl ends")
    parser.add_argument(
        "--pool", type=Path, default=Path("configs/pool/people.yaml"), help="file with a pool's settings"
    )
    parser.add_argument("--seed", type=int, default=0, help="the pool's")
    parser.add_argument("--first", type=int, default=0, help="number of the first task")
    parser.add_argument("--until", type=int, default=10_000, help="number of the task to stop before")
    parser.add_argument("--pack", type=Path, help="collect nothing, and write what is there to this .xz file")
    parser.add_argument("--range-tests", action="store_true", help="add range tests of the tasks that have curves")
    given = parser.parse_args(arguments)
    if given.range_tests:
        add_range_tests(Records(given.out / "curves.jsonl"))
        return
    if given.pack:
        pack(Records(given.out / "curves.jsonl").all, given.pack)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # diverged runs fill with denormals, which are ten times as slow
    pool = replace(pool_of(yaml.safe_load(given.pool.read_text())["pool"]), seed=given.seed)
    collect(Records(given.out / "curves.jsonl"), pool, given.until, given.first)


if __name__ == "__main__":
    main()
