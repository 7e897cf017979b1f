"""Profiles equal their closed forms, and PyTorch's schedules where it has them."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from gns import InvalidSettingError, UnknownNameError
from gns.schedules.profiles import PROFILES, get_profile, jumps, onecycle_momentum, profile_settings

PEAK = 0.3
POINTS = np.linspace(0.0, 1.0, 1001).tolist()
CLOSED_FORMS = {
    "constant": lambda z: 1.0,
    "step": lambda z: 0.1 ** ((z >= 0.5) + (z >= 0.75)),
    "linear": lambda z: 1 - z,
    "delayed-linear": lambda z: min(1, 2 - 2 * z),
    "polynomial": lambda z: 1 - 2 * z + z * z,
    "cosine": lambda z: math.cos(math.pi * z / 2) ** 2,
    "cosine-restarts": lambda z: math.cos(math.pi / 2 * (4 * z - math.floor(4 * z))) ** 2 if z < 1 else 0,
    "exponential": lambda z: math.e ** (-3 * z),
    "inverse-square-root": lambda z: (1 + 10 * z) ** -0.5,
    "warmup-stable-decay": lambda z: min(1, 5 - 5 * z),
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
    if name == "delayed-linear":
        hold = lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=budget)
        fall = lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=budget // 2)
        return lr_scheduler.SequentialLR(optimizer, [hold, fall], milestones=[budget // 2])
    if name == "polynomial":
        return lr_scheduler.PolynomialLR(optimizer, total_iters=budget, power=2)
    if name == "cosine-restarts":
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=budget // 4)
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
@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"inverse-square-root", "rex", "warmup-stable-decay"}))
def test_a_profile_equals_pytorchs_schedule(name, budget):
    rates, _ = rates_and_momenta(name, budget)
    profile = get_profile(name)
    if name == "cosine-restarts":  # PyTorch's restarts once more at the end of the budget
        assert rates.pop() == PEAK and profile(1.0) == 0.0
    assert [PEAK * profile(t / budget) for t in range(len(rates))] == pytest.approx(rates, rel=0, abs=1e-12)


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


@pytest.mark.parametrize("name", sorted(set(PROFILES) - {"cosine-restarts", "onecycle"}))
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


@pytest.mark.parametrize(
    ("name", "values", "form"),
    [
        ("step", {"factor": 0.5}, lambda z: 0.5 ** ((z >= 0.5) + (z >= 0.75))),
        ("step", {"milestones": [0.3, 0.6, 0.9]}, lambda z: 0.1 ** ((z >= 0.3) + (z >= 0.6) + (z >= 0.9))),
        ("delayed-linear", {"delay": 0.25}, lambda z: min(1, 4 / 3 * (1 - z))),
        ("delayed-linear", {"delay": 0}, lambda z: 1 - z),
        ("polynomial", {"power": 0.5}, lambda z: math.sqrt(1 - z)),
        ("polynomial", {"power": 3}, lambda z: (1 - z) * (1 - z) * (1 - z)),
        ("cosine-restarts", {"cycles": 1}, CLOSED_FORMS["cosine"]),
        (
            "cosine-restarts",
            {"cycles": 2, "decay": 0.3},
            lambda z: math.cos(math.pi * z) ** 2 if z < 0.5 else 0.3 * math.cos(math.pi * (z - 0.5)) ** 2,
        ),
        ("exponential", {"gamma": 2 * math.log(0.1)}, lambda z: 0.01**z),
        ("inverse-square-root", {"timescale": 1}, lambda z: 1 / math.sqrt(1 + z)),
        ("warmup-stable-decay", {"decay": 1}, lambda z: 1 - z),
        ("warmup-stable-decay", {"decay": 0.1}, lambda z: min(1, 10 - 10 * z)),
    ],
)
def test_settings_change_a_profile_as_its_formula_says(name, values, form):
    profile = get_profile(name, **values)
    expected = pytest.approx([form(z) for z in POINTS], rel=1e-9, abs=1e-12)
    assert [profile(z) for z in POINTS] == expected
    assert [pickle.loads(pickle.dumps(profile))(z) for z in POINTS] == expected
    assert [get_profile(name)(z) for z in POINTS] != expected


@pytest.mark.parametrize("name", PROFILES)
def test_defaults_given_as_settings_change_no_bit(name):
    defaults = profile_settings(name)
    profile = get_profile(name, **defaults)
    assert [profile(z) for z in POINTS] == [get_profile(name)(z) for z in POINTS]
    assert profile_settings(name, **defaults) == defaults


@pytest.mark.parametrize("cycles", [1, 3, 4, 7, 10, 49, 98, 103])
@pytest.mark.parametrize("scale", [2, 5, 11])
def test_a_cosine_restarts_at_the_update_where_a_cycle_begins(cycles, scale):
    """49 * (1/49) is below 1 in floating point, and other quotients are as bad."""
    profile, budget = get_profile("cosine-restarts", cycles=cycles, decay=0.9), cycles * scale
    for cycle in range(cycles):
        start = 0.9**cycle
        values = [profile((cycle * scale + t) / budget) / start for t in range(scale)]
        expected = [math.cos(math.pi * t / scale / 2) ** 2 for t in range(scale)]
        assert values == pytest.approx(expected, abs=1e-9)
    assert profile(1.0) == 0.0


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(PROFILES)), z=st.floats(0, 1), data=st.data())
def test_every_profile_stays_within_0_and_1_whatever_its_settings(name, z, data):
    domains = {
        "cycles": st.integers(1, 200),
        "decay": st.floats(0.01, 1),
        "delay": st.floats(0, 0.99),
        "factor": st.floats(0.01, 1),
        "gamma": st.floats(-100, 0),
        "milestones": st.sets(st.floats(0.01, 0.99), min_size=1).map(sorted),
        "power": st.floats(0.01, 100),
        "timescale": st.floats(1e-6, 100),
    }
    values = data.draw(st.fixed_dictionaries({key: domains[key] for key in profile_settings(name)}))
    profile = get_profile(name, **values)
    assert 0.0 <= profile(z) <= 1.0
    if name != "onecycle":
        assert profile(0.0) == 1.0


def test_a_profile_jumps_where_it_says():
    assert jumps("step") == (0.5, 0.75) and jumps("step", milestones=[0.2]) == (0.2,)
    assert jumps("cosine-restarts", cycles=3) == (1 / 3, 2 / 3) and jumps("cosine-restarts", cycles=1) == ()
    for name in PROFILES:
        profile = get_profile(name)
        steps = [abs(profile(z + 1e-9) - profile(z)) for z in (np.arange(1, 1000) / 1000 - 1e-10).tolist()]
        found = [k / 1000 for k, height in enumerate(steps, start=1) if height > 1e-6]
        assert tuple(found) == jumps(name), name


def test_an_unknown_setting_lists_the_known():
    with pytest.raises(UnknownNameError, match=r"setting of profile step 'factors'; .* factor, milestones\..*'factor'"):
        get_profile("step", factors=0.5)
    with pytest.raises(UnknownNameError, match="setting of profile rex 'power'"):
        get_profile("rex", power=2)
    with pytest.raises(UnknownNameError, match="Unknown profile"):
        profile_settings("cosin")


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("delayed-linear", "delay", [1, 1.0, -0.1, math.nan, "0.5", True, None]),
        ("polynomial", "power", [0, -1, math.inf, math.nan, [2]]),
        ("cosine-restarts", "cycles", [0, 2.5, -1, math.inf, math.nan]),
        ("cosine-restarts", "decay", [0, 1.1, -1]),
        ("exponential", "gamma", [0.1, -math.inf, math.nan]),
        ("inverse-square-root", "timescale", [0, -1, math.inf]),
        ("warmup-stable-decay", "decay", [0, 1.1, math.nan]),
        ("step", "factor", [0, 1.5, -0.1]),
        ("step", "milestones", [[], [0], [1], [0.7, 0.5], [0.5, 0.5], [math.nan], ["0.5"], "0.5", None]),
    ],
)
def test_a_setting_outside_its_domain_is_refused(name, key, values):
    for value in values:
        with pytest.raises(InvalidSettingError, match=rf"{key} of profile {name} .*expected a"):
            get_profile(name, **{key: value})
