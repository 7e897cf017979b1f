"""Decisions: when they are taken, what an action does to the rates, and what a run remembers."""

import copy
import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gns import (
    DecisionConfig,
    DecisionCore,
    InvalidSettingError,
    LayerGraphError,
    OutOfOrderError,
    UnknownNameError,
    layer_graph,
)
from gns.deciding.decision import ACTION_MODES
from gns.deciding.guard import diverged
from gns.features.schemas import SCHEMAS
from gns.features.statistics import SUM_U2
from gns.schedules.profiles import PROFILES, get_profile
from gns.schedules.static import default_rate

GLOBALS = SCHEMAS["gns-1"].globals
every_mode = pytest.mark.parametrize("mode", ACTION_MODES)
OPTIMIZERS = {
    "sgd momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01),  # its update is measured
}
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Run:
    """A small training run under a decision core."""

    def __init__(
        self, budget: int = 12, optimizer: str = "adam", rates: tuple[float, ...] = (0.01,), **config: object
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        layers = (self.model[0], self.model[2])
        groups = [{"params": self.model.parameters(), "lr": rates[0]}]
        if len(rates) == 2:
            groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, rates, strict=True)]
        self.optimizer = OPTIMIZERS[optimizer](groups)
        self.graph = layer_graph(self.model, self.model(torch.ones(1, 3)))
        self.config = DecisionConfig(**{"num_decisions": 4, **config})
        self.core = DecisionCore(self.model, self.optimizer, self.graph, budget, self.config)

    @property
    def rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def compute_gradient(self) -> Tensor:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(self.core.update))
        self.optimizer.zero_grad()
        self.loss = (self.model(x) - x.prod(1, keepdim=True)).square().mean()
        self.loss.backward()
        return self.loss

    def apply_update(self, loss: Tensor | None = None) -> None:
        self.core.set_rates()
        self.optimizer.step()
        self.core.note_update(self.loss if loss is None else loss)

    def interval(self, action: float = 0.0, losses: tuple[float, ...] = ()) -> None:
        """Observe, decide and update until the next decision, with the losses given or the real ones."""
        losses = list(losses)
        self.compute_gradient()
        self.core.observe()
        self.core.decide(action)
        while True:
            self.apply_update(torch.tensor(losses.pop(0)) if losses else None)
            if self.core.finished or self.core.decision_due:
                break
            self.compute_gradient()
        self.compute_gradient()


def observed(run: Run) -> dict[str, float]:
    return dict(zip(GLOBALS, run.core.observe().globals.tolist(), strict=True))


def imagined_rates(core: DecisionCore, actions: list[float]) -> list[list[float]]:
    """Rates of every group at every update, without training: losses and gradients do not enter the rates."""
    actions, rates = list(actions), []
    while not core.finished:
        if core.decision_due:
            core.decide(actions.pop(0) if actions else 0.0)
        core.set_rates()
        rates.append([group["lr"] for group in core.optimizer.param_groups])
        core.note_update(torch.tensor(1.0))
    return rates


# ---------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("budget", "settings", "points"),
    [
        (12, {"num_decisions": 4}, [0, 3, 6, 9]),
        (10, {"num_decisions": 4}, [0, 3, 6, 9]),  # the last interval is shorter
        (21, {"num_decisions": 20}, list(range(0, 21, 2))),  # ... and there are fewer decisions
        (4, {"num_decisions": 4}, [0, 1, 2, 3]),
        (5, {"num_decisions": 1}, [0]),
        (10, {"decision_interval": 4}, [0, 4, 8]),
        (3, {"decision_interval": 10}, [0]),
    ],
)
def test_decisions_fall_due_at_the_start_of_every_interval(budget, settings, points):
    core = Run(budget, **settings).core
    due = []
    for t in range(budget):
        assert core.update == t and not core.finished
        if core.decision_due:
            due.append(t)
            core.decide(0.0)
            assert not core.decision_due
        core.set_rates()
        core.note_update(torch.tensor(1.0))
    assert due == points
    assert core.finished and not core.decision_due and core.update == budget


