"""One decision for all processes of a training run: data parallel (DDP), sharded (FSDP2, DTensor), or both.

Every rank sums over what it holds. One all-reduce a decision adds the sums up, each weighed by how many ranks hold the
same numbers, so that they are those of one process with the whole model and batch. Then every rank decides by itself,
on the same bits. What a rank remembers of earlier decisions it takes from rank 0, in the same all-reduce.

``torch.distributed.tensor`` is looked for among the loaded modules, never imported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from gns.errors import InvalidSettingError, RanksDisagreeError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN = (Tensor, nn.Parameter)


# ---------------------------------------------------------------------- what this process holds


def is_distributed(tensor: Any) -> bool:
    """Say whether a tensor is a ``DTensor``, of which each process holds a part or a copy."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any, like: Any = None) -> Any:
    """Return what this process holds of a tensor; anything but a DTensor is returned as it is.

    :param like: a DTensor as whose parts the parts are wanted; a tensor of its shape that lies otherwise (such as a
        gradient yet to be added up over processes) is brought there first, which communicates
    """
    if not is_distributed(tensor):
        return tensor
    if is_distributed(like) and tensor.shape == like.shape and tensor.placements != like.placements:
        tensor = tensor.redistribute(like.device_mesh, like.placements)
    return tensor.to_local()


