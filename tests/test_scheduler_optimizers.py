"""Optimizers of any make: closures called when they like, optimizers inside others, and rates of any kind."""

import io
import warnings

import numpy as np
import pytest
import torch
from plain_loop import same_state
from scheduler_loop import T, Watch, batch, lively_policy, make_scheduler, network, still_policy, two_groups
from torch import nn
from torch.nn import functional as F

from gns import InvalidSettingError, parameter_groups
from gns.features.moments import optimizer_kind


class Climbing(torch.optim.Optimizer):
    """Sharpness-aware (Foret et al., ICLR 2021): takes the gradient a little uphill, and steps from where it was."""

    def __init__(self, parameters, make, rho=0.5) -> None:
        super().__init__(parameters, {})
        self.whatever = make(self.param_groups)
        self.param_groups = self.whatever.param_groups

    @torch.no_grad()
    def up(self):
        self.moved = [(p, 0.5 * p.grad) for group in self.param_groups for p in group["params"]]
        for parameter, way in self.moved:
            parameter.add_(way)
        self.zero_grad()

    @torch.no_grad()
    def down(self):
        for parameter, way in self.moved:
            parameter.sub_(way)
        self.whatever.step()
        self.zero_grad()

    def step(self, closure):
        self.up()
        with torch.enable_grad():
            loss = closure()
        self.down()
        return loss


class ClimbingAlone(torch.optim.Optimizer):
    """The same without an optimizer inside."""

    def __init__(self, parameters, lr) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        held = [p for group in self.param_groups for p in group["params"]]
        before = [p.clone() for p in held]
        for parameter in held:
            parameter.add_(parameter.grad, alpha=0.5)
        self.zero_grad()
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(before.pop(0)).sub_(group["lr"] * parameter.grad)
        self.zero_grad()
        return loss


def momentum(groups):
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def climb(make, by_hand: bool, scheduled: bool, policy=None):
    torch.manual_seed(3)
    model = network()
    optimizer = make(model)
    scheduler = make_scheduler(optimizer, model, policy or still_policy()) if scheduled else None
    gradients = []
    for number in range(T):

        def again(number=number):
            loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
            loss.backward()
            gradients.append(model[0].weight.grad.clone())
            return loss

        loss = again()
        if by_hand:
            optimizer.up()
            again()
            optimizer.down()
        else:
            optimizer.step(again)
        if scheduler:
            scheduler.step(loss)
    return model, gradients, scheduler


CLIMBING = {
    "an optimizer inside": (lambda model: Climbing(model.parameters(), momentum), False),
    "its two halves by hand": (lambda model: Climbing(model.parameters(), momentum), True),
    "none inside": (lambda model: ClimbingAlone(model.parameters(), 0.05), False),
}


@pytest.mark.parametrize("how", CLIMBING)
def test_an_optimizer_that_moves_weights_before_it_calls_its_closure_is_left_alone(how):
    make, by_hand = CLIMBING[how]
    plain, gradients, _ = climb(make, by_hand, scheduled=False)
    scheduled, same, scheduler = climb(make, by_hand, scheduled=True)
    assert same_state(plain, scheduled) and len(same) == len(gradients) == 2 * T
    assert scheduler.last_epoch == T and len(scheduler.history) == 5
    _, _, lively = climb(make, by_hand, True, lively_policy())
    assert len({record.learning_rate for record in lively.history}) > 3
    assert [group["lr"] for group in lively.optimizer.param_groups] == lively.get_last_lr()


def test_momentum_of_an_optimizer_inside_is_seen():
    _, _, scheduler = climb(*CLIMBING["an optimizer inside"], scheduled=True)
    assert optimizer_kind(scheduler.optimizer) == "sgd"
    assert scheduler._run.core.optimizer is scheduler.optimizer.whatever
    assert scheduler._run.core.statistics.sums[:, 5].min() > 0  # squared momentum


class Looking(torch.optim.Optimizer):
    """Lookahead (Zhang et al., NeurIPS 2019), its optimizer under a name of its own."""

    def __init__(self, fast, every=3) -> None:
        super().__init__(fast.param_groups, fast.defaults)
        self.fast, self.every, self.count = fast, every, 0
        self.param_groups = fast.param_groups
        self.slow = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.fast.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for slow, p in zip(self.slow, (p for g in self.param_groups for p in g["params"]), strict=True):
                p.copy_(slow.lerp_(p, 0.5))
        return loss


