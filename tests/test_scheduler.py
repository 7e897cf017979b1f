"""The scheduler in a training loop: the environment's rates to the last bit, whatever the loop does."""

import contextlib
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from plain_loop import batches, make_optimizer, same_state, small_task
from scheduler_loop import ByHand, T, Watch, batch, lively_policy, make_scheduler, network, still_policy, two_groups
from torch import nn
from torch.nn import functional as F
from twins.policy_run_twin import run_in_environment

from agents.controllers import PolicyController
from envs.learning_rate_env import Episode
from gns import GNSPolicy, GNSScheduler, GuardConfig, InvalidSettingError, OutOfOrderError, parameter_groups
from gns.deciding.decision import ACTION_MODES
from gns.scheduler.policy_source import fingerprint

RATES = {"sgd": 0.03, "sgdm": 0.01, "adam": 1e-3, "adamw": 1e-3}


def in_a_users_loop(task, optimizer: str, policy, seed: int, by_layer: bool = False):
    """Rates of all updates, model and scheduler."""
    outside = torch.get_rng_state()
    torch.manual_seed(seed)
    model = task.new_model()
    groups = parameter_groups(model) if by_layer else model.parameters()
    trained_by = make_optimizer(optimizer, groups, RATES[optimizer])
    stream, rates = batches(task, seed), []
    scheduler = GNSScheduler(trained_by, model, total_steps=T, policy=policy, guard=GuardConfig())
    for _ in range(T):
        inputs, targets = next(stream)
        trained_by.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        trained_by.step()
        scheduler.step(loss)
        rates.append(scheduler.get_last_lr()[0])
    torch.set_rng_state(outside)
    return rates, model, scheduler


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("kind", ["plain", "dropout", "batch_norm"])
@pytest.mark.parametrize("mode", ACTION_MODES)
def test_environment_controller_and_scheduler_give_the_same_rates(kind, mode, optimizer, tmp_path):
    folder = tmp_path / "policy"
    lively_policy(mode, "gns-paper" if mode == "gns-paper" else "gns-1").save_pretrained(folder)
    task = small_task(kind)
    by_layer = mode == "per-layer"
    rates, model, scheduler = in_a_users_loop(task, optimizer, folder, seed=9, by_layer=by_layer)
    if by_layer:
        rates = scheduler.run_history().rate_path()[1].tolist()  # the shared ones
    episode = Episode(task, optimizer, T, RATES[optimizer], seed=9)
    session = PolicyController(name="policy", policy=str(folder)).start(episode)
    while not session.finished:
        session.update()
    assert len(set(rates)) > 4 and rates == session.rates
    assert same_state(model, session.run.model)
    env, _ = run_in_environment(GNSPolicy.from_pretrained(folder), GuardConfig(), episode)
    assert same_state(model, env.run.model)
    assert len(scheduler.history) == 5 and max(abs(record.action) for record in scheduler.history) > 0.05


# ---------------------------------------------------------------------- loops of all kinds


@dataclasses.dataclass
class Loop:
    """One way to write a training loop."""

    make: object = lambda model: two_groups(model)
    parts: int = 1
    clip: bool = False
    to_none: bool = True
    closure: bool = False
    scaler: object = None
    amp: bool = False


LOOPS = {
    "two groups": Loop(),
    "gradients kept as zeros": Loop(to_none=False),
    "accumulation": Loop(parts=3),
    "clipping": Loop(clip=True),
    "closure": Loop(closure=True),
    "closure of an unfused optimizer": Loop(make=lambda m: two_groups(m, torch.optim.SGD, momentum=0.9), closure=True),
    "for loop": Loop(make=lambda m: two_groups(m, foreach=False)),
    "foreach": Loop(make=lambda m: two_groups(m, torch.optim.SGD, foreach=True)),
    "fused": Loop(make=lambda m: two_groups(m, torch.optim.Adam, fused=True)),
    "bfloat16": Loop(amp=True),
    "an optimizer of another kind": Loop(make=lambda m: two_groups(m, torch.optim.RMSprop, rate=1e-3)),
    "tensor rates": Loop(make=lambda m: two_groups(m, torch.optim.Adam, rate=torch.tensor(0.01), foreach=False)),
    "scaler": Loop(scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12)),
    "scaler and fused": Loop(
        make=lambda m: two_groups(m, torch.optim.SGD, momentum=0.9, fused=True),
        scaler=lambda: torch.amp.GradScaler("cpu", init_scale=2.0**12),
    ),
    "scaler, fused and clipping": Loop(
        make=lambda m: two_groups(m, fused=True), clip=True, scaler=lambda: torch.amp.GradScaler("cpu")
    ),
}


