"""How far a run's weights have travelled from where it began, read off a sketch of each tensor.

The start of a run would cost a copy of the model. A sketch keeps at most :data:`SKETCHED` evenly spaced scalars of a
tensor, all of a smaller one, so that it costs next to nothing in memory, in time and in a state dict. Sums over a
sketch, scaled up to the tensor, have a relative error of about ``SKETCHED^-0.5``, 1.6 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gns.features.moments import as_real

SKETCHED = 4096
# Columns of the sums: of x0^2, d^2, g d and g^2 with the start x0, the displacement d = x - x0 and the gradient g.
START2, TRAVEL2, GRADIENT_TRAVEL, GRADIENT2 = range(4)
NUM_TRAVEL_SUMS = 4


def spacing(numel: int) -> int:
    """Return the distance of the scalars that are kept of a tensor: none of its dimensions is a multiple of it."""
    step = max(numel // SKETCHED, 1)
    while step > 1 and math.gcd(step, numel) > 1:
        step += 1
    return step


@torch.no_grad()
def sketch(tensors: Sequence[Tensor], laid_out_as: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return the scalars that are kept of each tensor, flat; views where the tensors lie in memory as their likes do.

    :param tensors: P tensors
    :param laid_out_as: tensors of the same shapes, whose order in memory is followed; None: these themselves
    """
    found = []
    for tensor, like in zip(tensors, laid_out_as or tensors, strict=True):
        tensor, like = as_real(tensor.detach()), as_real(like.detach())
        if not like.is_contiguous():
            tensor = tensor.permute(sorted(range(like.dim()), key=like.stride, reverse=True))
        found.append(tensor.reshape(-1)[:: spacing(tensor.numel())])
    return found


@torch.no_grad()
def travel_sums(start: Sequence[Tensor], now: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the sums of P tensors, float32 (P, :data:`NUM_TRAVEL_SUMS`) on the first one's device.

    :param start: :func:`sketch` of the tensors at the start of the run
    :param now: the tensors themselves
    :param gradients: their pending gradients; one that is missing counts as 0
    """
    known = [torch.zeros_like(x) if g is None else g.detach() for g, x in zip(gradients, now, strict=True)]
    rows = []
    for x0, x, g, whole in zip(start, sketch(now), sketch(known, now), now, strict=True):
        x0, x, g = x0.float(), x.float(), g.float()
        travel = x - x0
        scale = as_real(whole).numel() / max(len(x), 1)
        sums = torch.stack([x0.dot(x0), travel.dot(travel), g.dot(travel), g.dot(g)])
        rows.append(sums * scale)
    device = rows[0].device
    return torch.stack([row.to(device) for row in rows])
