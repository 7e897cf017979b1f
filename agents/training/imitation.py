"""Imitating tuned schedules before PPO: a policy that begins as what a practitioner would have tuned.

PPO from random weights spends most of its episodes on finding the sensible rate of each task, which tuning a schedule
finds in a few runs. So a schedule is tuned on every task that is trained on, and the policy learns to bring a run from
whatever rate it has to the rate of that schedule. It sees the states that it brings about itself, as in DAgger (Ross,
Gordon and Bagnell, "A reduction of imitation learning and structured prediction to no-regret online learning", 2011,
algorithm 3.1 with beta = 1 in the first round and 0 after it). All on the reward split of training's tasks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn import functional

from agents.controllers import ScheduleController
from agents.evaluation.protocol import Grid
from agents.evaluation.results_cache import ResultsCache
from agents.evaluation.sweep import Job, run_jobs
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import EnvConfig, Episode
from envs.tasks import Task
from gns.deciding.config import DecisionConfig
from gns.errors import InvalidSettingError, require_count, require_positive
from gns.features.statistics import log_loss
from gns.schedules.profiles import get_profile

_LOGGER = logging.getLogger(__name__)
_LOST = 5.0  # ln of the loss that a run counts with which was lost


@dataclass(frozen=True)
class ImitationConfig:
    """What is imitated, and how long.

    :param schedule: name of a profile, tuned on every task; null: nothing is imitated
    :param rates: initial rates tried, in multiples of 3 down from the highest of each task
    :param seeds: runs of each
    :param rounds: rounds of one episode in every environment, each followed by learning from all so far
    :param noise: standard deviation of the actions around the schedule's in the first round, the policy's own after it
    :param epochs: passes over the decisions after each round
    :param batch_size: decisions a gradient step
    :param learning_rate: step size of Adam at the start of each round; it falls linearly to a tenth
    """

    schedule: str | None = None
    rates: int = 7
    seeds: int = 1
    rounds: int = 4
    noise: float = 0.25
    epochs: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.schedule is not None:
            get_profile(self.schedule)
        for name in ("rates", "seeds", "rounds", "epochs", "batch_size"):
            require_count(f"imitation.{name}", getattr(self, name))
        require_positive("imitation.learning_rate", self.learning_rate)
        if not 0.0 <= self.noise < math.inf:
            raise InvalidSettingError(f"imitation.noise is {self.noise!r}; expected a standard deviation, 0 or more.")

    def check(self, decision: DecisionConfig) -> None:
        """Check that a schedule can be followed by such decisions.

        :raises InvalidSettingError: if actions of their mode do not multiply the rate
        """
        if self.schedule is not None and decision.mode not in ("profile", "recursive"):
            raise InvalidSettingError(
                f"imitation.schedule is {self.schedule!r} and env.decision.mode {decision.mode!r}; expected profile or "
                "recursive, whose actions multiply the rate, or imitation.schedule=null."
            )


class TunedRates:
    """Initial rates at which a schedule does best, by task, optimizer and budget.

    Measured at the smallest and the largest budget of each task, on its reward split, and interpolated between them in
    the logarithms. The best rate is where the parabola through the best rate tried and its neighbours is lowest.

    :param cache: runs done before, and where they are kept
    :param done: called after every run
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        env: EnvConfig,
        config: ImitationConfig,
        workers: int,
        engine: EngineConfig = PROCESSES,
        cache: ResultsCache | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        assert config.schedule is not None
        controller = ScheduleController(config.schedule, config.schedule)
        jobs = []
        for task in tasks:
            for optimizer in env.optimizers_of(task):
                _, top = env.learning_rates_of(task, optimizer)
                jobs += [
                    Job(controller, Episode(task, optimizer, budget, rate, seed, env.device), report=False)
                    for budget in sorted(set(env.budgets_of(task)))
                    for rate in Grid(top / 3.0 ** (config.rates - 1), config.rates).rates()
                    for seed in range(config.seeds)
                ]
        losses: dict[tuple[str, str, int], dict[float, list[float]]] = {}
        for row in run_jobs(jobs, workers, done, cache, engine):
            by_rate = losses.setdefault((row["task"], row["optimizer"], row["budget"]), {})
            by_rate.setdefault(math.log(row["initial_lr"]), []).append(min(log_loss(row["reward_loss"]), _LOST))
        self._points: dict[tuple[str, str], dict[int, float]] = {}  # ln of the best rate by budget
        for (name, optimizer, budget), by_rate in losses.items():
            best = lowest_point([(rate, float(np.mean(of))) for rate, of in sorted(by_rate.items())])
            self._points.setdefault((name, optimizer), {})[budget] = best

    def rate(self, task: str, optimizer: str, budget: int) -> float:
        """Return the best initial rate."""
        points = self._points[task, optimizer]
        return math.exp(float(np.interp(math.log(budget), np.log(list(points)), list(points.values()))))


