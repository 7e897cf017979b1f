"""Schedules as PyTorch schedulers: exact rates, jumps equal steps, state in full, and whatever PyTorch's own can do."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from gns import REXLR, InvalidSettingError, ProfileLR, Schedule, UnknownNameError
from gns.schedules.profiles import PROFILES, get_profile, onecycle_momentum
from gns.schedules.schedule import SAMPLING_RATES

RATES = (0.1 + 0.2, 7e-4)
T = 60

every_profile = pytest.mark.parametrize("profile", PROFILES)


def make_optimizer(kind: str = "sgd", rates=RATES) -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    if kind == "adam":
        return torch.optim.Adam(groups, lr=0.5, betas=(0.9, 0.99))
    return torch.optim.SGD(groups, lr=0.5, momentum=0.9)


def rates_of(optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def momenta_of(optimizer) -> list[float]:
    return [group["betas"][0] if "betas" in group else group["momentum"] for group in optimizer.param_groups]


def advance(optimizer, scheduler, updates: int) -> list[list[float]]:
    """Make updates; what was set for each."""
    seen = []
    for _ in range(updates):
        seen.append([*rates_of(optimizer), *momenta_of(optimizer)])
        optimizer.step()
        scheduler.step()
    return seen


def jump(scheduler, update: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch would do away with the argument; SequentialLR still needs it
        scheduler.step(update)


@every_profile
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_each_group_has_exactly_its_initial_rate_times_the_schedule(profile, kind):
    optimizer, f = make_optimizer(kind), get_profile(profile)
    scheduler = ProfileLR(optimizer, T, profile)
    for t in range(T + 5):
        expected = [rate * f(min(t / T, 1.0)) for rate in RATES]
        assert rates_of(optimizer) == expected == scheduler.get_last_lr()
        assert t >= T or min(expected) > 0.0
        optimizer.step()
        scheduler.step()


def test_rex_equals_its_formula_and_has_no_rate_of_0():
    optimizer = make_optimizer(rates=(0.3,))
    scheduler = REXLR(optimizer, T)
    rates = [rate for rate, _ in advance(optimizer, scheduler, T)]
    assert rates == pytest.approx([0.3 * (1 - t / T) / (0.5 + 0.5 * (1 - t / T)) for t in range(T)], rel=1e-12)
    assert rates[0] == 0.3 and min(rates) > 0.0 and rates_of(optimizer) == [0.0]


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_one_cycle_equals_pytorchs_with_its_momentum(kind):
    ours, theirs = make_optimizer(kind), make_optimizer(kind)
    scheduler = ProfileLR(ours, T, "onecycle")
    pytorchs = lr_scheduler.OneCycleLR(
        theirs,
        max_lr=list(RATES),
        total_steps=T + 1,
        pct_start=(T / 2 + 1) / (T + 1),
        anneal_strategy="linear",
        div_factor=10,
        final_div_factor=1,
    )
    for left, right in zip(advance(ours, scheduler, T), advance(theirs, pytorchs, T), strict=True):
        assert left == pytest.approx(right, rel=1e-10)
    if kind == "adam":
        assert ours.param_groups[0]["betas"][1] == 0.99


def test_momentum_is_cycled_with_one_cycle_or_where_asked_and_nowhere_else():
    for settings, cycled in [
        ({"profile": "rex"}, False),
        ({"profile": "rex", "cycle_momentum": True}, True),
        ({"profile": "onecycle"}, True),
        ({"profile": "onecycle", "cycle_momentum": False}, False),
    ]:
        optimizer = make_optimizer()
        seen = advance(optimizer, ProfileLR(optimizer, T, **settings), T)
        expected = [onecycle_momentum(t / T) if cycled else 0.9 for t in range(T)]
        assert [row[2] for row in seen] == [row[3] for row in seen] == expected


def test_betas_after_the_first_are_kept_however_many_there_are():
    optimizer = make_optimizer()  # its step reads no betas
    optimizer.param_groups[0]["betas"], optimizer.param_groups[1]["betas"] = (0.9, 0.99), (0.9, 0.99, 0.999)
    scheduler = ProfileLR(optimizer, T, "onecycle")
    advance(optimizer, scheduler, T // 2)
    assert optimizer.param_groups[0]["betas"] == pytest.approx((0.85, 0.99))
    assert optimizer.param_groups[1]["betas"] == pytest.approx((0.85, 0.99, 0.999))


def test_an_optimizer_without_momentum_is_left_so_and_refused_where_a_cycle_is_asked_for():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    ProfileLR(optimizer, T, "onecycle")
    assert optimizer.param_groups[0]["momentum"] == 0
    with pytest.raises(InvalidSettingError, match="cycle_momentum is True, but SGD has neither"):
        ProfileLR(optimizer, T, "onecycle", cycle_momentum=True)


@every_profile
@pytest.mark.parametrize("sampling", SAMPLING_RATES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1 / 3])
def test_a_jump_to_an_update_equals_stepping_there(profile, sampling, warmup):
    settings = {"sampling": sampling, "warmup": warmup, "cycle_momentum": True}
    optimizer = make_optimizer()
    stepped = advance(optimizer, ProfileLR(optimizer, T, profile, **settings), T + 3)
    schedule = Schedule(profile, sampling, warmup)
    assert [row[:2] for row in stepped] == [[r * schedule(min(t / T, 1)) for r in RATES] for t in range(T + 3)]
    jumping = make_optimizer()
    scheduler = ProfileLR(jumping, T, profile, **settings)
    for t in [*range(T + 2, -1, -1), 17, 3, 59]:
        jump(scheduler, t)
        assert [*rates_of(jumping), *momenta_of(jumping)] == stepped[t]
    for t in (5, 20, 40):
        scheduler.last_epoch = t - 1
        scheduler.step()
        assert [*rates_of(jumping), *momenta_of(jumping)] == stepped[t]
        scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": t + 5})
        scheduler.step()
        assert [*rates_of(jumping), *momenta_of(jumping)] == stepped[t + 6]


def test_last_epoch_goes_on_as_in_pytorch():
    optimizer = make_optimizer()
    stepped = advance(optimizer, ProfileLR(optimizer, T, "cosine"), 20)
    fresh = make_optimizer()
    for group, rate in zip(fresh.param_groups, RATES, strict=True):
        group["initial_lr"] = rate
    assert advance(fresh, ProfileLR(fresh, T, "cosine", last_epoch=9), 10) == stepped[10:]
    assert rates_of(fresh) == rates_of(optimizer)
    with pytest.raises(KeyError, match="initial_lr"):
        REXLR(make_optimizer(), T, last_epoch=3)


@examples(max_examples=120)
@given(
    profile=st.sampled_from(sorted(PROFILES)),
    sampling=st.sampled_from(sorted(SAMPLING_RATES)),
    warmup=st.sampled_from([0.0, 0.1, 1 / 3]),
    kind=st.sampled_from(["sgd", "adam"]),
    optimizer_first=st.booleans(),
    at=st.integers(0, T),
)
def test_a_run_resumed_from_state_dicts_equals_one_uninterrupted(profile, sampling, warmup, kind, optimizer_first, at):
    def make():
        optimizer = make_optimizer(kind)
        return optimizer, ProfileLR(optimizer, T, profile, sampling=sampling, warmup=warmup, cycle_momentum=True)

    optimizer, scheduler = make()
    advance(optimizer, scheduler, at)
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], buffer)
    buffer.seek(0)
    optimizer_state, scheduler_state = torch.load(buffer, weights_only=True)
    resumed, again = make()
    if optimizer_first:
        resumed.load_state_dict(optimizer_state)
        again.load_state_dict(scheduler_state)
    else:
        again.load_state_dict(scheduler_state)
        resumed.load_state_dict(optimizer_state)
    assert again.get_last_lr() == scheduler.get_last_lr()
    assert advance(resumed, again, T + 3 - at) == advance(optimizer, scheduler, T + 3 - at)


def plain(value) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and plain(v) for key, v in value.items())
    if isinstance(value, list | tuple):
        return all(plain(v) for v in value)
    return value is None or type(value) in (bool, int, float, str)


def test_the_state_is_plain_full_and_takes_the_place_of_what_was_given():
    saved = ProfileLR(make_optimizer(), T, "step", sampling="1-100", warmup=0.1, milestones=[0.2, 0.9], factor=0.3)
    state = saved.state_dict()
    assert plain(state)
    assert {
        key: state[key] for key in ("profile", "sampling", "warmup", "warmup_start", "settings", "total_steps")
    } == {
        "profile": "step",
        "sampling": "1-100",
        "warmup": 0.1,
        "warmup_start": 0.01,
        "settings": {"milestones": (0.2, 0.9), "factor": 0.3},
        "total_steps": T,
    }
    optimizer, other = make_optimizer(), make_optimizer()
    loaded = ProfileLR(optimizer, 7, "linear")
    loaded.load_state_dict(state)
    assert loaded.state_dict() == state
    continued = ProfileLR(other, T, "step", sampling="1-100", warmup=0.1, milestones=[0.2, 0.9], factor=0.3)
    assert advance(optimizer, loaded, T)[1:] == advance(other, continued, T)[1:]


@every_profile
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copy_goes_on_by_itself_with_its_own_optimizer(profile, way):
    optimizer = make_optimizer("adam")
    scheduler = ProfileLR(optimizer, T, profile, sampling="5-25", warmup=0.1)
    advance(optimizer, scheduler, 25)
    copied = pickle.loads(pickle.dumps(scheduler)) if way == "pickle" else copy.deepcopy(scheduler)
    assert copied.optimizer is not optimizer
    before = rates_of(optimizer)
    ahead = advance(copied.optimizer, copied, T - 25)
    assert rates_of(optimizer) == before
    assert advance(optimizer, scheduler, T - 25) == ahead


def test_optimizer_and_scheduler_stay_together_when_copied_together():
    optimizer = make_optimizer()
    scheduler = REXLR(optimizer, T)
    advance(optimizer, scheduler, 10)
    copied_optimizer, copied = copy.deepcopy((optimizer, scheduler))
    assert copied.optimizer is copied_optimizer
    assert advance(copied_optimizer, copied, 10) == advance(optimizer, scheduler, 10)


@every_profile
def test_a_tensor_rate_is_filled_in_place(profile):
    tensors = [torch.tensor(rate, dtype=torch.float64) for rate in RATES]
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": tensor} for tensor in tensors]
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(0.5), foreach=False, capturable=True)
    plain_optimizer = make_optimizer("adam")
    scheduler, plain_scheduler = ProfileLR(optimizer, T, profile), ProfileLR(plain_optimizer, T, profile)
    for _ in range(T + 1):
        assert [group["lr"] for group in optimizer.param_groups] == tensors
        assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
        assert rates_of(optimizer) == rates_of(plain_optimizer) == scheduler.get_last_lr()
        assert all(last is not tensor for last, tensor in zip(scheduler.get_last_lr(), tensors, strict=True))
        for each in (optimizer, plain_optimizer, scheduler, plain_scheduler):
            each.step()
    assert isinstance(scheduler.state_dict()["base_lrs"][0], torch.Tensor)


@every_profile
def test_a_warm_up_of_pytorchs_can_come_before_it(profile):
    optimizer, f = make_optimizer(), get_profile(profile)
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    then = ProfileLR(optimizer, T - 10, profile, cycle_momentum=False)
    scheduler = lr_scheduler.SequentialLR(optimizer, [warmup, then], milestones=[10])
    seen = advance(optimizer, scheduler, 30)
    expected = [[rate * (0.1 + 0.09 * t) for rate in RATES] for t in range(10)]
    assert [row[:2] for row in seen[:10]] == [pytest.approx(row, rel=1e-12) for row in expected]
    assert [row[:2] for row in seen[10:]] == [[rate * f(t / (T - 10)) for rate in RATES] for t in range(20)]

    fresh = make_optimizer()
    parts = [lr_scheduler.LinearLR(fresh, start_factor=0.1, total_iters=10), ProfileLR(fresh, 1, "constant")]
    resumed = lr_scheduler.SequentialLR(fresh, parts, milestones=[10])
    resumed.load_state_dict(scheduler.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert advance(fresh, resumed, 20) == advance(optimizer, scheduler, 20)


def test_our_warm_up_is_pytorchs_followed_by_the_profile():
    ours, theirs = make_optimizer(), make_optimizer()
    scheduler = ProfileLR(ours, T, "cosine", warmup=0.1, warmup_start=0.25)
    warmup = lr_scheduler.LinearLR(theirs, start_factor=0.25, total_iters=6)
    cosine = lr_scheduler.CosineAnnealingLR(theirs, T - 6)
    pytorchs = lr_scheduler.SequentialLR(theirs, [warmup, cosine], milestones=[6])
    for left, right in zip(advance(ours, scheduler, T), advance(theirs, pytorchs, T), strict=True):
        assert left == pytest.approx(right, rel=1e-9)


def test_only_step_asks_for_get_lr():
    scheduler = REXLR(make_optimizer(), T)
    with pytest.warns(UserWarning, match="get_last_lr"):
        assert scheduler.get_lr() == list(RATES)


def test_a_loop_raises_no_warning():
    optimizer = make_optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(optimizer, REXLR(optimizer, T), T + 1)


@pytest.mark.parametrize("total_steps", [0, -3, 2.5, True, "60", None])
def test_a_budget_that_is_no_count_is_refused(total_steps):
    with pytest.raises(InvalidSettingError, match="total_steps is"):
        REXLR(make_optimizer(), total_steps)


def test_unknown_names_and_settings_are_refused_before_the_optimizer_is_touched():
    optimizer = make_optimizer()
    for settings, error, match in [
        ({"profile": "rexx"}, UnknownNameError, "Did you mean 'rex'"),
        ({"sampling": "10-11"}, UnknownNameError, "sampling rate"),
        ({"power": 2}, UnknownNameError, "setting of profile rex 'power'"),
        ({"profile": "polynomial", "power": -1}, InvalidSettingError, "power"),
        ({"warmup": 1.0}, InvalidSettingError, "warmup is 1.0"),
    ]:
        with pytest.raises(error, match=match):
            ProfileLR(optimizer, T, **settings)
    assert "initial_lr" not in optimizer.param_groups[0] and rates_of(optimizer) == list(RATES)
