"""A learned policy as a controller."""

from __future__ import annotations

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
    :raises PolicyFormatError: if the policy cannot be loaded
    """

    tuned = False

    def __init__(self, policy: str, name: str = "policy", guard: GuardConfig | None = None) -> None:
        self.name, self._guard = name, guard or GuardConfig()
        self._policy = GNSPolicy.from_pretrained(policy)

    def train(self, episode: Episode) -> TrainedRun:
        """Train a run."""
        policy = self._policy
        config = EnvConfig(
            optimizers=(episode.optimizer,),
            budgets=(episode.budget, episode.budget),
            learning_rates={episode.optimizer: (episode.learning_rate, episode.learning_rate)},
            decision=policy.config.decision,
            guard=self._guard,
            reward_probability=0.0,
            device=episode.device,
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
