"""A schedule is its profile at the latest sampling point, exactly; a warm-up comes before it and moves it along."""

import copy
import dataclasses
import itertools
import math
import pickle
from fractions import Fraction

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gns import InvalidSettingError, Schedule, UnknownNameError
from gns.schedules.profiles import PROFILES, get_profile
from gns.schedules.schedule import SAMPLING_RATES

POINTS = {  # table 2 of the REX paper
    "50-75": [Fraction(0), Fraction(1, 2), Fraction(3, 4)],
    "33-66": [Fraction(0), Fraction(1, 3), Fraction(2, 3)],
    "25-50-75": [Fraction(k, 4) for k in range(4)],
    "10-10": [Fraction(k, 10) for k in range(11)],
    "5-25": [Fraction(k, 20) for k in range(21)],
    "1-100": [Fraction(k, 100) for k in range(101)],
}
PIECES = {"50-75": 3, "33-66": 3, "25-50-75": 4, "10-10": 10, "5-25": 20, "1-100": 100}
FALLING = ["cosine", "exponential", "inverse-square-root", "linear", "polynomial", "rex"]  # at every point
WARMUPS = [Fraction(1, 10), Fraction(1, 3), Fraction(3, 7), Fraction(9, 10)]

every_profile = pytest.mark.parametrize("profile", PROFILES)
every_sampling = pytest.mark.parametrize("sampling", POINTS)


def latest(sampling: str, progress: Fraction) -> float:
    """The latest sampling point not after a progress, by exact arithmetic."""
    return float(max(point for point in POINTS[sampling] if point <= progress))


def test_the_sampling_rates_are_the_seven_of_the_paper():
    assert set(SAMPLING_RATES) == {*POINTS, "every-update"}


@every_profile
def test_read_at_every_update_a_schedule_is_its_profile_bit_for_bit(profile):
    schedule, f = Schedule(profile), get_profile(profile)
    assert [schedule(t / 997) for t in range(998)] == [f(t / 997) for t in range(998)]


@every_sampling
@every_profile
def test_between_sampling_points_the_rate_stands_still(profile, sampling):
    schedule, f = Schedule(profile, sampling), get_profile(profile)
    values = [schedule(t / 600) for t in range(600)]
    assert values == [f(latest(sampling, Fraction(t, 600))) for t in range(600)]
    assert min(values) > 0.0
    changes = [t for t in range(1, 600) if values[t] != values[t - 1]]
    assert {Fraction(t, 600) for t in changes} <= set(POINTS[sampling])
    assert len(set(values)) <= PIECES[sampling]
    if profile in FALLING:
        assert len(set(values)) == PIECES[sampling] == len(changes) + 1
    assert schedule(1.0) == f(latest(sampling, Fraction(1)))


@every_sampling
def test_an_update_that_meets_a_point_takes_its_value_at_any_budget(sampling):
    """In floating point 0.29 * 100 is below 29 and 3 * 0.1 above 0.3; t/T and the points must agree all the same."""
    schedule, f = Schedule("linear", sampling), get_profile("linear")
    met = 0
    for budget in [*range(1, 201), 10**6, 3 * 10**6 + 300, 2**31 * 300]:
        for point in POINTS[sampling][1:-1]:
            update = math.ceil(point * budget)
            met += Fraction(update, budget) == point
            before = latest(sampling, Fraction(update - 1, budget))
            assert schedule((update - 1) / budget) == f(before), (update - 1, budget)
            assert schedule(update / budget) == f(latest(sampling, Fraction(update, budget))), (update, budget)
    assert met > 50


@settings(max_examples=300)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    sampling=st.sampled_from(sorted(POINTS)),
    budget=st.integers(1, 10**9),
    data=st.data(),
)
def test_any_update_of_any_budget_has_the_rate_of_exact_arithmetic(profile, sampling, budget, data):
    update = data.draw(st.integers(0, budget))
    expected = get_profile(profile)(latest(sampling, Fraction(update, budget)))
    assert Schedule(profile, sampling)(update / budget) == expected


@settings(max_examples=500)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    sampling=st.sampled_from(sorted(SAMPLING_RATES)),
    warmup=st.sampled_from([0.0, 5e-324]) | st.floats(0, 0.99),
    start=st.floats(1e-6, 1),
    z=st.floats(0, 1, exclude_max=True) | st.integers(1, 60).map(lambda k: 1 - 2.0**-k).filter(lambda z: z < 1),
)
def test_no_rate_before_the_end_is_0(profile, sampling, warmup, start, z):
    assert 0.0 < Schedule(profile, sampling, warmup, start)(z) <= 1.0


