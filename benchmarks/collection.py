"""How fast training runs are collected: side by side, one by one, and by the bare loop; in ratios of one process.

    python -m benchmarks.collection                                  # updates a second, N runs together over one alone
    python -m benchmarks.collection --processes 2                    # the same, in two processes at once in both
    python -m benchmarks.collection --threads 2                      # the same, two threads in both
    python -m benchmarks.collection --environment --runs 32          # the environment's share beyond its updates

*Alone* is a plain PyTorch loop on one model: draw a batch, forward, backward, ``torch.optim`` (fused, if that is
faster). *Together* is :class:`envs.batched.runs.BatchedRuns`. All take turns of a fraction of a second; medians of
ratios of neighbouring turns are printed. Every process has one thread if nothing else is said, keeps memory
that it frees and flushes denormals, as in training.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from agents.training.ppo import single_thread
from envs.batched.composite import Group
from envs.batched.runs import BatchedRuns
from envs.env_config import EnvConfig
from envs.tasks import get_task
from envs.training_run import OPTIMIZERS

TASKS = ("digits_mlp", "digits_cnn", "mnist1d_mlp", "mnist1d_cnn")
Turn = Callable[[], int]  # does some updates, and says how many


def alone(task_name: str, optimizer_name: str, fused: bool, updates: int = 100) -> Turn:
    """A plain loop."""
    task = get_task(task_name)
    model, train = task.new_model(), task.training_data().train
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), 1e-3)
    if not fused:
        kind: Any = type(optimizer)
        settings = {key: optimizer.defaults[key] for key in ("betas", "momentum") if key in optimizer.defaults}
        optimizer = kind(model.parameters(), lr=1e-3, **settings)
    size = min(task.batch_size, len(train))
    order: list[torch.Tensor] = []

    def turn() -> int:
        for _ in range(updates):
            if not order:
                order.extend(torch.randperm(len(train))[: len(train) // size * size].split(size))
            rows = order.pop()
            optimizer.zero_grad()
            loss = task.loss(model(task.prepare(train.inputs[rows], True)), train.targets[rows])
            loss.backward()
            optimizer.step()
        return updates

    return turn


def together(task_name: str, optimizer_name: str, runs: int) -> Turn:
    """Runs side by side, all at every update."""
    batched = BatchedRuns(get_task(task_name), optimizer_name, runs)
    batched.begin(range(runs), range(runs))
    everyone, rates = torch.ones(runs, dtype=torch.bool), torch.full((runs,), 1e-3, dtype=torch.float64)

    def turn() -> int:
        count = max(1, 100 // runs)
        for _ in range(count):
            batched.compute_gradients(everyone)
            batched.apply_updates(rates, everyone)
        return count * runs

    return turn


def in_turns(turns: dict[str, Turn], seconds: float, start: Any = None) -> dict[str, list[float]]:
    """Let all take turns for a while; return updates a second of every turn, by name."""
    for turn in turns.values():
        turn()
    if start is not None:
        start.wait()
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, turn in turns.items():
            began = time.perf_counter()
            done = turn()
            speeds[name].append(done / (time.perf_counter() - began))
    return speeds


def _measure(
    task: str, optimizer: str, sizes: Sequence[int], seconds: float, threads: int, start: Any, results: Any
) -> None:
    single_thread()
    torch.set_num_threads(threads)
    turns = {"alone": alone(task, optimizer, False), "alone, fused": alone(task, optimizer, True)}
    results.put(in_turns(turns | {str(n): together(task, optimizer, n) for n in sizes}, seconds, start))


def compare(
    task: str, optimizer: str, sizes: Sequence[int], seconds: float, processes: int = 1, threads: int = 1
) -> dict[str, list[float]]:
    """Return ratios of turns to the faster way alone, by number of runs; of all processes."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    arguments = (task, optimizer, sizes, seconds, threads, start, results)
    workers = [context.Process(target=_measure, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    ratios: dict[str, list[float]] = {str(n): [] for n in sizes}
    best: list[float] = []
    for _ in workers:
        speeds = results.get()
        base = max(("alone", "alone, fused"), key=lambda name: median(speeds[name]))
        best.append(median(speeds[base]))
        for n in sizes:
            ratios[str(n)] += [mine / theirs for mine, theirs in zip(speeds[str(n)], speeds[base], strict=True)]
    for worker in workers:
        worker.join()
    print(f"{task:12s} {optimizer:5s} alone {sum(best):7.0f} updates/s;", end="")
    print("".join(f"  {n} runs {median(values):5.2f} x" for n, values in ratios.items()), flush=True)
    return ratios


def environment_share(task_name: str, optimizer: str, runs: int, steps: int, probability: float) -> None:
    """Print which part of an environment's time is not spent on its updates."""
    single_thread()
    config = EnvConfig(optimizers=(optimizer,), reward_probability=probability)
    task = get_task(task_name)
    for label, size in ((f"{runs} runs together", runs), ("one run alone", 1)):
        env: Any = Group(tuple(range(size)), (task,), optimizer, together=size > 1).make(config, (32, 64))
        env.seed(0)
        env.reset()
        spent, total = [0.0], 0.0
        for _ in range(steps):
            run, names = (
                (env.runs, ("compute_gradients", "apply_updates"))
                if size > 1
                else (env.envs[0].unwrapped.run, ("compute_gradient", "apply_update"))
            )
            for name in names:
                _time(run, name, spent)
            began = time.perf_counter()
            env.step(np.zeros((size, 1), dtype=np.float32))
            total += time.perf_counter() - began
        print(f"{task_name:12s} {optimizer:5s} {label:18s} outside its updates {1 - spent[0] / total:6.1%}", flush=True)


def _time(owner: Any, name: str, spent: list[float]) -> None:
    """Add the time of a method's calls to ``spent``; once an object."""
    if name in vars(owner):
        return
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--optimizer", default="adam", choices=sorted(OPTIMIZERS))
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process, for all ways alike")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each task")
    parser.add_argument("--environment", action="store_true")
    parser.add_argument("--steps", type=int, default=60, help="of the environment")
    parser.add_argument("--reward-probability", type=float, default=0.2)
    args = parser.parse_args()
    for task in args.tasks:
        if args.environment:
            environment_share(task, args.optimizer, args.runs[-1], args.steps, args.reward_probability)
        else:
            compare(task, args.optimizer, args.runs, args.seconds, args.processes, args.threads)


if __name__ == "__main__":
    main()
