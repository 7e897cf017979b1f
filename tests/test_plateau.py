"""The plateau rule reduces when PyTorch's ReduceLROnPlateau does."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gns import InvalidSettingError, UnknownNameError
from gns.schedules.plateau import Plateau


def pytorchs(losses, *, min_factor: float = 0.0, initial_lr: float = 1.0, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=initial_lr)
    scheduler = ReduceLROnPlateau(optimizer, min_lr=min_factor * initial_lr, **settings)
    rates = []
    for loss in losses:
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def ours(losses, **settings) -> list[float]:
    plateau = Plateau(**settings)
    multipliers = []
    for loss in losses:
        before = plateau.multiplier
        fell = plateau.step(loss)
        assert fell == (plateau.multiplier < before)
        multipliers.append(plateau.multiplier)
    return multipliers


@st.composite
def series_and_settings(draw):
    mode = draw(st.sampled_from(["min", "max"]))
    worst = math.inf if mode == "min" else -math.inf
    steps = st.sampled_from([1.0, 0.99, 0.9995, 0.5, -1.0, 2.0, 0.0, worst, math.nan])  # near thresholds, both signs
    losses = draw(st.lists(steps | st.floats(-3, 3) | st.floats(allow_infinity=False), min_size=1, max_size=60))
    settings = {
        "mode": mode,
        "factor": draw(st.sampled_from([0.1, 0.5, 0.9])),
        "patience": draw(st.integers(0, 4)),
        "threshold": draw(st.sampled_from([0.0, 1e-4, 0.01, 0.5])),
        "threshold_mode": draw(st.sampled_from(["rel", "abs"])),
        "cooldown": draw(st.integers(0, 4)),
        "min_factor": draw(st.sampled_from([0.0, 1e-3, 0.3])),
        "eps": draw(st.sampled_from([0.0, 1e-8, 0.04])),
    }
    return losses, settings


@examples(max_examples=400)
@given(series_and_settings())
def test_the_multiplier_is_pytorchs_rate_from_1(drawn):
    losses, settings = drawn
    assert ours(losses, **settings) == pytorchs(losses, **settings)


def test_the_defaults_are_pytorchs():
    losses = [1.0, *[0.99995] * 40, 0.5, *[0.6] * 30, math.nan, *[0.7] * 80]
    multipliers = ours(losses)
    assert multipliers == pytorchs(losses)
    assert len(set(multipliers)) > 8


def test_of_another_initial_rate_it_is_a_share():
    losses = [1.0, *[2.0] * 30]
    expected = [rate / 0.03 for rate in pytorchs(losses, initial_lr=0.03, patience=4, min_factor=0.002, eps=0.0)]
    assert ours(losses, patience=4, min_factor=0.002, eps=0.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("mode", "good"), [("min", -math.inf), ("max", math.inf)])
def test_an_infinite_loss_is_never_the_best(mode, good):
    """PyTorch takes it, and nothing is an improvement ever after."""
    losses = [1.0, good, 1.0, 1.0, 1.0]
    assert ours(losses, mode=mode, patience=2) == [1.0, 1.0, 1.0, 0.1, 0.1]
    plateau = Plateau(mode=mode, patience=2)
    for loss in losses:
        plateau.step(loss)
    assert plateau.best == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_losses_that_are_not_finite_count_as_bad(bad):
    plateau = Plateau(patience=2, factor=0.5)
    assert [plateau.step(bad) for _ in range(7)] == [False, False, True, False, False, True, False]
    assert plateau.multiplier == 0.25


def test_losses_within_a_cooldown_do_not_count():
    multipliers = ours([1.0] * 12, patience=1, cooldown=3, factor=0.5)
    assert multipliers == [1.0, 1.0, *[0.5] * 5, *[0.25] * 5]


@examples(max_examples=100)
@given(series_and_settings(), st.data())
def test_a_plateau_goes_on_from_its_state(drawn, data):
    losses, settings = drawn
    at = data.draw(st.integers(0, len(losses)))
    first, second = Plateau(**settings), Plateau(**settings)
    for loss in losses[:at]:
        first.step(loss)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.step(loss) for loss in losses[at:]] == [first.step(loss) for loss in losses[at:]]
    assert second.state_dict() == first.state_dict()


def test_a_state_of_something_else_is_refused():
    plateau = Plateau()
    with pytest.raises(InvalidSettingError, match=r"entries \['best'\]; expected \['bad', 'best'"):
        plateau.load_state_dict({"best": 1.0})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("factor", [0, 1, 1.5, math.nan, "0.1"]),
        ("patience", [-1, 1.5, math.inf, True]),
        ("cooldown", [-1, 0.5, None]),
        ("threshold", [-1e-9, math.nan, math.inf]),
        ("min_factor", [-0.1, 1.1, math.nan]),
        ("eps", [-1, math.nan]),
    ],
)
def test_settings_outside_their_domain_are_refused(name, values):
    for value in values:
        with pytest.raises(InvalidSettingError, match=f"{name} is .*; expected a"):
            Plateau(**{name: value})


def test_unknown_modes_list_the_known():
    with pytest.raises(UnknownNameError, match="Unknown mode 'low'; expected one of: max, min"):
        Plateau(mode="low")
    with pytest.raises(UnknownNameError, match="Unknown threshold mode 'relative'; expected one of: abs, rel"):
        Plateau(threshold_mode="relative")
