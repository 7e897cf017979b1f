"""What is asked of every vector of environments that outlives its workers, whatever these are."""

import logging
import os
import signal
import time
from collections.abc import Callable
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.evaluation.sweep import Job, run_jobs
from agents.training.ppo import PPOConfig, TaskReturnScaling, make_ppo, make_vec_env
from envs import EnvConfig, get_task
from envs.engine import PROCESSES, EngineConfig
from envs.learning_rate_env import Episode
from envs.restarting import RestartingVecEnv
from gns import DecisionConfig
from gns.errors import WorkerError

LENGTH = 4  # steps of a walk
CONFIG = EnvConfig(budgets=(10, 20), decision=DecisionConfig(num_decisions=5), reward_probability=0.5)


def walk() -> gym.Env:
    """An environment of four steps: a random walk from its seed, that can be told to end its process or to hang.

    Defined here so that it is sent whole, by value.
    """

    class Walk(gym.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (2,))
        action_space = spaces.Box(-1.0, 1.0, (1,))
        mark = "none"

        def __init__(self):
            self.command = ""

        def obey(self, command):
            self.command = command

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.at, self.start, self.sum = 0, self.np_random.random(), 0.0
            return self.seen(), self.about()

        def seen(self):
            return np.array([self.start, self.sum], dtype=np.float32)

        def about(self):
            return {"task": "walk", "optimizer": "adam", "start": self.start, "at": self.at}

        def step(self, action):
            if self.command == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            while self.command == "hang":
                time.sleep(0.05)
            if self.command == "eat":
                torch.empty(10**15)
            if self.command == "raise":
                raise ValueError("the cause of it all")
            self.at, reward = self.at + 1, self.np_random.random() + float(action[0])
            self.sum += reward
            return self.seen(), reward, self.at == LENGTH, False, self.about()

    return Walk()


def walks(kind: Callable[..., RestartingVecEnv], **settings) -> RestartingVecEnv:
    """Two workers of two walks each, in places out of order."""
    engine = EngineConfig("ray" if kind.__name__ == "RayVecEnv" else "processes", **settings)
    return kind([partial(DummyVecEnv, [walk, walk])] * 2, [[0, 2], [3, 1]], engine)


def roll(venv: VecEnv, steps: int, between: Callable[[int], None] = lambda step: None, actions: int = 7) -> list:
    """Observations, rewards, ends and infos from the seeds on."""
    venv.seed(3)
    draws = np.random.default_rng(actions)
    seen: list = [(venv.reset(), None, None, list(venv.reset_infos))]
    for step in range(steps):
        between(step)
        seen.append(venv.step(draws.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32)))
    return seen


def same(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other)


