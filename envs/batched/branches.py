"""What one decision costs: copies of a run in the middle, each trained to the end at rates of its own, side by side.

All copies have the data order, the dropout masks and the random numbers of the run they come from, so that their ends
differ by their rates alone (common random numbers): a whole cost curve of a decision, with far less noise than returns
of as many episodes (AggreVaTe: Ross and Bagnell, 2014). Slow twin: ``tests/twins/branches_twin.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from envs.batched.runs import BatchedRuns
from envs.rewards import bounded_loss
from gns.errors import InvalidSettingError
from gns.schedules.profiles import get_profile


@dataclass(frozen=True)
class Ends:
    """Where runs ended, N of them.

    :param losses: on the reward split, bounded as rewards bound them, float64 (N,)
    :param metrics: the task's metric there, (N,); NaN where the run is lost
    :param diverged: whether a run is lost: its loss, a weight or an optimizer state is not finite, bool (N,)
    """

    losses: np.ndarray
    metrics: np.ndarray
    diverged: np.ndarray

    def __getitem__(self, runs: Any) -> Ends:
        """Return the ends of some runs."""
        return Ends(self.losses[runs], self.metrics[runs], self.diverged[runs])


def rates_to_the_end(levels: Sequence[float], profiles: Sequence[str], budget: int, update: int = 0) -> torch.Tensor:
    """Return the rates of the updates that are left: ``level * f(t / T)``, float64 (N, T - t).

    :param levels: of each run
    :param profiles: name of f, of each run; see :mod:`gns.schedules.profiles`
    :param budget: T
    :param update: t of the first of them
    """
    shapes = {name: [get_profile(name)(t / budget) for t in range(update, budget)] for name in set(profiles)}
    table = torch.tensor([shapes[name] for name in profiles], dtype=torch.float64)
    return torch.tensor(levels, dtype=torch.float64).unsqueeze(1) * table


def begin_all(runs: BatchedRuns, seeds: Sequence[int]) -> None:
    """Begin all runs and compute their first gradients.

    :param seeds: of each run
    """
    runs.begin(range(runs.size), seeds)
    runs.compute_gradients(torch.ones(runs.size, dtype=torch.bool))


def train_to_the_end(runs: BatchedRuns, rates: torch.Tensor) -> Ends:
    """Train all runs, whose gradients are pending, and evaluate them.

    :param rates: of the coming updates, float64 (N, k)
    :raises InvalidSettingError: if there are not N rows of at least one rate
    """
    if rates.shape[0] != runs.size or not rates.shape[1]:
        raise InvalidSettingError(f"rates are {tuple(rates.shape)}; expected ({runs.size}, at least 1).")
    everyone, last = torch.ones(runs.size, dtype=torch.bool), rates.shape[1] - 1
    for update in range(last + 1):
        runs.apply_updates(rates[:, update], everyone)
        if update < last:
            runs.compute_gradients(everyone)
    return ends_of(runs)


def ends_of(runs: BatchedRuns) -> Ends:
    """Evaluate all runs on the reward split."""
    figures = runs.evaluate_reward_split(list(range(runs.size)))
    losses = np.array([figure.loss for figure in figures])
    finite = torch.stack([tensor.isfinite().all(dim=1) for tensor in runs.tensors()]).all(dim=0).cpu().numpy()
    diverged = ~(np.isfinite(losses) & finite[runs.rows])
    metrics = np.where(diverged, np.nan, [figure.metric for figure in figures])
    return Ends(np.array([bounded_loss(loss) for loss in losses.tolist()]), metrics, diverged)


def copy_into(copies: BatchedRuns, sources: Sequence[tuple[BatchedRuns, int]]) -> None:
    """Let each run of ``copies`` stand where another run stands, with its pending gradient.

    :param sources: of each copy the runs, and the number of one of them, (N,)
    :raises InvalidSettingError: if there are not as many, or these are runs of another task or optimizer
    """
    others = sum(not _alike(source, copies) for source, _ in sources)
    if len(sources) != copies.size or others:
        raise InvalidSettingError(
            f"{len(sources)} runs were given to {copies.size} copies, {others} of them not of task {copies.task.name} "
            f"and optimizer {copies.optimizer.name}; expected as many as copies, all of these."
        )
    for copy, (source, run) in enumerate(sources):
        to, from_ = int(copies.rows[copy]), int(source.rows[run])
        for ours, theirs in zip(_tensors(copies), _tensors(source), strict=True):
            ours[to] = theirs[from_]
        copies.starts[copy] = source.starts[run]
        copies.optimizer.steps[to] = source.optimizer.steps[from_]
        copies.streams[copy] = copies.new_stream(seed=0)
        copies.streams[copy].load(source.streams[run].state())


def _alike(one: BatchedRuns, other: BatchedRuns) -> bool:
    return one.task is other.task and one.optimizer.name == other.optimizer.name


def _tensors(runs: BatchedRuns) -> list[torch.Tensor]:
    return [*runs.tensors(), runs.gradients, runs.losses, *runs.buffers.values()]


def branch(copies: BatchedRuns, sources: Sequence[tuple[BatchedRuns, int]], rates: torch.Tensor) -> Ends:
    """Continue copies of runs to the end, each at its own rates.

    :param copies: runs of the same task and optimizer to use; whatever they were is lost
    :param sources: of each copy the runs, and the number of one of them, whose gradient is pending; they stay as they
        are
    :param rates: of the updates that are left, float64 (N, k)
    """
    copy_into(copies, sources)
    return train_to_the_end(copies, rates)
