"""A learned policy as a controller."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from agents.controllers.base import Stopwatch, TrainedRun
from envs.learning_rate_env import EnvConfig, Episode, LearningRateEnv
from gns.guard import GuardConfig
from gns.policy import GNSPolicy


class PolicyController:
    """Drives the environment with a frozen policy: one run, no tuning, no pass over the reward split but the last.

    :param policy: folder or Hub id of a policy
    :param name: its name in tables
    :param guard: when a run is taken back
    """

    tuned = False

    def __init__(self, policy: str, name: str = "policy", guard: GuardConfig | None = None) -> None:
        self.name, self._policy, self._guard = name, policy, guard or GuardConfig()
        load_policy(policy)

    def train(self, episode: Episode) -> TrainedRun:
        """Train a run."""
        policy = load_policy(self._policy)
        config = EnvConfig(
            optimizers=(episode.optimizer,),
            budgets=(episode.budget, episode.budget),
            learning_rates={episode.optimizer: (episode.learning_rate, episode.learning_rate)},
            decision=policy.config.decision,
            guard=self._guard,
            reward_probability=0.0,
        )
        watch = Stopwatch()
        env = LearningRateEnv([episode.task], config)
        _, info = env.reset(seed=episode.seed, options={"seed": episode.seed})
        terminated = False
        while not terminated:
            action = policy.act(env.observation)
            _, _, terminated, _, info = env.step(np.array([action]))
        return TrainedRun(
            model=env.run.model,
            reward_loss=info["reward_loss"],
            updates=info["update"],
            evaluations=info["evaluations"] - 1,  # the one before training serves the reward alone
            rollbacks=info["rollbacks"],
            seconds=watch.seconds(),
            rates=env.rates,
        )


@lru_cache(maxsize=8)
def load_policy(source: str) -> GNSPolicy:
    """Load a policy once a process."""
    return GNSPolicy.from_pretrained(source)
