"""What branches of one run cost side by side, over as many runs one by one.

``python -m benchmarks.branches [--branches 9] [--updates 200]`` trains copies of a run of each of some small tasks, at
rates of their own and with one data order, from one tenth of the budget to the end: side by side, and one after the
other as a training run alone goes. It prints milliseconds a branch and update of both, and their ratio; both ways take
turns, so that other work on the machine hits both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from envs.batched.branches import begin_all, branch, rates_to_the_end
from envs.batched.runs import BatchedRuns
from envs.tasks import Task, get_task
from envs.training_run import TrainingRun

TASKS = ("digits_mlp", "digits_cnn", "mnist1d_mlp", "mnist1d_cnn")
ROUNDS = 3


def seconds_of(task: Task, count: int, updates: int) -> tuple[float, float]:
    """Return seconds of all branches side by side and one by one, evaluation too, the least of rounds."""
    begun = updates // 10
    levels = np.geomspace(1e-4, 1e-2, count)
    rates = rates_to_the_end(list(levels), ["rex"] * count, updates, begun)
    source, copies = BatchedRuns(task, "adam", 1), BatchedRuns(task, "adam", count)
    begin_all(source, [0])
    alone = TrainingRun(task, "adam", 1e-3, seed=0)
    alone.compute_gradient()
    state, pending = alone.state_dict(), alone.pending_state()
    branch(copies, [(source, 0)] * count, rates)  # traces, which a collection pays for once a task
    together, apart = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        branch(copies, [(source, 0)] * count, rates)
        together.append(time.perf_counter() - began)
        began = time.perf_counter()
        for row in rates.tolist():
            alone.load_state_dict(state)
            alone.load_pending_state(pending)
            for update, rate in enumerate(row):
                alone.optimizer.param_groups[0]["lr"] = rate
                alone.apply_update()
                if update < len(row) - 1:
                    alone.compute_gradient()
            alone.evaluate_reward_split()
        apart.append(time.perf_counter() - began)
    return min(together), min(apart)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.branches", description=__doc__.split("\n")[0])
    parser.add_argument("--branches", type=int, default=9)
    parser.add_argument("--updates", type=int, default=200, help="the budget")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for name in TASKS:
        task = replace(get_task(name), budget=given.updates)
        together, apart = seconds_of(task, given.branches, given.updates)
        each = 1e3 / given.branches / (given.updates - given.updates // 10)
        print(f"{name}: {together * each:.3f} ms side by side, {apart * each:.3f} alone, ratio {together / apart:.2f}")


if __name__ == "__main__":
    main()