def follow(loop: Loop, by_hand: bool, skip: frozenset[int] = frozenset(), updates: int = T):
    """Train; rates of the updates made, losses and the model. In batches ``skip`` a gradient is infinite."""
    torch.manual_seed(4)
    model = network(dropout=0.2)
    optimizer = loop.make(model)
    scaler = loop.scaler() if loop.scaler else None
    hand = ByHand(optimizer, model, lively_policy()) if by_hand else None
    scheduler = None if by_hand else make_scheduler(optimizer, model)
    rates, number = [], -1
    while len(rates) < updates:
        number += 1
        inputs, targets = batch(number, size=12)

        def gradient(inputs=inputs, targets=targets, number=number):
            optimizer.zero_grad(set_to_none=loop.to_none)
            losses = []
            for x, y in zip(inputs.chunk(loop.parts), targets.chunk(loop.parts), strict=True):
                with torch.autocast("cpu", torch.bfloat16, enabled=loop.amp):
                    losses.append(F.cross_entropy(model(x), y) / loop.parts)
                (scaler.scale(losses[-1]) if scaler else losses[-1]).backward()
            if number in skip:
                model[0].weight.grad[0, 0] = torch.inf
            return torch.stack(losses).sum() if loop.parts > 1 else losses[0]

        skipped = scaler is not None and number in skip
        if loop.closure and not by_hand:
            loss = optimizer.step(gradient)
        else:
            loss = gradient()
            if loop.clip:
                if scaler:
                    scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if hand and not skipped:
                if scaler and not loop.clip:
                    scaler.unscale_(optimizer)
                hand.before(loss)
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
        if hand:
            if not skipped:
                hand.after(loss)
                rates.append([float(group["lr"]) for group in optimizer.param_groups])
        else:
            before = scheduler.last_epoch
            scheduler.step(loss)
            if scheduler.last_epoch > before:
                rates.append([float(rate) for rate in scheduler.get_last_lr()])
                assert rates[-1] == [float(group["lr"]) for group in optimizer.param_groups]
            assert skipped == (scheduler.last_epoch == before)
    return rates, model, scheduler


@pytest.mark.parametrize("name", LOOPS)
def test_every_kind_of_loop_has_the_rates_of_the_decision_core_by_hand(name):
    rates, model, scheduler = follow(LOOPS[name], by_hand=False)
    by_hand, model_by_hand, _ = follow(LOOPS[name], by_hand=True)
    assert rates == by_hand and same_state(model, model_by_hand)
    assert len({first for first, _ in rates}) > 4
    assert [last / first for first, last in rates] == pytest.approx([3.0] * T, rel=1e-6)
    assert [record.update for record in scheduler.history] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("name", [name for name in LOOPS if name.startswith("scaler")])