def gone(process: int) -> bool:
    """Whether a process ends soon."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def rows(seen: list, places: list[int]) -> list:
    """What some places saw."""
    picked = []
    for observation, rewards, dones, infos in seen:
        part = {k: v[places] for k, v in observation.items()} if isinstance(observation, dict) else observation[places]
        picked.append((part, *(None if x is None else x[places] for x in (rewards, dones)), [infos[i] for i in places]))
    return picked


# ---------------------------------------------------------------------- checks


def check_a_lost_worker_costs_its_episodes_only(venv: RestartingVecEnv, how: str) -> None:
    """``how``: kill (from outside, between steps), die, hang or eat (all memory; in a step)."""
    old, dropped, restarts = list(venv.processes), venv.dropped_episodes, venv.restarts[1]

    def lose(step: int) -> None:
        if step == 2 and how == "kill":
            os.kill(old[1], signal.SIGKILL)
        elif step == 2:
            venv.env_method("obey", how, indices=1)

    expected, found = roll(DummyVecEnv([walk] * 4), 2 * LENGTH + 3), roll(venv, 2 * LENGTH + 3, lose)
    assert same(rows(found, [0, 2]), rows(expected, [0, 2]))
    assert same(rows(found, [1, 3])[:3], rows(expected, [1, 3])[:3])
    observation, rewards, dones, infos = found[3]
    assert dones.tolist() == [False, True, False, True] and rewards[[1, 3]].tolist() == [0.0, 0.0]
    for i in (1, 3):
        last = found[2][3][i]
        assert infos[i]["dropped"] and infos[i]["TimeLimit.truncated"] and infos[i]["start"] == last["start"]
        assert np.array_equal(infos[i]["terminal_observation"], found[2][0][i])
        assert observation[i, 0] not in expected[0][0][:, 0] and observation[i, 1] == 0.0  # an episode of its own
    assert observation[1, 0] != observation[3, 0]
    ends = np.array([dones for _, _, dones, _ in found[1:]])
    assert np.flatnonzero(ends[:, 1]).tolist() == [2, 2 + LENGTH, 2 + 2 * LENGTH]  # they go on from there
    assert not any("dropped" in info for *_, infos in found[4:] for info in infos)
    assert venv.dropped_episodes == dropped + 2 and venv.restarts == [0, restarts + 1]
    assert venv.processes[0] == old[0] and venv.processes[1] != old[1]
    assert gone(old[1])


def check_a_restart_repeats_nothing_and_can_itself_be_repeated(kind) -> None:
    again = []
    for _ in range(2):
        venv = walks(kind)

        def lose(step: int, venv=venv) -> None:
            if step in (1, 3):
                os.kill(venv.processes[0], signal.SIGKILL)

        found = roll(venv, 6, lose)
        assert venv.dropped_episodes == 4 and venv.restarts == [2, 0]
        starts = [found[step][0][place, 0] for step in (0, 2, 4) for place in (0, 2)]
        assert len(set(starts)) == 6
        again.append(found)
        venv.close()
    assert same(*again)


def check_calls_find_the_new_worker_as_the_old_one_was(kind) -> None:
    venv = walks(kind)
    venv.set_attr("mark", "all")
    venv.set_attr("mark", "some", indices=[2, 3])
    venv.seed(3)
    first = venv.reset()
    os.kill(venv.processes[0], signal.SIGKILL)
    assert venv.get_attr("mark") == ["all", "all", "some", "some"]
    observation, _, dones, infos = venv.step(np.ones((4, 1), dtype=np.float32))
    # The actions were chosen for episodes that are gone: the new ones have not moved.
    assert dones.tolist() == [True, False, True, False] and [info["at"] for info in infos] == [0, 1, 0, 1]
    assert observation[[0, 2], 1].tolist() == [0.0, 0.0] and observation[1, 1] > 0.0
    os.kill(venv.processes[1], signal.SIGKILL)
    venv.seed(3)
    assert np.array_equal(venv.reset(), first)  # a reset drops nothing and is as it would have been
    assert venv.dropped_episodes == 2
    venv.close()


def check_an_error_is_no_loss(venv: RestartingVecEnv) -> None:
    restarts = list(venv.restarts)
    venv.reset()
    venv.env_method("obey", "raise", indices=[1])
    with pytest.raises(WorkerError, match=r"Worker 1 .*ValueError: the cause of it all"):
        venv.step(np.zeros((4, 1), dtype=np.float32))
    assert venv.restarts == restarts


def check_restarts_end(kind, caplog) -> None:
    venv = walks(kind, max_restarts=1)
    venv.reset()
    with caplog.at_level(logging.WARNING), pytest.raises(WorkerError, match=r"Worker 1 .*died.*after 1 restarts"):
        for _ in range(3):
            os.kill(venv.processes[1], signal.SIGKILL)
            venv.step(np.zeros((4, 1), dtype=np.float32))
    assert venv.dropped_episodes == 2 and "Worker 1" in caplog.text
    venv.close()


def check_training_goes_on(engine: EngineConfig) -> None:
    """PPO over a loss: others see the same bits as in one process, statistics leave the dropped out."""
    tasks = [get_task("digits_mlp")]
    agent = PPOConfig(num_envs=4, episodes_per_rollout=8, n_epochs=1, batch_size=20)
    steps = {}
    for lost in (False, True):
        torch.manual_seed(0)
        venv = make_vec_env(tasks, CONFIG, 4, 2 if lost else 0, seed=1, engine=engine)
        assert isinstance(venv, TaskReturnScaling)
        inner = venv.venv
        seen: list = []

        class Spy(type(venv)):
            def step_wait(self, lost=lost, seen=seen, inner=inner):
                if lost and len(seen) == 2:
                    assert isinstance(inner, RestartingVecEnv)
                    os.kill(inner.processes[0], signal.SIGKILL)
                seen.append(super().step_wait())
                return seen[-1]

        venv.__class__ = Spy
        model = make_ppo(venv, agent, 5, seed=0)
        model.learn(40)
        steps[lost] = seen, venv, model.rollout_buffer
        venv.close()
    assert isinstance(inner, RestartingVecEnv)
    places = inner._portions[0]
    others = [i for i in range(4) if i not in places]
    (seen, venv, buffer), (calm, calm_venv, _) = steps[True], steps[False]
    assert venv.dropped_episodes == len(places) and calm_venv.dropped_episodes == 0
    assert len(seen) == len(calm) == 10
    dropped = [(step, i) for step, (*_, infos) in enumerate(seen) for i in range(4) if infos[i].get("dropped")]
    assert dropped == [(2, i) for i in places]
    for before, after in zip(calm[:3], seen[:3], strict=True):
        assert same(rows([before], others), rows([after], others))
    ended = sum("episode_return" in info for *_, infos in seen for info in infos)
    assert sum(moments[0] for moments in venv.moments.values()) == ended
    assert ended == int(sum(dones.sum() for _, _, dones, _ in seen)) - len(places)
    # Bootstrapped where they were last seen: the step that failed brought neither gain nor loss (gamma 1).
    advantages = buffer.advantages.reshape(4, 10)  # flat by now, one environment after the other
    assert advantages[places, 2] == pytest.approx(0.0, abs=1e-6) and (advantages[others, 2] != 0.0).all()
    assert buffer.episode_starts[3, places].tolist() == [1.0] * len(places)


def check_a_worker_may_be_lost_right_after_going_on(workers: int) -> None:
    """From a state that any number of workers saved: its places are made up for before the first step."""
    steps = []
    for _ in range(2):
        saved, venv = (make_vec_env([get_task("digits_mlp")], CONFIG, 4, n, seed=1).venv for n in (workers, 2))
        assert isinstance(venv, RestartingVecEnv)
        saved.reset()
        last = saved.step(np.zeros((4, 1), dtype=np.float32))
        venv.load_state_dict(saved.state_dict())
        saved.close()
        os.kill(venv.processes[0], signal.SIGKILL)
        steps.append(venv.step(np.zeros((4, 1), dtype=np.float32)))
        places = venv._portions[0]
        venv.close()
    assert same(*steps)
    _, rewards, dones, infos = steps[0]
    assert np.flatnonzero(dones).tolist() == sorted(places)
    for i in places:
        ended = infos[i].pop("terminal_observation")
        assert same(ended, {key: value[i] for key, value in last[0].items()})
        assert infos[i] == last[3][i] | {"dropped": True, "TimeLimit.truncated": True} and rewards[i] == 0.0


def check_processes_change_no_bit(engine: EngineConfig) -> None:
    seen = {}
    for workers, how in ((0, PROCESSES), (2, engine)):
        torch.set_flush_denormal(True)
        venv = make_vec_env([get_task(n) for n in ("digits_mlp", "mnist1d_cnn")], CONFIG, 9, workers, 3, engine=how)
        seen[workers] = roll(venv, 7)
        venv.close()
    assert same(seen[0], seen[2])


# ---------------------------------------------------------------------- sweeps


class Dying:
    """Stands for a controller: trains as another does, or ends its process, hangs, or asks for more memory than there
    is, each time or only the first."""

    def __init__(self, inner, budget: int, once: str = "", how: str = "die") -> None:
        self.inner, self.budget, self.once, self.how, self.name = inner, budget, once, how, inner.name

    def identity(self):
        return self.inner.identity()

    def train(self, episode, checkpoints=None):
        if episode.budget == self.budget and not (self.once and os.path.exists(self.once)):
            if self.once:
                open(self.once, "w").close()
            if self.how == "eat":
                torch.empty(10**15)
            while self.how == "hang":
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner.train(episode, checkpoints)


def jobs_of(controller) -> list[Job]:
    task = get_task("digits_mlp")
    return [Job(controller, Episode(task, "adam", budget, 0.003, 3)) for budget in (5, 6, 7, 8)]


def without_seconds(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def run_here(controller) -> list[dict]:
    return without_seconds(run_jobs(jobs_of(controller), 0))
