"""Policies against tuned schedules on tasks drawn for validation, on the reward split: which policy is the better one?

``python -m benchmarks.validation_gap POLICY [POLICY ...] [--pool broad-data] [--tasks 16] [--cache FILE]`` draws the
tasks that ``train_agent.py pool=broad-data`` scores its policies on. On each, at its smallest, middle and largest
budget, it runs every policy from five initial rates over the task's four decades, and four schedules from six rates in
multiples of 3 down from the highest, all with two seeds. It prints for each policy the geometric mean and quantiles of
its final loss over that of the best tuned schedule, by initial rate too, and the same of each schedule alone. No test
split is read, so policies may be chosen by it. Schedules are tuned on the very runs they are measured by, which favours
them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir

from agents.controllers import Controller, PolicyController, ScheduleController
from agents.evaluation.protocol import Grid
from agents.evaluation.results import SETTING, runs_frame
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, run_jobs
from agents.runtime.command import CONFIG_FOLDER, plain, use_data_root
from agents.runtime.settings import build
from agents.training.ppo import single_thread
from envs.env_config import EnvConfig
from envs.episode import Episode
from envs.pool import PoolConfig
from envs.tasks import Task
from gns.features.statistics import log_loss
from train_agent import ValidationTasks

SCHEDULES = ("linear", "cosine", "onecycle", "rex")
RATES, STARTS, SEEDS = 6, 5, 2
WORST = 5.0  # ln of a loss that counts as infinite


def drawn_tasks(pool: str, count: int, seed: int) -> list[Task]:
    """Return the tasks that a training on a pool is validated on."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        config = plain(compose("train_agent", overrides=[f"pool={pool}", "task=[]"]))
    return ValidationTasks(drawn=count, seed=seed).tasks(build(PoolConfig, config["pool"], "pool"))


def jobs_of(tasks: Sequence[Task], policies: Sequence[Controller]) -> list[Job]:
    """Return what is to be run."""
    env = EnvConfig(optimizers=None, budgets=None)
    schedules = [ScheduleController(name, name, cycle_momentum=name == "onecycle") for name in SCHEDULES]
    jobs = []
    for task in tasks:
        low, high = env.budgets_of(task)
        for optimizer in env.optimizers_of(task):
            bottom, top = env.learning_rates_of(task, optimizer)
            grid = [(item, rate) for rate in Grid(top / 3.0 ** (RATES - 1), RATES).rates() for item in schedules]
            grid += [(item, float(rate)) for rate in np.geomspace(bottom, top, STARTS) for item in policies]
            jobs += [
                Job(item, Episode(task, optimizer, budget, rate, seed), report=False)
                for budget in sorted({low, round(math.sqrt(low * high)), high})
                for item, rate in grid
                for seed in range(SEEDS)
            ]
    return jobs


def gaps(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return ln(loss / the best tuned schedule's): a row a run of a policy; a row a setting, schedules as columns.

    :param runs: rows of :func:`agents.evaluation.protocol.runs_frame`
    """
    runs = runs.assign(log_loss=[min(log_loss(loss), WORST) for loss in runs.reward_loss])
    fixed = runs.controller.isin(SCHEDULES)
    means = runs[fixed].groupby([*SETTING, "controller", "initial_lr"]).log_loss.mean()
    tuned = means.groupby([*SETTING, "controller"]).min().unstack()
    best = tuned.min(axis=1)
    policies = runs[~fixed].merge(best.rename("best").reset_index(), on=SETTING)
    policies = policies.assign(gap=policies.log_loss - policies.best)
    start = policies.groupby([*SETTING, "controller"]).initial_lr.rank(method="dense").astype(int)
    return policies.assign(start=start), tuned.sub(best, axis=0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--pool", default="broad-data")
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=None)
    arguments = parser.parse_args()
    single_thread()
    use_data_root(None)
    policies = [PolicyController(str(name), str(name)) for name in arguments.policies]
    jobs = jobs_of(drawn_tasks(arguments.pool, arguments.tasks, arguments.seed), policies)
    cache = ResultsCache(arguments.cache) if arguments.cache is not None else None
    print(f"{len(jobs)} runs", flush=True)
    runs, tuned = gaps(runs_frame(run_jobs(jobs, arguments.workers, cache=cache)))
    for name, own in runs.groupby("controller", sort=False):
        quantiles = ", ".join(
            f"{share:.0%}: {math.exp(own.gap.quantile(share)):.3f}" for share in (0.25, 0.5, 0.75, 0.9)
        )
        print(
            f"{name}: {math.exp(own.gap.mean()):.3f} x the best tuned schedule (geometric mean; {quantiles}); "
            f"above twice it {(own.gap > math.log(2)).mean():.1%} of runs; by initial rate, lowest first: "
            + ", ".join(f"{math.exp(gap):.3f}" for gap in own.groupby("start").gap.mean())
        )
        worst = own.groupby("task").gap.mean().sort_values(ascending=False).head(4)
        print("  worst tasks: " + ", ".join(f"{task} {math.exp(gap):.2f}" for task, gap in worst.items()))
    for name in SCHEDULES:
        print(f"{name}, tuned: {math.exp(tuned[name].mean()):.3f} x the best tuned schedule")


if __name__ == "__main__":
    main()
