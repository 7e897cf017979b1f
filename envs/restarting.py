"""Portions of environments that workers hold, as one SB3 ``VecEnv`` that outlives its workers.

What a portion does depends on the seeds of its environments alone, so that the number and kind of workers change no
result. A worker that dies or hangs costs the episodes it was running, no more.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from envs.calls import NotCopyableError
from envs.checked_vector import CheckedVecEnv
from envs.engine import EngineConfig
from envs.plain_state import loading
from envs.portions import Answer, Call
from envs.vector_state import Seen, packed, states_for, unpacked, vector_state
from gns.errors import StateError, WorkerError, WorkerLostError

_LOGGER = logging.getLogger(__name__)
START = 600.0  # seconds at least for a worker to be there and to make its portion, where answers are waited for at all


class Worker(ABC):
    """Something that holds a portion and answers calls, one at a time. May be started again after :meth:`kill`."""

    @abstractmethod
    def start(self) -> None:
        """Begin to make the portion; :meth:`receive` then gives :func:`make_portion`'s answer."""

    @abstractmethod
    def send(self, call: Call) -> None:
        """Ask something.

        :raises WorkerLostError: if it is known to be dead
        """

    @abstractmethod
    def receive(self, seconds: float | None) -> Answer:
        """Wait for the answer.

        :param seconds: how long at most; None: for ever
        :raises WorkerLostError: if it died, or did not answer
        """

    @abstractmethod
    def kill(self) -> None:
        """End it, whatever it does."""

    @abstractmethod
    def close(self) -> None:
        """Let it end."""


