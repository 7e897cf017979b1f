"""A model over several devices: sums by device, gathered by one copy each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_sums import compute_gradients, every_optimizer, make, parameters
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._pytree import tree_map

from gns import DecisionConfig, GNSPolicy, GNSScheduler, GuardConfig, NetworkConfig, PolicyConfig
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
            if isinstance(value, Tensor):
                return given[id(value)] if id(value) in given else Elsewhere(value)
            return value

        if function.name().startswith("aten::_foreach") and len({t.device for t in args[0]}) > 1:
            # As PyTorch does where a list is of several devices: one after the other.
            of_each = zip(
                *(arg if isinstance(arg, list | tuple) else [arg] * len(args[0]) for arg in args), strict=True
            )
            parts = [
                function(*([value] if isinstance(value, Tensor | float) else value for value in one)) for one in of_each
            ]
            return None if parts[0] is None else [part for (part,) in parts]
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


# ---------------------------------------------------------------------- a run of a model in stages


class Over(Function):
    """To the second device and, backwards, home."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return Elsewhere(x.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Tensor:
        return gradient.inner.clone()


class Home(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        return x.inner.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Elsewhere(gradient.clone())


class Stages(nn.Module):
    """Three stages, of which the second may lie elsewhere."""

    def __init__(self, spread: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.over, self.home = (Over.apply, Home.apply) if spread else (lambda x: x, lambda x: x)
        for name, parameter in list(self.middle.named_parameters()):
            setattr(self.middle, name, nn.Parameter(moved(parameter, spread)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.home(torch.tanh(self.middle(self.over(self.first(x))))))


def rates_and_rollbacks(spread: bool, kind: type[torch.optim.Optimizer]) -> tuple[list[float], list[bool]]:
    policy = GNSPolicy(PolicyConfig(NetworkConfig(hidden=4, head=4, type_embedding=2), DecisionConfig(num_decisions=5)))
    model, rates = Stages(spread), []
    optimizer = kind(model.parameters(), lr=0.01)
    scheduler = GNSScheduler(optimizer, model, 25, policy=policy, guard=GuardConfig())
    for t, x in enumerate(torch.randn(25, 8, 3, generator=torch.Generator().manual_seed(1))):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step(loss * (torch.inf if t == 9 else 1.0))
        rates.append(scheduler.get_last_lr()[0])
    return rates, [record.rollback for record in scheduler.history]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])  # one of known updates, one of measured ones
def test_a_model_in_stages_on_two_devices_is_scheduled_and_taken_back_as_on_one(kind):
    torch.manual_seed(0)
    expected, rollbacks = rates_and_rollbacks(False, kind)
    torch.manual_seed(0)
    found = rates_and_rollbacks(True, kind)
    assert found == (pytest.approx(expected, rel=1e-9), rollbacks) and sum(rollbacks) == 1