def test_updates_that_a_scaler_leaves_out_count_as_none(name):
    # PyTorch's fused SGD starts its momentum with memory as it lies, if its first update is left out.
    skip = frozenset({3, 7, 8, 15}) | (frozenset() if name == "scaler and fused" else {0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rates, model, scheduler = follow(LOOPS[name], by_hand=False, skip=skip)
    by_hand, model_by_hand, _ = follow(LOOPS[name], by_hand=True, skip=skip)
    assert rates == by_hand and same_state(model, model_by_hand)
    assert scheduler.last_epoch == scheduler._run.core.steps == T and len(scheduler.history) == 5
    assert all("GradScaler" in str(w.message) for w in caught if w.category is UserWarning)


def with_closures(optimizer, policy=None):
    """Evaluations of a loop whose optimizer is given closures, model and scheduler."""
    torch.manual_seed(1)
    model = network()
    trained_by, count = optimizer(model.parameters(), lr=0.05), 0
    scheduler = make_scheduler(trained_by, model, policy) if policy else None
    for number in range(T):
        inputs, targets = batch(number)

        def closure(inputs=inputs, targets=targets):
            nonlocal count
            count += 1
            trained_by.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        assert trained_by.step(closure=closure) is not None
        if scheduler:
            scheduler.step()  # the loss is the closure's
    return count, model, scheduler


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_a_closure_is_evaluated_as_often_as_without_a_scheduler(optimizer):
    count, model, _ = with_closures(optimizer)
    counted, scheduled, scheduler = with_closures(optimizer, still_policy())
    assert counted == count >= T and same_state(model, scheduled)
    assert scheduler.last_epoch == T and {record.multiplier for record in scheduler.history} == {1.0}


# ---------------------------------------------------------------------- where the loss comes from


class WithLoss(nn.Module):
    """Returns its loss as models of transformers do."""

    def __init__(self, kind: str = "dict") -> None:
        super().__init__()
        self.body, self.kind = network(), kind

    def forward(self, inputs, targets=None):
        logits = self.body(inputs)
        loss = None if targets is None else F.cross_entropy(logits, targets)
        if self.kind == "dict":
            return {"loss": loss, "logits": logits}
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(loss=loss, logits=logits)


def train_with_loss(kind: str, give: str, parts: int = 1):
    """Losses that the policy saw and rates; ``give`` says how the loss is told."""
    torch.manual_seed(2)
    model = WithLoss(kind)
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    watch = Watch(optimizer)
    for number in range(T):
        optimizer.zero_grad()
        losses = []
        for x, y in zip(*(tensor.chunk(parts) for tensor in batch(number)), strict=True):
            output = model(x, y)
            loss = output["loss"]
            (loss / parts).backward()
            losses.append(loss.detach())
            if give == "report":
                scheduler.report_loss(loss)
            elif give == "share":
                scheduler.report_loss(loss / parts, share=True)
        with torch.no_grad():
            model(*batch(number + 500))  # an evaluation is no training
        optimizer.step()
        mean = torch.stack(losses).sum() / parts if parts > 1 else losses[0]
        scheduler.step(*{"step": [mean], "float": [mean.item()]}.get(give, []))
    return watch.rates, [record.features for record in scheduler.history]


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "give"), [("dict", "output"), ("dict", "report"), ("dict", "float"), ("hf", "output")]
)
def test_the_loss_is_the_same_however_it_is_told(kind, give, parts):
    assert train_with_loss(kind, give, parts) == train_with_loss("dict", "step", parts)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shares_that_are_reported_add_up_to_the_loss(parts):
    assert train_with_loss("dict", "share", parts) == train_with_loss("dict", "step", parts)


def test_shares_of_a_loss_and_losses_that_are_none_do_not_mix():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    update(model, optimizer, scheduler)
    F.cross_entropy(model(batch(1)[0]), batch(1)[1]).backward()
    scheduler.report_loss(1.0, share=True)
    scheduler.report_loss(2.0)
    optimizer.step()
    with pytest.raises(InvalidSettingError, match="1 are shares of it and 1 are not"):
        scheduler.step()


def test_a_loss_that_is_given_comes_before_one_reported_and_that_before_the_outputs():
    torch.manual_seed(0)
    model = WithLoss()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model, lively_policy(decision_interval=1))
    for number, reported, given in [(0, None, None), (1, 7.0, None), (2, 7.0, 5.0), (3, None, None)]:
        optimizer.zero_grad()
        output = model(*batch(number))
        output["loss"].backward()
        if reported:
            scheduler.report_loss(reported)
        optimizer.step()
        expected = given or reported or output["loss"].item()
        scheduler.step(given) if given else scheduler.step()
        optimizer.zero_grad()
        F.cross_entropy(model.body(batch(9)[0]), batch(9)[1]).backward()
        assert scheduler._run.core.observe() is not None
        assert scheduler._run.core.statistics.losses.tolist() == [np.float32(expected)]


def test_the_loss_of_an_update_that_was_left_out_is_forgotten():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model, lively_policy(decision_interval=1))
    update(model, optimizer, scheduler)
    scheduler.report_loss(100.0)
    scheduler.step()  # its optimizer.step was not made
    scheduler.report_loss(2.0)
    optimizer.step()
    scheduler.step()
    assert scheduler._run.core.observe() is not None
    assert scheduler._run.core.statistics.losses.tolist() == [2.0]


def test_no_loss_from_anywhere_is_refused_at_once():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    optimizer.step()
    with pytest.raises(OutOfOrderError, match=r"report_loss"):
        scheduler.step()
    scheduler.step(1.0)  # the update still waits to be counted
    assert scheduler.last_epoch == 1