class RestartingVecEnv(CheckedVecEnv):
    """Steps portions of environments, each held by a worker.

    A worker that dies, runs out of memory or does not answer is killed and started again. Its environments are made
    anew, with the attributes that were set before, and reset with seeds drawn from their last ones and the number of
    the restart. Their running episodes are dropped: at the coming step each has reward 0, ``dones`` True, and an info
    with ``dropped`` True beside what was last told of it; the observation is the first of a new episode. A dropped
    episode counts as truncated, since nobody knows how it would have ended: ``TimeLimit.truncated`` is True, and
    ``terminal_observation`` is its last observation, from which an agent bootstraps. Other workers are not touched. An
    error that an environment raises is no loss of a worker: it is raised here.

    :param workers: not yet started
    :param places: numbers that the environments of each portion have in this vector, every number once
    :param engine: its ``timeout`` (:data:`START` at least for a start) and ``max_restarts`` count
    :raises WorkerError: if a worker cannot make its environments, later raises, or is lost once too often
    """

    def __init__(self, workers: Sequence[Worker], places: Sequence[Sequence[int]], engine: EngineConfig) -> None:
        self.dropped_episodes = 0
        self.restarts = [0] * len(workers)
        self._timeout, self._max_restarts = engine.timeout, engine.max_restarts
        self._workers = list(workers)
        self._portions = [list(portion) for portion in places]
        order = [i for portion in self._portions for i in portion]
        self._positions = np.argsort(order)  # of every number in the answers of all portions, one after the other
        self._seen = Seen([None] * len(order))
        # What was set by set_attr, by name and place in the portion.
        self._attributes: list[dict[tuple[str, int], Any]] = [{} for _ in workers]
        self._begun: dict[int, Any] = {}  # (observation, reset infos) of portions made anew since the last step
        try:
            for worker in self._workers:
                worker.start()
            made, lost = self._receive(range(len(self._workers)), start=True)
            if lost:
                raise WorkerError(" ".join(f"Worker {n} {why}, making its portion." for n, why in lost.items()))
        except BaseException:
            self.close()
            raise
        observation_space, action_space, self._render, _ = made[0]
        self.processes = [made[number][-1] for number in range(len(made))]  # ids, each on its machine
        super().__init__(len(order), observation_space, action_space)

    def reset(self) -> Any:
        """Reset every environment."""
        self._seen.reset_with(self._seeds)
        self._begun = {}
        answers = self._ask(
            {
                number: ("reset", ([self._seeds[i] for i in portion], [self._options[i] for i in portion]))
                for number, portion in enumerate(self._portions)
            }
        )
        self.reset_infos = self._in_order([info for _, infos in answers for info in infos])
        self._reset_seeds()
        self._reset_options()
        everything = join([observations for observations, _ in answers], self._positions)
        self._seen.begun(everything, self.reset_infos)
        return everything

    def step_async(self, actions: np.ndarray) -> None:
        """Send every worker its actions, but for those whose episodes were dropped since these were chosen.

        :raises ResetNeededError: before a reset
        :raises InvalidActionError: if they are not finite numbers, as many as the action space has, of each environment
        """
        actions = self.checked_actions(actions, self._seen.observations is not None)
        self._waited_for = [number for number in range(len(self._workers)) if number not in self._begun]
        self._unsent = self._send({number: ("step", (actions[self._portions[number]],)) for number in self._waited_for})

    def step_wait(self) -> VecEnvStepReturn:
        """Wait for all workers."""
        answers, lost = self._receive([number for number in self._waited_for if number not in self._unsent])
        self._restart(lost | self._unsent)
        for number, begun in self._begun.items():
            answers[number] = self._dropped(number, *begun)
        self._begun = {}
        in_turn = [answers[number] for number in range(len(self._workers))]
        observations, rewards, dones, infos, reset_infos = zip(*in_turn, strict=True)
        self.reset_infos = self._in_order([info for part in reset_infos for info in part])
        ended = np.concatenate(dones)[self._positions]
        told = self._in_order([info for part in infos for info in part])
        everything = join(observations, self._positions)
        self._seen.stepped(everything, ended, told, self.reset_infos)
        return everything, np.concatenate(rewards)[self._positions], ended, told

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on exactly, in the middle of episodes, see :mod:`envs.plain_state`.

        It does not depend on the number of workers. Seeds and options given for a reset to come are not part of it.

        :raises WorkerError: before :meth:`reset`
        """
        answers = self._ask({number: ("state", ()) for number in range(len(self._portions))})
        groups = []
        for portion, answer in zip(self._portions, answers, strict=True):
            groups += [([portion[i] for i in places], state) for places, state in unpacked(answer)]
        return vector_state(self.num_envs, groups, self._seen)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of a vector of the same groups, whatever held them.

        :raises StateError: if it is of other groups, tasks, optimizers or models, or damaged; some environments may
            have been changed then, and are to be reset
        """
        shares = states_for(state, self.num_envs, self._portions)
        answers = self._ask({number: ("load_state", (packed(share),)) for number, share in enumerate(shares)})
        if refused := [reason for reason, _ in answers if reason is not None]:
            raise StateError(refused[0])
        self.reset_infos = self._in_order([info for _, infos in answers for info in infos])
        self._begun = {}
        with loading():
            self._seen.load_state_dict(state["seen"])

    def __getstate__(self) -> dict[str, Any]:
        """Refuse to be copied or pickled.

        :raises NotCopyableError: always: workers are of this process
        """
        raise NotCopyableError(
            f"{type(self).__name__} cannot be copied or pickled, since it holds workers of this process. Make another "
            "one and give it the state_dict() of this one."
        )

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments chosen."""
        if attr_name == "render_mode":
            return [self._render for _ in self._get_indices(indices)]
        return self._call("get_attr", indices, attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environments chosen, which keep it when their worker is started again."""
        self._call("set_attr", indices, attr_name, value)
        for number, local in self._chosen(indices).items():
            self._attributes[number] |= {(attr_name, self._portions[number].index(i)): value for i in local}

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the environments chosen."""
        return self._call("env_method", indices, method_name, after=(args, kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Say of each environment chosen whether a wrapper is around it."""
        return self._call("env_is_wrapped", indices, wrapper_class)

    # ------------------------------------------------------------------ calls

    def _chosen(self, indices: VecEnvIndices) -> dict[int, list[int]]:
        """Environments chosen, by worker."""
        chosen = [range(self.num_envs)[i] for i in self._get_indices(indices)]
        found = {number: [i for i in chosen if i in portion] for number, portion in enumerate(self._portions)}
        return {number: local for number, local in found.items() if local}

    def _call(self, name: str, indices: VecEnvIndices, *before: Any, after: tuple[Any, ...] = ()) -> list[Any]:
        chosen = self._chosen(indices)
        calls: dict[int, Call] = {
            number: (name, (*before, [self._portions[number].index(i) for i in local], *after))
            for number, local in chosen.items()
        }
        results: dict[int, Any] = {}
        for local, answer in zip(chosen.values(), self._ask(calls), strict=True):
            results |= dict(zip(local, answer or [None] * len(local), strict=True))
        return [results[range(self.num_envs)[i]] for i in self._get_indices(indices)]

    def _ask(self, calls: Mapping[int, Call]) -> list[Any]:
        """Ask workers, those that were lost again once they are back, and return the answers in the order of calls."""
        answers: dict[int, Any] = {}
        while waiting := {number: call for number, call in calls.items() if number not in answers}:
            unsent = self._send(waiting)
            got, lost = self._receive([number for number in waiting if number not in unsent])
            answers |= got
            self._restart(lost | unsent)
        return [answers[number] for number in calls]

    def _send(self, calls: Mapping[int, Call]) -> dict[int, str]:
        """Send calls; return the workers that are lost, and what they did."""
        lost = {}
        for number, call in calls.items():
            try:
                self._workers[number].send(call)
            except WorkerLostError as error:
                lost[number] = str(error)
        return lost

    def _receive(self, numbers: Sequence[int], start: bool = False) -> tuple[dict[int, Any], dict[int, str]]:
        """Wait for answers, all of them before any error is raised; also return the workers that are lost.

        :param start: whether the workers are only just starting
        """
        timeout = self._timeout if self._timeout is None or not start else max(self._timeout, START)
        deadline = None if timeout is None else time.monotonic() + timeout
        answers, lost, failures = {}, {}, []
        for number in numbers:
            try:
                left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                good, answer = self._workers[number].receive(left)
            except WorkerLostError as error:
                lost[number] = str(error)
                continue
            if good:
                answers[number] = answer
            elif good is None:
                lost[number] = f"ran out of memory ({answer})"
            else:
                failures.append(f"Worker {number} raised {answer}")
        if failures:
            raise WorkerError(" ".join(failures))
        return answers, lost

    # ------------------------------------------------------------------ losses

    def _restart(self, lost: dict[int, str]) -> None:
        """Start lost workers again, with episodes begun where any were running."""
        while lost:
            for number, why in lost.items():
                self._workers[number].kill()
                if self.restarts[number] == self._max_restarts:
                    raise WorkerError(
                        f"Worker {number} {why}, after {self._max_restarts} restarts; expected at most that many "
                        "(max_restarts). See its error above, if any, and the memory it has; timeout says how long an "
                        "answer may take."
                    )
                self.restarts[number] += 1
                _LOGGER.warning("Worker %d %s; it is started again (%d).", number, why, self.restarts[number])
                self._workers[number].start()
            made, again = self._receive(list(lost), start=True)
            for number, about in made.items():
                self.processes[number] = about[-1]
            attributes = {number: self._attributes[number] for number in made if self._attributes[number]}
            again |= self._exchange({number: ("set_attrs", (values,)) for number, values in attributes.items()})[1]
            if self._seen.observations is not None:
                sound = [number for number in made if number not in again]
                begun, fallen = self._exchange({number: ("reset", self._new_seeds(number)) for number in sound})
                self._begun |= begun
                again |= fallen
            lost = again

    def _exchange(self, calls: Mapping[int, Call]) -> tuple[dict[int, Any], dict[int, str]]:
        unsent = self._send(calls)
        answers, lost = self._receive([number for number in calls if number not in unsent])
        return answers, lost | unsent

    def _new_seeds(self, number: int) -> tuple[list[int | None], list[dict[str, Any]]]:
        """Seeds and options of a portion whose episodes were lost, drawn anew at every restart."""
        seeds = [self._seen.seeds[i] for i in self._portions[number]]
        return [None if s is None else _derived(s, self.restarts[number]) for s in seeds], [{} for _ in seeds]

    def _dropped(self, number: int, observation: Any, reset_infos: list[dict[str, Any]]) -> tuple[Any, ...]:
        """What a step of dropped episodes returns."""
        portion = self._portions[number]
        self.dropped_episodes += len(portion)
        infos = [
            self._seen.infos[i]
            | {"dropped": True, "TimeLimit.truncated": True, "terminal_observation": _row(self._seen.observations, i)}
            for i in portion
        ]
        return (
            observation,
            np.zeros(len(portion), dtype=np.float32),
            np.ones(len(portion), dtype=bool),
            infos,
            reset_infos,
        )

    def _in_order(self, values: list[Any]) -> list[Any]:
        return [values[i] for i in self._positions]


def join(observations: Sequence[Any], positions: np.ndarray | slice = slice(None)) -> Any:
    """Return the observations of several vectors of environments as one.

    :param positions: order of places in them all; as they come by default
    """
    if isinstance(observations[0], dict):
        return {key: np.concatenate([o[key] for o in observations])[positions] for key in observations[0]}
    return np.concatenate(list(observations))[positions]


def _row(observations: Any, place: int) -> Any:
    if isinstance(observations, dict):
        return {key: value[place].copy() for key, value in observations.items()}
    return observations[place].copy()


def _derived(seed: int, restart: int) -> int:
    return int(np.random.SeedSequence([abs(seed), restart]).generate_state(1)[0])