def lowest_point(points: Sequence[tuple[float, float]]) -> float:
    """Return where a curve is lowest.

    :param points: its (x, y) in ascending, evenly spaced x
    :return: x of the vertex of the parabola through the lowest point and its neighbours; of that point, at an edge
    """
    best = min(range(len(points)), key=lambda i: points[i][1])
    if not 0 < best < len(points) - 1:
        return points[best][0]
    (left, before), (middle, lowest), (_, after) = points[best - 1 : best + 2]
    curvature = before - 2.0 * lowest + after
    return middle + 0.5 * (middle - left) * (before - after) / curvature if curvature > 0.0 else middle


def action_towards(rate: float, schedule: str, decision: DecisionConfig, info: Mapping[str, Any]) -> float:
    """Return the action that brings a run to a schedule, or nearest to it: in the middle of the coming interval.

    :param rate: initial rate of the schedule
    :param info: what the environment says of the run, see :func:`envs.episode.episode_info`
    """
    budget, update = info["budget"], info["update"]
    own = get_profile("constant" if decision.mode == "recursive" else decision.profile)
    middle = min(update + decision.interval(budget) / 2, (update + budget) / 2) / budget
    level = info["learning_rate"] / own(update / budget)
    ratio = rate * get_profile(schedule)(middle) / (level * own(middle))
    reach = reach_of(decision, info)
    return min(max(math.log(max(ratio, 1e-30)) / reach, -1.0), 1.0) if reach else 0.0


def reach_of(decision: DecisionConfig, info: Mapping[str, Any]) -> float:
    """Return what an action of 1 adds to the logarithm of the rate."""
    return math.log(decision.largest_factor(info["update"] - decision.interval(info["budget"])))


@dataclass
class _Decisions:
    """Decisions of one round, M of them: observations, actions wanted, weights, returns that followed (or NaN)."""

    observations: dict[str, Tensor]
    wanted: Tensor
    weights: Tensor
    returns: Tensor


