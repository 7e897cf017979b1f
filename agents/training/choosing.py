"""Choosing among the policies of one training on tasks that it does not learn from.

Every so often the policy, without its noise, drives one episode of each validation environment, always the same ones.
They are scored on the reward split; the policy of the best score is the one that the training gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from envs.batched.composite import make_vector
from envs.engine import PROCESSES, EngineConfig
from envs.env_config import Curriculum, EnvConfig
from envs.tasks import Task
from gns.errors import InvalidSettingError, require_count, require_positive
from gns.features.statistics import log_loss

if TYPE_CHECKING:
    from stable_baselines3 import PPO


@dataclass(frozen=True)
class ValidationConfig:
    """When policies are scored, and on what episodes.

    :param every: episodes of training from one score to the next, at least; 0: the last policy is taken, unscored
    :param num_envs: validation episodes, shared out to the tasks as training's environments are
    :param seed: of the episodes
    :param floor: a lower final loss counts as this one: where a task can be learned without error, ln(loss) falls
        without end, and such a task would decide alone which policy is the best
    """

    every: int = 0
    num_envs: int = 64
    seed: int = 0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.every < 0:
            raise InvalidSettingError(f"validation.every is {self.every}; expected 0 or more episodes.")
        require_count("validation.num_envs", self.num_envs)
        require_positive("validation.floor", self.floor)


@dataclass(frozen=True)
class Score:
    """How a policy did on the validation episodes.

    :param episodes: of training, when it was scored
    :param log_loss: mean over episodes of ln(final loss on the reward split)
    :param diverged: share of episodes that were lost
    """

    episodes: int
    log_loss: float
    diverged: float


class Validation:
    """Scores the policies of a training and keeps the best.

    :param tasks: none of which the training learns from
    :param env: what the training's episodes are drawn from; validation episodes have their full budgets
    :param workers: as of the training; changes no result
    :param engine: what the workers are
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        env: EnvConfig,
        config: ValidationConfig,
        workers: int,
        together: bool = True,
        engine: EngineConfig = PROCESSES,
    ) -> None:
        self._config = config
        self._make = lambda: make_vector(
            tasks, replace(env, curriculum=Curriculum()), config.num_envs, workers, together, engine
        )
        self._venv: VecEnv | None = None
        self.scores: list[Score] = []
        self.best: dict[str, torch.Tensor] | None = None  # weights of the policy with the best score

    @property
    def last(self) -> int:
        """Episodes of training when a policy was last scored."""
        return self.scores[-1].episodes if self.scores else 0

    def due(self, episodes: int) -> bool:
        """Return whether a policy is to be scored.

        :param episodes: of training so far
        """
        return episodes - self.last >= self._config.every

    def score(self, model: PPO, episodes: int) -> Score:
        """Score PPO's policy as it is now, and keep its weights if no score was better.

        :param episodes: of training so far
        """
        if self._venv is None:
            self._venv = self._make()
        ends = _play(model, self._venv, self._config.seed)
        losses = [log_loss(max(end["reward_loss"], self._config.floor)) for end in ends]
        score = Score(episodes, float(np.mean(losses)), float(np.mean([end["diverged"] for end in ends])))
        if self.best is None or score.log_loss < min(other.log_loss for other in self.scores):
            self.best = {name: value.clone() for name, value in model.policy.state_dict().items()}
        self.scores.append(score)
        return score

    def state_dict(self) -> dict[str, Any]:
        """Return scores and the best weights: plain values and tensors."""
        return {"scores": [vars(score) for score in self.scores], "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.scores = [Score(**score) for score in state["scores"]]
        self.best = state["best"]

    def close(self) -> None:
        """End the workers."""
        if self._venv is not None:
            self._venv.close()


def _play(model: PPO, venv: VecEnv, seed: int) -> list[dict[str, Any]]:
    """Play one episode of every environment, the same ones for one seed, and return the last info of each.

    An episode that is lost with its worker has none.
    """
    model.policy.set_training_mode(False)
    venv.seed(seed)
    observations: Any = venv.reset()
    ends: dict[int, dict[str, Any]] = {}
    over = np.zeros(venv.num_envs, dtype=bool)
    while not over.all():
        tensors = {name: torch.as_tensor(value) for name, value in observations.items()}
        with torch.no_grad():  # predict() would insist on the padding of the training's environments
            actions = model.policy.get_distribution(tensors).mode().clamp(-1.0, 1.0).numpy()
        observations, _, dones, infos = venv.step(actions)
        for i in np.flatnonzero(dones & ~over):
            if not infos[i].get("dropped"):
                ends[int(i)] = infos[i]
        over |= dones
    return [ends[i] for i in sorted(ends)]
