"""Kinds of numbers: any default, complex parameters, several kinds in one model."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gns import GNSScheduler, layer_graph
from gns.features.sums import foreach_sums, piecewise_sums

BUDGET = 40
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
    "adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def rates(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, optimizer: str = "adamw") -> list[float]:
    """Rates of a run that the bundled policy decides on."""
    made = OPTIMIZERS[optimizer](model.parameters())
    scheduler = GNSScheduler(made, model, total_steps=BUDGET)
    seen = []
    for _ in range(BUDGET):
        loss = F.cross_entropy(model(inputs).float(), targets)
        made.zero_grad()
        loss.backward()
        made.step()
        scheduler.step(loss)
        seen.append(made.param_groups[0]["lr"])
    return seen


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 12, generator=generator, dtype=torch.float32)
    return inputs, inputs[:, :3].argmax(1)


def network(hidden: int = 24) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, hidden), nn.ReLU(), nn.Linear(hidden, 3))


@pytest.mark.parametrize("hidden", [24, 17_000], ids=["whole tensors", "pieces"])
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
def test_rates_do_not_depend_on_the_default_kind_of_number(default, hidden):
    inputs, targets = data()
    model, twin = network(hidden).float(), network(hidden).float()
    expected = rates(twin, inputs, targets)
    torch.set_default_dtype(default)
    try:
        found = rates(model, inputs, targets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected and len(set(found)) > 20


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_a_model_in_another_kind_of_number_has_nearly_the_rates_of_single_precision(kind):
    inputs, targets = data()
    model, expected = network().to(kind), rates(network(), inputs, targets)
    torch.set_default_dtype(kind)
    try:
        found = rates(model, inputs.to(kind), targets)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(np.log(found), np.log(expected), atol=1e-4 if kind is torch.float64 else 0.3)


def test_several_kinds_in_one_model():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(12, 24).bfloat16(), nn.Linear(24, 3).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x.bfloat16()).relu().double())

    torch.manual_seed(1)
    found = rates(Mixed(), *data())
    np.testing.assert_allclose(np.log(found), np.log(rates(network(), *data())), atol=0.3)


# ---------------------------------------------------------------------- complex parameters


def complex_and_real(name: str) -> tuple[torch.optim.Optimizer, nn.Parameter, torch.optim.Optimizer, nn.Parameter]:
    """An optimizer of a complex tensor after three updates, and one of the same as pairs of real numbers."""
    generator = torch.Generator().manual_seed(0)
    weight, *gradients = (torch.randn(9, 11, dtype=torch.cfloat, generator=generator) for _ in range(5))
    made = []
    for parameter in (nn.Parameter(weight.clone()), nn.Parameter(torch.view_as_real(weight).clone())):
        optimizer = OPTIMIZERS[name]([parameter])
        for gradient in gradients[:3]:
            parameter.grad = gradient.clone() if parameter.is_complex() else torch.view_as_real(gradient).clone()
            optimizer.step()
        last = gradients[3]
        parameter.grad = last.conj().resolve_conj().conj() if parameter.is_complex() else torch.view_as_real(last)
        made += [optimizer, parameter]
    return tuple(made)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complex_numbers_are_read_as_pairs_of_real_ones(name):
    first, of_complex, second, of_real = complex_and_real(name)
    assert of_complex.grad.is_conj()
    for read in (foreach_sums, lambda *given: piecewise_sums(*given, 16)):
        found = read(first, [of_complex], [of_complex.grad], 3)
        expected = read(second, [of_real], [of_real.grad], 3)
        torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=1e-6)
        assert found.sums[0, 1] > 0 and found.momentum_scale == expected.momentum_scale


class Spectral(nn.Module):
    """A layer of complex numbers on the spectrum of its inputs; or of the same numbers as pairs of real ones."""

    def __init__(self, as_pairs: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        weight = 0.3 * torch.randn(7, 3, dtype=torch.cfloat)
        self.weight = nn.Parameter(torch.view_as_real(weight).clone() if as_pairs else weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight if self.weight.is_complex() else torch.view_as_complex(self.weight)
        return (torch.fft.rfft(x) @ weight).abs()


@pytest.mark.parametrize("name", ["sgd", "adamw", "rmsprop"])
def test_a_complex_layer_gets_the_rates_of_its_pairs(name):
    inputs, targets = data()
    complex_layer, pairs = Spectral(as_pairs=False), Spectral(as_pairs=True)
    graphs = [layer_graph(layer, layer(inputs)) for layer in (complex_layer, pairs)]
    assert graphs[0].tensor_sizes == graphs[1].tensor_sizes == (42,) and graphs[0].types == graphs[1].types
    np.testing.assert_allclose(
        rates(complex_layer, inputs, targets, name), rates(pairs, inputs, targets, name), rtol=1e-3
    )
