"""States of runs trained together, and of the environments around them, in the middle of episodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from envs.episode import episode_of
from envs.plain_state import header, load_random_state, loading, plain, random_state, require_header
from envs.rewards import Evaluation
from gns.deciding.guard import Watch
from gns.errors import OutOfOrderError

if TYPE_CHECKING:
    from envs.batched.env import BatchedEnv
    from envs.batched.runs import BatchedRuns


def runs_state(runs: BatchedRuns) -> dict[str, Any]:
    """Return all that runs need to go on exactly, pending gradients and the order of rows among it.

    :raises OutOfOrderError: if a run was never begun
    """
    if len(runs.streams) < runs.size:
        raise OutOfOrderError("state_dict() came before every run was begun; begin them first.")
    return plain(
        {
            **_runs_header(runs),
            "matrices": [tensor.clone() for tensor in _matrices(runs)],
            "steps": runs.optimizer.steps.clone(),
            "starts": runs.starts.clone(),
            "buffers": {name: buffer.clone() for name, buffer in runs.buffers.items()},
            "rows": runs.rows.tolist(),
            "streams": [runs.streams[run].state() for run in range(runs.size)],
        }
    )


def load_runs_state(runs: BatchedRuns, state: dict[str, Any]) -> None:
    """Let runs go on from a :func:`runs_state`.

    :raises StateError: if it is of another task, optimizer, model or number of runs, or damaged
    """
    require_header(state, _runs_header(runs))
    with loading():
        for tensor, saved in zip(_matrices(runs), state["matrices"], strict=True):
            tensor.copy_(saved)
        runs.optimizer.steps.copy_(state["steps"])
        runs.starts.copy_(state["starts"])
        for name, buffer in runs.buffers.items():
            buffer.copy_(state["buffers"][name])
        runs.rows = np.array(state["rows"])
        runs.order = np.argsort(runs.rows)
        for run, stream in enumerate(state["streams"]):
            runs.streams[run] = runs.new_stream(seed=0)
            runs.streams[run].load(stream)


def _matrices(runs: BatchedRuns) -> list[Tensor]:
    return [*runs.tensors(), runs.gradients, runs.losses]


def _runs_header(runs: BatchedRuns) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in runs.model.shapes.items()}
    return header("runs", task=runs.task.name, optimizer=runs.optimizer.name, size=runs.size, shapes=shapes)


def together_state(env: BatchedEnv) -> dict[str, Any]:
    """Return everything environments need to go on exactly, in the middle of their episodes.

    :raises OutOfOrderError: before a reset
    """
    if not env.controls:
        raise OutOfOrderError("state_dict() came before reset(); begin episodes first.")
    return plain(
        {
            **_header(env),
            "random": [random_state(draws) for draws in env.draws],
            "begun": [draws.begun for draws in env.draws],
            "episodes": [episode.state_dict([env.task]) for episode in env.episodes],
            "controls": [control.state_dict() for control in env.controls],
            "runs": env.runs.state_dict(),
            "losses": env.losses.clone(),
            "good": _joined(env.good) if env.config.guard.enabled else None,
            "watches": [vars(watch) for watch in env.watches],
            "evaluations": env._evaluations.tolist(),
            "evaluated": [tuple(one) for one in env._evaluated],
            "reset_infos": env.reset_infos,
        }
    )


def load_together_state(env: BatchedEnv, state: dict[str, Any]) -> None:
    """Let environments go on from a :func:`together_state`.

    :raises StateError: if it is of another task, optimizer, model or number of environments, or damaged
    """
    require_header(state, _header(env))
    env.runs.load_state_dict(state.get("runs", {}))
    with loading():
        env.episodes = [episode_of(episode, [env.task], env.config.device) for episode in state["episodes"]]
        env.controls = [env.new_control(episode) for episode in env.episodes]
        for control, memory in zip(env.controls, state["controls"], strict=True):
            control.load_state_dict(memory)
        for draws, generator, begun in zip(env.draws, state["random"], state["begun"], strict=True):
            load_random_state(draws, generator)
            draws.begun = begun
        env.losses = state["losses"].to(env.runs.device, copy=True)
        if env.config.guard.enabled:
            good = _on_device(state["good"], env.runs.device)
            env.good = [(good, place, updates) for place, updates in enumerate(good["updates"])]
        else:
            env.good = [({}, 0, 0)] * env.num_envs
        env.watches = [Watch(**watch) for watch in state["watches"]]
        env._evaluations = np.array(state["evaluations"])
        env._evaluated = [Evaluation(*one) for one in state["evaluated"]]
        env.reset_infos = plain(state["reset_infos"])
        env.observe()  # tells the controls what they saw


def _header(env: BatchedEnv) -> dict[str, Any]:
    return header("environments together", task=env.task.name, optimizer=env.optimizer, num_envs=env.num_envs)


def _joined(good: list[tuple[dict[str, Any], int, int]]) -> dict[str, Any]:
    """Return the last good states of all runs as one, of every run at its number; they lie in states of several."""
    parts = zip(*([tensor[place] for tensor in state["tensors"]] for state, place, _ in good), strict=True)
    return {
        "tensors": [torch.stack(rows) for rows in parts],
        "steps": torch.stack([state["steps"][place] for state, place, _ in good]),
        "positions": [state["positions"][place] for state, place, _ in good],
        "updates": [updates for _, _, updates in good],
    }


def _on_device(good: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**good, "tensors": [tensor.to(device, copy=True) for tensor in good["tensors"]]}
