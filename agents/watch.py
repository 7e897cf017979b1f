"""What is counted and shown while a policy is trained."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.resuming import load_random_state
from agents.schedule_reference import ScheduleReference
from agents.validation import Score, Validation
from gns.features import log_loss


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows.

    :param episodes: episodes done
    :param ratio: geometric mean, over recent episodes, of the final loss on the reward split over that of the best
        tuned schedule at the same budget; NaN without a baseline
    :param loss: geometric mean of the recent final losses themselves
    :param rollbacks: rollbacks an episode, recently
    :param dropped: episodes lost with their workers, not among those done
    :param score: of the policy that was scored last on validation tasks; None without
    :param best: the best so far
    """

    episodes: int
    ratio: float
    loss: float
    rollbacks: float
    dropped: int = 0
    score: Score | None = None
    best: Score | None = None


class Watch(BaseCallback):
    """Counts episodes, reports progress, writes scalars and tells when PPO has updated the policy.

    :param updated: called after every update but the last, which no rollout follows
    :param entropy_coefficient: of the share of the training to come
    :param validation: what scores policies
    :param random_numbers: random state to go on with
    """

    def __init__(
        self,
        reference: ScheduleReference,
        report: Callable[[Progress], None],
        updated: Callable[[], None],
        entropy_coefficient: Callable[[float], float],
        validation: Validation | None = None,
        random_numbers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._reference, self._report, self._updated = reference, report, updated
        self._entropy_coefficient, self._validation = entropy_coefficient, validation
        self._random_numbers = random_numbers
        self.episodes, self.diverged, self.dropped = 0, 0, 0
        self.recent: deque[tuple[float, float, int, float]] = deque(maxlen=256)

    def state_dict(self) -> dict[str, Any]:
        """Return counts and recent episodes."""
        counts = {"episodes": self.episodes, "diverged": self.diverged, "dropped": self.dropped}
        return {**counts, "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        self.episodes, self.diverged, self.dropped = state["episodes"], state["diverged"], state["dropped"]
        self.recent.extend(tuple(row) for row in state["recent"])

    def _on_training_start(self) -> None:
        self._begun = self.num_timesteps
        if self._random_numbers is not None:
            load_random_state(self._random_numbers)

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self._begun:
            self._updated()

    def _on_step(self) -> bool:
        before = self.episodes
        for info in self.locals["infos"]:
            self.dropped += int(info.get("dropped", False))
            if "episode_return" in info:
                self.episodes += 1
                self.diverged += int(info["diverged"])
                loss = log_loss(info["reward_loss"])
                gap = loss - self._reference.log_loss(info["task"], info["optimizer"], info["budget"])
                self.recent.append((gap, loss, info["rollbacks"], info["episode_return"]))
        if self.episodes > before:
            self._report(self.progress())
        return True

    def _on_rollout_end(self) -> None:
        remaining = 1.0 - self.num_timesteps / self.model._total_timesteps
        self.model.ent_coef = self._entropy_coefficient(remaining)  # type: ignore[attr-defined]
        progress = self.progress()
        self.logger.record("episodes/count", self.episodes)
        self.logger.record("episodes/return", float(np.mean([row[3] for row in self.recent])) if self.recent else 0.0)
        self.logger.record("episodes/reward_loss", progress.loss)
        self.logger.record("episodes/loss_over_tuned_schedules", progress.ratio)
        self.logger.record("episodes/rollbacks", progress.rollbacks)
        self.logger.record("episodes/diverged", self.diverged)
        self.logger.record("episodes/dropped", self.dropped)
        self.logger.record("train/entropy_coefficient", self.model.ent_coef)  # type: ignore[attr-defined]
        if progress.score is not None:
            self.logger.record("validation/log_loss", progress.score.log_loss)
            self.logger.record("validation/diverged", progress.score.diverged)

    def progress(self) -> Progress:
        """Return where training stands."""
        scores = self._validation.scores if self._validation is not None else []
        score, best = (scores[-1], min(scores, key=lambda one: one.log_loss)) if scores else (None, None)
        if not self.recent:
            return Progress(self.episodes, math.nan, math.nan, 0.0, self.dropped, score, best)
        gaps, losses, rollbacks, _ = (np.array(column) for column in zip(*self.recent, strict=True))
        ratio, loss = math.exp(gaps.mean()), math.exp(losses.mean())
        return Progress(self.episodes, ratio, loss, float(rollbacks.mean()), self.dropped, score, best)
