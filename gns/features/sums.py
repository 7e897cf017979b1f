"""Sums over weights, gradients and optimizer state, at the cost of about one update of the optimizer.

What is summed stands in :mod:`gns.features.statistics`; a feature schema may ask for products beside these, see
:class:`gns.features.schema.FeatureSchema`.

Two ways to the same figures. :func:`foreach_sums` is the readable one: momentum, second moment and coming update of
whole tensors, then their sums. It makes some fifteen passes over memory, and temporaries as large as the model. That
is right for small models and for accelerators, where calls cost more than passes. :func:`piecewise_sums` goes through
large tensors on a CPU in pieces that stay in its cache, reads each scalar from memory once, and needs a few pieces of
scratch memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gns.features.moments import as_real, optimizer_kind, read_moments, real_state, split_alike
from gns.features.statistics import NUM_SUMS
from gns.features.update_rules import adam_scales, counted_steps, first_momentum, is_decoupled, read_alike

PIECEWISE_FROM = 2**18  # scalars in all: below, calls cost more than memory
_PIECE, _PIECE_OF_THREAD = 2**17, 2**15  # scalars; PyTorch gives no thread fewer
_State = dict[str, Any]
_Products = Sequence[tuple[str, str]]  # of gns.features.schema.PRODUCT_FACTORS


@dataclass(frozen=True)
class Sums:
    """What a decision reads of P tensors.

    :param sums: float32 (P, :data:`gns.features.statistics.NUM_SUMS` + Q) on the tensors' device; columns as in
        :mod:`gns.features.statistics`, then the Q products asked for
    :param momentum_scale: float64 (P,), see :class:`gns.features.moments.Moments`
    :param second_scale: float64 (P,), likewise
    """

    sums: Tensor
    momentum_scale: np.ndarray
    second_scale: np.ndarray


class _Piece(NamedTuple):
    """What is read of the state of a piece; the coming update is ``factor * update``."""

    momentum: Tensor | None
    second: Tensor | None
    update: Tensor | None
    factor: float
    momentum_scale: Any
    second_scale: Any


# Of weight, gradient and state of a piece, with four buffers of its size, the first to be left alone.
_Reader = Callable[[Tensor, Tensor, _State, Sequence[Tensor]], _Piece]


def read_sums(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    steps: int,
    products: _Products = (),
) -> Sums:
    """Return the sums of P tensors in the way that suits them, without waiting for a device.

    :param parameters: P tensors; those the optimizer does not hold have a coming update of 0
    :param gradients: their pending gradients; None where there is none, and then no update comes either
    :param steps: updates done so far, used where the optimizer does not count them itself
    :param products: what the feature schema asks for beside the first :data:`gns.features.statistics.NUM_SUMS`
    """
    if sum(p.numel() for p in parameters) >= PIECEWISE_FROM and _all_plain(optimizer, parameters, gradients):
        piece = max(_PIECE, _PIECE_OF_THREAD * torch.get_num_threads())
        return piecewise_sums(optimizer, parameters, gradients, steps, piece, products)
    places = _by_device(parameters)
    parts = [
        foreach_sums(optimizer, [parameters[i] for i in chosen], [gradients[i] for i in chosen], steps, products)
        for chosen in places
    ]
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(np.concatenate(places))
    return Sums(
        _joined([part.sums for part in parts], places),
        np.concatenate([part.momentum_scale for part in parts])[back],
        np.concatenate([part.second_scale for part in parts])[back],
    )


def beside(numbers: Sequence[Tensor]) -> Tensor:
    """Return P tensors without dimensions as one of shape (P,) on the first's device, with one copy a device."""
    places = _by_device(numbers)
    return _joined([torch.stack([numbers[i] for i in chosen]) for chosen in places], places)


