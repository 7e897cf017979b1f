"""Groups of environments as one SB3 ``VecEnv``: of several tasks, optimizers and budgets, together or one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.batched.env import BatchedEnv
from envs.batched.optimizers import BATCHED_OPTIMIZERS
from envs.batched.paying import faster_together, forward_operations
from envs.checked_vector import CheckedVecEnv
from envs.engine import PROCESSES, EngineConfig
from envs.env_config import EnvConfig
from envs.learning_rate_env import LearningRateEnv
from envs.padding import PadGraph
from envs.plain_state import loading
from envs.ray_workers import RayVecEnv
from envs.restarting import join
from envs.tasks import Task
from envs.vector_state import Seen, load_state_of, only_group, state_of, states_for, vector_state
from envs.workers import WorkersVecEnv
from gns.features.schemas import get_schema

LARGEST_GROUP = 32
_FIXED = 1e6  # operations that take as long as what an update costs besides


class CompositeVecEnv(CheckedVecEnv):
    """Vectors of environments, one after the other, as one.

    :param groups: vectors whose observations are of one shape
    """

    dropped_episodes = 0  # there is no worker to lose

    def __init__(self, groups: Sequence[VecEnv]) -> None:
        self.groups = list(groups)
        self._ends = np.cumsum([group.num_envs for group in groups])
        super().__init__(int(self._ends[-1]), groups[0].observation_space, groups[0].action_space)
        self._seen = Seen([None] * self.num_envs)
        self._begun = False

    def reset(self) -> Any:
        """Reset every group."""
        self._seen.reset_with(self._seeds)
        observations = []
        for group, places in self._parts():
            group._seeds, group._options = [self._seeds[i] for i in places], [self._options[i] for i in places]
            observations.append(group.reset())
        self.reset_infos = [info for group in self.groups for info in group.reset_infos]
        self._reset_seeds()
        self._reset_options()
        everything = join(observations)
        self._seen.begun(everything, self.reset_infos)
        self._begun = True
        return everything

    def step_async(self, actions: np.ndarray) -> None:
        """Give every group its actions.

        :raises ResetNeededError: before a reset
        :raises InvalidActionError: if they are not finite numbers, as many as the action space has, of each environment
        """
        actions = self.checked_actions(actions, self._begun)
        for group, places in self._parts():
            group.step_async(actions[places])

    def step_wait(self) -> VecEnvStepReturn:
        """Step one group after the other."""
        observations, rewards, dones, infos = zip(*(group.step_wait() for group in self.groups), strict=True)
        self.reset_infos = [info for group in self.groups for info in group.reset_infos]
        everything, ended, told = join(observations), np.concatenate(dones), [info for part in infos for info in part]
        self._seen.stepped(everything, ended, told, self.reset_infos)
        return everything, np.concatenate(rewards), ended, told

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, in the middle of episodes, see :mod:`envs.plain_state`.

        Seeds and options given for a reset to come are not part of it.

        :raises OutOfOrderError: before :meth:`reset`
        """
        return vector_state(self.num_envs, [(places, state_of(group)) for group, places in self._parts()], self._seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of a vector of the same groups, in whatever processes they were.

        :raises StateError: if it is of other groups, tasks, optimizers or models, or damaged; some environments may
            have been changed then, and are to be reset
        """
        parts = self._parts()
        shares = states_for(state, self.num_envs, [places for _, places in parts])
        for (group, places), share in zip(parts, shares, strict=True):
            load_state_of(group, only_group(share, len(places)))
        self.reset_infos = [info for group in self.groups for info in group.reset_infos]
        self._begun = True
        with loading():
            if state["seen"] is not None:
                self._seen.load_state_dict(state["seen"])

    def close(self) -> None:
        """Close every group."""
        for group in self.groups:
            group.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments chosen."""
        return [group.get_attr(attr_name, [i])[0] for group, i in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments chosen."""
        for group, i in self._chosen(indices):
            group.set_attr(attr_name, value, [i])

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environments chosen."""
        return [group.env_method(method_name, *args, indices=[i], **kwargs)[0] for group, i in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say of each environment chosen whether a wrapper is around it."""
        return [group.env_is_wrapped(wrapper_class, [i])[0] for group, i in self._chosen(indices)]

    def _parts(self) -> list[tuple[VecEnv, list[int]]]:
        starts = [0, *self._ends[:-1].tolist()]
        return [
            (group, list(range(start, int(end))))
            for group, start, end in zip(self.groups, starts, self._ends, strict=True)
        ]

    def _chosen(self, indices: VecEnvIndices) -> list[tuple[VecEnv, int]]:
        found = []
        for i in self._get_indices(indices):
            place = range(self.num_envs)[i]
            number = int(np.searchsorted(self._ends, place, side="right"))
            found.append((self.groups[number], place - (int(self._ends[number - 1]) if number else 0)))
        return found


@dataclass(frozen=True)
class Group:
    """Environments that stay in one process.

    :param places: their numbers
    :param tasks: what they draw from
    :param optimizer: of all of them; None: each episode draws its own
    :param together: whether their runs are trained together
    """

    places: tuple[int, ...]
    tasks: tuple[Task, ...]
    optimizer: str | None
    together: bool

    def make(self, config: EnvConfig, limits: tuple[int, int]) -> VecEnv:
        """Make the environments.

        :param limits: room for nodes and edges of observations
        """
        if self.together:
            assert self.optimizer is not None
            return BatchedEnv(self.tasks[0], config, self.optimizer, len(self.places), limits)
        own = config if self.optimizer is None else replace(config, optimizers=(self.optimizer,))
        return DummyVecEnv([lambda: PadGraph(LearningRateEnv(list(self.tasks), own), *limits) for _ in self.places])


def plan(tasks: Sequence[Task], config: EnvConfig, num_envs: int, together: bool = True) -> list[Group]:
    """Divide environments into groups; does not depend on the number of processes.

    Every pair of task and optimizer gets as many places as any other, or one more. Where runs of a pair can be trained
    together and that is faster, they are, in groups of at most :data:`LARGEST_GROUP`. Where there are fewer places than
    pairs, or nothing is to be trained together, every place draws from all tasks.

    :param together: whether runs may be trained together
    """
    pairs = [(task, optimizer) for task in tasks for optimizer in config.optimizers_of(task)]
    useful = {id(task): together and pays(task, config) for task in tasks}
    if num_envs < len(pairs) or not any(useful.values()):
        return [Group((i,), tuple(tasks), None, False) for i in range(num_envs)]
    groups = []
    for (task, optimizer), places in zip(pairs, np.array_split(np.arange(num_envs), len(pairs)), strict=True):
        joined = useful[id(task)] and BATCHED_OPTIMIZERS[optimizer].readable
        if joined:
            count = max(-(-len(places) // LARGEST_GROUP), 2 if len(pairs) == 1 and len(places) > 1 else 1)
        else:
            count = len(places)
        for part in np.array_split(places, count):
            groups.append(Group(tuple(part.tolist()), (task,), optimizer, joined))
    return groups


def pays(task: Task, config: EnvConfig) -> bool:
    """Say whether runs of a task can be trained together and are faster for it."""
    decision = config.decision
    if decision.per_layer or get_schema(decision.features).needs_validation:
        return False
    return faster_together(task, config.device)


def make_vector(
    tasks: Sequence[Task],
    config: EnvConfig,
    num_envs: int,
    workers: int,
    together: bool = True,
    engine: EngineConfig = PROCESSES,
) -> VecEnv:
    """Return ``num_envs`` padded environments over all tasks.

    :param workers: workers of one thread each that step them, at most one a group; 0: this process
    :param together: whether runs of one task and optimizer may be trained together, see :func:`plan`
    :param engine: what the workers are. Changes no result
    :raises MissingPackageError: if the engine is not installed
    """
    nodes, edges = LearningRateEnv(tasks, config).graph_limits()
    limits = nodes, max(edges, 1)
    groups = plan(tasks, config, num_envs, together)
    if workers == 0:
        return CompositeVecEnv([group.make(config, limits) for group in groups])
    shares = _shared_out(groups, config, workers)
    portions = [partial(_make_all, share, config, limits) for share in shares]
    places = [[i for group in share for i in group.places] for share in shares]
    return (RayVecEnv if engine.name == "ray" else WorkersVecEnv)(portions, places, engine)


def _make_all(groups: Sequence[Group], config: EnvConfig, limits: tuple[int, int]) -> VecEnv:
    return CompositeVecEnv([group.make(config, limits) for group in groups])


def _shared_out(groups: Sequence[Group], config: EnvConfig, workers: int) -> list[list[Group]]:
    """Share groups out to processes: the most costly first, to whom has least."""
    shares: list[list[Group]] = [[] for _ in range(min(workers, len(groups)))]
    loads = [0.0] * len(shares)
    tasks = {id(task): task for group in groups for task in group.tasks}
    alike = len({tuple(map(id, group.tasks)) for group in groups}) == 1  # then no task need be looked at
    operations = {key: 0.0 if alike else float(forward_operations(task)) for key, task in tasks.items()}
    costs = [_cost(group, operations, config) for group in groups]
    for number in sorted(range(len(groups)), key=lambda i: -costs[i]):
        least = int(np.argmin(loads))
        shares[least].append(groups[number])
        loads[least] += costs[number]
    return shares


def _cost(group: Group, operations: Mapping[int, float], config: EnvConfig) -> float:
    """Return what one episode of every environment of a group costs, in operations.

    :param operations: of one forward pass, by identity of the task
    """
    runs = len(group.places)
    passes = 1 if group.together else runs
    each = [
        _mean_budget(*config.budgets_of(task)) * (runs * operations[id(task)] + passes * _FIXED) for task in group.tasks
    ]
    return float(np.mean(each))


def _mean_budget(low: int, high: int) -> float:
    """Mean of a log-uniform law."""
    return (high - low) / math.log(high / low) if high > low else float(low)