def gathered(tensor: Any) -> Tensor:
    """Return a tensor as a plain one with all its numbers, which communicates unless every process has them all."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor


@dataclass(frozen=True)
class LocalOptimizer:
    """What this process holds of an optimizer of DTensors. It can be read as an optimizer, not stepped.

    :param optimizer: the whole one, whose kind it has
    :param param_groups: its groups, with local tensors for those that were asked for and no others
    :param state: state of each of these, local as well
    """

    optimizer: torch.optim.Optimizer
    param_groups: list[dict[str, Any]]
    state: dict[Tensor, dict[str, Any]]


def local_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], locals_: Sequence[Tensor]) -> Any:
    """Return the :class:`LocalOptimizer` of P parameters.

    :param locals_: what this process holds of each; they stand in for the parameters
    """
    stand_in = {id(p): own for p, own in zip(parameters, locals_, strict=True)}
    groups = [
        {**group, "params": [stand_in[id(p)] for p in group["params"] if id(p) in stand_in]}
        for group in optimizer.param_groups
    ]
    state = {
        stand_in[id(p)]: {key: local(value, p) for key, value in optimizer.state[p].items()}
        for p in parameters
        if p in optimizer.state
    }
    return LocalOptimizer(optimizer, groups, state)


# ---------------------------------------------------------------------- who decides together


def group_of_run(given: Any) -> ProcessGroup | None:
    """Return the process group whose ranks take their decisions together; None where one process decides alone.

    :param given: a group; None for the default one if there is one; False for none
    :raises InvalidSettingError: if this process is not of that group, or it is known by its ranks only
    """
    if given is False:
        return None
    if isinstance(given, tuple):
        raise InvalidSettingError(
            f"This scheduler is a copy of one that was given the process group of ranks {list(given)}, and a copy "
            "cannot hold a group. Set scheduler.process_group to the group before the first update."
        )
    if given is None and not (dist.is_available() and dist.is_initialized()):
        return None
    if dist.get_rank(given) < 0:
        raise InvalidSettingError(
            "This process is not of the process group that was given. Expected the group of the ranks that train this "
            "model together; pass each rank its own group, or False."
        )
    return None if dist.get_world_size(given) == 1 else given or dist.group.WORLD


def ranks_of(given: Any) -> Any:
    """Return what a copy of a scheduler keeps of its process group: the ranks of a group, else what was given."""
    return given if given is None or isinstance(given, bool | tuple) else tuple(dist.get_process_group_ranks(given))


def require_group(given: Any) -> None:
    """Pass a process group, None or False.

    :raises InvalidSettingError: on anything else
    """
    if given is not None and given is not False and not (dist.is_available() and isinstance(given, dist.ProcessGroup)):
        raise InvalidSettingError(
            f"process_group is {given!r}; expected a torch.distributed process group, None for the default one, or "
            "False for none."
        )


def agree(mine: Mapping[str, Any], adopted: str, group: ProcessGroup, device: torch.device) -> Any:
    """Check that all ranks were given the same; once, before the first decision.

    :param mine: what this rank was given: plain values by name
    :param adopted: the one of these that is not compared
    :param device: of the model
    :return: rank 0's value of ``adopted``
    :raises RanksDisagreeError: on a rank that has another value than rank 0
    """
    box = [dict(mine)]
    dist.broadcast_object_list(box, group_src=0, group=group, device=device_for(group, device))
    for name, value in mine.items():
        if name != adopted and box[0][name] != value:
            raise RanksDisagreeError(
                f"{name} is {value!r} on rank {dist.get_rank(group)} and {box[0][name]!r} on rank 0; expected the same "
                "on all ranks. Give every rank's GNSScheduler the same arguments and the same state dict, or pass "
                "process_group= where these are different runs."
            )
    return box[0][adopted]


# ---------------------------------------------------------------------- the collective of a decision


def shares(parameters: Sequence[Tensor], group: ProcessGroup | None) -> Tensor:
    """Return by how much this rank's sums over each of P parameters count: 1 over the ranks that hold the same numbers.

    :return: float64 (P,) on the device of the parameters
    :raises InvalidSettingError: if a parameter is sharded over ranks outside the group
    """
    ranks = [dist.get_rank()] if group is None and any(map(is_distributed, parameters)) else []
    ranks = dist.get_process_group_ranks(group) if group is not None else ranks
    factors = [share(p, ranks) for p in parameters]
    return torch.tensor(factors, dtype=torch.float64, device=parameters[0].device)


def share(tensor: Any, ranks: Sequence[int]) -> float:
    """Return by how much this rank's sums over a tensor count in those of all ranks.

    A plain tensor is the same on all. A DTensor is on a mesh of ranks, of which there may be several alike; along each
    dimension of the mesh it is sharded or replicated.

    :param ranks: global ranks that decide together
    :raises InvalidSettingError: if the tensor's mesh has other ranks than these
    """
    if not is_distributed(tensor):
        return 1.0 / max(len(ranks), 1)
    mesh, placements = tensor.device_mesh, tensor.placements
    if not set(mesh.mesh.flatten().tolist()) <= set(ranks):
        raise InvalidSettingError(
            f"A parameter is spread over ranks {mesh.mesh.flatten().tolist()}, and the ranks that decide together are "
            f"{list(ranks)}. Expected a process group with all ranks that hold a part of the model; pass "
            "process_group=, or leave it out for the default group."
        )
    copies = math.prod(mesh.size(i) for i, placement in enumerate(placements) if placement.is_replicate())
    return mesh.size() / (copies * len(ranks))


def all_reduced(
    group: ProcessGroup,
    shares: Tensor,
    sums: Tensor,
    per_tensor: Tensor,
    losses: Tensor,
    length: int,
    counts: Mapping[str, int],
    memory: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[float]]:
    """Add up what the ranks hold of a run, with one collective and one copy to the host.

    Every rank sends as many numbers, whatever it has come to, so that ranks which are not at the same point find out.

    :param shares: float64 (P,), see :func:`shares`
    :param sums: (P, S), this rank's sums over its parts of P tensors
    :param per_tensor: (P,), another such sum; or (0,), on all ranks
    :param losses: (k,), its losses, k at most ``length``
    :param counts: where this rank stands; must be the same on all
    :param memory: what it remembers
    :return: float64 arrays: sums (P, S), ``per_tensor``, mean losses (k,), and rank 0's ``memory``
    :raises RanksDisagreeError: if ranks differ in ``counts``
    """
    world, first, device = dist.get_world_size(group), dist.get_rank(group) == 0, sums.device
    own = [float(count) for count in counts.values()]
    told = [*own, *memory] if first else [0.0] * (len(own) + len(memory))
    padded = torch.zeros(length, dtype=torch.float64, device=device)
    padded[: len(losses)] = losses.to(device)
    parts = [
        (sums.double() * shares[:, None]).flatten(),
        per_tensor.double() * shares[: len(per_tensor)],
        padded / world,
        torch.tensor([*own, *told], dtype=torch.float64).to(device, non_blocking=True),
    ]
    vector = torch.cat(parts).to(device_for(group, device))
    dist.all_reduce(vector, group=group)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    table, extra, means, rest = np.split(vector.cpu().numpy(), ends)
    total, zero, kept = np.split(rest, [len(own), 2 * len(own)])
    if not (np.array_equal(own, zero) and np.array_equal(total, world * zero)):
        there = dict(zip(counts, zero.astype(int).tolist(), strict=True))
        which = "another rank is not" if np.array_equal(own, zero) else f"rank {dist.get_rank(group)} at {dict(counts)}"
        raise RanksDisagreeError(
            f"Rank 0 decides at {there}, and {which}; expected all ranks at the same update. Step optimizer and "
            "scheduler equally often on every rank, and load the same state dict on all."
        )
    return table.reshape(sums.shape), extra, means[: len(losses)], kept.tolist()


def device_for(group: ProcessGroup, device: torch.device) -> torch.device:
    """Return a device whose tensors a group can send: the given one, else the accelerator (parameters on the CPU)."""
    kinds = {part.partition(":")[0] for part in dist.get_backend_config(group).split(",")}
    accelerator = torch.accelerator.current_accelerator()
    if device.type in kinds or accelerator is None:
        return device
    return torch.device(accelerator.type, torch.accelerator.current_device_index())
