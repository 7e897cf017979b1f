"""Training a scheduling policy from beginning to end."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from agents.evaluation.protocol import require_different_names
from agents.evaluation.results_cache import ResultsCache
from agents.runtime.stopping import StopRequest
from agents.trackers import Tracker
from agents.training.choosing import Validation, ValidationConfig
from agents.training.kinds import kinds_of
from agents.training.ppo import (
    PPOConfig,
    TaskReturnScaling,
    begin_with,
    export_policy,
    make_ppo,
    make_vec_env,
    single_thread,
)
from agents.training.resuming import (
    CheckpointConfig,
    Resuming,
    agent_state,
    load_agent_state,
    random_state,
)
from agents.training.schedule_reference import BaselineConfig, ScheduleReference
from agents.training.watch import Progress, Watch
from envs.engine import PROCESSES, EngineConfig
from envs.env_config import EnvConfig
from envs.tasks import Task
from gns.errors import InvalidSettingError, require_positive
from gns.policy.artefact import GNSPolicy
from gns.policy.network import network_for

_LOGGER = logging.getLogger(__name__)
_OWN_PRIOR = "four decades each"  # initial rates of a drawn task


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained.

    :param episodes: training runs to learn from, rounded up to whole rollouts; those are counted in decisions, so that
        runs that allow fewer than is usual, or end early, make them more
    :param seed: seed of everything
    :param workers: processes that collect; 0: none but this one. Changes no result
    :param engine: what the workers are. Changes no result
    :param checkpoint: when the state of the training is written
    :param validation: when policies are scored on tasks that are not learned from, to take the best
    :param initial_policy: folder or Hub id of a policy whose weights the training begins with, instead of random ones;
        of the same network and action mode. How far its actions deviate, ``agent.log_std``, is no part of a policy
    """

    episodes: int = 2400
    seed: int = 0
    workers: int = 2
    engine: EngineConfig = PROCESSES
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: PPOConfig = field(default_factory=PPOConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    initial_policy: str | None = None

    def __post_init__(self) -> None:
        require_positive("episodes", self.episodes)
        if self.workers < 0:
            raise InvalidSettingError(f"workers is {self.workers}; expected 0 or more.")
        if self.env.decision.features != self.agent.network.features:
            raise InvalidSettingError(
                f"The environment gives features {self.env.decision.features!r} but the network reads "
                f"{self.agent.network.features!r}; set env.decision.features and agent.network.features to one schema."
            )
        network = network_for(self.agent.network, self.env.decision)
        object.__setattr__(self, "agent", replace(self.agent, network=network))

    @property
    def total_episodes(self) -> int:
        """Episodes in whole rollouts."""
        size = self.agent.episodes_per_rollout
        return math.ceil(self.episodes / size) * size


def train(
    tasks: Sequence[Task],
    config: TrainConfig,
    tracker: Tracker | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    on_policy: Callable[[GNSPolicy, int], None] | None = None,
    checkpoints: Resuming | None = None,
    stop: StopRequest | None = None,
    validation_tasks: Sequence[Task] = (),
    about: Mapping[str, Any] | None = None,
    tuning: ResultsCache | None = None,
) -> GNSPolicy:
    """Train a policy by PPO on episodes over all tasks, and return it.

    One thread and the same configuration give the same policy bit for bit, whatever the number of workers, and however
    often the training was interrupted and gone on with from its checkpoints.

    :param tracker: where figures go, once a rollout; and the rate paths of the last episodes
    :param report: called as training begins or goes on, and after every episode
    :param on_policy: called after every update of the policy by PPO, the last one too, with a copy of the policy as it
        is then and the episodes done; draws from torch's global generator in it change no result
    :param checkpoints: where the state is written, and gone on from if there is one
    :param stop: whether to end early, asked between two rollouts; at once while schedules are tuned to compare with
    :param validation_tasks: what policies are scored on where the configuration asks for it; the policy with the best
        score is returned, else the last
    :param about: what the policy's card says besides
    :param tuning: where runs of schedules to compare with are kept
    :raises StoppedError: if it ended early; a checkpoint was written, if there is a place for it
    :raises InvalidSettingError: if there are no tasks to score policies on, or one of them is learned from; if the
        policy to begin with is of another network or action mode
    :raises PolicyFormatError: if that policy cannot be loaded
    :raises CheckpointMismatchError: if the newest checkpoint is of a training with other settings
    """
    single_thread()
    start = time.perf_counter()
    require_different_names(tasks)
    for task in (*tasks, *validation_tasks):
        config.env.check(task)
    validation = _validation(tasks, validation_tasks, config)
    tracker = tracker or Tracker()
    state = checkpoints.newest() if checkpoints is not None else None
    known = None if state is None else state["reference"]
    tunes = bool(config.baseline.controllers) and known is None
    with stop.at_once() if stop is not None and tunes else nullcontext():
        reference = ScheduleReference(tasks, config.env, config.baseline, config.workers, config.engine, known, tuning)
    decisions = config.env.usual_decisions(tasks)
    agent = config.agent
    venv = make_vec_env(
        list(tasks), config.env, agent.num_envs, config.workers, config.seed, agent.together, config.engine
    )
    kinds = kinds_of(tasks, config.env, config.initial_policy)
    try:
        model = make_ppo(venv, agent, decisions, config.seed)
        if config.initial_policy is not None and state is None:
            begin_with(model, config.initial_policy, config.env.decision)
        model.set_logger(Logger(folder=None, output_formats=tracker.writers()))
        under_way = _UnderWay(model, venv, reference, validation, checkpoints, stop, report)
        numbers = None if state is None else state["random"]
        updated, entropy = under_way.updated, agent.entropy_coefficient
        watch = under_way.watch = Watch(reference, report, updated, entropy, validation, numbers)
        details = dict(about or {})
        under_way.export = lambda: export_policy(
            model, config.env, agent, _about(tasks, config, watch) | details, kinds
        )
        under_way.on_policy = on_policy
        if state is not None:
            under_way.load_state_dict(state)
        report(watch.progress())
        left = config.total_episodes * decisions - model.num_timesteps
        model.learn(left, callback=[watch, *tracker.callbacks()], reset_num_timesteps=state is None)
        under_way.tell()
        under_way.score()
    finally:
        venv.close()
        if validation is not None:
            validation.close()
    return under_way.finished(tracker, time.perf_counter() - start)


@dataclass
class _UnderWay:
    """A training under way: what happens between two rollouts, and its whole state."""

    model: PPO
    environments: TaskReturnScaling
    reference: ScheduleReference
    validation: Validation | None
    checkpoints: Resuming | None
    stop: StopRequest | None
    report: Callable[[Progress], None]
    watch: Watch = field(init=False)
    export: Callable[[], GNSPolicy] = field(init=False)
    on_policy: Callable[[GNSPolicy, int], None] | None = None

    def tell(self) -> None:
        """Hand on the policy as it is."""
        if self.on_policy is not None:
            with torch.random.fork_rng(devices=[]):  # a new network draws its first weights
                self.on_policy(self.export(), self.watch.episodes)

    def score(self) -> None:
        """Score the policy on validation tasks, unless it was just done."""
        validation, episodes = self.validation, self.watch.episodes
        if validation is None or (validation.scores and validation.last >= episodes):
            return
        with torch.random.fork_rng(devices=[]):
            found = validation.score(self.model, episodes)
        _LOGGER.info("after %d episodes: mean log loss %.4f on validation tasks", episodes, found.log_loss)
        self.report(self.watch.progress())

    def updated(self) -> None:
        """Do what is due after an update of the policy."""
        self.tell()
        if self.validation is not None and self.validation.due(self.watch.episodes):
            self.score()
        stopping = self.stop is not None and self.stop.number is not None
        if self.checkpoints is not None and (self.checkpoints.due or stopping):
            self.checkpoints.write(self.state_dict, self.model.num_timesteps)
        if self.stop is not None:
            self.stop.check()

    def finished(self, tracker: Tracker, seconds: float) -> GNSPolicy:
        """Keep what is known at the end, and return the policy with the best score, or else the last."""
        tracker.table("rate_paths", self.watch.rate_paths())
        if self.validation is not None:
            tracker.table("validation", pd.DataFrame([vars(one) for one in self.validation.scores]))
            assert self.validation.best is not None
            self.model.policy.load_state_dict(self.validation.best)
        spent = self.checkpoints.seconds if self.checkpoints is not None else 0.0
        _LOGGER.info(
            "trained on %d episodes in %.0f s, %.1f s of it for checkpoints", self.watch.episodes, seconds, spent
        )
        return self.export()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on exactly."""
        return {
            "agent": agent_state(self.model),
            "environments": self.environments.state_dict(),
            "random": random_state(),
            "watch": self.watch.state_dict(),
            "reference": self.reference.state_dict(),
            "validation": self.validation.state_dict() if self.validation is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, but for random numbers and reference, which are taken at the beginning."""
        self.environments.load_state_dict(state["environments"])
        load_agent_state(self.model, state["agent"])
        self.watch.load_state_dict(state["watch"])
        if self.validation is not None:
            self.validation.load_state_dict(state["validation"])


def _validation(tasks: Sequence[Task], others: Sequence[Task], config: TrainConfig) -> Validation | None:
    """Return what scores policies, None if nothing is to."""
    if not config.validation.every:
        return None
    both = sorted({task.name for task in tasks} & {task.name for task in others})
    if both or not others:
        raise InvalidSettingError(
            f"validation.every is {config.validation.every} and the tasks to score policies on are "
            f"{', '.join(task.name for task in others) or 'none'}; expected some that training does not learn from"
            + (f", which {', '.join(both)} are." if both else ".")
        )
    require_different_names(others)
    return Validation(others, config.env, config.validation, config.workers, config.agent.together, config.engine)


def _about(tasks: Sequence[Task], config: TrainConfig, watch: Watch) -> dict[str, Any]:
    """What a policy was trained on, for its model card."""
    env, named = config.env, [task for task in tasks if not task.drawn]
    drawn = [f"{len(tasks) - len(named)} drawn"] if len(named) < len(tasks) else []
    budgets = {env.budgets_of(task) for task in tasks}
    if drawn:
        budgets = {(min(low for low, _ in budgets), max(high for _, high in budgets))}
    progress = watch.progress()
    chosen = {}
    if progress.best is not None:
        chosen = {
            "chosen on validation tasks after": f"{progress.best.episodes} episodes",
            "mean log loss there, on the reward split": _rounded(progress.best.log_loss),
            "share of episodes lost there": _rounded(progress.best.diverged),
        }
    return {
        "tasks": ", ".join([task.name for task in named] + drawn),
        "optimizers": ", ".join(sorted({name for task in tasks for name in env.optimizers_of(task)})),
        "budgets": ", ".join(sorted("{} to {} updates".format(*pair) for pair in budgets)),
        "initial rates": json.dumps(
            _priors(named, env) | ({"drawn tasks": _drawn_priors(tasks, env)} if drawn else {})
        ),
        "episodes": watch.episodes,
        "episodes lost to divergence": watch.diverged,
        "episodes dropped with lost workers": watch.dropped,
        "seed": config.seed,
        "loss over tuned schedules at the end, on the reward split": _rounded(progress.ratio),
        **({"begun with the policy": config.initial_policy} if config.initial_policy else {}),
        **chosen,
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


def _drawn_priors(tasks: Sequence[Task], env: EnvConfig) -> Any:
    """Range of initial rates of drawn tasks: each has its own, but where the environment gives one to an optimizer."""
    names = {name for task in tasks if task.drawn for name in env.optimizers_of(task)}
    given = {name: tuple(rates) for name in sorted(names) if (rates := env.learning_rates.get(name))}
    others = {"others": _OWN_PRIOR} if given and len(given) < len(names) else {}
    return given | others or _OWN_PRIOR


def _rounded(value: float) -> Any:
    return round(value, 4) if math.isfinite(value) else None


def versions() -> Mapping[str, str]:
    """Return the versions of what a result depends on."""
    from importlib.metadata import version
    from platform import python_version

    import gns

    names = ("torch", "torch-geometric", "gymnasium", "stable-baselines3", "numpy", "scikit-learn")
    return {"gns": gns.__version__, "python": python_version(), **{name: version(name) for name in names}}
