"""Profiles equal their closed forms, and PyTorch's schedules where it has them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from gns import UnknownNameError
from gns.profiles import PROFILES, get_profile, onecycle_momentum

PEAK = 0.3
POINTS = np.linspace(0.0, 1.0, 1001).tolist()
CLOSED_FORMS = {
    "constant": lambda z: 1.0,
    "step": lambda z: 0.1 ** ((z >= 0.5) + (z >= 0.75)),
    "linear": lambda z: 1 - z,
    "cosine": lambda z: math.cos(math.pi * z / 2) ** 2,
    "exponential": lambda z: math.e ** (-3 * z),
    "onecycle": lambda z: 1 - 0.9 * abs(2 * z - 1),
    "rex": lambda z: 2 * (1 - z) / (2 - z),
}


def schedule(name: str, optimizer: torch.optim.Optimizer, budget: int) -> lr_scheduler.LRScheduler:
    """PyTorch's own schedule of that name."""
    if name == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=budget)
    if name == "step":
        return lr_scheduler.MultiStepLR(optimizer, milestones=[budget // 2, 3 * budget // 4], gamma=0.1)
    if name == "linear":
        return lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=budget)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=budget)
    if name == "exponential":
        return lr_scheduler.ExponentialLR(optimizer, gamma=math.exp(-3 / budget))
    return lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=PEAK,
        total_steps=budget + 1,
        pct_start=(budget / 2 + 1) / (budget + 1),
        anneal_strategy="linear",
        div_factor=10,
        final_div_factor=1,
        base_momentum=0.85,
        max_momentum=0.95,
    )


def rates_and_momenta(name: str, budget: int) -> tuple[list[float], list[float]]:
    """What PyTorch sets for updates 0 to ``budget``, the last of which nobody makes."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK, momentum=0.9)
    pytorch = schedule(name, optimizer, budget)
    rates, momenta = [], []
    for t in range(budget + 1):
        group = optimizer.param_groups[0]
        rates.append(group["lr"])
        momenta.append(group["momentum"])
        optimizer.step()
        if t < budget:
            pytorch.step()
    return rates, momenta


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_equals_its_closed_form(name):
    profile = get_profile(name)
    assert [profile(z) for z in POINTS] == pytest.approx([CLOSED_FORMS[name](z) for z in POINTS], rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("budget", [8, 100, 300])
@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"rex"}))
def test_a_profile_equals_pytorchs_schedule(name, budget):
    rates, _ = rates_and_momenta(name, budget)
    profile = get_profile(name)
    assert [PEAK * profile(t / budget) for t in range(budget + 1)] == pytest.approx(rates, rel=0, abs=1e-12)


@pytest.mark.parametrize("budget", [8, 100, 300])
def test_the_momentum_of_one_cycle_equals_pytorchs(budget):
    _, momenta = rates_and_momenta("onecycle", budget)
    assert [onecycle_momentum(t / budget) for t in range(budget + 1)] == pytest.approx(momenta, rel=0, abs=1e-12)
    assert min(momenta) == pytest.approx(0.85) and max(momenta) == pytest.approx(0.95)


def test_rex_falls_from_1_to_0_ever_faster():
    values = np.array([get_profile("rex")(z) for z in POINTS])
    assert (values[0], values[500], values[-1]) == (1.0, pytest.approx(2 / 3), 0.0)
    steps = np.diff(values)
    assert (steps < 0).all() and (np.diff(steps) < 0).all()
    assert (values[1:-1] > 1 - np.array(POINTS[1:-1])).all()  # above the linear one, which is why it is "reflected"


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"onecycle"}))
@settings(deadline=None, derandomize=True, max_examples=100)
@given(z=st.floats(0, 1), later=st.floats(0, 1))
def test_profiles_start_at_1_and_never_rise(name, z, later):
    profile = get_profile(name)
    assert profile(0.0) == 1.0
    z, later = sorted((z, later))
    assert 0.0 <= profile(later) <= profile(z) <= 1.0


@settings(deadline=None, derandomize=True, max_examples=100)
@given(z=st.floats(0, 1))
def test_one_cycle_stays_between_a_tenth_and_its_peak_at_half_time(z):
    profile = get_profile("onecycle")
    assert (profile(0.0), profile(0.5), profile(1.0)) == (pytest.approx(0.1), 1.0, pytest.approx(0.1))
    assert 0.1 <= profile(z) <= 1.0
    assert profile(1.0 - z) == pytest.approx(profile(z), abs=1e-12)


@pytest.mark.parametrize(("name", "hint"), [("cosin", "Did you mean 'cosine'"), ("zigzag", "")])
def test_an_unknown_profile_lists_the_known(name, hint):
    known = ", ".join(sorted(PROFILES))
    with pytest.raises(UnknownNameError, match=f"Unknown profile '{name}'; expected one of: {known}.*{hint}"):
        get_profile(name)
