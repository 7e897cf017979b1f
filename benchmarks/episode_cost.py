"""What an episode costs beside the same updates without a scheduler.

Episodes under a policy and a plain run (same seed: same weights, batches and number of updates) take turns of one
decision interval each in one process, so that a machine whose speed drifts slows all alike. The plain run evaluates
nothing. Reward probability 0.2 is the setting of the GNS paper; 1 evaluates the reward split at every decision, as its
predecessor SRLS does.

    python -m benchmarks.episode_cost --policy outputs/demo/policy --task glue_mrpc --epochs 5 --encoder FOLDER
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from envs import EnvConfig, LearningRateEnv, Task, TrainingRun, get_task
from gns import GNSPolicy


class Arm:
    """An episode under a policy, with the seconds of its parts."""

    def __init__(
        self, task: Task, policy: GNSPolicy, probability: float, interval: int, options: dict[str, Any], making: float
    ) -> None:
        decision = replace(policy.config.decision, decision_interval=interval)
        config = EnvConfig(budgets=None, decision=decision, reward_probability=probability)
        self.name, self.parts = f"episode, p = {probability:g}", Counter[str]()
        self._policy, self._env = policy, LearningRateEnv([task], config)
        start = time.perf_counter()
        self._env.reset(seed=0, options=options)
        self.seconds = time.perf_counter() - start - making  # the plain run's seconds leave out making the run
        run, core = self._env.run, self._env.core
        self._time("rewards", run, "evaluate_reward_split")
        self._time("features", core, "observe")
        self._time("snapshots", self._env._snapshot, "take")
        self.done, self.rollbacks, self.evaluations = False, 0, 0

    def _time(self, part: str, owner: Any, method: str) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.parts[part] += time.perf_counter() - start

        setattr(owner, method, timed)

    def turn(self) -> None:
        """Decide and train one interval."""
        start = time.perf_counter()
        action = self._policy.act(self._env.observation)
        self.parts["policy"] += time.perf_counter() - start
        _, _, self.done, _, info = self._env.step(np.array([action]))
        self.seconds += time.perf_counter() - start
        self.rollbacks, self.evaluations = info["rollbacks"], self._env.evaluations


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    task = get_task(
        arguments.task,
        model={"encoder": arguments.encoder} if arguments.encoder else {},
        epochs=arguments.epochs,
    )
    policy = GNSPolicy.from_pretrained(arguments.policy)
    options = {"optimizer": task.optimizer, "learning_rate": arguments.learning_rate, "seed": arguments.seed}
    TrainingRun(task, **options)  # data and pretrained weights are in memory from here on
    start = time.perf_counter()
    plain = TrainingRun(task, **options)
    making = time.perf_counter() - start
    arms = [Arm(task, policy, p, arguments.interval, options, making) for p in arguments.probabilities]
    budget, done, plain_seconds, turn = task.updates(), 0, 0.0, 0

    def train_plainly() -> None:
        nonlocal done, plain_seconds
        start = time.perf_counter()
        for _ in range(min(arguments.interval, budget - done)):
            plain.compute_gradient()
            plain.apply_update()
            done += 1
        plain_seconds += time.perf_counter() - start

    while done < budget:
        turns = [train_plainly, *(arm.turn for arm in arms if not arm.done)]
        for take_turn in turns[turn % len(turns) :] + turns[: turn % len(turns)]:
            take_turn()
        turn += 1
        if turn % 10 == 0:
            ratios = ", ".join(f"{arm.name}: {arm.seconds / plain_seconds:.3f}" for arm in arms)
            print(f"{done} of {budget} updates; {ratios}", flush=True)
    print(f"{task.name}, {budget} updates of {task.batch_size}, a decision every {arguments.interval}")
    print(f"{'no scheduler':<20}{plain_seconds:8.1f} s   1.000")
    for arm in arms:
        assert arm.done, "the episode outlasted the plain run"
        parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in arm.parts.most_common())
        print(
            f"{arm.name:<20}{arm.seconds:8.1f} s   {arm.seconds / plain_seconds:.3f}   "
            f"{arm.evaluations} evaluations, {arm.rollbacks} rollbacks; {parts}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="folder or Hub id of a policy")
    parser.add_argument("--task", default="glue_mrpc")
    parser.add_argument("--encoder", help="Hub id or folder of the encoder, of a text task")
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--interval", type=int, default=10, help="updates between decisions")
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--probabilities", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