def test_an_observation_changes_nothing():
    run = Run()
    run.interval(0.5)
    before = copy.deepcopy(run.core.state_dict())
    first, second = run.core.observe(), run.core.observe()
    assert np.array_equal(first.nodes, second.nodes) and np.array_equal(first.globals, second.globals)
    assert str(run.core.state_dict()) == str(before)
    assert run.core.decision_due


# ---------------------------------------------------------------------- what an action does

ACTIONS = [0.7, -1.0, 0.3, 1.0, -0.2]


@every_mode
@pytest.mark.parametrize("profile", PROFILES)
def test_the_rate_follows_the_modes_formula(mode, profile):
    budget, initial, base, strength = 23, 0.02, 2.5, 1.7
    run = Run(budget, rates=(initial,), mode=mode, profile=profile, base=base, strength=strength, num_decisions=5)
    f = get_profile(profile)
    default = default_rate(run.core.optimizer, run.core.model, run.core.graph, budget, profile)
    expected, level = [], initial
    for t in range(budget):
        action = ACTIONS[t // 5]
        if t % 5 == 0:
            level *= 1 + action if mode == "gns-paper" else base**action
            if mode == "gns-paper":
                level = max(level, run.config.min_lr)  # an action of -1 leaves the lowest rate
        if mode in ("profile", "per-layer"):
            expected.append(level * f(t / budget))
        elif mode == "prior":
            expected.append(default * base**action * f(t / budget))
        elif mode == "anchored":
            expected.append(initial * f(t / budget) * math.exp(strength * action))
        else:
            expected.append(level)
    rates = [rate for (rate,) in imagined_rates(run.core, ACTIONS)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", ["profile", "recursive", "per-layer"])
def test_the_first_decision_may_have_a_range_of_its_own(mode):
    wide = imagined_rates(Run(mode=mode, base=3.0, first_base=50.0).core, [-0.5, 1.0, -0.25, 0.5])
    same = imagined_rates(Run(mode=mode, base=3.0).core, [-0.5, 1.0, -0.25, 0.5])
    ratios = [ours / theirs for (ours,), (theirs,) in zip(wide, same, strict=True)]
    assert ratios == pytest.approx([(50.0 / 3.0) ** -0.5] * len(ratios))  # after it all go on alike
    for other in ("anchored", "gns-paper"):
        runs = [Run(mode=other, first_base=base).core for base in (None, 50.0)]
        assert imagined_rates(runs[0], ACTIONS) == imagined_rates(runs[1], ACTIONS)


@every_mode
def test_the_first_interval_may_have_the_initial_rate(mode):
    actions = [-0.5, 0.25, -0.25, 0.5]
    later = imagined_rates(Run(mode=mode, first_base=50.0, decide_first=False).core, actions)
    plain = imagined_rates(Run(mode=mode).core, [0.0, *actions[1:]])
    interval = len(plain) // 4
    assert later[:interval] == plain[:interval] != later[interval : 2 * interval]
    ratios = [ours / theirs for (ours,), (theirs,) in zip(later[interval:], plain[interval:], strict=True)]
    reach = (50.0 / Run(mode=mode).config.base) ** 0.25 if mode not in ("anchored", "gns-paper") else 1.0
    count = interval if mode == "prior" else len(ratios)  # whose level does not depend on the decision before
    assert ratios[:count] == pytest.approx([reach] * count)  # the next decision has the first one's range


@every_mode
def test_decide_returns_the_multiplier(mode):
    run = Run(mode=mode, base=3.0, strength=2.0)
    core = run.core
    for action, before in ((0.5, 0.0), (-0.25, 0.5)):
        while not core.decision_due:
            run.compute_gradient()
            run.apply_update()
        from_first = {"anchored": math.exp(2.0 * (action - before)), "prior": 3.0 ** (action - before)}
        multiplier = {**from_first, "gns-paper": 1 + action}.get(mode, 3.0**action)
        rate = core.learning_rate
        assert core.decide(action) == pytest.approx(multiplier)
        assert core.learning_rate / rate == pytest.approx(multiplier)


def test_calls_out_of_order_are_named():
    run = Run()
    core = run.core
    with pytest.raises(OutOfOrderError, match="call observe"):
        diverged(core, 4.0)
    with pytest.raises(OutOfOrderError, match="a decision is due"):
        core.set_rates()
    core.decide(0.0)
    with pytest.raises(OutOfOrderError, match="No decision is due at update 0 of 12"):
        core.decide(0.0)
    while not core.finished:
        if core.decision_due:
            core.decide(0.0)
        run.compute_gradient()
        run.apply_update()
    with pytest.raises(OutOfOrderError, match="the budget is spent"):
        core.set_rates()


def test_a_tensor_rate_is_filled_in_place():
    run = Run()
    held = run.optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    run.core.decide(-1.0)
    run.core.set_rates()
    assert run.optimizer.param_groups[0]["lr"] is held
    assert float(held) == pytest.approx(run.core.learning_rate) != 0.01


def test_a_loss_that_starts_below_zero_diverges_only_when_it_rises():
    run = Run()
    run.interval(0.0, losses=(-2.0, -2.5, -3.0))
    run.core.observe()
    assert not diverged(run.core, 4.0)
    run.interval(0.0, losses=(3.0, 3.9, 3.0))
    run.core.observe()
    assert not diverged(run.core, 4.0)
    run.interval(0.0, losses=(5.0, 5.0, 5.0))
    run.core.observe()
    assert diverged(run.core, 4.0)


@every_mode
@pytest.mark.parametrize(("action", "clipped"), [(5.0, 1.0), (-3.0, -1.0), (np.float32(0.5), 0.5)])
def test_actions_are_clipped(mode, action, clipped):
    run, other = Run(mode=mode), Run(mode=mode)
    assert run.core.decide(action) == other.core.decide(clipped)
    assert run.core.learning_rate == other.core.learning_rate


@pytest.mark.parametrize("mode", ["recursive", "gns-paper"])
@pytest.mark.parametrize("rates", [(0.1 + 0.2,), (1 / 3, 1e-7), (math.pi, 1e-3)])
def test_a_multiplier_of_1_leaves_every_rate_bit_for_bit(mode, rates):
    core = Run(rates=rates, mode=mode).core
    assert imagined_rates(core, []) == [list(rates)] * 12


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("rates", [(0.1 + 0.2,), (1 / 3, 1e-3)])
def test_an_action_of_0_under_a_profile_is_that_schedule_bit_for_bit(profile, rates):
    core, f = Run(budget=30, rates=rates, profile=profile).core, get_profile(profile)
    assert imagined_rates(core, []) == [[rate * f(t / 30) for rate in rates] for t in range(30)]


@every_optimizer
def test_a_multiplier_of_1_trains_as_plain_pytorch_does(optimizer):
    run, plain = Run(optimizer=optimizer, mode="recursive"), Run(optimizer=optimizer)
    while not run.core.finished:
        run.interval(0.0)
    for t in range(12):
        plain.core._memory.update = t  # which batch comes; nothing else is asked of this core
        plain.compute_gradient()
        plain.optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), plain.model.parameters(), strict=True))