def test_rounding_and_underflow_make_no_rate_0():
    just_before = math.nextafter(1.0, 0.0)
    assert get_profile("cosine")(just_before) == 0.0 and Schedule("cosine")(just_before) > 0.0
    assert Schedule("polynomial", settings={"power": 100})(just_before) > 0.0
    assert Schedule("exponential", settings={"gamma": -1e5})(0.9) > 0.0
    assert Schedule("exponential", "10-10", 0.5, settings={"gamma": -1e5})(0.9) > 0.0
    assert Schedule("cosine")(1.0) == Schedule("cosine", "10-10")(1.0) == 0.0


@every_profile
@pytest.mark.parametrize("warmup", WARMUPS)
def test_a_warm_up_climbs_to_the_profile_which_has_the_rest_to_itself(profile, warmup):
    schedule, f = Schedule(profile, warmup=float(warmup), warmup_start=0.04), get_profile(profile)
    budget, end = 2100, int(2100 * warmup)
    values = [schedule(t / budget) for t in range(budget + 1)]
    climb = [f(0.0) * (0.04 + 0.96 * t / end) for t in range(end)]
    assert values[:end] == pytest.approx(climb, rel=1e-12)
    assert values[0] == 0.04 * f(0.0) and values[end] == f(0.0)
    expected = [f((t - end) / (budget - end)) for t in range(end, budget + 1)]
    assert values[end:] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_sampling
@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("profile", ["rex", "step"])
def test_sampling_points_follow_the_warm_up_exactly(profile, sampling, warmup):
    schedule, f = Schedule(profile, sampling, float(warmup)), get_profile(profile)
    for budget in (70, 210, 2100):
        for t in range(math.ceil(warmup * budget), budget + 1):
            left = (Fraction(t, budget) - warmup) / (1 - warmup)
            assert schedule(t / budget) == f(latest(sampling, left)), (t, budget)
        climb = [schedule(t / budget) for t in range(math.ceil(warmup * budget))]
        assert all(a < b for a, b in itertools.pairwise(climb))  # at every update


@pytest.mark.parametrize("warmup", WARMUPS)
@pytest.mark.parametrize("profile", ["step", "cosine-restarts"])
def test_a_profile_that_jumps_does_so_at_the_same_update_with_a_warm_up(profile, warmup):
    schedule, f = Schedule(profile, warmup=float(warmup)), get_profile(profile)
    for budget in (70, 120, 2100):
        for t in range(math.ceil(warmup * budget), budget + 1):
            left = (Fraction(t, budget) - warmup) / (1 - warmup)
            assert schedule(t / budget) == pytest.approx(f(float(left)), rel=1e-9, abs=1e-12), (t, budget)


@settings(max_examples=300)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    sampling=st.sampled_from(sorted(SAMPLING_RATES)),
    warmup=st.just(0.0) | st.floats(0, 0.9),
    z=st.floats(0, 1),
)
def test_the_fast_function_is_the_profile_at_the_position(profile, sampling, warmup, z):
    schedule, f = Schedule(profile, sampling, warmup, 0.1), get_profile(profile)
    slow = f(schedule.position(z))
    if z < warmup:
        slow *= 0.1 + 0.9 * z / warmup
    assert schedule(z) == schedule.function(z)
    assert schedule(z) == pytest.approx(slow, rel=1e-12, abs=1e-290)


def test_a_schedule_with_settings_reads_its_profile_with_them():
    values = {"cycles": 3, "decay": 0.5}
    schedule, f = Schedule("cosine-restarts", settings=values), get_profile("cosine-restarts", **values)
    assert [schedule(t / 90) for t in range(91)] == [f(t / 90) for t in range(91)]
    assert schedule(30 / 90) == 0.5 and Schedule("cosine-restarts")(30 / 90) != 0.5
    approximated = Schedule("exponential", "50-75", settings={"gamma": 2 * math.log(0.1)})  # of step, as in table 2
    assert [approximated(z) for z in (0.0, 0.49, 0.5)] == pytest.approx([1.0, 1.0, 0.1])
    milestones = [0.25]
    stepped = Schedule("step", settings={"milestones": milestones})
    milestones[0] = 0.9
    assert stepped(0.25) == 0.1 and stepped.settings == {"milestones": (0.25,)}


