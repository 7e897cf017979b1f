"""``gns/LearningRate-v0``: a training run as a Gymnasium environment."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from torch import Tensor

from envs.calls import ResetNeededError, action_entries, require_seed, reset_options
from envs.env_config import EnvConfig
from envs.env_state import env_state, kept_of, load_env_state, pickled, restore
from envs.episode import Episode, episode_info, new_run
from envs.rewards import Evaluation, bounded_loss, get_reward
from envs.tasks import Task, get_task
from envs.training_run import TrainingRun
from gns.deciding.decision import DecisionCore, Observation
from gns.deciding.guard import Judgement
from gns.deciding.guarded_run import GuardedRun
from gns.errors import InvalidSettingError
from gns.features.held_out import ValidationStatistics, validation_statistics
from gns.features.schemas import get_schema
from gns.graph.layer_graph import NODE_TYPES, LayerGraph, layer_graph

_MAX_BLOCKS = 10_000


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

    *Reward*: by default the fall of log(loss on the reward split) since it was last evaluated, see
    :mod:`envs.rewards`. These add up to log(loss before the first update) - log(loss after the last), whichever
    decisions were evaluated.

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
        self.running = False  # whether an episode is
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
        :raises InvalidSeedError: if the seed is no whole number from 0 to 2^64 - 1
        :raises UnknownNameError, InvalidSettingError: if an option names or sets what cannot be, see
            :func:`envs.calls.reset_options`; the episode under way can be gone on with
        """
        given = reset_options(options, self.tasks, self.config)
        super().reset(seed=None if seed is None else require_seed("seed", seed))
        self.running = False
        self.episode = episode = self.draw_episode(given)
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
        self.running = True
        return self._instance(observation), self._info()

    def step(self, action: np.ndarray) -> tuple[spaces.GraphInstance, float, bool, bool, dict[str, Any]]:
        """Apply the pending update at the new rate and the K - 1 that follow, and compute the next gradient.

        :raises ResetNeededError: before a reset, and after the end of the episode
        :raises InvalidActionError: if the action has other entries than those of ``action_space``, the shared one alone
            or those of the layers there are; or one that is no finite number
        """
        if not self.running:
            raise ResetNeededError("step() came before reset(), or after the end of the episode; call reset() first.")
        own = 1 + self.core.graph.num_nodes if self.config.decision.per_layer else 1
        self.core.decide(action_entries(action, {1, own, *(self.action_space.shape or ())}).reshape(-1)[:own])
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
        self.running = not terminated
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

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds, from which an environment goes on exactly, in the middle of an episode too.

        :raises NotCopyableError: if a task, or what else was given to the environment, belongs to this process
        """
        return {"kept": pickled(kept_of(self)), "episode": env_state(self) if hasattr(self, "guarded") else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on from a pickle."""
        restore(self, pickle.loads(state["kept"]), state["episode"])

    def __deepcopy__(self, memo: dict[int, Any]) -> LearningRateEnv:
        """Return an environment that goes on by itself, exactly as this one; both have the same tasks."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        memo |= {id(task): task for task in self.tasks}
        restore(copied, copy.deepcopy(kept_of(self), memo), env_state(self) if hasattr(self, "guarded") else None)
        return copied

    def draw_episode(self, options: dict[str, Any]) -> Episode:
        """Draw what the next episode trains, see :meth:`reset`; begins nothing."""
        given = reset_options(options, self.tasks, self.config)
        rng, config = self.np_random, self.config
        # Every draw is made whatever the options say, so that setting one leaves the others as they were.
        task = self.tasks[int(rng.integers(len(self.tasks)))]
        task = given.get("task", task)
        optimizers = config.optimizers_of(task)
        optimizer = optimizers[int(rng.integers(len(optimizers)))]
        budget = config.shortened(_log_uniform(rng, *config.budgets_of(task)), self.begun)
        self.begun += 1
        position, seed = rng.random(), int(rng.integers(2**31))
        optimizer = given.get("optimizer", optimizer)
        low, high = config.learning_rates_of(task, optimizer)
        return Episode(
            task=task,
            optimizer=optimizer,
            budget=given.get("budget", budget),
            learning_rate=given.get("learning_rate", low * (high / low) ** position),
            seed=given.get("seed", seed),
            device=config.device,
        )

    def _evaluate(self) -> Evaluation:
        figures = self.run.evaluate_reward_split()
        self.evaluations += 1
        loss = bounded_loss(figures.loss)
        if self._schema.needs_validation:
            assert figures.predictions is not None
            self.validation = validation_statistics(loss, figures.predictions, self.predictions)
            self.predictions = figures.predictions
        return Evaluation(loss, figures.metric)

    def _reward(self, always: bool) -> float:
        drawn = self.np_random.random() < self.config.reward_probability
        if not (drawn or always or self._schema.needs_validation):
            return 0.0
        before, self._evaluated = self._evaluated, self._evaluate()
        return get_reward(self.config.reward).between(before, self._evaluated, self.episode.task, self.config)

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
