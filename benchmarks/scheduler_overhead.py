"""What a frozen policy adds to the time of training, by ``gns.GNSScheduler``.

Two runs of one task from the same seed, one of them with a scheduler, take turns of one interval of updates each in
one process, so that a machine whose speed drifts slows both alike. The ratio of turns is printed with its quartiles.
Beside it stands the time of the scheduler's own calls over that of the updates, the smaller figure to measure on a busy
machine: decisions, what comes between them, and what comes once (the layer graph, beside the first decision).

With ``--sizes``, what a decision takes over one foreach step of Adam on the same parameters instead, for models of so
many scalars, both ways of :mod:`gns.features.sums` beside each other.

    python -m benchmarks.scheduler_overhead --task glue_mrpc --encoder FOLDER --batch-size 16
    python -m benchmarks.scheduler_overhead --task fashion_mnist_2c2d --budget 0
    python -m benchmarks.scheduler_overhead --sizes 1e4 1e5 1e6 1e7
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from envs.tasks import get_task
from envs.training_run import TrainingRun
from gns import DecisionCore, GNSPolicy, GNSScheduler, layer_graph
from gns.features.sums import foreach_sums, read_sums
from gns.scheduler.policy_source import frozen_policy

CALLS = ("_before_update", "_after_optimizer_step", "_after_forward", "step")


class Arm:
    """A training run, with a scheduler or without, and the seconds of its turns.

    :param run: what is trained
    :param scheduler: sets its rates; None: nothing does
    """

    def __init__(self, run: TrainingRun, scheduler: GNSScheduler | None) -> None:
        self.run, self.scheduler = run, scheduler
        self.turns: list[float] = []
        self.decisions: list[float] = []  # seconds of the scheduler's calls at updates that begin with a decision
        self.between: list[float] = []  # at others
        self._own = 0.0
        if scheduler is not None:
            for name in CALLS:
                setattr(scheduler, name, self._timed(getattr(scheduler, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                self._own += time.perf_counter() - start

        return timed

    def update(self) -> None:
        """Make one update."""
        self._own, known = 0.0, len(self.scheduler.history) if self.scheduler else 0
        loss = self.run.compute_gradient()
        self.run.apply_update()
        if self.scheduler is not None:
            self.scheduler.step(loss)
            kind = self.decisions if len(self.scheduler.history) > known else self.between
            kind.append(self._own)

    def turn(self, updates: int) -> None:
        """Make some updates."""
        start = time.perf_counter()
        for _ in range(updates):
            self.update()
        self.turns.append(time.perf_counter() - start)


class HostReads(TorchFunctionMode):
    """Counts calls that bring a tensor to the host, or read one that is there, by name."""

    NAMES = frozenset(["cpu", "item", "tolist", "__float__", "__int__", "__bool__"])

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and call."""
        name = getattr(func, "__name__", "")
        self.seen[name] += name in self.NAMES
        return func(*args, **(kwargs or {}))

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}()" for name, count in self.seen.items() if count) or "none"


def measure_task(arguments: argparse.Namespace, policy: GNSPolicy) -> None:
    """Measure and print one task."""
    settings = {"batch_size": arguments.batch_size} if arguments.batch_size else {}
    model = {"encoder": arguments.encoder} if arguments.encoder else {}
    task = get_task(arguments.task, model=model, **settings)
    budget = arguments.budget or task.updates()
    optimizer = arguments.optimizer or task.optimizer
    plain, scheduled = (TrainingRun(task, optimizer, arguments.learning_rate, arguments.seed) for _ in range(2))
    scheduler = GNSScheduler(scheduled.optimizer, scheduled.model, total_steps=budget, policy=policy)
    interval = scheduler.decision.interval(budget)
    arms = [Arm(plain, None), Arm(scheduled, scheduler)]
    for number in range(1 + arguments.turns):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            arm.turn(interval)
        if number == 0:  # what runs first is slower
            first = arms[1].decisions[0]
            for arm in arms:
                arm.turns.clear(), arm.decisions.clear(), arm.between.clear()
    without, with_it = arms
    update = median(without.turns) / interval
    ratios = [a / b for a, b in zip(with_it.turns, without.turns, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    decision, between = median(with_it.decisions), median(with_it.between)
    count = -(-budget // interval)
    own = first + (count - 1) * decision + (budget - count) * between
    scalars = sum(p.numel() for p in scheduled.parameters)
    print(f"{task.name}, {scalars:,} scalars, {optimizer}, batch {task.batch_size}, {torch.get_num_threads()} threads")
    print(f"  an update without a scheduler          {1e3 * update:10.2f} ms")
    print(f"  a decision                             {1e3 * decision:10.2f} ms")
    print(f"  the first, with the layer graph        {1e3 * first:10.2f} ms")
    print(f"  an update between decisions            {1e6 * between:10.1f} µs")
    print(
        f"  own calls, {count} decisions in {budget} updates {100 * own / (budget * update):12.3f} % of training time"
    )
    print(f"  turns of {interval} updates, with over without    {median(ratios):.4f} ({low:.4f} to {high:.4f})")
    with HostReads() as reads:
        assert scheduler._run.core is not None
        scheduler.policy.act(scheduler._run.core.observe())
    print(f"  host copies and reads of a decision    {reads}")


def model_of(scalars: int) -> nn.Sequential:
    """Four square layers of so many scalars in all."""
    width = max(1, round((scalars / 4) ** 0.5))
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(4)))


def measure_size(scalars: int, rounds: int, policy: GNSPolicy) -> None:
    """Measure and print a model of one size, under Adam."""
    model = model_of(scalars)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, foreach=True)
    width = model[0].in_features
    loss: Tensor = model(torch.randn(2, width)).square().mean()
    core = DecisionCore(model, optimizer, layer_graph(model, loss), 1000, policy.config.decision)
    loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters]
    calls: dict[str, Callable[[], Any]] = {
        "step": optimizer.step,
        "decision": lambda: policy.act(core.observe()),
        "sums": lambda: read_sums(optimizer, parameters, gradients, 1),
        "foreach sums": lambda: foreach_sums(optimizer, parameters, gradients, 1),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    found = {name: 1e3 * median(times) for name, times in seconds.items()}
    ratios = {name: median(a / b for a, b in zip(seconds[name], seconds["step"], strict=True)) for name in calls}
    print(
        f"{sum(p.numel() for p in parameters):>12,}{found['step']:10.2f} ms"
        + "".join(f"{found[name]:12.2f} ms {ratios[name]:6.2f}" for name in list(calls)[1:])
    )


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="digits_mlp")
    parser.add_argument("--encoder", help="Hub id or folder of the encoder, of a text task")
    parser.add_argument("--policy", help="folder or Hub id; the bundled one by default")
    parser.add_argument("--optimizer", help="the task's by default")
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--batch-size", type=int, help="the task's by default")
    parser.add_argument("--budget", type=int, default=300, help="updates of the run; 0: the task's")
    parser.add_argument("--turns", type=int, default=6, help="intervals of each run that are measured")
    parser.add_argument(
        "--sizes", type=float, nargs="+", default=[], help="numbers of scalars; no task is trained then"
    )
    parser.add_argument("--rounds", type=int, default=7, help="of each size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = frozen_policy(arguments.policy)
    if arguments.sizes:
        print("     scalars    Adam step   decision, over step     sums, over step  foreach sums, over")
    for size in arguments.sizes:
        measure_size(int(size), arguments.rounds, policy)
    if not arguments.sizes:
        measure_task(arguments, policy)


if __name__ == "__main__":
    main()
