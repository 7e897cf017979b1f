"""Steps a second of environments collected by workers: two Ray actors against one, and against two processes.

``python -m benchmarks.workers [--rounds 3]``; random actions, 64 environments of ``digits_mlp``, turns A B C A B C.
Prints medians and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from agents.training.ppo import make_vec_env
from envs import EnvConfig, get_task
from envs.engine import PROCESSES, EngineConfig
from gns import DecisionConfig

SHARED = EngineConfig("ray", resources={"num_cpus": 0.5})  # all are there at once, and take turns
KINDS = {
    "one process": (PROCESSES, 1),
    "one Ray actor": (SHARED, 1),
    "two processes": (PROCESSES, 2),
    "two Ray actors": (SHARED, 2),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--environments", type=int, default=64)
    arguments = parser.parse_args()
    config = EnvConfig(decision=DecisionConfig(num_decisions=20))
    venvs = {
        name: make_vec_env([get_task("digits_mlp")], config, arguments.environments, workers, 0, engine=engine)
        for name, (engine, workers) in KINDS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for turn in range(arguments.rounds + 1):
        for name, venv in venvs.items():
            venv.seed(turn)
            venv.reset()
            actions = np.random.default_rng(turn)
            start = time.perf_counter()
            for _ in range(arguments.steps):
                venv.step(actions.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32))
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    for name, took in medians.items():
        print(f"{name}: {arguments.steps * arguments.environments / took:.0f} steps a second")
        venvs[name].close()
    for kind in ("process", "Ray actor"):
        two = f"two {kind}es" if kind == "process" else f"two {kind}s"
        print(f"{two} over one: {medians[f'one {kind}'] / medians[two]:.2f}")
    for count in (("one process", "one Ray actor"), ("two processes", "two Ray actors")):
        paired = [ray / plain for plain, ray in zip(*(seconds[name] for name in count), strict=True)]
        spread = f"({min(paired):.3f} to {max(paired):.3f})"
        print(f"time of {count[1]} over {count[0]}: {statistics.median(paired):.3f} {spread}")


if __name__ == "__main__":
    main()
