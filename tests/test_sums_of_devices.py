"""A model over several devices: sums by device, gathered by one copy each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from test_sums import compute_gradients, every_optimizer, make, parameters
from torch import Tensor
from torch.utils._pytree import tree_map

from gns.features.sums import beside, read_sums
from gns.parallel.distributed import local_optimizer

aten = torch.ops.aten


class Elsewhere(Tensor):
    """A tensor on a second device, made up: it says that it is on ``meta``, and yet has numbers; it mixes with none."""

    copies = 0

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device="meta")

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
            cls.copies += 1
            return args[0].inner.clone()
        given: dict[int, Tensor] = {}

        def inside(value: Any) -> Any:
            if isinstance(value, Elsewhere):
                given[id(value.inner)] = value
                return value.inner
            assert not (isinstance(value, Tensor) and value.dim()), f"tensors of two devices in {function}"
            return torch.device("cpu") if value == torch.device("meta") else value

        def outside(value: Any) -> Any:
            return given.get(id(value)) or Elsewhere(value) if isinstance(value, Tensor) else value

        return tree_map(outside, function(*tree_map(inside, args), **tree_map(inside, kwargs)))


def moved(tensor: Any, elsewhere: bool) -> Any:
    stays = not isinstance(tensor, Tensor) or not elsewhere or tensor.dim() == 0
    return tensor if stays else Elsewhere(tensor.detach())


@every_optimizer
def test_sums_of_tensors_on_two_devices_are_those_of_one(name):
    tensors = [p for p in parameters() if p.dim()]
    optimizer = make(name, tensors)
    for t in range(3):
        compute_gradients(tensors, t)
        optimizer.step()
    compute_gradients(tensors, 3)
    tensors[1].grad = None
    expected = read_sums(optimizer, tensors, [p.grad for p in tensors], 3)
    there = [number % 2 == 1 for number in range(len(tensors))]
    places = [moved(p, away) for p, away in zip(tensors, there, strict=True)]
    gradients = [moved(p.grad, away) for p, away in zip(tensors, there, strict=True)]
    alike = local_optimizer(optimizer, tensors, places)
    state = {
        place: {key: moved(value, away) for key, value in optimizer.state[p].items()}
        for p, place, away in zip(tensors, places, there, strict=True)
        if p in optimizer.state
    }
    Elsewhere.copies = 0
    read = read_sums(replace(alike, state=state), places, gradients, 3)
    assert Elsewhere.copies == 1 and torch.equal(read.sums, expected.sums)  # beside the first tensor
    assert (read.momentum_scale == expected.momentum_scale).all() and (read.second_scale == expected.second_scale).all()


def test_numbers_of_two_devices_are_put_together_in_their_order():
    numbers = [torch.tensor(float(i)) if i % 3 else Elsewhere(torch.tensor(float(i))) for i in range(7)]
    Elsewhere.copies = 0
    assert torch.equal(beside(numbers[1:]), torch.arange(1.0, 7.0)) and Elsewhere.copies == 1