def _by_device(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the numbers of the tensors on each device, in order of first appearance."""
    places: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(i)
    return list(places.values())


def _joined(parts: list[Tensor], places: list[list[int]]) -> Tensor:
    """Return rows that were computed by device as one tensor on the first device, in the order of the tensors."""
    if len(parts) == 1:
        return parts[0]
    rows = torch.cat([part.to(parts[0].device, non_blocking=True) for part in parts])
    return rows[torch.from_numpy(np.argsort(np.concatenate(places))).to(rows.device)]


# ---------------------------------------------------------------------- by whole tensors


def foreach_sums(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    steps: int,
    products: _Products = (),
) -> Sums:
    """Return what :func:`read_sums` does, by whole tensors."""
    moments = read_moments(optimizer, parameters, gradients, steps)
    weights = [as_real(p.detach()) for p in parameters]
    pairs = zip(gradients, weights, strict=True)
    present = [as_real(g.detach()) if g is not None else torch.zeros_like(w) for g, w in pairs]
    sums = tensor_sums(weights, present, moments.momenta, moments.seconds, moments.updates, products)
    return Sums(sums, moments.momentum_scale, moments.second_scale)


def tensor_sums(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor] | None,
    seconds: Sequence[Tensor] | None,
    updates: Sequence[Tensor] | None,
    products: _Products = (),
) -> Tensor:
    """Return the sums of P parameter tensors on their own device, without synchronising with the host.

    :param weights: P tensors
    :param gradients: gradients, of the same shapes
    :param momenta: momentum of the optimizer, or None if it keeps none (yet)
    :param seconds: second moments, or None: the squared gradient stands in
    :param updates: the coming update at a learning rate of 1, or None if it is not known
    :param products: further sums, of products of two of these
    :return: float32 tensor (P, NUM_SUMS + Q)
    """
    squares = [_powsum(weights, 2), _powsum(gradients, 1), _powsum(gradients, 2)]
    zeros = torch.zeros_like(squares[0])
    columns = [
        _total(weights),
        *squares,
        _dot(gradients, momenta) if momenta is not None else zeros,
        _powsum(momenta, 2) if momenta is not None else zeros,
        _total(seconds) if seconds is not None else squares[2],
        _powsum(updates, 2) if updates is not None else zeros,
    ]
    factors = {"weight": weights, "gradient": gradients, "momentum": momenta, "second": seconds, "update": updates}
    if products and seconds is None:
        factors["second"] = torch._foreach_mul(_wide(gradients), _wide(gradients))
    for left, right in products:
        a, b = factors[left], factors[right]
        columns.append(_dot(a, b) if a is not None and b is not None else zeros)
    return torch.stack(columns, dim=-1)


def _powsum(tensors: Sequence[Tensor], power: int) -> Tensor:
    """Sum of ``|x|^power`` of each tensor: (P,)."""
    return torch.stack(list(torch._foreach_powsum(list(tensors), power, dtype=torch.float32)))


def _total(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of each tensor: (P,)."""
    return torch.stack([t.sum(dtype=torch.float32) for t in tensors])


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum of the products of each pair of tensors: (P,)."""
    return _total(torch._foreach_mul(_wide(left), _wide(right)))


def _wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """At least float32: products of half-precision numbers soon leave their range."""
    return [t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for t in tensors]


# ---------------------------------------------------------------------- in pieces


@torch.no_grad()
def piecewise_sums(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    steps: int,
    piece: int,
    products: _Products = (),
) -> Sums:
    """Return what :func:`read_sums` does, piece by piece; pieces are added up in float64.

    :param piece: scalars of a piece
    """
    known, scratch = optimizer_kind(optimizer), torch.empty(4, piece, dtype=torch.float32, device="cpu").unbind()
    momentum_scale, second_scale = np.ones(len(parameters)), np.ones(len(parameters))
    count = sum(max(1, -(-as_real(p).numel() // piece)) for p in parameters)
    # Made at once: a number kept of each piece would lie where the next needs room, and memory would grow by every one.
    sums_of_pieces = torch.empty(count, NUM_SUMS + len(products), dtype=torch.float32, device="cpu")
    tensor_of_pieces: list[int] = []
    parts = [(known, group, chosen) for group, chosen in split_alike(optimizer, parameters, gradients)]
    held = {i for _, _, chosen in parts for i in chosen}
    parts.append(("other", {}, [i for i in range(len(parameters)) if i not in held]))
    for kind, group, chosen in parts:
        states = [real_state(optimizer, parameters[i]) if i in held else {} for i in chosen]
        if kind == "other":  # what stands for momentum is chosen for all alike
            momenta = first_momentum(states, [as_real(parameters[i]) for i in chosen])
            states = [{"momentum_buffer": m} for m in momenta] if momenta else [{}] * len(chosen)
        read = _adam_reader(kind, group, states, [as_real(parameters[i]) for i in chosen], steps)
        if read is None:
            read = partial(_read_any, kind, group, steps)
        for i, state in zip(chosen, states, strict=True):
            for w, g, piece_state in _pieces(parameters[i], gradients[i], state, piece):
                buffers = scratch if len(w) == piece else [buffer[: len(w)] for buffer in scratch]
                found = read(w, torch.zeros_like(w) if g is None else g, piece_state, buffers)
                row = sums_of_pieces[len(tensor_of_pieces)]
                torch.stack(_sums_of_piece(w, g, found, buffers[0], products), out=row)
                tensor_of_pieces.append(i)
                momentum_scale[i], second_scale[i] = found.momentum_scale, found.second_scale
    sums = torch.zeros(len(parameters), NUM_SUMS + len(products), dtype=torch.float64, device="cpu")
    if tensor_of_pieces:
        sums.index_add_(0, torch.tensor(tensor_of_pieces, device="cpu"), sums_of_pieces.double())
    return Sums(sums.float(), momentum_scale, second_scale)


def _all_plain(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
) -> bool:
    """Whether all tensors are dense ones on the CPU, of no class of their own, so that pieces of them are too."""
    held = (value for p in parameters for value in optimizer.state.get(p, {}).values() if isinstance(value, Tensor))
    return all(
        type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and t.layout is torch.strided
        for t in (*parameters, *(g for g in gradients if g is not None), *held)
    )


def _pieces(
    parameter: Tensor, gradient: Tensor | None, state: _State, piece: int
) -> Iterator[tuple[Tensor, Tensor | None, _State]]:
    """Yield pieces of a parameter, its gradient and its state, flat and alike in order.

    Views, but for a tensor that lies in memory in another order than the parameter, which is copied.
    """
    parameter, gradient = as_real(parameter), None if gradient is None else as_real(gradient)
    order = None
    if not parameter.is_contiguous():
        order = sorted(range(parameter.dim()), key=parameter.stride, reverse=True)

    def split(tensor: Tensor) -> Sequence[Tensor]:
        tensor = tensor.detach()
        flat = (tensor if order is None else tensor.permute(order)).reshape(-1)
        return [flat] if flat.shape[0] <= piece else flat.split(piece)

    large = {key: split(t) for key, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape}
    weights = split(parameter)
    gradients: Sequence[Tensor | None] = split(gradient) if gradient is not None else [None] * len(weights)
    for place, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        yield w, g, state | {key: parts[place] for key, parts in large.items()}


def _sums_of_piece(w: Tensor, g: Tensor | None, found: _Piece, buffer: Tensor, products: _Products) -> list[Tensor]:
    """Return the sums of one piece, scalars in the order of the columns."""
    zero = w.new_zeros((), dtype=torch.float32)
    w = w.float()
    sums_of_w = [w.sum(), torch.dot(w, w)]
    if g is None:
        sums_of_g = [zero, zero]
    else:
        g = g.float()
        sums_of_g = [torch.abs(g, out=buffer).sum(), torch.dot(g, g)]
    sums_of_m = [zero, zero]
    if found.momentum is not None:
        m = found.momentum.float()
        sums_of_m = [torch.dot(g, m) if g is not None else zero, torch.dot(m, m)]
    sum_of_v = found.second.float().sum() if found.second is not None else sums_of_g[1]
    sum_of_u2 = zero
    if found.update is not None and g is not None:
        u = found.update.float()
        sum_of_u2 = torch.dot(u, u) * found.factor**2
    sums = [*sums_of_w, *sums_of_g, *sums_of_m, sum_of_v, sum_of_u2]
    return [*sums, *_products_of_piece(w, g, found, products)] if products else sums


def _products_of_piece(w: Tensor, g: Tensor | None, found: _Piece, products: _Products) -> list[Tensor]:
    """Return the further sums of one piece."""
    update = None if found.update is None or g is None else found.update.float() * found.factor
    g = torch.zeros_like(w) if g is None else g.float()
    second = g * g if found.second is None else found.second
    factors = {"weight": w, "gradient": g, "momentum": found.momentum, "second": second, "update": update}
    pairs = [(factors[left], factors[right]) for left, right in products]
    zero = w.new_zeros((), dtype=torch.float32)
    return [torch.dot(a.float(), b.float()) if a is not None and b is not None else zero for a, b in pairs]


def _read_any(
    kind: str, group: dict[str, Any], steps: int, w: Tensor, g: Tensor, state: _State, _: Sequence[Tensor]
) -> _Piece:
    """Read a piece as whole tensors are read."""
    ms, vs, us, *scales = read_alike(kind, group, [state], [w], [g], steps)
    return _Piece(ms[0] if ms else None, vs[0] if vs else None, us[0] if us else None, 1.0, *scales)


def _adam_reader(
    kind: str, group: dict[str, Any], states: list[_State], parameters: list[Tensor], steps: int
) -> _Reader | None:
    """Return what reads a piece for Adam and AdamW as they are mostly used, without new memory; None in other cases.

    With n = beta1 m + (1 - beta1) g, s = v + (1 - beta2)/beta2 g^2 and c = sqrt((1 - beta2^t)/beta2), the update is
    ``c/(1 - beta1^t) * n/(sqrt(s) + c eps)``, t being the number of the coming update; ``g/(|g| + eps)`` is the first.
    """
    dtypes = {t.dtype for t in (*parameters, *(s[k] for s in states for k in ("exp_avg", "exp_avg_sq") if k in s))}
    if kind not in ("adam", "adamw") or group.get("maximize") or group.get("amsgrad") or dtypes != {torch.float32}:
        return None
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if beta2 < 0.1:  # the formula divides by it
        return None
    done = counted_steps(states[0]["step"], steps) if all("exp_avg" in state for state in states) else 0
    decoupled, decay = is_decoupled(kind, group), float(group["weight_decay"])
    c = ((1.0 - beta2 ** (done + 1)) / beta2) ** 0.5 if done else 1.0
    factor = c / (1.0 - beta1 ** (done + 1)) if done else 1.0
    small = c * float(group["eps"])
    scales = adam_scales(group, done)

    def read(w: Tensor, g: Tensor, state: _State, buffers: Sequence[Tensor]) -> _Piece:
        _, direction, n, s = buffers
        if decay and not decoupled:
            g = torch.add(g, w, alpha=decay, out=direction)
        if done:
            m, v = state["exp_avg"], state["exp_avg_sq"]
            torch.addcmul(v, g, g, value=(1.0 - beta2) / beta2, out=s)
            torch.lerp(m, g, 1.0 - beta1, out=n)
            # The square root as 1/(1/sqrt(s)): MKL's takes five times as long on zeros, thirty on denormal numbers.
            n.div_(s.rsqrt_().reciprocal_().add_(small))
        else:
            m = v = None
            torch.div(g, torch.abs(g, out=s).add_(small), out=n)
        if decay and decoupled:
            n.add_(w, alpha=decay / factor)
        return _Piece(m, v, n, factor, *scales)

    return read
