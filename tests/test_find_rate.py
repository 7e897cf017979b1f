"""The learned rate finder: what it reads off a curve, that it leaves no trace, and that its advice is used."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import gns
from gns import InvalidSettingError, UnknownNameError
from gns.schedules.calibrated import calibration
from gns.tools.find_rate import READINGS, UPDATES, range_test, readings

RATES = np.geomspace(1e-6, 10.0, UPDATES)


def curve(lowest: float, edge: float, depth: float = 1.0) -> np.ndarray:
    """Losses that fall from 1 to exp(-depth) at a rate, and blow up at another."""
    decades = np.log10(np.concatenate([RATES[:1], RATES]))
    fall = np.clip((decades - math.log10(lowest) + 1.0), 0.0, 1.0) * depth
    return np.where(decades > math.log10(edge), 50.0, np.exp(-fall))


@pytest.mark.parametrize(("lowest", "edge"), [(1e-3, 1e-1), (1e-2, 1.0), (1e-4, 1e-3)])
def test_a_curve_is_read_where_it_turns(lowest, edge):
    read = dict(zip(READINGS, readings(RATES, curve(lowest, edge)).tolist(), strict=True))
    assert math.log10(lowest) - 0.1 <= read["lowest"] <= math.log10(edge) + 0.1
    assert read["edge"] == pytest.approx(math.log10(edge), abs=0.25)
    assert read["first_fall"] == pytest.approx(math.log10(lowest) - 1.0, abs=0.5)
    assert -1.0 <= read["depth"] <= -0.4 and read["log_start"] == pytest.approx(0.0, abs=1e-6)


def test_one_early_outlier_moves_nothing():
    losses = curve(1e-2, 1.0)
    spoiled = losses.copy()
    spoiled[3] = 1e12
    assert readings(RATES, spoiled)[:4] == pytest.approx(readings(RATES, losses)[:4], abs=0.15)


def parts(kind=torch.optim.Adam, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
    x = torch.randn(64, 8)
    batches = [(part, part[:, :3].argmax(dim=1)) for part in x.split(16)]
    groups = [
        {"params": model[0].parameters(), "lr": 0.2},
        {"params": [*model[1].parameters(), *model[4].parameters()]},
    ]
    return model, kind(groups, lr=0.1, **settings), batches


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(
    ("kind", "settings"), [(torch.optim.Adam, {}), (torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})]
)
def test_the_test_is_undone_and_its_advice_lies_below_the_edge(kind, settings):
    model, optimizer, batches = parts(kind, **settings)
    loss_of(model, batches[0]).backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    random = torch.get_rng_state()
    advice = gns.find_rate(model, optimizer, batches, loss_of, total_steps=500)
    assert torch.equal(random, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[0][name]), name
    now = optimizer.state_dict()
    assert now["param_groups"] == before[1]["param_groups"]
    for number, state in before[1]["state"].items():
        for name, value in state.items():
            assert (
                torch.equal(now["state"][number][name], value)
                if value is not None
                else now["state"][number][name] is None
            )
    assert advice.rates[0] < advice.low < advice.rate < advice.high and advice.rate < advice.edge
    assert advice.high / advice.rate == pytest.approx(10.0 ** calibration()["range"]["spread"])


def test_advice_is_applied_by_ratio_and_drawn(tmp_path):
    model, optimizer, batches = parts()
    advice = gns.find_rate(model, optimizer, batches, loss_of, total_steps=500)
    advice.apply(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([advice.rate, advice.rate / 2.0])
    advice.plot(tmp_path / "test.png")
    assert (tmp_path / "test.png").stat().st_size > 5_000


def test_what_cannot_be_tested_is_named_and_leaves_no_trace():
    model, optimizer, batches = parts()
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidSettingError, match="batches is empty"):
        gns.find_rate(model, optimizer, [], loss_of, 100)
    with pytest.raises(InvalidSettingError, match="batches ended early"):
        gns.find_rate(model, optimizer, iter(batches), loss_of, 100)
    with pytest.raises(InvalidSettingError, match="total_steps"):
        gns.find_rate(model, optimizer, batches, loss_of, 0)
    with pytest.raises(UnknownNameError, match="kind of optimizer with a calibrated rate"):
        gns.find_rate(model, torch.optim.RMSprop(model.parameters()), batches, loss_of, 100)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_test_ends_where_the_loss_is_lost():
    _, optimizer, _ = parts()
    seen = []

    def update(rate: float) -> float:
        seen.append(rate)
        return math.nan if rate > 1e-2 else 1.0

    rates, losses = range_test(optimizer, update, lambda: 1.0)
    assert len(seen) < UPDATES == len(rates) and np.isinf(losses[len(seen) - 1 :]).all()
