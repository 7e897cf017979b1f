"""How far a run has travelled: exact where a sketch holds a whole tensor, else near, and kept over a resume."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from gns import DecisionConfig, DecisionCore, layer_graph
from gns.features.travel import GRADIENT2, SKETCHED, TRAVEL2, sketch, spacing, travel_sums


@pytest.mark.parametrize("count", [0, 1, 7, SKETCHED, 2 * SKETCHED, 3 * SKETCHED + 1, 768 * 3072, 2**20])
def test_a_sketch_is_small_and_meets_every_row_and_column(count):
    step = spacing(count)
    kept = len(range(0, count, step))
    assert kept <= 2 * SKETCHED and (step == 1) == (count < 2 * SKETCHED)
    assert step == 1 or math.gcd(step, count) == 1


def test_sums_of_small_tensors_are_exact():
    torch.manual_seed(0)
    start, now, gradients = ([torch.randn(3, 5), torch.randn(())] for _ in range(3))
    sums = travel_sums([x.clone() for x in sketch(start)], now, gradients).double()
    for row, x0, x, g in zip(sums, start, now, gradients, strict=True):
        d = x - x0
        expected = [float((a * b).sum()) for a, b in ((x0, x0), (d, d), (g, d), (g, g))]
        assert row.tolist() == pytest.approx(expected, rel=1e-5)


def test_sums_of_large_tensors_are_near_whatever_their_layout():
    torch.manual_seed(0)
    x0, x, g = (torch.randn(64, 32, 5, 5) for _ in range(3))
    whole = [float((x - x0).square().sum()), float(g.square().sum())]
    for form in (torch.contiguous_format, torch.channels_last):
        start, now = x0.to(memory_format=form), x.to(memory_format=form)
        sums = travel_sums([part.clone() for part in sketch([start])], [now], [g])[0]
        assert [float(sums[TRAVEL2]), float(sums[GRADIENT2])] == pytest.approx(whole, rel=0.1)


def test_a_tensor_without_a_gradient_or_without_scalars_counts_as_nothing():
    start, now = [torch.ones(2), torch.ones(0)], [torch.zeros(2), torch.ones(0)]
    assert travel_sums(start, now, [None, None]).tolist() == [[2.0, 2.0, 0.0, 0.0], [0.0] * 4]


def core_of(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> DecisionCore:
    graph = layer_graph(model, model(x).sum())
    return DecisionCore(model, optimizer, graph, 40, DecisionConfig(mode="prior", num_decisions=8, features="gns-2"))


def train(core: DecisionCore, x: torch.Tensor, updates: int) -> list[np.ndarray]:
    """Go on with a run, and return what was observed at each update."""
    seen = []
    for _ in range(updates):
        core.optimizer.zero_grad()
        loss = core.model(x).square().mean()
        loss.backward()
        observed = core.observe()
        seen.append(np.concatenate([observed.nodes.ravel(), observed.globals]))
        if core.decision_due:
            core.decide(0.1)
        core.set_rates()
        core.optimizer.step()
        core.note_update(loss)
    return seen


def test_a_resumed_run_remembers_its_start():
    torch.manual_seed(0)
    x, model = torch.randn(6, 4), nn.Sequential(nn.Linear(4, 70), nn.Tanh(), nn.Linear(70, 70))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    core = core_of(model, optimizer, x)
    train(core, x, 12)
    state, saved = copy.deepcopy(core.state_dict()), copy.deepcopy((model, optimizer.state_dict()))
    expected = train(core, x, 6)
    again = saved[0]
    other = torch.optim.Adam(again.parameters(), lr=0.1)
    other.load_state_dict(saved[1])
    resumed = core_of(again, other, x)
    resumed.load_state_dict(state)
    np.testing.assert_array_equal(train(resumed, x, 6), expected)
    forgetful = core_of(again, other, x)
    forgetful.load_state_dict({**state, "start": None})
    names = forgetful.config.features
    assert names == "gns-2" and not np.array_equal(train(forgetful, x, 1)[0], expected[0])


def test_a_run_that_stood_still_has_features_of_nothing():
    torch.manual_seed(0)
    x, model = torch.randn(6, 4), nn.Linear(4, 3)
    core = core_of(model, torch.optim.SGD(model.parameters(), lr=0.1), x)
    seen = train(core, x, 1)[0]
    assert np.isfinite(seen).all() and seen[-3:].tolist() == [0.0, 0.0, 0.0]