@every_profile
def test_a_schedule_pickles_copies_and_compares_by_its_fields(profile):
    schedule = Schedule(profile, "5-25", 0.1, 0.02)
    values = [schedule(t / 77) for t in range(78)]
    for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), dataclasses.replace(schedule)):
        assert other == schedule and hash(other) == hash(schedule)
        assert [other(t / 77) for t in range(78)] == values
    assert dataclasses.replace(schedule, warmup=0.2) != schedule
    assert Schedule(**dataclasses.asdict(schedule)) == schedule
    powers = [Schedule("polynomial", settings={"power": power}) for power in (2, 2.0, 3)]
    assert powers[0] == powers[1] != powers[2] and len(set(powers)) == 2


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"profile": "cosin"}, UnknownNameError, "Unknown profile 'cosin'.*'cosine'"),
        ({"sampling": "10"}, UnknownNameError, "Unknown sampling rate '10'; expected one of: 1-100, 10-10, .*50-75"),
        ({"settings": {"power": 2}}, UnknownNameError, "setting of profile rex 'power'"),
        ({"settings": None}, InvalidSettingError, "settings is None; expected a mapping"),
        ({"profile": "polynomial", "settings": {"power": 0}}, InvalidSettingError, "power of profile polynomial is 0"),
        *(({"warmup": w}, InvalidSettingError, "warmup is .*expected") for w in (1, -0.1, math.nan, "0.1", True)),
        *(({"warmup_start": s}, InvalidSettingError, "warmup_start is .*expected") for s in (0, 1.1, math.nan, None)),
    ],
)
def test_what_cannot_be_is_refused(fields, error, match):
    with pytest.raises(error, match=match):
        Schedule(**fields)


@pytest.mark.parametrize("progress", [-1e-9, 1.0000001, math.nan, math.inf])
def test_a_progress_outside_0_and_1_is_refused(progress):
    with pytest.raises(InvalidSettingError, match="progress is"):
        Schedule()(progress)


def after_warmup(make, warmup: int, budget: int) -> list[float]:
    """Factors that a schedule of transformers sets for the updates from the end of its warm-up on."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(budget):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # Its warm-up begins at 0, where nothing is learned; ours at warmup_start. From there both are lines to 1.
    assert factors[:warmup] == pytest.approx([t / warmup for t in range(warmup)])
    return factors[warmup:]


@pytest.mark.parametrize(("warmup", "budget"), [(0, 50), (10, 100), (37, 411)])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_transformers_schedules_are_special_cases(warmup, budget, share):
    left = budget - warmup  # updates after the warm-up, which our settings are shares of
    length = round(share * left)

    def ours(profile: str, **values: float) -> list[float]:
        schedule = Schedule(profile, warmup=warmup / budget, settings=values)
        return [schedule(t / budget) for t in range(warmup, budget)]

    def theirs(name: str, **values) -> list[float]:
        return after_warmup(
            lambda optimizer: transformers.get_scheduler(name, optimizer, warmup, budget, values), warmup, budget
        )

    def close(values: list[float]):
        return pytest.approx(values, rel=1e-9, abs=1e-12)

    assert ours("linear") == close(theirs("linear"))
    assert ours("cosine") == close(theirs("cosine"))
    assert ours("polynomial", power=3) == close(theirs("polynomial", power=3.0, lr_end=0.0))
    assert ours("cosine-restarts", cycles=3) == close(theirs("cosine_with_restarts", num_cycles=3))
    assert ours("inverse-square-root", timescale=length / left) == close(theirs("inverse_sqrt", timescale=length))
    stable = {"num_decay_steps": length, "decay_type": "linear"}
    assert ours("warmup-stable-decay", decay=length / left) == close(theirs("warmup_stable_decay", **stable))


def test_the_transformers_own_schedule_is_the_inverse_square_root_after_its_warm_up():
    """Vaswani et al. (2017), equation 3, over its largest value: min(t^-1/2, t w^-3/2) sqrt(w)."""
    budget, warmup = 400, 40
    schedule = Schedule("inverse-square-root", warmup=0.1, settings={"timescale": 0.1 / 0.9})
    expected = [math.sqrt(warmup / t) for t in range(warmup, budget)]
    assert [schedule(t / budget) for t in range(warmup, budget)] == pytest.approx(expected, rel=1e-12)