@every_mode
def test_groups_keep_their_ratio(mode):
    rates = np.array(imagined_rates(Run(rates=(0.03, 0.0007), mode=mode).core, ACTIONS))
    np.testing.assert_allclose(rates[:, 0] / rates[:, 1], 0.03 / 0.0007, rtol=1e-12)
    assert len(set(rates[:, 0])) > 1


@every_mode
@settings(deadline=None, derandomize=True, max_examples=80)
@given(
    actions=st.lists(st.sampled_from([-1.0, 1.0]) | st.floats(-1, 1), min_size=4, max_size=4),
    profile=st.sampled_from(sorted(PROFILES)),
    base=st.floats(1.01, 1e6),
    strength=st.floats(0.01, 50),
    bounds=st.tuples(st.floats(-10, -1), st.floats(-1, 1)),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_rates_stay_within_their_bounds(mode, actions, profile, base, strength, bounds, places):
    low, high = 10.0 ** bounds[0], 10.0 ** bounds[1]
    assume(low < high)
    rates = tuple(min(max(low ** (1 - place) * high**place, low), high) for place in places)
    run = Run(rates=rates, mode=mode, profile=profile, base=base, strength=strength, min_lr=low, max_lr=high)
    for at_update in imagined_rates(run.core, actions):
        for rate in at_update:
            assert 0.0 < rate < math.inf
            assert low <= rate <= high


def test_bounds_hold_for_the_group_that_meets_them_first():
    config = {"mode": "recursive", "base": 10.0, "min_lr": 1e-4, "max_lr": 1.0}
    up = imagined_rates(Run(rates=(0.2, 0.002), **config).core, [1.0] * 4)
    assert up[-1] == pytest.approx([1.0, 0.01])
    down = imagined_rates(Run(rates=(0.2, 0.002), **config).core, [-1.0] * 4)
    assert down[-1] == pytest.approx([0.01, 1e-4])


def test_an_action_after_a_bound_acts_from_the_bound():
    """What lies beyond a bound is forgotten, so that the way back is not longer than the way there."""
    rates = imagined_rates(Run(rates=(0.5,), mode="recursive", base=3.0, max_lr=1.0).core, [1.0, 1.0, -1.0, 0.0])
    assert [rate for (rate,) in rates[::3]] == pytest.approx([1.0, 1.0, 1 / 3, 1 / 3])


@every_mode
def test_a_rate_given_as_a_tensor_is_a_number(mode):
    run = Run()
    for group in run.optimizer.param_groups:
        group["lr"] = torch.tensor(0.25)
    core = DecisionCore(run.model, run.optimizer, run.graph, 12, DecisionConfig(mode=mode, num_decisions=4))
    assert core.initial_lrs == [0.25]


# ---------------------------------------------------------------------- what is remembered


def policy(observation) -> float:
    """Some function of all that is observed."""
    return float(np.tanh(observation.nodes.sum() * 0.3 + observation.globals.sum()))


def go_on(run: Run) -> list:
    """Run to the end; everything that happened."""
    seen = []
    while not run.core.finished:
        run.compute_gradient()
        if run.core.decision_due:
            observation = run.core.observe()
            seen += [observation.nodes.tobytes(), observation.globals.tobytes()]
            run.core.decide(policy(observation))
        run.apply_update()
        seen += [run.rates, run.loss.item()]
    run.compute_gradient()
    return [
        *seen,
        run.core.observe().globals.tobytes(),
        *(p.detach().numpy().tobytes() for p in run.model.parameters()),
    ]


def resumed(run: Run) -> Run:
    """What a new process would build from files: model, optimizer and core."""
    file = io.BytesIO()
    torch.save(
        [run.model.state_dict(), run.optimizer.state_dict(), run.core.state_dict()],
        file,
    )
    file.seek(0)
    model, optimizer, core = torch.load(file, weights_only=True)  # plain numbers and tensors only
    new = Run.__new__(Run)
    new.model = copy.deepcopy(run.model)
    for parameter in new.model.parameters():
        torch.nn.init.zeros_(parameter)
    new.optimizer = type(run.optimizer)(
        [{"params": new.model[0].parameters()}, {"params": new.model[2].parameters()}], lr=0.4
    )
    new.model.load_state_dict(model), new.optimizer.load_state_dict(optimizer)
    new.core = DecisionCore(new.model, new.optimizer, run.graph, run.core.budget, run.config)
    new.core.load_state_dict(core)
    return new


@every_mode
@every_optimizer
@settings(deadline=None, derandomize=True, max_examples=6)
@given(at=st.integers(0, 11))
def test_a_run_goes_on_from_its_state_bit_for_bit(optimizer, mode, at):
    run = Run(budget=11, optimizer=optimizer, rates=(0.02, 0.005), mode=mode)
    while run.core.update < at:
        run.compute_gradient()
        if run.core.decision_due:
            run.core.decide(policy(run.core.observe()))
        run.apply_update()
    new = resumed(run)
    state = str(run.core.state_dict())
    assert go_on(new) == go_on(run)
    assert at == 11 or state != str(run.core.state_dict())


@every_optimizer
def test_a_run_goes_on_from_between_observation_and_decision(optimizer):
    run = Run(optimizer=optimizer, rates=(0.02, 0.005))
    run.interval(0.3), run.interval(-0.6)
    run.core.observe()
    new = resumed(run)
    for one in (run, new):
        one.core.decide(0.9)
        one.compute_gradient()
        one.apply_update()
    assert go_on(new) == go_on(run)


def test_a_state_does_not_change_with_the_run_it_came_from():
    run = Run()
    run.interval(0.3)
    run.compute_gradient(), run.core.observe(), run.core.decide(1.0)
    run.apply_update()
    state = run.core.state_dict()
    before = str(state)
    go_on(run)
    assert str(state) == before


def test_loading_a_state_forgets_the_run_before():
    """A core that has observed the same update of another run."""
    one, other = Run(), Run()
    one.interval(0.0, losses=(1.0, 1.0, 1.0)), other.interval(0.0, losses=(5.0, 5.0, 5.0))
    other.core.observe()
    other.core.load_state_dict(one.core.state_dict())
    for run in (one, other):
        run.core.decide(0.0)
    assert str(one.core.state_dict()) == str(other.core.state_dict())


# ---------------------------------------------------------------------- divergence

START = (2.0, 2.5, 3.0)


def poison(what: str) -> Run:
    run = Run(optimizer="sgd momentum")
    run.interval(0.0, START)
    parameter = run.model[2].weight
    if what == "gradient":
        parameter.grad[0, 1] = math.inf
    elif what == "parameter":
        parameter.data[0, 2] = math.nan
    elif what == "optimizer state":
        run.optimizer.state[parameter]["momentum_buffer"][0, 0] = math.nan
    return run


@pytest.mark.parametrize("what", ["gradient", "parameter", "optimizer state"])
def test_a_state_that_is_not_finite_has_diverged(what):
    run = poison(what)
    observation = run.core.observe()
    assert diverged(run.core, loss_multiple=1e9)
    assert np.isfinite(observation.nodes).all() and np.isfinite(observation.globals).all()


def test_a_finite_state_has_not_diverged():
    run = poison("nothing")
    run.core.observe()
    assert not diverged(run.core, loss_multiple=4.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(3))
def test_a_loss_that_is_not_finite_has_diverged(loss, place):
    run = Run()
    run.interval(0.0, tuple(loss if i == place else 1.0 for i in range(3)))
    run.core.observe()
    assert diverged(run.core, loss_multiple=1e9)


def test_before_the_first_update_nothing_has_diverged():
    run = Run()
    run.compute_gradient()
    run.core.observe()
    assert not diverged(run.core, loss_multiple=1e-6)


@pytest.mark.parametrize(
    ("losses", "bad"),
    [
        ((2.0, 8.0, 14.0), False),  # the mean is 4 times the first
        ((2.0, 8.0, 14.5), True),
        ((0.5, 0.5, 0.5), False),
        ((14.5, 8.0, 2.0), False),  # what counts is the run's first loss
    ],
)
def test_the_first_interval_is_compared_with_its_first_loss(losses, bad):
    run = Run()
    run.interval(0.0, losses)
    run.core.observe()
    assert diverged(run.core, loss_multiple=4.0) == bad


@pytest.mark.parametrize(("loss", "bad"), [(8.0, False), (8.1, True)])
def test_a_later_interval_is_compared_with_the_runs_first_loss(loss, bad):
    run = Run()
    run.interval(0.0, START), run.interval(0.0, (1.0, 1.0, 1.0)), run.interval(0.0, (loss, loss, loss))
    run.core.observe()
    assert diverged(run.core, loss_multiple=4.0) == bad


@every_mode
def test_a_rollback_cuts_the_rate_and_counts_the_lost_updates(mode):
    run, control = Run(mode=mode), Run(mode=mode)
    for one in (run, control):
        one.interval(0.5, START)
        one.interval(0.2, (9.0, 9.0, 99.0))
        one.core.observe()
    run.core.roll_back(cut=0.1, steps=3)
    assert (run.core.update, run.core.steps, control.core.steps) == (6, 3, 6)
    assert run.core.decision_due
    assert run.core.learning_rate == pytest.approx(0.1 * control.core.learning_rate)
    seen = observed(run)
    assert (seen["rolled_back"], seen["no_loss"], seen["log_loss"]) == (1.0, 1.0, 0.0)
    assert run.core.statistics.losses.size == 0
    assert not diverged(run.core, loss_multiple=4.0)
    run.core.decide(0.5), control.core.decide(0.5)
    assert run.core.learning_rate == pytest.approx(0.1 * control.core.learning_rate)


def test_a_rollback_is_seen_once():
    run = Run()
    run.interval(0.0, START)
    run.core.observe()
    run.core.roll_back(cut=0.5, steps=0)
    run.interval(0.0, START)
    assert observed(run)["rolled_back"] == 0.0


def test_the_losses_of_a_rolled_back_interval_are_forgotten():
    run, control = Run(), Run()
    for one in (run, control):
        one.interval(0.0, START)
    run.interval(0.0, (50.0, 60.0, 70.0))
    run.core.observe()
    run.core.roll_back(cut=0.1, steps=3)
    for one in (run, control):
        one.interval(0.0, (1.0, 1.5, 1.25))
    names = ("log_loss", "log_loss_since_start", "log_loss_change", "loss_slope", "log_loss_spread")
    after, expected = observed(run), observed(control)
    assert {name: after[name] for name in names} == {name: expected[name] for name in names}


def test_a_rollback_of_the_first_interval_begins_anew():
    run = Run()
    run.interval(1.0, (2.0, 30.0, 500.0))
    run.core.observe()
    assert diverged(run.core, loss_multiple=4.0)
    run.core.roll_back(cut=0.1, steps=0)
    assert (run.core.update, run.core.steps, run.core.decision_due) == (3, 0, True)
    run.interval(0.0, (1.0, 1.0, 1.0))
    seen = observed(run)
    assert (seen["log_loss_since_start"], seen["log_loss_change"]) == (0.0, 0.0)  # this is the first interval now
    assert not diverged(run.core, loss_multiple=4.0)
    run.interval(0.0, (3.0, 4.5, 4.7))
    run.core.observe()
    assert diverged(run.core, loss_multiple=4.0)
    assert run.core.statistics.first_loss == 1.0


def test_rollbacks_keep_the_rate_within_its_bounds():
    run = Run(mode="recursive", min_lr=1e-4)
    for _ in range(4):
        run.interval(-1.0)
        run.core.observe()
        run.core.roll_back(cut=1e-3, steps=0)
    assert run.core.learning_rate == pytest.approx(1e-4)


def test_a_rollback_forgets_the_measured_update():
    run = Run(optimizer="rmsprop")
    run.interval(0.0)
    run.core.observe()
    assert (run.core.statistics.sums[:, SUM_U2] > 0).all()
    run.core.roll_back(cut=0.1, steps=0)
    run.core.observe()
    assert (run.core.statistics.sums[:, SUM_U2] == 0).all()


def test_a_run_goes_on_from_a_rolled_back_state_bit_for_bit():
    run = Run(rates=(0.02, 0.005))
    run.interval(0.5), run.interval(1.0)
    run.core.observe()
    run.core.roll_back(cut=0.1, steps=3)
    assert go_on(resumed(run)) == go_on(run)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf, -math.inf])
