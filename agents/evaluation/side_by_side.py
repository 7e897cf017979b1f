"""Runs of a sweep whose rates are known beforehand, trained side by side: :mod:`envs.batched` in the place of sessions.

Rows are those of runs trained one by one, to float tolerance.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from agents.controllers.base import Controller
from envs.batched.branches import begin_all, train
from envs.batched.paying import faster_together
from envs.batched.runs import BatchedRuns
from envs.episode import Episode
from envs.passes import Figures
from envs.tasks import Split

LEAST, MOST = 4, 16  # runs of a group: fewer gain little; more leave other processes idle, and gain little either
Key = TypeVar("Key")


@dataclass(frozen=True)
class End:
    """What a run trained beside others ended with.

    :param rates: of each update
    :param losses: of the batch of each update
    :param reward: on the reward split
    :param test: on the test split; None: it was not asked for
    :param seconds: its share of the time of all
    """

    rates: list[float]
    losses: list[float]
    reward: Figures
    test: Figures | None
    seconds: float


def groups(runs: Mapping[Key, tuple[Controller, Episode]]) -> list[list[Key]]:
    """Return which runs are to be trained side by side, in groups of :data:`LEAST` to :data:`MOST`.

    These are runs of one task, optimizer, budget and device whose controllers know their rates beforehand, where that
    is faster. The number of processes decides nothing.
    """
    alike: dict[tuple, list[Key]] = {}
    for key, (controller, episode) in runs.items():
        known = getattr(type(controller), "planned_rates", Controller.planned_rates)
        if known is not Controller.planned_rates:
            kind = id(episode.task), episode.optimizer, episode.budget, episode.device
            alike.setdefault(kind, []).append(key)
    pays: dict[tuple[int, str], bool] = {}
    found = []
    for (task, _, _, device), keys in alike.items():
        if len(keys) < LEAST:
            continue
        if (task, device) not in pays:
            pays[task, device] = faster_together(runs[keys[0]][1].task, device)
        keys = [key for key in keys if pays[task, device] and runs[key][0].planned_rates(runs[key][1]) is not None]
        if len(keys) >= LEAST:
            count = -(-len(keys) // MOST)
            found += [keys[len(keys) * i // count : len(keys) * (i + 1) // count] for i in range(count)]
    return found


def train_together(runs: Sequence[tuple[Controller, Episode]], test: Split | None) -> list[End]:
    """Train runs of a group and evaluate them.

    :param test: the test split, on the runs' device; None: it is not evaluated
    """
    start = time.perf_counter()
    episode = runs[0][1]
    rates = [controller.planned_rates(own) for controller, own in runs]
    together = BatchedRuns(episode.task, episode.optimizer, len(runs), episode.device)
    begin_all(together, [own.seed for _, own in runs])
    losses = train(together, torch.tensor(rates, dtype=torch.float64))
    seconds = (time.perf_counter() - start) / len(runs)
    everyone = range(len(runs))
    rewards = together.evaluate_reward_split(everyone)
    tests = [None] * len(runs) if test is None else together.evaluate(test, everyone)
    return [
        End(list(own or ()), np.asarray(loss, dtype=float).tolist(), reward, figures, seconds)
        for own, loss, reward, figures in zip(rates, losses, rewards, tests, strict=True)
    ]
