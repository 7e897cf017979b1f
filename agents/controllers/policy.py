"""A learned policy as a controller."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents.controllers.base import Stopwatch, TrainedRun
from envs.learning_rate_env import EnvConfig, Episode, LearningRateEnv
from gns.errors import InvalidSettingError
from gns.guard import GuardConfig
from gns.policy import GNSPolicy

UNKNOWN = "unknown"


class PolicyController:
    """Drives the environment with a frozen policy: one run, no tuning, no pass over the reward split but the last.

    A policy whose features need validation figures (``srls``) takes a pass before every decision too.

    :param policy: folder or Hub id of a policy
    :param name: its name in tables
    :param guard: when a run is taken back
    :raises InvalidSettingError: if ``policy`` is neither text nor a path
    :raises PolicyFormatError: if the policy cannot be loaded
    """

    tuned = False

    def __init__(self, policy: str | Path, name: str = "policy", guard: GuardConfig | None = None) -> None:
        self.name, self._guard = name, guard or GuardConfig()
        if not isinstance(policy, str | Path) or not str(policy):
            raise InvalidSettingError(f"policy of controller {name} is {policy!r}; expected a folder or a Hub id.")
        self._policy = GNSPolicy.from_pretrained(policy)

    @property
    def trained_on(self) -> str:
        """Names of the tasks the policy was trained on, comma-separated; ``unknown`` if it does not say."""
        tasks = self._policy.config.training.get("tasks")
        return tasks if tasks and isinstance(tasks, str) else UNKNOWN

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
            # The one before training serves the reward alone, unless the policy reads it.
            evaluations=info["evaluations"] - (0 if env.schema.needs_validation else 1),
            rollbacks=info["rollbacks"],
            seconds=watch.seconds(),
            rates=env.rates,
        )
