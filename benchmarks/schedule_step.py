"""What one ``step()`` of a scheduler costs beside PyTorch's CosineAnnealingLR.

All schedulers take turns of a few hundred steps in one process, in a new order every round, so that a machine whose
speed drifts slows all alike. A row's ratio is the median over rounds of its time over CosineAnnealingLR's in the same.

    python -m benchmarks.schedule_step
"""

from __future__ import annotations

import argparse
import gc
import random
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from gns import REXLR, ProfileLR
from gns.schedules.profiles import PROFILES

BASE = "torch CosineAnnealingLR"


def schedulers(groups: int, total_steps: int) -> dict[str, LRScheduler]:
    """Return a scheduler of each kind, each with its own optimizer of so many parameter groups."""

    def make(scheduler: Callable[..., LRScheduler], *arguments: Any, **settings: Any) -> LRScheduler:
        parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1 / (i + 1)} for i in range(groups)]
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        optimizer.step()
        return scheduler(optimizer, total_steps, *arguments, **settings)

    return {
        BASE: make(CosineAnnealingLR),
        "the same, again": make(CosineAnnealingLR),
        "REXLR": make(REXLR),
        **{name: make(ProfileLR, name) for name in PROFILES},
        **{f"{name}, warmup": make(ProfileLR, name, warmup=0.1) for name in PROFILES},
        "rex, 1-100": make(ProfileLR, "rex", sampling="1-100"),
        "rex, 1-100, warmup": make(ProfileLR, "rex", sampling="1-100", warmup=0.1),
        "rex, momentum": make(ProfileLR, "rex", cycle_momentum=True),
        "polynomial, power": make(ProfileLR, "polynomial", power=3),
        "step, milestones": make(ProfileLR, "step", milestones=(0.3, 0.6, 0.9), factor=0.5),
        "cosine-restarts, decay": make(ProfileLR, "cosine-restarts", cycles=7, decay=0.5),
    }


def measure(groups: int, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return nanoseconds a step, by scheduler, one number a round."""
    contestants = schedulers(groups, rounds * steps)
    order = list(contestants)
    shuffler = random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in contestants}
    gc.disable()
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            step = contestants[name].step
            start = time.perf_counter_ns()
            for _ in range(steps):
                step()
            found[name].append((time.perf_counter_ns() - start) / steps)
    gc.enable()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300, help="steps of each scheduler a round")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 2], help="numbers of parameter groups")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for groups in arguments.groups:
        found = measure(groups, arguments.rounds, arguments.steps)
        print(f"{groups} parameter group{'s' * (groups > 1)}: median of {arguments.rounds} rounds")
        for name, times in found.items():
            ratio = median(own / base for own, base in zip(times, found[BASE], strict=True))
            print(f"  {name:<34}{median(times):7.0f} ns a step   {ratio:.3f}")


if __name__ == "__main__":
    main()
