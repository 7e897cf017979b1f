"""What controllers add to the time of an update, in one run.

Sessions of one task, all from the same seed, take turns of a few updates each in one process, so that a machine whose
speed drifts slows all alike. A turn's time over the turn of the constant schedule beside it is one ratio; medians are
printed with their quartiles. Beside it stands the time of the controller's own calls (before and after the update)
less that of the constant schedule's, over the time of an update: the smaller figure to measure on a busy machine.

    python -m benchmarks.controller_overhead --task digits_cnn --optimizers sgdm adam adamw
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles
from typing import Any

import torch

from agents.controllers import Controller, make_controller
from envs.learning_rate_env import Episode
from envs.tasks import get_task

CONTROLLERS: dict[str, dict[str, Any]] = {
    "constant": {"kind": "schedule", "profile": "constant"},
    "rex": {"kind": "schedule", "profile": "rex"},
    "onecycle": {"kind": "schedule", "profile": "onecycle", "cycle_momentum": True},
    "hf-scheduler": {"kind": "hf-scheduler", "scheduler": "cosine"},
    "hd": {"kind": "hd"},
    "schedule-free": {"kind": "schedule-free"},
    "prodigy": {"kind": "prodigy"},
    "marthe": {"kind": "marthe"},
}
TURN = 5


class Arm:
    """A session with the seconds of its turns, and of its own calls in each."""

    def __init__(self, controller: Controller, episode: Episode) -> None:
        self.session = controller.start(episode)
        self.turns: list[float] = []
        self.own: list[float] = []

    def turn(self) -> None:
        """Make some updates."""
        session, own = self.session, 0.0
        start = time.perf_counter()
        for _ in range(TURN):
            session.before_gradient()
            session.run.compute_gradient(keep_graph=session.keep_graph)
            before = time.perf_counter()
            session.before_update()
            own += time.perf_counter() - before
            session.run.apply_update()
            after = time.perf_counter()
            session.after_update(session.run.loss)
            own += time.perf_counter() - after
        self.turns.append(time.perf_counter() - start)
        self.own.append(own)


def measure(task: str, optimizer: str, turns: int, settings: dict[str, Any], names: list[str]) -> None:
    """Measure and print controllers on one task and optimizer."""
    budget = (turns + 3) * TURN
    episode = Episode(get_task(task, **settings), optimizer, budget, 1e-3, 0)
    arms = {name: Arm(make_controller(name, about), episode) for name, about in CONTROLLERS.items() if name in names}
    for number in range(turns + 3):
        order = list(arms.values())
        for arm in order[number % len(order) :] + order[: number % len(order)]:  # each follows each other one
            arm.turn()
        if number == 2:  # what runs first is slower
            for arm in arms.values():
                arm.turns.clear()
                arm.own.clear()
    reference = arms["constant"]
    update = median(reference.turns) / TURN
    print(f"{task}, {optimizer}: an update takes {1e3 * update:.2f} ms")
    for name, arm in arms.items():
        ratios = [a / b for a, b in zip(arm.turns, reference.turns, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        own = (median(arm.own) - median(reference.own)) / median(reference.turns)
        print(f"  {name:14} update {median(ratios):6.3f} ({low:.3f} to {high:.3f})   own calls {100 * own:+6.2f} %")


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=["digits_cnn"])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "sgdm", "adam", "adamw"])
    parser.add_argument("--controllers", nargs="+", default=list(CONTROLLERS), choices=list(CONTROLLERS))
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    settings = {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    for task in arguments.task:
        for optimizer in arguments.optimizers:
            measure(task, optimizer, arguments.turns, settings, ["constant", *arguments.controllers])


if __name__ == "__main__":
    main()