@pytest.mark.parametrize("loss", [3, True, torch.ones(2), "0.1", np.int64(2)])
def test_what_is_no_loss_is_refused(loss):
    model = network()
    scheduler = make_scheduler(two_groups(model), model)
    with pytest.raises(InvalidSettingError, match="expected a tensor of one element or a float"):
        scheduler.step(loss)
    with pytest.raises(InvalidSettingError, match="expected a tensor of one element or a float"):
        scheduler.report_loss(loss)


def update(model, optimizer, scheduler, number: int = 0, loss=None) -> None:
    optimizer.zero_grad()
    found = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
    found.backward()
    optimizer.step()
    scheduler.step(found if loss is None else loss)


@pytest.mark.parametrize("bad", [float("nan"), torch.tensor(float("inf"))])
def test_a_loss_that_is_not_finite_is_logged_and_the_rates_stay_finite(bad, caplog):
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    for number in range(T):
        update(model, optimizer, scheduler, number, bad if number == 7 else None)
    assert [record.finite for record in scheduler.history] == [True, True, False, True, True]
    assert all(np.isfinite(list(record.features.values())).all() for record in scheduler.history)
    assert np.isfinite(scheduler.get_last_lr()).all()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not finite" in caplog.text


# ---------------------------------------------------------------------- order of calls, and the end


def test_a_second_step_and_a_step_without_an_update_count_as_nothing():
    model = network()
    optimizer = two_groups(model)
    scheduler, other = make_scheduler(optimizer, model), network()
    twin_optimizer = two_groups(other)
    other.load_state_dict(model.state_dict())
    twin = make_scheduler(twin_optimizer, other)
    for number in range(T):
        update(model, optimizer, scheduler, number)
        scheduler.step(99.0)
        scheduler.step()
        update(other, twin_optimizer, twin, number)
        assert scheduler.last_epoch == number + 1 and scheduler.get_last_lr() == twin.get_last_lr()
    assert scheduler.history == twin.history


def test_a_framework_that_counts_steps_by_itself_finds_no_budget_to_stop_at():
    # Accelerate adds to _step_count while it accumulates, and past an attribute total_steps no longer calls step().
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    assert not hasattr(scheduler, "total_steps")
    for number in range(T):
        scheduler._step_count += 3
        update(model, optimizer, scheduler, number)
    assert len(scheduler.history) == 5 and scheduler.last_epoch == T


