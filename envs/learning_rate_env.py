"""``gns/LearningRate-v0``: a training run as a Gymnasium environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import Tensor

from envs.env_state import env_state, load_env_state
from envs.episode import Episode, episode_info, new_run
from envs.tasks import Task, get_task
from envs.training_run import OPTIMIZERS, TrainingRun
from gns.deciding.decision import DecisionConfig, DecisionCore, Observation
from gns.deciding.guard import GuardConfig, Judgement
from gns.deciding.guarded_run import GuardedRun
from gns.errors import InvalidSettingError, UnknownNameError, require_positive
from gns.features.held_out import ValidationStatistics, validation_statistics
from gns.features.schemas import get_schema, log_loss
from gns.graph.layer_graph import NODE_TYPES, LayerGraph, layer_graph

REWARDS: tuple[str, ...] = ("log-loss", "gns-paper")
_MAX_BLOCKS = 10_000
_LARGEST_LOSS = 1e6
_QUANTILES = 101  # of budgets, where a mean over them is taken


@dataclass(frozen=True)
class Curriculum:
    """Short budgets first: budgets as drawn, times a factor that rises geometrically from ``start`` to 1.

    :param episodes: of one environment, over which it rises; 0: budgets are as drawn from the first on
    :param start: the factor of an environment's first episode
    """

    episodes: int = 0
    start: float = 0.25

    def __post_init__(self) -> None:
        if self.episodes < 0:
            raise InvalidSettingError(f"curriculum.episodes is {self.episodes}; expected 0 or more.")
        if not 0.0 < self.start <= 1.0:
            raise InvalidSettingError(f"curriculum.start is {self.start}; expected a factor in (0, 1].")

    def factor(self, begun: int) -> float:
        """Return the factor of a budget.

        :param begun: episodes that the environment began before
        """
        return float(self.start ** (1.0 - begun / self.episodes)) if begun < self.episodes else 1.0


@dataclass(frozen=True)
class EnvConfig:
    """What episodes are drawn from, and how they are rewarded.

    :param optimizers: names in :data:`envs.training_run.OPTIMIZERS`; None: each task's own
    :param budgets: smallest and largest budget T in updates; drawn log-uniformly. None: each task's own
    :param learning_rates: for each optimizer the prior of the initial rate (D_alpha): bounds of a log-uniform law;
        each task's own range where there is none, or None
    :param decision: how actions become rates
    :param guard: when a run is taken back
    :param reward: ``log-loss`` (fall of the log of the loss on the reward split) or ``gns-paper`` (see
        :meth:`LearningRateEnv.step`)
    :param reward_probability: share of decisions that are evaluated; the last one always is, and so are all of them
        where the features need it (``srls``), which then costs no pass beyond those of the features
    :param paper_threshold: metric above which ``gns-paper`` counts tenfold
    :param divergence_penalty: subtracted from the reward when a run ends because it diverged
    :param curriculum: how budgets grow; a budget that a reset is told stays as it is, and none falls below the smallest
        that allows all decisions
    :param device: where to train
    """

    optimizers: tuple[str, ...] | None = ("adam", "sgdm")
    budgets: tuple[int, int] | None = (100, 400)
    learning_rates: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    reward: str = "log-loss"
    reward_probability: float = 0.2
    paper_threshold: float = 0.9
    divergence_penalty: float = 2.0
    curriculum: Curriculum = field(default_factory=Curriculum)
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (*(self.optimizers or ()), *self.learning_rates):
            if name not in OPTIMIZERS:
                raise UnknownNameError("optimizer", name, OPTIMIZERS)
        for name, bounds in self.learning_rates.items():
            if bounds is not None:
                self._check_range(name, bounds)
        if self.optimizers is not None and not self.optimizers:
            raise InvalidSettingError("optimizers is empty; expected at least one, or None for each task's own.")
        if self.reward not in REWARDS:
            raise UnknownNameError("reward", self.reward, REWARDS)
        if not 0.0 <= self.reward_probability <= 1.0:
            raise InvalidSettingError(f"reward_probability is {self.reward_probability}; expected one in [0, 1].")
        if not self.divergence_penalty >= 0.0 or math.isinf(self.divergence_penalty):
            raise InvalidSettingError(
                f"divergence_penalty is {self.divergence_penalty}; expected a finite number >= 0."
            )
        if self.budgets is not None:
            low, high = self.budgets
            self.decision.interval(low)  # raises on a budget too small
            if not low <= high:
                raise InvalidSettingError(f"budgets is {self.budgets}; expected (smallest, largest).")

    def _check_range(self, optimizer: str, bounds: tuple[float, float]) -> None:
        low, high = bounds
        require_positive(f"the lowest initial learning rate of {optimizer}", low)
        require_positive(f"the highest initial learning rate of {optimizer}", high)
        if not self.decision.min_lr <= low <= high <= self.decision.max_lr:
            raise InvalidSettingError(
                f"learning_rates of {optimizer} are {(low, high)}; expected (lowest, highest) within [min_lr, max_lr] "
                f"= [{self.decision.min_lr:g}, {self.decision.max_lr:g}]."
            )

    def check(self, task: Task) -> None:
        """Pass a task that episodes can be drawn on.

        :raises UnknownNameError: if an optimizer is unknown, or has no range of rates
        :raises InvalidSettingError: if a range lies outside the decision's bounds, or a budget allows too few updates
        """
        for optimizer in self.optimizers_of(task):
            if optimizer not in OPTIMIZERS:
                raise UnknownNameError(f"optimizer of task {task.name}", str(optimizer), OPTIMIZERS)
            self.learning_rates_of(task, optimizer)
        self.decision.interval(self.budgets_of(task)[0])

    def optimizers_of(self, task: Task) -> tuple[str, ...]:
        """Return the optimizers that episodes on a task draw from."""
        return self.optimizers or (task.optimizer,)

    def budgets_of(self, task: Task) -> tuple[int, int]:
        """Return the smallest and largest budget of episodes on a task."""
        return self.budgets or task.budgets or (task.updates(),) * 2

    def most_decisions(self, tasks: Sequence[Task]) -> int:
        """Return the largest number of decisions an episode on one of some tasks takes."""
        if self.decision.decision_interval is None:
            return self.decision.num_decisions
        return max(math.ceil(self.budgets_of(task)[1] / self.decision.decision_interval) for task in tasks)

    def usual_decisions(self, tasks: Sequence[Task]) -> int:
        """Return the mean number of decisions of episodes on some tasks, budgets as drawn, rounded up.

        With ``num_decisions`` it is that number, though budgets that it does not divide allow fewer.
        """
        interval = self.decision.decision_interval
        if interval is None:
            return self.decision.num_decisions
        low, high = np.transpose([self.budgets_of(task) for task in tasks])
        return math.ceil(np.ceil(np.round(np.geomspace(low, high, _QUANTILES)) / interval).mean())

    def shortened(self, budget: float, begun: int) -> int:
        """Return a budget as the curriculum has it.

        :param budget: as drawn, in updates
        :param begun: episodes that the environment began before
        """
        smallest = 1 if self.decision.decision_interval else self.decision.num_decisions
        return max(round(budget * self.curriculum.factor(begun)), min(round(budget), smallest))

    def learning_rates_of(self, task: Task, optimizer: str) -> tuple[float, float]:
        """Return the range that the initial rate of episodes on a task is drawn from.

        :raises UnknownNameError: if neither the configuration nor the task has a range for this optimizer
        :raises InvalidSettingError: if it does not lie within the decision's bounds
        """
        bounds = self.learning_rates.get(optimizer) or task.range_of(optimizer)
        self._check_range(optimizer, bounds)
        return bounds


class LearningRateEnv(gym.Env[spaces.GraphInstance, np.ndarray]):
    """A training run whose learning rate the agent sets.

    *Observation*: the layer graph at a decision, taken on the pending gradient of the coming update. Row l of
    ``nodes`` is [type, block, node features of layer l, global features], see :mod:`gns.features.schemas`; every edge
    carries the number 1. Always finite. Where the feature schema needs validation figures, the reward split is
    evaluated in full before every observation, and the same evaluation gives the reward.

    *Action*: one number in [-1, 1], turned into a rate by the action mode
    (:class:`gns.deciding.decision.DecisionConfig`). In mode ``per-layer`` (1 + L,): the shared one, and one a layer for
    the largest number L of layers of any task. What lies beyond the layers of an episode's task has no effect, and one
    number alone is the shared one.

    *Reward*: the fall of log(loss on the reward split) since it was last evaluated. Rewards add up to
    log(loss before the first update) - log(loss after the last), whichever decisions were evaluated.

    *End*: ``terminated`` when the budget is spent, or when the run diverged more often than the guard allows.
    ``truncated`` never.

    The current observation is also in ``env.observation``, as :class:`gns.deciding.decision.Observation`, the run in
    ``env.run`` and the rate of every update so far, without multipliers of layers, in ``env.rates``.

    :param tasks: names or tasks; each episode draws one
    :param config: what episodes are drawn from
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, tasks: Sequence[str | Task] = ("digits_mlp",), config: EnvConfig | None = None) -> None:
        self.config = config or EnvConfig()
        self.tasks = [task if isinstance(task, Task) else get_task(task) for task in tasks]
        if not self.tasks:
            raise InvalidSettingError("tasks is empty; expected at least one task.")
        for one in self.tasks:
            self.config.check(one)
        self._schema = get_schema(self.config.decision.features)
        self.begun = 0  # episodes
        self.graphs: dict[int, LayerGraph] = {}  # by identity of the task: settings may differ under one name
        low, high = _observation_bounds(self._schema)
        self.observation_space = spaces.Graph(spaces.Box(low, high, dtype=np.float32), spaces.Box(0.0, 1.0, (1,)))
        layers = self.graph_limits()[0] if self.config.decision.per_layer else 0
        self.action_space = action_space(layers)

    @property
    def core(self) -> DecisionCore:
        """The decision core of the run."""
        return self.guarded.core

    @property
    def rollbacks(self) -> int:
        """How often the run was taken back."""
        return self.guarded.rollbacks

    @property
    def schema(self) -> Any:
        """The feature schema of the observations."""
        return self._schema

    def graph_limits(self) -> tuple[int, int]:
        """Return the largest numbers of nodes and of edges over all tasks."""
        graphs = []
        for task in self.tasks:
            if id(task) not in self.graphs:
                run = TrainingRun(task, self.config.optimizers_of(task)[0], 1e-3, seed=0, device=self.config.device)
                self.graphs[id(task)] = layer_graph(run.model, run.compute_gradient())
            graphs.append(self.graphs[id(task)])
        return max(g.num_nodes for g in graphs), max(g.num_edges for g in graphs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[spaces.GraphInstance, dict[str, Any]]:
        """Draw an episode and begin it; the first decision precedes the first update.

        :param options: any of ``task`` (a name, or one of ``tasks`` itself), ``optimizer``, ``budget``,
            ``learning_rate`` and ``seed`` (of the training run) to set instead of drawing
        :raises UnknownNameError, InvalidSettingError: if an option names or sets what cannot be
        """
        super().reset(seed=seed)
        self.episode = episode = self.draw_episode(options or {})
        self.run = new_run(episode, decision=self.config.decision)
        self.evaluations = 0
        self.predictions: Tensor | None = None  # on the reward split, and what was made of them: where features
        self.validation: ValidationStatistics | None = None  # need it, of the last evaluation
        coming = self.run.position()
        loss = self.run.compute_gradient()
        self._evaluated = self._evaluate()  # after the pending forward pass, like every evaluation that follows
        if id(episode.task) not in self.graphs:
            self.graphs[id(episode.task)] = layer_graph(self.run.model, loss)
        graph, decision = self.graphs[id(episode.task)], self.config.decision
        core = DecisionCore(self.run.model, self.run.optimizer, graph, episode.budget, decision)
        self.guarded = GuardedRun(core, self.config.guard)
        self.rates: list[float] = []
        observation = core.observe(self.validation)
        self.guarded.check(coming)
        return self._instance(observation), self._info()

    def step(self, action: np.ndarray) -> tuple[spaces.GraphInstance, float, bool, bool, dict[str, Any]]:
        """Apply the pending update at the new rate and the K - 1 that follow, and compute the next gradient.

        With reward ``gns-paper`` (released code of Xiong et al., ICLR 2022) an evaluation gives
        10 * (metric_now^2 - metric_before^2), ten times that above ``paper_threshold`` (the negative of it, never
        tenfold, for a metric that is better when lower; 0 where a metric is not finite); where the paper's code spreads
        it over the decisions since the last evaluation afterwards, it is given here at the evaluation.
        """
        given = np.asarray(action).reshape(-1)
        self.core.decide(given[: 1 + self.core.graph.num_nodes] if self.config.decision.per_layer else given[:1])
        while True:
            self.rates.append(self.core.learning_rate)
            self.core.set_rates()
            self.run.apply_update()
            self.core.note_update(self.run.loss)
            coming = self.run.position() if self.core.decision_due else None
            if not self.core.finished:
                self.run.compute_gradient()
            if self.core.finished or coming is not None:
                break
        observation = self.core.observe(self.validation)
        judgement = self.guarded.check(coming)
        failed = judgement is Judgement.LOST
        if not judgement.goes_on:
            if not (failed or self.core.finished):
                self.run.compute_gradient()
            observation = self.core.observe(self.validation)
        terminated = failed or self.core.finished
        reward = self._reward(always=terminated) - (self.config.divergence_penalty if failed else 0.0)
        if self._schema.needs_validation:
            # What was observed above had the figures of the last decision: enough to tell whether the run diverged, and
            # no pass is spent on a state that was taken back.
            observation = self.core.observe(self.validation)
        return self._instance(observation), reward, terminated, False, self._info(terminated, failed)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, in the middle of an episode, see :mod:`envs.plain_state`.

        :raises OutOfOrderError: before :meth:`reset`
        """
        return env_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of an environment of the same tasks and configuration.

        What the policy is to see is in ``observation`` afterwards. A state that is refused changes nothing.

        :raises StateError: if it is of other tasks or models, or damaged
        """
        load_env_state(self, state)

    def draw_episode(self, options: dict[str, Any]) -> Episode:
        """Draw what the next episode trains, see :meth:`reset`; begins nothing."""
        known = {"task", "optimizer", "budget", "learning_rate", "seed"}
        for key in options:
            if key not in known:
                raise UnknownNameError("reset option", key, known)
        rng, config = self.np_random, self.config
        # Every draw is made whatever the options say, so that setting one leaves the others as they were.
        task = self.tasks[int(rng.integers(len(self.tasks)))]
        if "task" in options:
            wanted = options["task"]
            found = [one for one in self.tasks if one is wanted or one.name == wanted]
            if not found:
                names = [one.name for one in self.tasks]
                raise UnknownNameError("task of this environment", getattr(wanted, "name", wanted), names)
            task = found[0]
        optimizers = config.optimizers_of(task)
        optimizer = optimizers[int(rng.integers(len(optimizers)))]
        budget = config.shortened(_log_uniform(rng, *config.budgets_of(task)), self.begun)
        self.begun += 1
        position, seed = rng.random(), int(rng.integers(2**31))
        optimizer = options.get("optimizer", optimizer)
        if optimizer not in OPTIMIZERS:
            raise UnknownNameError("optimizer", optimizer, OPTIMIZERS)
        low, high = config.learning_rates_of(task, optimizer)
        return Episode(
            task=task,
            optimizer=optimizer,
            budget=options.get("budget", budget),
            learning_rate=options.get("learning_rate", low * (high / low) ** position),
            seed=options.get("seed", seed),
            device=config.device,
        )

    def _evaluate(self) -> tuple[float, float]:
        figures = self.run.evaluate_reward_split()
        self.evaluations += 1
        loss = bounded_loss(figures.loss)
        if self._schema.needs_validation:
            assert figures.predictions is not None
            self.validation = validation_statistics(loss, figures.predictions, self.predictions)
            self.predictions = figures.predictions
        return loss, figures.metric

    def _reward(self, always: bool) -> float:
        drawn = self.np_random.random() < self.config.reward_probability
        if not (drawn or always or self._schema.needs_validation):
            return 0.0
        before, self._evaluated = self._evaluated, self._evaluate()
        return reward_of(self.config, self.episode.task, before, self._evaluated)

    def _instance(self, observation: Observation) -> spaces.GraphInstance:
        self.observation = observation
        return spaces.GraphInstance(
            nodes=node_matrix(observation),
            edges=np.ones((observation.edges.shape[1], 1), dtype=np.float32),
            edge_links=observation.edges.T.astype(np.int64),
        )

    def _info(self, terminated: bool = False, failed: bool = False) -> dict[str, Any]:
        ended = (*self._evaluated, self.evaluations, failed) if terminated else None
        return episode_info(self.episode, self.core, self.rollbacks, ended)


def action_space(layers: int) -> spaces.Box:
    """Return the space of a shared action and those of as many layers; of a shared one alone for 0."""
    return spaces.Box(-1.0, 1.0, (1 + layers,), dtype=np.float32)


def bounded_loss(loss: float) -> float:
    """Return a loss as rewards take it: one beyond 1e6, or NaN, counts as that much."""
    return min(loss, _LARGEST_LOSS) if not math.isnan(loss) else _LARGEST_LOSS


def reward_of(config: EnvConfig, task: Task, before: tuple[float, float], now: tuple[float, float]) -> float:
    """Return the reward for what happened between two evaluations of (bounded loss, metric), see the environment."""
    if config.reward == "log-loss":
        return log_loss(before[0]) - log_loss(now[0])
    if not (math.isfinite(before[1]) and math.isfinite(now[1])):
        return 0.0
    gain = 10.0 * (now[1] ** 2 - before[1] ** 2)
    if not task.higher_is_better:
        return -gain
    return 10.0 * gain if now[1] > config.paper_threshold else gain


def node_matrix(observation: Observation) -> np.ndarray:
    """Return [type, block, node features, global features] a layer: float32 (L, 2 + F + G)."""
    layers = len(observation.nodes)
    return np.concatenate(
        [
            observation.node_types[:, None],
            observation.blocks[:, None],
            observation.nodes,
            np.broadcast_to(observation.globals, (layers, len(observation.globals))),
        ],
        axis=1,
    ).astype(np.float32)


def _observation_bounds(schema: Any) -> tuple[np.ndarray, np.ndarray]:
    width = len(schema.node) + len(schema.globals)
    low = np.concatenate([[0.0, 0.0], np.full(width, -schema.bound)])
    high = np.concatenate([[len(NODE_TYPES), _MAX_BLOCKS], np.full(width, schema.bound)])
    return low.astype(np.float32), high.astype(np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())