def test_a_rate_that_is_not_positive_is_refused(rate):
    run = Run()
    run.optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(InvalidSettingError, match=f"initial learning rate is {rate}; expected a finite number above 0"):
        DecisionCore(run.model, run.optimizer, run.graph, 12, run.config)


@pytest.mark.parametrize("rate", [1e-9, 11.0])
def test_a_rate_out_of_bounds_is_refused(rate):
    message = rf"initial learning rate is {rate:g}; expected one within \[min_lr, max_lr\] = \[1e-08, 10\]"
    with pytest.raises(InvalidSettingError, match=message):
        Run(rates=(0.1, rate))


@pytest.mark.parametrize("rate", [1e-8, 10.0])
def test_a_rate_on_its_bound_is_accepted(rate):
    assert imagined_rates(Run(rates=(rate,), mode="recursive").core, []) == [[rate]] * 12


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (3, "budget of 3 updates is smaller than num_decisions = 4.*Raise the budget or lower num_decisions"),
        (10.5, "budget is 10.5; expected a whole number"),
        (0, "budget is 0; expected a finite number above 0"),
        (-5, "budget is -5; expected a finite number above 0"),
        (math.nan, "budget is nan"),
        (math.inf, "budget is inf"),
        ("100", "budget is '100'; expected a finite number above 0"),
        (None, "budget is None"),
    ],
)
def test_a_budget_that_is_none_is_refused(budget, message):
    with pytest.raises(InvalidSettingError, match=message):
        Run(budget)


