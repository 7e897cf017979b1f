"""Training a scheduling policy from beginning to end."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents.controllers import ScheduleController
from agents.evaluation import SETTING, Grid, require_different_names, runs_frame, tune
from agents.ppo import PPOConfig, export_policy, make_ppo, make_vec_env, single_thread
from agents.resuming import (
    CheckpointConfig,
    Resuming,
    agent_state,
    load_agent_state,
    load_random_state,
    random_state,
)
from agents.stopping import StopRequest
from agents.sweep import Job, run_jobs
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import EnvConfig, Episode
from envs.tasks import Task
from gns.errors import InvalidSettingError, require_positive
from gns.features import log_loss
from gns.policy import GNSPolicy
from gns.profiles import get_profile

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaselineConfig:
    """Tuned schedules that training is compared with while it runs, on the reward split.

    :param controllers: names of profiles; empty: no comparison
    :param rates: initial rates tried, over the range the environment draws from
    :param seeds: runs of each
    """

    controllers: tuple[str, ...] = ("linear", "onecycle", "rex")
    rates: int = 6
    seeds: int = 2

    def __post_init__(self) -> None:
        for name in self.controllers:
            get_profile(name)
        require_positive("rates", self.rates)
        require_positive("seeds", self.seeds)


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    :param episodes: training runs to learn from, rounded up to whole rollouts
    :param seed: seed of everything
    :param workers: processes that collect; 0: none but this one. Changes no result
    :param engine: what the workers are. Changes no result
    :param checkpoint: when the state of the training is written
    """

    episodes: int = 2400
    seed: int = 0
    workers: int = 2
    engine: EngineConfig = PROCESSES
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: PPOConfig = field(default_factory=PPOConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        require_positive("episodes", self.episodes)
        if self.workers < 0:
            raise InvalidSettingError(f"workers is {self.workers}; expected 0 or more.")
        if self.env.decision.features != self.agent.network.features:
            raise InvalidSettingError(
                f"The environment gives features {self.env.decision.features!r} but the network reads "
                f"{self.agent.network.features!r}; set env.decision.features and agent.network.features to one schema."
            )

    @property
    def total_episodes(self) -> int:
        """Episodes in whole rollouts."""
        size = self.agent.episodes_per_rollout
        return math.ceil(self.episodes / size) * size


@dataclass(frozen=True)
class Progress:
    """What a progress bar shows.

    :param episodes: episodes done
    :param ratio: geometric mean, over recent episodes, of the final loss on the reward split over that of the best
        tuned schedule at the same budget; NaN without a baseline
    :param loss: geometric mean of the recent final losses themselves
    :param rollbacks: rollbacks an episode, recently
    :param dropped: episodes lost with their workers, not among those done
    """

    episodes: int
    ratio: float
    loss: float
    rollbacks: float
    dropped: int = 0


class ScheduleReference:
    """Log loss on the reward split that tuned schedules reach, for any budget, by task and optimizer.

    Measured at the smallest, middle and largest budget, and interpolated linearly in log(budget) between them.
    Rates are tried in multiples of 3 down from the top of each prior, where tuned rates lie.

    :param known: the :meth:`state_dict` of one measured before; then nothing is measured
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        env: EnvConfig,
        config: BaselineConfig,
        workers: int,
        engine: EngineConfig = PROCESSES,
        known: list[list[Any]] | None = None,
    ) -> None:
        self._points: dict[tuple[str, str], dict[int, float]] = {}  # log loss by budget
        for name, optimizer, budget, loss in known or []:
            self._points.setdefault((name, optimizer), {})[budget] = loss
        if not config.controllers or known is not None:
            return
        controllers = [ScheduleController(name, name, cycle_momentum=name == "onecycle") for name in config.controllers]
        jobs = []
        for task in tasks:
            low, high = env.budgets_of(task)
            for optimizer in env.optimizers_of(task):
                _, top = env.learning_rates_of(task, optimizer)
                for budget in sorted({low, round(math.sqrt(low * high)), high}):
                    for rate in Grid(top / 3.0 ** (config.rates - 1), config.rates).rates():
                        for seed in range(config.seeds):
                            episode = Episode(task, optimizer, budget, rate, seed, env.device)
                            jobs += [Job(controller, episode, report=False) for controller in controllers]
        best = tune(runs_frame(run_jobs(jobs, workers, engine=engine))).groupby(SETTING).reward_loss.min()
        for (name, optimizer, budget), loss in best.items():
            self._points.setdefault((name, optimizer), {})[int(budget)] = log_loss(float(loss))

    def state_dict(self) -> list[list[Any]]:
        """Return what was measured: task, optimizer, budget and log loss."""
        return [[*pair, budget, loss] for pair, points in self._points.items() for budget, loss in points.items()]

    def log_loss(self, task: str, optimizer: str, budget: int) -> float:
        """Return the log loss of the best tuned schedule, NaN if none was measured."""
        points = self._points.get((task, optimizer))
        if not points:
            return math.nan
        return float(np.interp(math.log(budget), np.log(list(points)), list(points.values())))


class _Watch(BaseCallback):
    """Counts episodes, reports progress, writes scalars and tells when PPO has updated the policy.

    :param updated: called after every update but the last, which no rollout follows
    :param random_numbers: random state to go on with
    """

    def __init__(
        self,
        reference: ScheduleReference,
        report: Callable[[Progress], None],
        updated: Callable[[], None],
        random_numbers: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._reference, self._report, self._updated = reference, report, updated
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
        progress = self.progress()
        self.logger.record("episodes/count", self.episodes)
        self.logger.record("episodes/return", float(np.mean([row[3] for row in self.recent])) if self.recent else 0.0)
        self.logger.record("episodes/reward_loss", progress.loss)
        self.logger.record("episodes/loss_over_tuned_schedules", progress.ratio)
        self.logger.record("episodes/rollbacks", progress.rollbacks)
        self.logger.record("episodes/diverged", self.diverged)
        self.logger.record("episodes/dropped", self.dropped)

    def progress(self) -> Progress:
        """Return where training stands."""
        if not self.recent:
            return Progress(self.episodes, math.nan, math.nan, 0.0, self.dropped)
        gaps, losses, rollbacks, _ = (np.array(column) for column in zip(*self.recent, strict=True))
        ratio, loss = math.exp(gaps.mean()), math.exp(losses.mean())
        return Progress(self.episodes, ratio, loss, float(rollbacks.mean()), self.dropped)


def train(
    tasks: Sequence[Task],
    config: TrainConfig,
    tensorboard: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    on_policy: Callable[[GNSPolicy, int], None] | None = None,
    checkpoints: Resuming | None = None,
    stop: StopRequest | None = None,
) -> GNSPolicy:
    """Train a policy by PPO on episodes over all tasks, and return it.

    One thread and the same configuration give the same policy bit for bit, whatever the number of workers, and however
    often the training was interrupted and gone on with from its checkpoints.

    :param tensorboard: folder for TensorBoard's scalars
    :param report: called after every episode
    :param on_policy: called after every update of the policy by PPO, the last one too, with a copy of the policy as it
        is then and the episodes done; draws from torch's global generator in it change no result
    :param checkpoints: where the state is written, and gone on from if there is one
    :param stop: whether to end early, asked between two rollouts
    :raises StoppedError: if it ended early; a checkpoint was written, if there is a place for it
    :raises CheckpointMismatchError: if the newest checkpoint is of a training with other settings
    """
    single_thread()
    start = time.perf_counter()
    require_different_names(tasks)
    for task in tasks:
        config.env.check(task)
    state = checkpoints.newest() if checkpoints is not None else None
    known = None if state is None else state["reference"]
    reference = ScheduleReference(tasks, config.env, config.baseline, config.workers, config.engine, known)
    decision, largest = config.env.decision, max(config.env.budgets_of(task)[1] for task in tasks)
    interval = decision.decision_interval
    decisions = math.ceil(largest / interval) if interval else decision.num_decisions
    venv = make_vec_env(
        list(tasks),
        config.env,
        config.agent.num_envs,
        config.workers,
        config.seed,
        config.agent.together,
        config.engine,
    )
    try:
        model = make_ppo(venv, config.agent, decisions, config.seed, str(tensorboard) if tensorboard else None)

        def export() -> GNSPolicy:
            return export_policy(model, config.env, config.agent, _about(tasks, config, watch))

        def everything() -> dict[str, Any]:
            return {
                "agent": agent_state(model),
                "environments": venv.state_dict(),
                "random": random_state(),
                "watch": watch.state_dict(),
                "reference": reference.state_dict(),
            }

        def tell() -> None:
            if on_policy is not None:
                with torch.random.fork_rng(devices=[]):  # a new network draws its first weights
                    on_policy(export(), watch.episodes)

        def updated() -> None:
            tell()
            stopping = stop is not None and stop.number is not None
            if checkpoints is not None and (checkpoints.due or stopping):
                checkpoints.write(everything, model.num_timesteps)
            if stop is not None:
                stop.check()

        watch = _Watch(reference, report, updated, None if state is None else state["random"])
        if state is not None:
            venv.load_state_dict(state["environments"])
            load_agent_state(model, state["agent"])
            watch.load_state_dict(state["watch"])
            report(watch.progress())
        left = config.total_episodes * decisions - model.num_timesteps
        model.learn(left, callback=watch, tb_log_name="ppo", reset_num_timesteps=state is None)
        tell()
    finally:
        venv.close()
    spent = checkpoints.seconds if checkpoints is not None else 0.0
    _LOGGER.info(
        "trained on %d episodes in %.0f s, %.1f s of it for checkpoints",
        *(watch.episodes, time.perf_counter() - start, spent),
    )
    return export()


def _about(tasks: Sequence[Task], config: TrainConfig, watch: _Watch) -> dict[str, Any]:
    """What a policy was trained on, for its model card."""
    return {
        "tasks": ", ".join(task.name for task in tasks),
        "optimizers": ", ".join(sorted({name for task in tasks for name in config.env.optimizers_of(task)})),
        "budgets": ", ".join(sorted({"{} to {} updates".format(*config.env.budgets_of(task)) for task in tasks})),
        "initial rates": json.dumps(_priors(tasks, config.env)),
        "episodes": watch.episodes,
        "episodes lost to divergence": watch.diverged,
        "episodes dropped with lost workers": watch.dropped,
        "seed": config.seed,
        "loss over tuned schedules at the end, on the reward split": _rounded(watch.progress().ratio),
    }


def _priors(tasks: Sequence[Task], env: EnvConfig) -> dict[str, Any]:
    """Range of initial rates by optimizer; by optimizer and task where tasks differ."""
    priors: dict[str, Any] = {}
    for name in sorted({name for task in tasks for name in env.optimizers_of(task)}):
        ranges = {
            task.name: tuple(env.learning_rates_of(task, name)) for task in tasks if name in env.optimizers_of(task)
        }
        priors[name] = ranges if len(set(ranges.values())) > 1 else next(iter(ranges.values()))
    return priors


def _rounded(value: float) -> Any:
    return round(value, 4) if math.isfinite(value) else None


def versions() -> Mapping[str, str]:
    """Return the versions of what a result depends on."""
    from importlib.metadata import version
    from platform import python_version

    import gns

    names = ("torch", "torch-geometric", "gymnasium", "stable-baselines3", "numpy", "scikit-learn")
    return {"gns": gns.__version__, "python": python_version(), **{name: version(name) for name in names}}