def imitate(
    model: PPO,
    rates: TunedRates,
    config: ImitationConfig,
    decision: DecisionConfig,
    decisions: int,
    done: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train the policy of a PPO agent to follow a tuned schedule, and its critic on what came of that.

    Errors are those of the logarithm of the rate. The critic learns from the last round alone: older returns are those
    of other policies.

    :param decisions: that an episode takes at most
    :param done: called after every round
    :return: after each round, the root mean square of ln(rate / rate wanted) in that round
    """
    assert config.schedule is not None
    rounds: list[_Decisions] = []
    errors: list[float] = []
    for number in range(config.rounds):
        rounds.append(_play(model, rates, config, decision, decisions, own=number > 0))
        for older in rounds[:-1]:
            older.returns.fill_(math.nan)
        _learn(model, rounds, config)
        errors.append(_error(model, rounds[-1]))
        _LOGGER.info("imitation, round %d of %d: ln(rate / wanted) %.3f", number + 1, config.rounds, errors[-1])
        done()
    return errors


def _play(
    model: PPO, rates: TunedRates, config: ImitationConfig, decision: DecisionConfig, decisions: int, own: bool
) -> _Decisions:
    """Play an episode in every environment.

    :param own: whether the policy acts; else the schedule does
    """
    assert config.schedule is not None
    venv, noise = model.env, torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    assert isinstance(venv, VecEnv)
    observations: Any = venv.reset()
    infos = venv.unwrapped.reset_infos
    seen: dict[str, list[Tensor]] = {}
    wanted, weights, rewards, ends = [], [], [], []
    for _ in range(decisions):
        targets = [rates.rate(info["task"], info["optimizer"], info["budget"]) for info in infos]
        actions = [
            action_towards(target, config.schedule, decision, info) for target, info in zip(targets, infos, strict=True)
        ]
        wanted.append(torch.tensor(actions))
        weights.append(torch.tensor([reach_of(decision, info) for info in infos]))
        tensors = {name: torch.as_tensor(value) for name, value in observations.items()}
        for name, value in tensors.items():
            seen.setdefault(name, []).append(value)
        acting = _means(model, tensors) if own else wanted[-1]
        acting = acting + config.noise * torch.randn(acting.shape, generator=noise)
        observations, reward, dones, infos = venv.step(acting.clamp(-1.0, 1.0).unsqueeze(-1).numpy())
        begun = venv.unwrapped.reset_infos
        infos = [begun[i] if dones[i] else info for i, info in enumerate(infos)]
        rewards.append(reward)
        ends.append(dones)
    return _Decisions(
        {name: torch.cat(values) for name, values in seen.items()},
        torch.cat(wanted),
        torch.cat(weights),
        torch.from_numpy(returns_of(np.stack(rewards), np.stack(ends))).flatten(),
    )


def returns_of(rewards: np.ndarray, dones: np.ndarray) -> np.ndarray:
    """Return the sum of rewards from each step to the end of its episode, float32 (S, N); NaN where none is seen.

    :param rewards: (S, N), of N environments
    :param dones: bool (S, N), whether an episode ended with the step
    """
    returns, following = np.zeros(rewards.shape, dtype=np.float32), np.full(rewards.shape[1], np.nan)
    for step in reversed(range(len(rewards))):
        following = rewards[step] + np.where(dones[step], 0.0, following)
        returns[step] = following
    return returns


def _learn(model: PPO, rounds: Sequence[_Decisions], config: ImitationConfig) -> None:
    """Fit the mean action to the actions wanted, and the critic to the returns that are known."""
    observations = {name: torch.cat([one.observations[name] for one in rounds]) for name in rounds[0].observations}
    wanted, weights, returns = (
        torch.cat([getattr(one, name) for one in rounds]) for name in ("wanted", "weights", "returns")
    )
    parameters = [p for name, p in model.policy.named_parameters() if name != "log_std"]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    steps = config.epochs * math.ceil(len(wanted) / config.batch_size)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    model.policy.set_training_mode(True)
    for _ in range(config.epochs):
        for chosen in torch.randperm(len(wanted)).split(config.batch_size):
            means, values = _outputs(model, {name: value[chosen] for name, value in observations.items()})
            loss = ((means - wanted[chosen]) * weights[chosen]).square().mean()
            known = returns[chosen].isfinite()
            if known.any():
                loss = loss + model.vf_coef * functional.mse_loss(values[known], returns[chosen][known])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            falling.step()


def _outputs(model: PPO, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean actions and values, (M,) each."""
    policy: Any = model.policy
    features = policy.extract_features(observations)
    return policy.action_net(features).squeeze(-1), policy.value_net(features).squeeze(-1)


@torch.no_grad()
def _means(model: PPO, observations: dict[str, Tensor]) -> Tensor:
    model.policy.set_training_mode(False)
    return _outputs(model, observations)[0]


def _error(model: PPO, decisions: _Decisions) -> float:
    """Return the root mean square of ln(rate / rate wanted) after one's decisions."""
    squares = []
    for chosen in torch.arange(len(decisions.wanted)).split(1024):
        means = _means(model, {name: value[chosen] for name, value in decisions.observations.items()})
        squares.append(((means - decisions.wanted[chosen]) * decisions.weights[chosen]).square())
    return float(torch.cat(squares).mean().sqrt())
