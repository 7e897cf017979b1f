"""Snapshots of a training run, in memory or on disk."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import OutOfOrderError, SnapshotError
from gns.parallel.distributed import local


class Snapshot:
    """The last good state of a run: parameters, buffers, optimizer state, and what the caller adds.

    In memory, room is allocated at the first :meth:`take` and reused. On disk, one file takes its place, written anew
    each time, replaced only once it is whole, and deleted with the snapshot or at the end of the process; a process of
    several ranks keeps a file each, of its own shards. Learning rates are not part of a snapshot: they belong to
    whatever controls them.

    :param model: the model being trained
    :param optimizer: its optimizer
    :param folder: where to keep it; None: in memory
    :raises SnapshotError: if the folder cannot be written to
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | Path | None = None) -> None:
        self._optimizer = optimizer
        self._held: list[Tensor] = [*model.parameters(), *model.buffers()]
        self._copies: _Memory | _File = _Memory() if folder is None else _File(folder)
        self._states: dict[Tensor, dict[str, Any]] = {}  # of each parameter; a tensor stands there as its number
        self._put_back: list[Callable[[], None]] = []
        self.steps = 0

    @torch.no_grad()
    def take(self, steps: int, *put_back: Callable[[], None]) -> None:
        """Copy the state.

        :param steps: updates the state holds
        :param put_back: calls that restore what lies outside model and optimizer (random numbers, data position, AMP)
        :raises SnapshotError: if it cannot be written; the one before stays
        """
        tensors: list[Tensor] = [local(tensor) for tensor in self._held]
        states: dict[Tensor, dict[str, Any]] = {}
        for parameter, state in self._optimizer.state.items():
            states[parameter] = {}
            for key, value in state.items():
                if isinstance(value, Tensor):
                    states[parameter][key] = _Number(len(tensors))
                    tensors.append(local(value))
                else:
                    states[parameter][key] = copy.deepcopy(value)
        self._copies.keep(tensors)
        self._states, self._put_back, self.steps = states, list(put_back), steps

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state back, in place. May be called again for the same snapshot.

        :raises OutOfOrderError: if no snapshot was taken
        :raises SnapshotError: if its file cannot be read
        """
        copies = self._copies.kept()
        torch._foreach_copy_([local(tensor) for tensor in self._held], copies[: len(self._held)])
        for parameter in list(self._optimizer.state):
            if parameter not in self._states:
                del self._optimizer.state[parameter]
        for parameter, saved in self._states.items():
            state = self._optimizer.state[parameter]
            for key in set(state) - set(saved):
                del state[key]
            for key, value in saved.items():
                if not isinstance(value, _Number):
                    state[key] = copy.deepcopy(value)
                elif isinstance(state.get(key), Tensor):
                    local(state[key]).copy_(copies[value])
                else:
                    state[key] = copies[value].clone()
        for call in self._put_back:
            call()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what was taken, but for the calls that put the rest back.

        :raises OutOfOrderError: if no snapshot was taken
        :raises SnapshotError: if its file cannot be read
        """
        copies = [tensor.clone() for tensor in self._copies.kept()]
        states = [self._states.get(parameter) for parameter in self._parameters()]
        optimizer = [
            state and {key: copies[value] if isinstance(value, _Number) else value for key, value in state.items()}
            for state in copy.deepcopy(states)
        ]
        return {"steps": self.steps, "held": copies[: len(self._held)], "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any], *put_back: Callable[[], None]) -> None:
        """Hold what a snapshot of the same model and optimizer held.

        :param state: its :meth:`state_dict`
        :param put_back: as at :meth:`take`
        :raises SnapshotError: if it cannot be written
        """
        tensors = [saved.to(own.device) for own, saved in zip(self._held, state["held"], strict=True)]
        states: dict[Tensor, dict[str, Any]] = {}
        for parameter, its_state in zip(self._parameters(), state["optimizer"], strict=True):
            if its_state is None:
                continue
            states[parameter] = {}
            for key, value in its_state.items():
                if isinstance(value, Tensor):
                    states[parameter][key] = _Number(len(tensors))
                    tensors.append(value)
                else:
                    states[parameter][key] = copy.deepcopy(value)
        self._copies.keep(tensors)
        self._states, self._put_back, self.steps = states, list(put_back), state["steps"]

    def _parameters(self) -> list[Tensor]:
        """What the optimizer holds, in its order."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]


class _Number(int):
    """Place of a tensor in the list of those that are kept."""


class _Memory:
    """Copies of tensors, beside the tensors; room is reused where it fits."""

    def __init__(self) -> None:
        self._copies: list[Tensor] = []

    def keep(self, tensors: Sequence[Tensor]) -> None:
        room = self._copies[: len(tensors)]
        fits = [_alike(old, new) for old, new in zip(room, tensors, strict=False)]
        fits += [False] * (len(tensors) - len(room))
        self._copies = [
            room[i] if fit else tensor.detach().clone()
            for i, (fit, tensor) in enumerate(zip(fits, tensors, strict=True))
        ]
        reused = [i for i, fit in enumerate(fits) if fit]
        if reused:
            torch._foreach_copy_([self._copies[i] for i in reused], [tensors[i].detach() for i in reused])

    def kept(self) -> list[Tensor]:
        if not self._copies:
            raise OutOfOrderError("restore() came before any take(); take a snapshot first.")
        return self._copies


class _File:
    """Copies of tensors in a file that goes with this object, or with the process."""

    def __init__(self, folder: str | Path) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix="gns-snapshot-", suffix=".pt", dir=folder)
            os.close(handle)
        except OSError as problem:
            raise SnapshotError(
                f"No snapshot can be kept in {str(folder)!r} ({problem}); expected a folder that can be written to. "
                "Give GuardConfig another one, or folder=None to keep snapshots in memory."
            ) from problem
        self._path, self._written = Path(name).absolute(), False
        self._end = weakref.finalize(self, self._path.unlink, missing_ok=True)

    def keep(self, tensors: Sequence[Tensor]) -> None:
        new = self._path.with_suffix(".new")
        try:
            torch.save([_alone(tensor.detach()) for tensor in tensors], new)
            os.replace(new, self._path)
            self._written = True
        except (OSError, RuntimeError) as problem:  # torch's writer raises the latter where the disk is full
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise SnapshotError(
                f"The snapshot {self._path} cannot be written ({problem}). Make room there (it takes as much as model "
                "and optimizer do, twice while it is replaced), or keep snapshots in memory with folder=None."
            ) from problem

    def kept(self) -> list[Tensor]:
        if not self._written:
            raise OutOfOrderError("restore() came before any take(); take a snapshot first.")
        try:
            return torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as problem:
            raise SnapshotError(
                f"The snapshot {self._path} cannot be read ({problem}); expected it as it was written. Leave the files "
                "in that folder alone, or keep snapshots in memory with folder=None."
            ) from problem


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _alone(tensor: Tensor) -> Tensor:
    """Return a tensor with no more memory behind it than it has, since a file holds all of that."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