@pytest.mark.parametrize("budget", [12, 12.0, np.int64(12), np.float64(12)])
def test_a_whole_number_of_any_type_is_a_budget(budget):
    core = Run(budget).core
    assert (core.budget, core.interval) == (12, 3)


def test_a_rate_of_any_number_type_is_a_rate():
    run = Run()
    run.optimizer.param_groups[0]["lr"] = np.float32(0.5)
    assert DecisionCore(run.model, run.optimizer, run.graph, 12, run.config).learning_rate == 0.5


@pytest.mark.parametrize("action", [math.nan, math.inf, -math.inf])
def test_an_action_that_is_not_finite_is_refused(action):
    core = Run().core
    rate = core.learning_rate
    with pytest.raises(InvalidSettingError, match=rf"action is {action}; expected a finite number in \[-1, 1\]"):
        core.decide(action)
    assert core.learning_rate == rate and core.decision_due


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "profil"}, "Unknown action mode 'profil'; expected one of: .*Did you mean 'profile'"),
        ({"profile": "cosin"}, "Unknown profile 'cosin'; expected one of: .*Did you mean 'cosine'"),
        ({"features": "gns-0"}, "Unknown feature schema 'gns-0'; expected one of: "),
    ],
)
def test_an_unknown_name_is_refused(settings, message):
    with pytest.raises(UnknownNameError, match=message):
        DecisionConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({name: value}, rf"{name} is {re.escape(repr(value))}; expected a finite number above 0")
            for name in ("base", "strength", "min_lr", "max_lr", "num_decisions", "decision_interval")
            for value in (0, -1, math.nan, math.inf, "3")
        ),
        ({"base": 1.0}, r"base is 1.0; expected more than 1"),
        ({"first_base": 0.5}, r"first_base is 0.5; expected more than 1"),
        ({"decide_first": 1}, "decide_first is 1; expected true or false"),
        ({"min_lr": 0.1, "max_lr": 0.1}, "min_lr is 0.1 and max_lr 0.1; expected min_lr < max_lr"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr is 1.0 and max_lr 0.1; expected min_lr < max_lr"),
        ({"num_decisions": 2.5}, "num_decisions is 2.5; expected a whole number"),
        ({"decision_interval": 2.5}, "decision_interval is 2.5; expected a whole number"),
        ({"min_lr": True}, "min_lr is True"),
    ],
)
def test_a_setting_outside_its_domain_is_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        DecisionConfig(**settings)


def test_the_optimizer_of_another_model_is_refused():
    run, other = Run(), Run()
    with pytest.raises(
        LayerGraphError, match=r"optimizer holds none of the model's trainable parameters.*pass the model"
    ):
        DecisionCore(run.model, other.optimizer, run.graph, 12, run.config)


def test_the_graph_of_another_model_is_refused():
    run = Run()
    other = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(LayerGraphError, match="model lacks"):
        DecisionCore(
            run.model, run.optimizer, layer_graph(nn.ModuleList([other]), other(torch.ones(1, 3))), 12, run.config
        )