class Wrapped(torch.optim.Optimizer):
    """Passes everything on to an optimizer inside, as Accelerate's wrapper does, and is never initialised."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer

    param_groups = property(lambda self: self.optimizer.param_groups)
    state = property(lambda self: self.optimizer.state)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        self.optimizer.step(closure)


@pytest.mark.parametrize("given", ["the wrapper", "what is inside"])
def test_an_optimizer_in_a_wrapper_has_the_same_rates(given):
    rates = []
    for wrapped in (False, True):
        torch.manual_seed(6)
        model = network()
        optimizer = two_groups(model)
        watch = Watch(optimizer)
        stepped = Wrapped(optimizer) if wrapped else optimizer
        scheduler = make_scheduler(stepped if given == "the wrapper" else optimizer, model)
        for number in range(T):
            update(model, stepped, scheduler, number)
        rates.append(watch.rates)
    assert rates[0] == rates[1] and len({first for first, _ in rates[0]}) > 4


def test_a_step_before_any_update_warns_once_and_counts_as_nothing():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    with pytest.warns(UserWarning, match="before any optimizer"):
        scheduler.step(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step(1.0)
    assert scheduler.last_epoch == 0 and scheduler.get_last_lr() == [0.01, 0.03]


def test_updates_with_no_step_between_leave_the_rates_alone_and_warn_once():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    update(model, optimizer, scheduler)
    update(model, optimizer, scheduler, 1)
    optimizer.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    with pytest.warns(UserWarning, match="not once an epoch"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == rates
    scheduler.step(1.0)
    assert scheduler.last_epoch == 3


def test_an_update_without_any_gradient_counts_as_nothing():
    rates = []
    for empty in (False, True):
        torch.manual_seed(0)
        model = network()
        optimizer = two_groups(model)
        scheduler, watch = make_scheduler(optimizer, model), []
        for number in range(T):
            if empty and number in (0, 4, 5):
                optimizer.zero_grad()
                optimizer.step()
                scheduler.step()
                assert scheduler.last_epoch == number
            update(model, optimizer, scheduler, number)
            watch.append(scheduler.get_last_lr())
        rates.append(watch)
    assert rates[0] == rates[1]


def test_past_the_budget_the_last_rate_stays():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    for number in range(T):
        update(model, optimizer, scheduler, number)
    rates = scheduler.get_last_lr()
    assert rates[0] > 0.0
    for number in range(T):
        update(model, optimizer, scheduler, number)
    assert scheduler.get_last_lr() == rates == [group["lr"] for group in optimizer.param_groups]
    assert len(scheduler.history) == 5 and scheduler.last_epoch == T


def test_bounds_hold_for_every_group():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model, lively_policy(base=10.0), min_lr=0.009, max_lr=0.031)
    watch = Watch(optimizer)
    for number in range(T):
        update(model, optimizer, scheduler, number)
    rates = np.array(watch.rates)
    assert rates.min() >= 0.009 and rates.max() <= 0.031 and rates.std() > 0


def test_each_record_says_what_was_decided_and_seen():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model, lively_policy(mode="recursive"))
    watch = Watch(optimizer)
    for number in range(T):
        update(model, optimizer, scheduler, number)
    rate = 0.01
    for record in scheduler.history:
        assert record.multiplier == pytest.approx(2.0**record.action)
        rate *= record.multiplier
        assert record.learning_rate == pytest.approx(rate) and record.learning_rate == watch.rates[record.update][0]
        assert not record.rollback and record.finite and -1.0 <= record.action <= 1.0
    assert scheduler.history[0].features["no_loss"] == 1.0 and scheduler.history[1].features["no_loss"] == 0.0
    assert scheduler.history[4].features["progress"] == pytest.approx(2 * 20 / T - 1)


# ---------------------------------------------------------------------- nothing but the rates is touched


def test_random_numbers_are_those_of_a_loop_without_a_scheduler(tmp_path):
    lively_policy().save_pretrained(tmp_path / "policy")
    torch.manual_seed(0)
    model = network(dropout=0.5)
    optimizer = two_groups(model)
    before = torch.get_rng_state()
    scheduler = make_scheduler(optimizer, model, tmp_path / "policy", guard=GuardConfig())
    assert torch.equal(torch.get_rng_state(), before)
    for number in range(T):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        before = torch.get_rng_state()
        optimizer.step()
        scheduler.step(loss)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "context",
    [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta"), lambda: DoubleByDefault()],
    ids=["autocast", "another default device", "double precision by default"],
)
def test_a_steps_surroundings_change_nothing(context):
    torch.manual_seed(0)
    rates, start = [], network().state_dict()
    for surrounding in (contextlib.nullcontext, context):
        model = network()
        model.load_state_dict(start)
        optimizer = two_groups(model, torch.optim.SGD, momentum=0.9)
        scheduler, watch = make_scheduler(optimizer, model), Watch(optimizer)
        for number in range(T):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
            loss.backward()
            with surrounding():
                optimizer.step()
                scheduler.step(loss)
        rates.append(watch.rates)
    assert rates[0] == rates[1] and len({first for first, _ in rates[0]}) > 4


def test_a_policy_is_loaded_to_the_cpu_whatever_the_default_device_is(tmp_path):
    lively_policy().save_pretrained(tmp_path)
    model = network()
    with torch.device("meta"):
        scheduler = make_scheduler(two_groups(model), model, tmp_path)
    assert fingerprint(scheduler.policy) == fingerprint(lively_policy())


class DoubleByDefault(contextlib.ContextDecorator):
    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


def test_between_decisions_nothing_is_copied_to_the_host(monkeypatch):
    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        """Counts what would wait for a device: reading a number, and copies to the host."""

        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
            self.count += function is torch.ops.aten.equal.default
            return function(*args, **(kwargs or {}))

    model = WithLoss()
    optimizer = two_groups(model, torch.optim.SGD)
    scheduler = make_scheduler(optimizer, model, guard=GuardConfig())
    hosts = []
    for number in range(T):
        optimizer.zero_grad()
        with Copies() as copies:
            model(*batch(number))["loss"].backward()
            copied = copies.count
            optimizer.step()
            scheduler.step()
        hosts.append(copies.count)
        assert copied == 0
    # Of a decision: the action, read off a policy on the CPU. At the end the guard looks once more.
    assert [number for number, count in enumerate(hosts) if count] == [0, 5, 10, 15, 20]
    assert max(hosts) == 1
