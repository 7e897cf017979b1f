"""Optimizers of runs side by side do what ``torch.optim`` does to each of them alone."""

import pytest
import torch

from envs.batched.optimizers import BATCHED_OPTIMIZERS, BatchedOptimizer
from envs.training_run import OPTIMIZERS
from gns import UnknownNameError

RUNS, SIZE, UPDATES = 5, 37, 100


class Alone:
    """The readable twin: a ``torch.optim`` optimizer a run."""

    def __init__(self, name: str, parameters: torch.Tensor) -> None:
        self.rows = [torch.nn.Parameter(row.clone()) for row in parameters]
        self.optimizers = [OPTIMIZERS[name]([row], 1.0) for row in self.rows]

    def step(self, gradients, rates, active) -> None:
        for row, optimizer, gradient, rate, wanted in zip(
            self.rows, self.optimizers, gradients, rates.tolist(), active.tolist(), strict=True
        ):
            if wanted:
                row.grad = gradient.clone()
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()

    def begin(self, number: int) -> None:
        self.optimizers[number].state.clear()


def numbers(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def largest_difference(batched: BatchedOptimizer, alone: Alone) -> float:
    """Over the largest weight."""
    twin = torch.stack([row.detach() for row in alone.rows])
    return float((batched.parameters - twin).abs().max() / twin.abs().max())


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_every_run_is_trained_as_by_torch_alone(name, dtype, bound):
    """Rates differ between runs and updates; some updates leave some runs out; a run begins anew in between."""
    start = numbers(0, RUNS, SIZE, dtype=dtype)
    batched, alone = BatchedOptimizer(name, start.clone()), Alone(name, start)
    for t in range(UPDATES):
        gradients = numbers(t + 1, RUNS, SIZE, dtype=dtype) + 0.3 * batched.parameters
        rates = 10.0 ** (numbers(1000 + t, RUNS) / 2 - 2.0)
        active = torch.rand(RUNS, generator=torch.Generator().manual_seed(t)) < (1.0 if t % 3 else 0.6)
        rows = slice(RUNS) if active.all() and t % 2 else active.nonzero().squeeze(1)
        batched.step(gradients[rows], rates[rows], rows)
        alone.step(gradients, rates, active)
        if t == 40:
            batched.begin(torch.tensor([1, 3]))
            alone.begin(1)
            alone.begin(3)
    assert largest_difference(batched, alone) < bound


def test_there_is_one_for_every_optimizer_of_a_training_run():
    assert sorted(BATCHED_OPTIMIZERS) == sorted(OPTIMIZERS)
    for name, settings in BATCHED_OPTIMIZERS.items():
        group = OPTIMIZERS[name]([torch.nn.Parameter(torch.zeros(1))], 1.0).param_groups[0]
        for setting in ("momentum", "weight_decay", "betas", "eps", "momentum_decay", "decoupled_weight_decay"):
            if setting in group:
                assert getattr(settings, setting) == group[setting]


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UnknownNameError, match="Unknown optimizer for runs side by side 'lion'"):
        BatchedOptimizer("lion", torch.zeros(1, 1))
