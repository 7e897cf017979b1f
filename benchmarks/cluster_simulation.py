"""How collection scales from 2 to 1,000 workers, simulated: no worker is started.

A discrete-event simulation of lockstep collection: the driver sends each worker its actions one after the other, each
worker computes until its next decision, the driver takes the answers and asks the policy. Workers differ at every
decision (log-normal), now and then one is slow, and now and then one dies, which is noticed, and the worker replaced.

Three ways to treat the slowest share d of workers, once 1 - d of them have answered:

- ``wait``: for all of them (what ``envs.restarting.RestartingVecEnv`` does, up to its timeout);
- ``drop``: their episodes, and go on; they join again when they are done;
- ``sit out``: go on without them; their episodes go on when they are done.

*Efficiency* is decisions of episodes that were not dropped, per second, over those of as many workers that never wait,
never are slow and never die. ``python -m benchmarks.cluster_simulation [--decision 0.033]`` prints a table.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, replace

import numpy as np

WAYS = ("wait", "drop", "sit out")


@dataclass(frozen=True)
class Cluster:
    """What is simulated; times in seconds.

    :param environments: of each worker
    :param decision: mean time a worker computes until its next decision
    :param variation: standard deviation of that over its mean
    :param slow: share of decisions that take ``slow_factor`` times as long
    :param latency: there and back
    :param call: what the driver spends on one worker at a decision: sending, receiving, unpickling
    :param policy: what it spends on one environment at a decision
    :param deaths: mean time between deaths of one worker
    :param restart: from a death until its replacement answers
    :param decisions: of an episode
    """

    workers: int = 2
    environments: int = 32
    decision: float = 0.033
    variation: float = 0.15
    slow: float = 0.001
    slow_factor: float = 10.0
    latency: float = 0.001
    call: float = 0.0003
    policy: float = 5e-6
    deaths: float = 24 * 3600.0
    restart: float = 30.0
    decisions: int = 20


@dataclass(frozen=True)
class Outcome:
    """What came of it; shares of the decisions made, and the efficiency of the module's text."""

    efficiency: float
    dropped: float
    driver: float  # share of the time that the driver works


def simulate(cluster: Cluster, way: str, share: float, steps: int, seed: int) -> Outcome:
    """Collect for a number of the driver's steps.

    :param way: one of :data:`WAYS`
    :param share: of workers that are not waited for, at most
    """
    rng = np.random.default_rng(seed)
    count = cluster.workers
    needed = count if way == "wait" else max(count - int(share * count), 1)
    sigma = float(np.sqrt(np.log1p(cluster.variation**2)))
    arrivals: list[tuple[float, int]] = []  # of answers to come, by time
    running = np.zeros(count, dtype=int)  # decisions of the episodes that now run, kept so far
    lost_on_way = np.zeros(count, dtype=bool)  # episodes that die before the answer comes
    idle, now, busy = list(range(count)), 0.0, 0.0
    kept = dropped = 0

    def lose(worker: int) -> None:
        nonlocal dropped
        dropped += int(running[worker])
        running[worker] = 0

    for _ in range(steps):
        for worker in idle:
            now += cluster.call
            took = cluster.decision * float(rng.lognormal(-(sigma**2) / 2, sigma))
            took *= cluster.slow_factor if rng.random() < cluster.slow else 1.0
            lost_on_way[worker] = rng.random() < took / cluster.deaths
            took += cluster.restart if lost_on_way[worker] else 0.0
            heapq.heappush(arrivals, (now + cluster.latency + took, worker))
        busy += len(idle) * cluster.call
        idle = []
        while arrivals and (len(idle) < needed or arrivals[0][0] <= now):
            time, worker = heapq.heappop(arrivals)
            now = max(now, time)
            idle.append(worker)
            if lost_on_way[worker]:
                lose(worker)
                continue
            running[worker] += 1
            if running[worker] == cluster.decisions:
                kept += cluster.decisions
                running[worker] = 0
        if way == "drop":
            for _, worker in arrivals:
                lose(worker)
        asked = len(idle) * cluster.environments * cluster.policy
        now, busy = now + asked, busy + asked
    kept += int(running.sum())
    return Outcome(kept / now * cluster.decision / count, dropped / max(kept + dropped, 1), busy / now)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decision", type=float, default=Cluster.decision)
    parser.add_argument("--deaths", type=float, default=Cluster.deaths)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("| workers | " + " | ".join(f"{way}: efficiency, dropped" for way in WAYS) + " | driver busy |")
    print("| ---: |" + " ---: |" * (len(WAYS) + 1))
    base = Cluster(decision=arguments.decision, deaths=arguments.deaths)
    for workers in (2, 8, 32, 128, 512, 1000):
        cluster = replace(base, workers=workers)
        found = [simulate(cluster, way, arguments.share, arguments.steps, arguments.seed) for way in WAYS]
        cells = [f"{one.efficiency:.2f}, {100 * one.dropped:.1f} %" for one in found]
        print(f"| {workers} | " + " | ".join(cells) + f" | {100 * found[0].driver:.0f} % |")


if __name__ == "__main__":
    main()
