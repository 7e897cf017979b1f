"""What is counted and shown while a policy is trained."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from stable_baselines3.common.callbacks import BaseCallback

from agents.training.choosing import Score, Validation
from agents.training.resuming import load_random_state
from agents.training.schedule_reference import ScheduleReference
from gns.features.statistics import log_loss

RATE_PATHS = 64  # episodes whose rates are kept
COUNTS = ("episodes", "diverged", "dropped", "updates", "evaluations")


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
        self.updates, self.evaluations = 0, 0
        self._untold: dict[str, float] = {}  # figures that the training gone on with had not told its trackers
        self._under_way: dict[int, list[tuple[float, float]]] = {}  # (progress, rate) of each environment's episode
        self._paths: deque[dict[str, Any]] = deque(maxlen=RATE_PATHS)
        self.recent: deque[tuple[float, float, int, float]] = deque(maxlen=256)

    def state_dict(self) -> dict[str, Any]:
        """Return counts and recent episodes."""
        counts = {name: getattr(self, name) for name in COUNTS}
        untold = {name: float(value) for name, value in self.logger.name_to_value.items()}  # PPO's, of its last update
        return {**counts, "recent": list(self.recent), "untold": untold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        for name in COUNTS:
            setattr(self, name, state[name])
        self.recent.extend(tuple(row) for row in state["recent"])
        self._untold = dict(state["untold"])

    def _on_training_start(self) -> None:
        self._begun = self.num_timesteps
        for name, value in self._untold.items():
            self.logger.record(name, value)
        if self._random_numbers is not None:
            load_random_state(self._random_numbers)

    def _on_rollout_start(self) -> None:
        if self.num_timesteps > self._begun:
            self._updated()

    def _on_step(self) -> bool:
        before = self.episodes
        for number, info in enumerate(self.locals["infos"]):
            self.dropped += int(info.get("dropped", False))
            path = self._under_way.setdefault(number, [])
            path.append((info["update"] / info["budget"], info["learning_rate"]))
            if self.locals["dones"][number]:
                del self._under_way[number]
            if "episode_return" in info:
                names = ("task", "optimizer", "budget", "initial_lr", "reward_loss", "rollbacks")
                self._paths.append({name: info[name] for name in names} | {"path": path})
                self.updates += info["update"]
                self.evaluations += info["evaluations"]
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
        self.logger.record("cost/updates", self.updates)
        self.logger.record("cost/evaluations", self.evaluations)
        actions = self.model.rollout_buffer.actions  # type: ignore[attr-defined]
        self.logger.record("actions/mean", float(np.mean(actions)))
        self.logger.record("actions/deviation", float(np.std(actions)))
        self.logger.record("actions/at_bounds", float(np.mean(np.abs(actions) >= 1.0)))
        self.logger.record("train/entropy_coefficient", self.model.ent_coef)  # type: ignore[attr-defined]
        if progress.score is not None:
            self.logger.record("validation/log_loss", progress.score.log_loss)
            self.logger.record("validation/diverged", progress.score.diverged)

    def rate_paths(self) -> pd.DataFrame:
        """Return the rates that the last episodes ended their decisions with: a row a decision.

        An episode that was under way when training went on from a checkpoint has its later decisions alone.
        """
        rows = []
        for episode, told in enumerate(self._paths):
            about = {name: value for name, value in told.items() if name != "path"}
            rows += [{"episode": episode, **about, "progress": z, "learning_rate": rate} for z, rate in told["path"]]
        return pd.DataFrame(rows)

    def progress(self) -> Progress:
        """Return where training stands."""
        scores = self._validation.scores if self._validation is not None else []
        score, best = (scores[-1], min(scores, key=lambda one: one.log_loss)) if scores else (None, None)
        if not self.recent:
            return Progress(self.episodes, math.nan, math.nan, 0.0, self.dropped, score, best)
        gaps, losses, rollbacks, _ = (np.array(column) for column in zip(*self.recent, strict=True))
        ratio, loss = math.exp(gaps.mean()), math.exp(losses.mean())
        return Progress(self.episodes, ratio, loss, float(rollbacks.mean()), self.dropped, score, best)
