"""Snapshots of a training run, in memory or on disk."""

from __future__ import annotations

import copy
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from gns.errors import OutOfOrderError, SnapshotError
from gns.parallel.distributed import local
from gns.whole_files import written_whole

_PLAIN = (int, float, bool, str, type(None))


class Snapshot:
    """The last good state of a run: parameters, buffers, optimizer state, and what the caller adds.

    It holds names, not the tensors themselves: whatever stands under a name when the state is put back gets it, be it
    reassigned or replaced since. A tensor whose name changed, as pruning does, is known by itself.

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
        self._model, self._optimizer = model, optimizer
        self._copies: _Memory | _File = _Memory() if folder is None else _File(folder)
        self._held: list[_Kept] = []  # the tensors of the model, in the order of their copies
        self._states: list[tuple[_Kept, dict[str, Any]]] = []  # of parameters; a tensor stands there as its number
        self._put_back: list[Callable[[], None]] = []
        self.steps = 0

    @torch.no_grad()
    def take(self, steps: int, *put_back: Callable[[], None]) -> None:
        """Copy the state.

        :param steps: updates the state holds
        :param put_back: calls that restore what lies outside model and optimizer (random numbers, data position, AMP)
        :raises SnapshotError: if it cannot be written; the one before stays
        """
        present = self._present()
        saved = [(parameter, self._optimizer.state.get(parameter)) for parameter in self._parameters()]
        self._keep(present, list(present.values()), saved)
        self._put_back, self.steps = list(put_back), steps

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state back, in place. May be called again for the same snapshot.

        Tensors that the model has had only since then stay as they are.

        :raises OutOfOrderError: if no snapshot was taken
        :raises SnapshotError: if its file cannot be read, or the model has had tensors only since then that are not
            finite
        """
        copies = self._copies.kept()
        present = self._present()
        found = {kept: kept.among(present) for kept in self._held}
        self._require_finite(set(present) - set(found.values()))
        pairs = [
            (self._placed(name, copies[i]), copies[i]) for i, name in enumerate(found.values()) if name is not None
        ]
        torch._foreach_copy_([own for own, _ in pairs], [copy_ for _, copy_ in pairs])
        self._restore_optimizer(copies)
        for call in self._put_back:
            call()

    def state_dict(self) -> dict[str, Any]:
        """Return copies of what was taken, but for the calls that put the rest back.

        :raises OutOfOrderError: if no snapshot was taken
        :raises SnapshotError: if its file cannot be read
        """
        copies = [tensor.clone() for tensor in self._copies.kept()]
        by_place = {kept.place: state for kept, state in self._states}
        states = [by_place.get(place) for place in range(len(self._parameters()))]
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
        own = self._present()
        tensors = [saved.to(tensor.device) for tensor, saved in zip(own.values(), state["held"], strict=True)]
        self._keep(own, tensors, list(zip(self._parameters(), state["optimizer"], strict=True)))
        self._put_back, self.steps = list(put_back), state["steps"]

    # ------------------------------------------------------------------ inside

    def _present(self) -> dict[str, Tensor]:
        """The model's tensors as they are now, by name."""
        return {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}

    def _parameters(self) -> list[Tensor]:
        """What the optimizer holds, in its order."""
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _keep(
        self,
        present: dict[str, Tensor],
        held: list[Tensor],
        saved: Sequence[tuple[Tensor, dict[str, Any] | None]],
    ) -> None:
        """Copy tensors of the model and the state of the optimizer's parameters.

        :param present: the model's tensors, see :meth:`_present`
        :param held: what is kept of each of them
        :param saved: the optimizer's parameters, and what is kept of the state of each
        """
        names = {id(tensor): name for name, tensor in present.items()}
        tensors = [local(tensor) for tensor in held]
        states: list[tuple[_Kept, dict[str, Any]]] = []
        for place, (parameter, its_state) in enumerate(saved):
            if its_state is None:
                continue
            plain: dict[str, Any] = {}
            for key, value in its_state.items():
                if isinstance(value, Tensor):
                    plain[key] = _Number(len(tensors))
                    tensors.append(local(value))
                else:
                    plain[key] = value if type(value) in _PLAIN else copy.deepcopy(value)
            states.append((_Kept(names.get(id(parameter)), parameter, place), plain))
        self._copies.keep(tensors)
        self._held = [_Kept(name, tensor) for name, tensor in present.items()]
        self._states = states

    def _placed(self, name: str, saved: Tensor) -> Tensor:
        """Return what this process holds of a tensor; a buffer that has another shape by now is made anew."""
        tensor = local(self._present_tensor(name))
        if tensor.shape != saved.shape:
            path, _, leaf = name.rpartition(".")
            tensor = saved.to(tensor.device, copy=True)
            self._model.get_submodule(path)._buffers[leaf] = tensor
        return tensor

    def _present_tensor(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self._model.get_submodule(path), leaf)
        return tensor

    def _require_finite(self, later: set[str]) -> None:
        bad = sorted(name for name in later if not local(self._present_tensor(name)).isfinite().all())
        if bad:
            raise SnapshotError(
                f"The run diverged, and the model has {', '.join(bad)} only since the last good state (after "
                f"{self.steps} updates), not finite by now: they cannot be restored. Go on from a checkpoint, and let "
                "what is added to a model train at a lower rate."
            )

    def _restore_optimizer(self, copies: Sequence[Tensor]) -> None:
        """Put back the state of every parameter that the optimizer holds, and take away what came later."""
        present, held = self._present(), {id(parameter): parameter for parameter in self._parameters()}
        states = {}
        for kept, saved in self._states:
            name = kept.among(present)
            parameter = kept.itself() if name is None else present[name]
            if id(parameter) in held:
                states[id(parameter)] = saved
        for parameter in list(self._optimizer.state):
            if id(parameter) not in states:
                del self._optimizer.state[parameter]
        for identity, saved in states.items():
            state = self._optimizer.state[held[identity]]
            for key in set(state) - set(saved):
                del state[key]
            for key, value in saved.items():
                if not isinstance(value, _Number):
                    state[key] = copy.deepcopy(value)
                elif isinstance(state.get(key), Tensor) and local(state[key]).shape == copies[value].shape:
                    local(state[key]).copy_(copies[value])
                else:
                    state[key] = copies[value].clone()


class _Kept:
    """Which tensor a copy is of.

    :param name: in the model; None: it is not the model's
    :param tensor: the tensor itself, which is not kept alive
    :param place: among the optimizer's parameters
    """

    def __init__(self, name: str | None, tensor: Tensor, place: int = -1) -> None:
        self.name, self.place, self.shape = name, place, tensor.shape
        self.itself: Callable[[], Tensor | None] = weakref.ref(tensor)

    def among(self, present: dict[str, Tensor]) -> str | None:
        """Return the name it has among the model's tensors by now; None if it is not among them."""
        there = present.get(self.name or "")
        if there is not None and (there.shape == self.shape or not isinstance(there, nn.Parameter)):
            return self.name
        own = self.itself()
        return next((name for name, tensor in present.items() if tensor is own), None) if own is not None else None


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
        try:
            with written_whole(self._path) as beside:
                torch.save([_alone(tensor.detach()) for tensor in tensors], beside)
            self._written = True
        except (OSError, RuntimeError) as problem:  # torch's writer raises the latter where the disk is full
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
