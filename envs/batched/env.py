"""Training runs side by side as an SB3 ``VecEnv``: what as many single environments would give, in one forward pass."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.batched.model import NotBatchableError
from envs.batched.observing import observe
from envs.batched.optimizers import BATCHED_OPTIMIZERS
from envs.batched.runs import BatchedRuns, StreamState
from envs.batched.state import load_together_state, together_state
from envs.calls import reset_options
from envs.checked_vector import CheckedVecEnv
from envs.env_config import EnvConfig
from envs.env_state import pickled
from envs.episode import Episode, episode_info
from envs.learning_rate_env import LearningRateEnv
from envs.padding import PadGraph
from envs.rewards import Evaluation, bounded_loss, get_reward
from envs.tasks import Task
from envs.training_run import TrainingRun
from gns.deciding.decision import default_factor
from gns.deciding.guard import Judgement, Watch
from gns.deciding.rate_control import RateControl, initial_rate
from gns.features.schemas import get_schema
from gns.graph.layer_graph import layer_graph
from gns.schedules.static import is_pretrained

_SOME_RATE = 1e-3  # of a run that only shows what its model and optimizer are


class BatchedEnv(CheckedVecEnv):
    """``num_envs`` environments of one task and one optimizer whose runs are trained together.

    Each place draws its episodes as a :class:`envs.learning_rate_env.LearningRateEnv` of that task and optimizer does
    from the same seed, and its observations (padded, see :class:`envs.padding.PadGraph`), rewards, guard and end are
    those of that environment, to float tolerance. Runs of different budgets keep step with each other by decisions.

    :param task: what is trained
    :param config: what episodes are drawn from
    :param optimizer: a name in :data:`envs.training_run.OPTIMIZERS`
    :param num_envs: number of runs
    :param limits: room for nodes and edges of observations; None: what the task needs
    :raises NotBatchableError: if runs of this task or config cannot be trained together
    """

    def __init__(
        self, task: Task, config: EnvConfig, optimizer: str, num_envs: int, limits: tuple[int, int] | None = None
    ) -> None:
        if get_schema(config.decision.features).needs_validation:
            raise NotBatchableError(
                f"Features {config.decision.features!r} need a pass over held-out data; runs are trained one at a time."
            )
        if config.decision.per_layer:
            raise NotBatchableError("Runs whose layers have rates of their own are trained one at a time.")
        if optimizer in BATCHED_OPTIMIZERS and not BATCHED_OPTIMIZERS[optimizer].readable:
            raise NotBatchableError(
                f"The coming update of {optimizer} is measured from a run alone; its runs are trained one at a time."
            )
        self.task, self.config, self.optimizer = task, config, optimizer
        self.draws = [LearningRateEnv([task], replace(config, optimizers=(optimizer,))) for _ in range(num_envs)]
        run = TrainingRun(task, optimizer, _SOME_RATE, seed=0, device=config.device)
        self.graph = layer_graph(run.model, run.compute_gradient())
        self._of_defaults = config.decision, run.optimizer, run.model, self.graph
        self._defaults: dict[int, float] = {}  # rate by budget
        self._pretrained = is_pretrained(run.model)
        nodes, edges = limits or (self.graph.num_nodes, max(self.graph.num_edges, 1))
        self._limits = nodes, edges
        padded = PadGraph(self.draws[0], nodes, edges)
        super().__init__(num_envs, padded.observation_space, padded.action_space)
        self.runs = BatchedRuns(task, optimizer, num_envs, config.device)
        self._template = self._constant_part(nodes, edges)
        self.episodes: list[Episode] = []
        self.controls: list[RateControl] = []
        self.watches = [Watch() for _ in range(num_envs)]
        self._evaluations = np.zeros(num_envs, dtype=int)
        self._evaluated = [Evaluation(0.0, 0.0)] * num_envs
        self._reward = get_reward(config.reward)
        # Last good state of each run: a state of several, its place there, and the updates it holds.
        self.good: list[tuple[dict[str, Any], int, int]] = []
        self.losses = torch.zeros(num_envs, 0)
        self._actions = np.zeros((num_envs, 1), dtype=np.float32)

    # ------------------------------------------------------------------ VecEnv

    def reset(self) -> dict[str, np.ndarray]:
        """Begin an episode in every place."""
        everyone = list(range(self.num_envs))
        options = [reset_options(self._options[i] or {}, [self.task], self.config) for i in everyone]
        for draws, seed in zip(self.draws, self._seeds, strict=True):
            gym.Env.reset(draws, seed=seed)
        self.episodes = [draws.draw_episode(given) for draws, given in zip(self.draws, options, strict=True)]
        self.controls = [self.new_control(episode) for episode in self.episodes]
        self.good = [({}, 0, 0)] * self.num_envs
        self._begin(everyone)
        nodes, globals_ = self.observe()
        self.reset_infos = [self._info(i) for i in everyone]
        self._reset_seeds()
        self._reset_options()
        return self._padded(nodes, globals_)

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions.

        :raises ResetNeededError: before a reset
        :raises InvalidActionError: if they are not one finite number for each environment
        """
        self._actions = self.checked_actions(actions, bool(self.episodes))

    def step_wait(self) -> VecEnvStepReturn:
        """Apply the decisions, train every run to its next, and begin new episodes where one ended."""
        for control, action in zip(self.controls, self._actions, strict=True):
            control.decide(float(action[0]))
        coming = self._train()
        nodes, globals_ = self.observe()
        judgements = self._guard(coming)
        if not all(judgement.goes_on for judgement in judgements):
            nodes, globals_ = self.observe()
        failed = np.array([judgement is Judgement.LOST for judgement in judgements])
        finished = np.array([control.finished for control in self.controls])
        dones = failed | finished
        rewards = self._rewards(dones) - failed * self.config.divergence_penalty
        infos = [self._info(i, bool(dones[i]), bool(failed[i])) for i in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones).tolist()
            last = self._padded(nodes, globals_)
            for i in ended:
                infos[i]["terminal_observation"] = {key: value[i].copy() for key, value in last.items()}
                self.episodes[i] = self.draws[i].draw_episode({})
                self.controls[i] = self.new_control(self.episodes[i])
            self._begin(ended)
            nodes, globals_ = self.observe()
            for i in ended:
                self.reset_infos[i] = self._info(i)
        return self._padded(nodes, globals_), rewards.astype(np.float32), dones, infos

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, in the middle of episodes, see :mod:`envs.plain_state`.

        Seeds and options given for a reset to come are not part of it.

        :raises OutOfOrderError: before :meth:`reset`
        """
        return together_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict` of environments of the same configuration.

        :raises StateError: if it is of another task, optimizer, model or number of environments, or damaged
        """
        load_together_state(self, state)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle or a copy holds, from which environments go on exactly, within episodes too.

        :raises NotCopyableError: if the task belongs to this process
        """
        arguments = (self.task, self.config, self.optimizer, self.num_envs, self._limits)
        own = {name: getattr(self, name) for name in ("draws", "_seeds", "_options")}
        return {"kept": pickled({"arguments": arguments, "own": own}), "state": self.episodes and self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on from a pickle, or as a copy."""
        kept = pickle.loads(state["kept"])
        self.__init__(*kept["arguments"])  # type: ignore[misc]
        vars(self).update(kept["own"])
        for draws in self.draws:  # each was pickled with a task of its own; episodes are of this one
            draws.tasks = [self.task]
        if state["state"]:
            self.load_state_dict(state["state"])

    def close(self) -> None:
        """Nothing is to be closed."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the places chosen: one of this environment, which all share."""
        if attr_name == "render_mode":
            return [None for _ in self._get_indices(indices)]
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of this environment, for all places."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of this environment, once a place chosen."""
        return [getattr(self, method_name)(*args, **kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say that no place has a wrapper but for the padding."""
        return [issubclass(PadGraph, wrapper_class) for _ in self._get_indices(indices)]

    # ------------------------------------------------------------------ training

    def new_control(self, episode: Episode) -> RateControl:
        """Return what keeps the rate of an episode that begins."""
        config = self.config.decision
        rate = initial_rate(episode.learning_rate, config)
        if episode.budget not in self._defaults:
            self._defaults[episode.budget] = default_factor(*self._of_defaults, episode.budget, [1.0])
        default = self._defaults[episode.budget] / rate
        return RateControl(episode.budget, config, [rate], default_factor=default)

    def _begin(self, rows: list[int]) -> None:
        """Begin the runs of new episodes, evaluate them, and compute their first gradients."""
        self.runs.begin(rows, [self.episodes[i].seed for i in rows])
        self._evaluations[rows] = 0
        for i in rows:
            self.watches[i] = Watch()
        if self.config.guard.enabled:
            state = self.runs.state(self.runs.positions(rows))
            for place, i in enumerate(rows):
                self.good[i] = (state, place, 0)
        for i, evaluated in zip(rows, self._evaluate(rows, self._reward.needs_metric), strict=True):
            self._evaluated[i] = evaluated
        self.runs.compute_gradients(self._mask(rows))

    def _train(self) -> dict[int, tuple[dict[str, Any], int]]:
        """Make the updates of one interval of every run.

        :return: of each run with a decision to come, its state before the gradient that is now pending
        """
        lengths = np.array([min(c.interval, c.budget - c.update) for c in self.controls])
        longest = int(lengths.max())
        rates = torch.zeros(self.num_envs, longest, dtype=torch.float64)
        for i, control in enumerate(self.controls):
            rates[i, : lengths[i]] = torch.from_numpy(control.rates(int(lengths[i])))
        remaining = np.array([control.budget - control.update for control in self.controls])
        self.runs.arrange(2 * lengths + (remaining > lengths))
        self.losses = torch.zeros(self.num_envs, longest, device=self.runs.device)
        positions: dict[int, StreamState] = {}
        active = torch.from_numpy(lengths > np.arange(longest)[:, None])
        pending = torch.from_numpy(active.numpy() & (remaining > np.arange(1, longest + 1)[:, None]))
        for k in range(longest):
            self.runs.apply_updates(rates[:, k], active[k])
            self.losses[:, k] = self.runs.losses
            if self.config.guard.enabled:
                positions |= self.runs.positions(np.flatnonzero((lengths == k + 1) & (remaining > k + 1)).tolist())
            if pending[k].any():
                self.runs.compute_gradients(pending[k])
        state = self.runs.state(positions)
        for control, length in zip(self.controls, lengths.tolist(), strict=True):
            control.count_updates(length)
        return {i: (state, place) for place, i in enumerate(positions)}

    def observe(self) -> tuple[np.ndarray, np.ndarray]:
        """Return node and global features of all runs, and tell their controls what was seen."""
        return observe(
            self.runs, self.graph, self.controls, self.losses, self.config.decision.features, self._pretrained
        )

    # ------------------------------------------------------------------ guard

    def _guard(self, coming: dict[int, tuple[dict[str, Any], int]]) -> list[Judgement]:
        """Take diverged runs back to their last good state; the state of the others becomes the last good one.

        :return: what became of each run
        """
        guard = self.config.guard
        judgements = [w.judge(control, guard) for w, control in zip(self.watches, self.controls, strict=True)]
        if not guard.enabled:
            return judgements
        bad = [i for i, judgement in enumerate(judgements) if not judgement.goes_on]
        for i, (state, place) in coming.items():
            if judgements[i] is Judgement.GOOD:
                self.good[i] = (state, place, self.controls[i].steps)
        for i in bad:
            state, place, steps = self.good[i]
            self.runs.load_state([i], state, [place])
            self.controls[i].roll_back(guard.cut, steps)
        again = [i for i in bad if judgements[i] is Judgement.TAKE_BACK and not self.controls[i].finished]
        if again:
            self.runs.compute_gradients(self._mask(again))
        return judgements

    # ------------------------------------------------------------------ rewards and infos

    def _evaluate(self, rows: Sequence[int], with_metrics: bool) -> list[Evaluation]:
        self._evaluations[list(rows)] += 1
        figures = self.runs.evaluate_reward_split(rows, with_metrics)
        return [Evaluation(bounded_loss(one.loss), one.metric) for one in figures]

    def _rewards(self, dones: np.ndarray) -> np.ndarray:
        drawn = np.array([draws.np_random.random() < self.config.reward_probability for draws in self.draws])
        rewards = np.zeros(self.num_envs)
        for chosen, with_metrics in ((dones, True), (drawn & ~dones, self._reward.needs_metric)):
            rows = np.flatnonzero(chosen).tolist()
            for i, now in zip(rows, self._evaluate(rows, with_metrics) if rows else [], strict=True):
                rewards[i] = self._reward.between(self._evaluated[i], now, self.task, self.config)
                self._evaluated[i] = now
        return rewards

    def _info(self, i: int, terminated: bool = False, failed: bool = False) -> dict[str, Any]:
        ended = (*self._evaluated[i], int(self._evaluations[i]), failed) if terminated else None
        info = episode_info(self.episodes[i], self.controls[i], self.watches[i].rollbacks, ended)
        return info | {"TimeLimit.truncated": False}

    # ------------------------------------------------------------------ observations

    def _constant_part(self, nodes: int, edges: int) -> dict[str, np.ndarray]:
        graph, schema = self.graph, get_schema(self.config.decision.features)
        n, layers, links = self.num_envs, self.graph.num_nodes, self.graph.num_edges
        template = {
            "nodes": np.zeros((n, nodes, 2 + len(schema.node)), dtype=np.float32),
            "edges": np.zeros((n, 2, edges), dtype=np.float32),
            "sizes": np.tile(np.array([layers, links], dtype=np.float32), (n, 1)),
        }
        template["nodes"][:, :layers, 0], template["nodes"][:, :layers, 1] = graph.type_ids, graph.block_ids
        template["edges"][:, :, :links] = graph.edges
        return template

    def _padded(self, nodes: np.ndarray, globals_: np.ndarray) -> dict[str, np.ndarray]:
        observation = {key: value.copy() for key, value in self._template.items()}
        observation["nodes"][:, : self.graph.num_nodes, 2:] = nodes
        if globals_.shape[-1]:
            observation["globals"] = globals_.copy()
        return observation

    def _mask(self, rows: Sequence[int]) -> torch.Tensor:
        mask = torch.zeros(self.num_envs, dtype=torch.bool)
        mask[list(rows)] = True
        return mask