def average(closure: bool, scheduled: bool):
    torch.manual_seed(3)
    model = network()
    optimizer = Looking(two_groups(model))
    scheduler = make_scheduler(optimizer, model, still_policy()) if scheduled else None
    for number in range(T):

        def gradient(number=number):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
            loss.backward()
            return loss

        loss = optimizer.step(gradient) if closure else gradient()
        if not closure:
            optimizer.step()
        if scheduler:
            scheduler.step(loss)
    return model, scheduler


@pytest.mark.parametrize("closure", [False, True])
def test_weights_that_an_outer_optimizer_averages_are_those_of_a_loop_without_a_scheduler(closure):
    plain, _ = average(closure, scheduled=False)
    scheduled, scheduler = average(closure, scheduled=True)
    assert same_state(plain, scheduled) and scheduler.last_epoch == T and len(scheduler.history) == 5


def test_an_optimizer_inside_whose_rates_are_its_own_is_refused_by_name():
    model = network()

    class Apart(torch.optim.Optimizer):
        def __init__(self, parameters) -> None:
            super().__init__(parameters, {"lr": 0.1})
            self.rest = [torch.optim.SGD(self.param_groups[0]["params"], lr=0.1)]

    optimizer = Apart(model.parameters())
    with pytest.raises(InvalidSettingError, match=r"holds an optimizer as 'rest\[0\]', a SGD, with parameter groups"):
        make_scheduler(optimizer, model)
    assert make_scheduler(optimizer.rest[0], model).last_epoch == 0
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    optimizer.rest = {"of another model": other}
    assert make_scheduler(optimizer, model).last_epoch == 0


def test_an_optimizer_of_several_decides_for_all_and_one_that_calls_no_hooks_is_refused():
    class Several(torch.optim.Optimizer):
        def __init__(self, parts, initialised=True) -> None:
            groups = [group for part in parts for group in part.param_groups]
            if initialised:
                super().__init__([{"params": []} | group for group in groups], {})
            self.parts, self.param_groups = parts, groups

        def step(self, closure=None):
            for part in self.parts:
                part.step()

    model = network()
    parts = [torch.optim.SGD(model[:4].parameters(), lr=0.1), torch.optim.Adam(model[5].parameters(), lr=0.01)]
    optimizer = Several(parts)
    scheduler = make_scheduler(optimizer, model)
    train(model, optimizer, scheduler, T)
    assert scheduler.last_epoch == T and parts[0].param_groups[0]["lr"] == scheduler.get_last_lr()[0] != 0.1
    with pytest.raises(InvalidSettingError, match=r"Several was made without Optimizer\.__init__"):
        make_scheduler(Several(parts, initialised=False), model)


def train(model, optimizer, scheduler, updates, each=lambda number: None):
    for number in range(updates):
        each(number)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
        loss.backward()
        optimizer.step()
        scheduler.step(loss)


def test_an_optimizer_that_reads_its_rate_before_its_closure_has_the_rate_of_the_update():
    torch.manual_seed(0)
    model, sizes, calls, rates = network(), [], [], []

    class Watched(torch.optim.LBFGS):
        def _add_grad(self, step_size, direction):
            sizes.append(step_size)
            super()._add_grad(step_size, direction)

    optimizer = Watched(model.parameters(), lr=0.1, max_iter=1)
    scheduler = make_scheduler(optimizer, model)
    for number in range(T):

        def gradient(number=number):
            calls.append(number)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch(number)[0]), batch(number)[1])
            loss.backward()
            return loss

        scheduler.step(optimizer.step(gradient))
        rates += scheduler.get_last_lr()
    # The first step alone is scaled by the gradient besides.
    assert sizes[1:] == rates[1:] and len(set(rates)) > 4 and calls == list(range(T))


def test_a_closure_that_is_never_called_is_told():
    class Deaf(torch.optim.Optimizer):
        def step(self, closure=None):
            pass

    model = network()
    optimizer = Deaf(model.parameters(), {"lr": 0.1})
    scheduler = make_scheduler(optimizer, model)
    model(batch(0)[0]).sum().backward()
    with pytest.warns(UserWarning, match="never called its closure"):
        optimizer.step(lambda: 1.0)
    scheduler.step(1.0)
    assert scheduler.last_epoch == 0


# ---------------------------------------------------------------------- rates of any kind


