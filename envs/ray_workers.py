"""Many environments in Ray actors, on one machine or many, as an SB3 ``VecEnv``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv

from envs.engine import RAY, EngineConfig
from envs.portions import Answer, Call, ask_portion, make_portion
from envs.ray_cluster import start_ray
from envs.restarting import RestartingVecEnv, Worker
from gns.errors import WorkerLostError


class _Holder:
    """What runs in an actor. Answers are pickled here: arrays that Ray hands out itself cannot be written to."""

    def make(self, pickled: bytes) -> bytes:
        self._portion, answer = make_portion(pickled)
        return pickle.dumps(answer, protocol=5)

    def ask(self, pickled: bytes) -> bytes:
        assert self._portion is not None
        return pickle.dumps(ask_portion(self._portion, *pickle.loads(pickled)), protocol=5)


class _Actor(Worker):
    """A Ray actor."""

    def __init__(self, ray: ModuleType, pickled: bytes, options: Mapping[str, Any]) -> None:
        self._ray, self._pickled = ray, pickled
        self._new = ray.remote(_Holder).options(**{"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, **options})
        self._actor: Any = None

    def start(self) -> None:
        self._actor = self._new.remote()
        self._answer = self._actor.make.remote(self._pickled)

    def send(self, call: Call) -> None:
        self._answer = self._actor.ask.remote(cloudpickle.dumps(call))  # an actor that is gone says so at receive

    def receive(self, seconds: float | None) -> Answer:
        errors = self._ray.exceptions
        try:
            return pickle.loads(self._ray.get(self._answer, timeout=seconds))
        except errors.GetTimeoutError as error:
            raise WorkerLostError("(a Ray actor) did not answer in time: it hangs, or waits for resources") from error
        except errors.RayTaskError as error:
            return False, str(error)
        except errors.RayError as error:
            reason = str(error).strip().splitlines()
            raise WorkerLostError(
                f"(a Ray actor) died ({type(error).__name__}: {reason[0] if reason else ''})"
            ) from error

    def kill(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor, no_restart=True)
            self._actor = None

    def close(self) -> None:
        if self._ray.is_initialized():
            self.kill()


class RayVecEnv(RestartingVecEnv):
    """Steps portions of environments, each in a Ray actor of one thread.

    Actors that die (with their machine, too) or hang are started again by this class, not by Ray, since their episodes
    are lost: see :class:`envs.restarting.RestartingVecEnv`. Ray goes on running after :meth:`close`, for whoever comes
    next.

    :param portions: functions that make a vector of environments each; their observations must be of one shape. They
        are sent by cloudpickle; the packages they name must be installed on every machine
    :param places: numbers that the environments of each portion have in this vector, every number once
    :param engine: the cluster, what each actor is given of it, and when one is lost; the wait for resources counts as
        part of an actor's start
    :raises MissingPackageError: if Ray is not installed
    :raises WorkerError: if an actor cannot make its environments, later raises, or is lost once too often
    """

    def __init__(
        self,
        portions: Sequence[Callable[[], VecEnv]],
        places: Sequence[Sequence[int]],
        engine: EngineConfig = RAY,
    ) -> None:
        ray = start_ray(engine, len(portions))
        actors = [_Actor(ray, cloudpickle.dumps(make), engine.resources) for make in portions]
        super().__init__(actors, places, engine)
