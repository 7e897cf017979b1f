"""A frozen policy's run, driven through the Gymnasium environment: what its controller must equal."""

from __future__ import annotations

import numpy as np

from envs.env_config import EnvConfig
from envs.episode import Episode
from envs.learning_rate_env import LearningRateEnv
from gns.deciding.guard import GuardConfig
from gns.policy.artefact import GNSPolicy


def run_in_environment(policy: GNSPolicy, guard: GuardConfig, episode: Episode) -> tuple[LearningRateEnv, dict]:
    """Return the environment at the end of an episode, and its last info."""
    config = EnvConfig(
        optimizers=(episode.optimizer,),
        budgets=(episode.budget, episode.budget),
        learning_rates={episode.optimizer: (episode.learning_rate, episode.learning_rate)},
        decision=policy.config.decision,
        guard=guard,
        reward_probability=0.0,
        device=episode.device,
    )
    env = LearningRateEnv([episode.task], config)
    _, info = env.reset(seed=episode.seed, options={"seed": episode.seed})
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(np.array([policy.act(env.observation)]))
    return env, info