@pytest.mark.parametrize("through", ["made", "loaded"])
def test_a_tensor_that_groups_share_moves_each_as_a_float_does(through):
    rates = []
    for rate in (0.01, torch.tensor(0.01)):
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.Adam(parameter_groups(model), lr=rate, foreach=False)
        state = optimizer.state_dict()
        scheduler = make_scheduler(optimizer, model, lively_policy("per-layer"))
        if through == "loaded":
            optimizer.load_state_dict(state)  # in which they share it again
        train(model, optimizer, scheduler, T)
        rates.append([float(value) for value in scheduler.get_last_lr()])
    assert len(set(rates[0])) == 3 and rates[1] == pytest.approx(rates[0], rel=1e-4)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.array])
def test_rates_of_numpy_enter_no_state(kind):
    torch.manual_seed(0)
    model = network()
    optimizer = two_groups(model, rate=kind(0.01))
    scheduler = make_scheduler(optimizer, model, min_lr=np.float64(1e-9), max_lr=np.float32(5.0))
    train(model, optimizer, scheduler, 7)
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file := io.BytesIO())
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for part, state in zip((optimizer, scheduler), states, strict=True):
        part.load_state_dict(state)
    train(model, optimizer, scheduler, 3)
    assert scheduler.last_epoch == 10 and all(type(rate) is float for rate in scheduler.get_last_lr())


# ---------------------------------------------------------------------- whose rates they are


def set_by_hand(optimizer, rate):
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


@pytest.mark.parametrize("rate", [0.01, torch.tensor(0.01)], ids=["float", "tensor"])
@pytest.mark.parametrize("when", [0, 4])
def test_a_rate_that_is_set_by_hand_is_told_once_and_overwritten(when, rate):
    model = network()
    optimizer = two_groups(model, torch.optim.Adam, rate=rate, foreach=False)
    scheduler, watch = make_scheduler(optimizer, model), Watch(optimizer)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(model, optimizer, scheduler, T, lambda number: number >= when and set_by_hand(optimizer, 0.5))
    assert [str(warning.message)[:32] for warning in told] == ["A rate of the optimizer was chan"]
    assert told[0].filename == __file__ and max(first for first, _ in watch.rates) < 0.5


def test_another_scheduler_at_the_same_time_is_told_and_one_at_a_time_is_not():
    model = network()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T)
    with pytest.warns(UserWarning, match="changed by hand or by another scheduler"):
        train(model, optimizer, scheduler, 6, lambda number: number and cosine.step())
    scheduler.remove()
    first = make_scheduler(optimizer, model)
    train(model, optimizer, first, 3)
    second = make_scheduler(optimizer, model)
    with pytest.warns(UserWarning, match="Another GNSScheduler is at work"):
        train(model, optimizer, second, 1)
    first.remove()
    third = make_scheduler(optimizer, model)
    second.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, third, T)


# ---------------------------------------------------------------------- evaluation is no training


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.auxiliary = network(), nn.Linear(6, 3)

    def forward(self, inputs, targets):
        logits = self.body(inputs) + (self.auxiliary(inputs) if self.training else 0.0)
        return {"loss": F.cross_entropy(logits, targets)}


@pytest.mark.parametrize("when", ["before the update", "after the update"])
def test_a_loss_or_graph_of_a_model_in_evaluation_mode_is_not_that_of_training(when):
    histories = []
    for evaluated in (False, True):
        torch.manual_seed(0)
        model = WithLoss()
        optimizer = two_groups(model)
        scheduler = make_scheduler(optimizer, model)

        def evaluate(model=model, evaluated=evaluated):
            if evaluated:
                model.eval()(10.0 * batch(99)[0], batch(99)[1])  # with gradients
                model.train()

        for number in range(T):
            optimizer.zero_grad()
            if when == "before the update":
                evaluate()
            model(*batch(number))["loss"].backward()
            optimizer.step()
            if when == "after the update":
                evaluate()
            scheduler.step()
        histories.append(scheduler.history)
        assert "auxiliary" in scheduler.graph.names
    assert histories[0] == histories[1]


def test_a_model_that_is_trained_in_evaluation_mode_has_its_losses():
    model = WithLoss().eval()
    optimizer = two_groups(model)
    scheduler = make_scheduler(optimizer, model)
    for number in range(T):
        optimizer.zero_grad()
        model(*batch(number))["loss"].backward()
        optimizer.step()
        scheduler.step()
    assert all(record.loss is not None for record in scheduler.history[1:]) and "auxiliary" not in scheduler.graph.names
