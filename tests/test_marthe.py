"""MARTHE against the exact hypergradient: the whole run differentiated by a shift of its rates."""

import pytest
import torch
from plain_loop import small_task
from test_hd import OPTIMIZERS, loss_of, problem
from torch import Tensor, nn

from agents.controllers.marthe import MARTHEController, Tangent
from envs.learning_rate_env import Episode
from gns.errors import InvalidSettingError, OutOfOrderError

UPDATES = 20
KINDS = [name for name in OPTIMIZERS if name not in ("nesterov", "amsgrad")]


def unrolled(name: str, rates: list[float], shift: Tensor) -> list[Tensor]:
    """Weights after the run, each optimizer written out, as a function of a shift of all rates."""
    model, batches = problem()
    names = [key for key, _ in model.named_parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    settings = OPTIMIZERS[name](model.parameters()).param_groups[0]
    first = [torch.zeros_like(w) for w in weights]
    second = [torch.zeros_like(w) for w in weights]
    for t, rate in enumerate(rates):
        leaves = [w if w.requires_grad else w.requires_grad_() for w in weights]
        outputs = torch.func.functional_call(model, dict(zip(names, leaves, strict=True)), batches[t % 5])
        loss = (outputs.squeeze() - batches[t % 5].sum(1).sin()).square().mean()
        gradients = torch.autograd.grad(loss, leaves, create_graph=True)
        moved = []
        for i, (w, g) in enumerate(zip(leaves, gradients, strict=True)):
            decay = settings["weight_decay"]
            if decay and not settings.get("decoupled_weight_decay"):
                g = g + decay * w
            if "betas" in settings:
                beta1, beta2 = settings["betas"]
                first[i] = beta1 * first[i] + (1 - beta1) * g
                second[i] = beta2 * second[i] + (1 - beta2) * g * g
                mean, square = first[i] / (1 - beta1 ** (t + 1)), second[i] / (1 - beta2 ** (t + 1))
                direction = mean / (square.sqrt() + settings["eps"])
                if settings.get("decoupled_weight_decay"):
                    direction = direction + decay * w
            else:
                first[i] = settings["momentum"] * first[i] + g
                direction = first[i]
            moved.append(w - (rate + shift) * direction)
        weights = moved
    return weights


@pytest.mark.parametrize("name", KINDS)
def test_with_mu_1_it_is_the_exact_forward_mode_hypergradient(name):
    generator = torch.Generator().manual_seed(1)
    model, batches = problem()
    optimizer = OPTIMIZERS[name](model.parameters())
    base = optimizer.param_groups[0]["lr"]
    rates = [base * (0.5 + float(torch.rand((), generator=generator))) for _ in range(UPDATES)]
    parameters = list(model.parameters())
    tangent = Tangent(optimizer, parameters, [1.0])
    for t, rate in enumerate(rates):
        gradients = torch.autograd.grad(loss_of(model, batches[t % 5]), parameters, create_graph=True)
        product = torch.autograd.grad(gradients, parameters, grad_outputs=tangent.weights, materialize_grads=True)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.detach()
        optimizer.param_groups[0]["lr"] = rate
        tangent.carry(product, mu=1.0)
        optimizer.step()
    validation = torch.autograd.grad(loss_of(model, batches[5]), parameters)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    weights = unrolled(name, rates, shift)
    for p, w in zip(parameters, weights, strict=True):
        assert torch.allclose(p, w, rtol=1e-9, atol=1e-12)
    exact = torch.autograd.grad(sum((w * v).sum() for w, v in zip(weights, validation, strict=True)), shift)[0].item()
    assert abs(exact) > 1e-4
    assert tangent.derivative(validation) == pytest.approx(exact, rel=1e-8)


def test_with_mu_0_only_the_last_update_counts():
    model, batches = problem()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    parameters = list(model.parameters())
    tangent = Tangent(optimizer, parameters, [1.0])
    for batch in batches[:4]:
        gradients = torch.autograd.grad(loss_of(model, batch), parameters)
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        tangent.carry([torch.ones_like(p) for p in parameters], mu=0.0)
        optimizer.step()
    for z, p in zip(tangent.weights, parameters, strict=True):
        assert torch.allclose(z, -optimizer.state[p]["momentum_buffer"], rtol=1e-12)


def test_shifts_are_in_proportion_to_the_groups_rates():
    model, batches = problem()
    first, *rest = model.parameters()
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.02}], lr=0.05)
    parameters = [first, *rest]
    tangent = Tangent(optimizer, parameters, [1.0, 0.4])
    gradients = torch.autograd.grad(loss_of(model, batches[0]), parameters)
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
    tangent.carry([torch.zeros_like(p) for p in parameters], mu=1.0)
    for z, g, ratio in zip(tangent.weights, gradients, [1.0, 0.4, 0.4, 0.4], strict=True):
        assert torch.allclose(z, -ratio * g)


def double_task(**changes):
    """A network in float64 that is differentiated in a whole run."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)).double()

    return small_task(build_model=build, prepare=lambda inputs, training: inputs.double(), batch_size=16, **changes)


@pytest.mark.parametrize("changes", [{}, {"accumulation": 3}, {"clip_norm": 0.5}], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw"])
def test_a_whole_run_has_the_hypergradient_of_finite_differences(optimizer, changes):
    """The session's own product <grad E_val, Z> after 20 updates, beta = 0, against shifted runs."""

    def run(rate: float):
        task = double_task(**changes)
        session = MARTHEController("m", mu=1.0, beta=0.0).start(Episode(task, optimizer, UPDATES, rate, 4))
        for _ in range(UPDATES):
            session.update()
        return session

    def validation_loss(session) -> float:
        session.run._reward_cursor = 0
        inputs, targets = session.run._reward.batch(torch.arange(16))
        return float(session.run.task.loss(session.run.model(inputs.double()), targets).detach())

    rate, width = 0.02 if optimizer.startswith("sgd") else 0.003, 1e-6
    session = run(rate)
    session.run._reward_cursor = 0
    found = session.tangent.derivative(session.run.reward_gradient())
    exact = (validation_loss(run(rate + width)) - validation_loss(run(rate - width))) / (2 * width)
    assert abs(exact) > 1e-3
    assert found == pytest.approx(exact, rel=1e-4)
    assert session.ledger.hessian_products == UPDATES and session.ledger.validation_batches == UPDATES - 1


def test_gradients_with_a_graph_are_those_without():
    for changes in ({}, {"accumulation": 3}, {"clip_norm": 0.1}):
        episode = Episode(small_task("dropout", **changes), "sgdm", 10, 0.01, 0)
        runs = [MARTHEController("m").start(episode).run for _ in range(2)]
        runs[0].compute_gradient()
        runs[1].compute_gradient(keep_graph=True)
        for a, b in zip(*(run.parameters for run in runs), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-8)


def test_a_hessian_product_needs_its_graph():
    run = MARTHEController("m").start(Episode(small_task(), "sgdm", 10, 0.01, 0)).run
    run.compute_gradient()
    vectors = [torch.ones_like(p) for p in run.parameters]
    with pytest.raises(OutOfOrderError, match="keep_graph=True"):
        run.hessian_vector_product(vectors)
    run.compute_gradient(keep_graph=True)
    run.hessian_vector_product(vectors)
    with pytest.raises(OutOfOrderError, match="keep_graph=True"):
        run.hessian_vector_product(vectors)


def test_the_validation_gradient_leaves_the_run_alone():
    episode = Episode(small_task("batch_norm"), "sgdm", 10, 0.01, 0)
    run, other = (MARTHEController("m").start(episode).run for _ in range(2))
    for one in (run, other):
        one.compute_gradient()
    pending = [p.grad.clone() for p in run.parameters]
    run.reward_gradient()
    assert all(torch.equal(p.grad, g) for p, g in zip(run.parameters, pending, strict=True))
    assert all(module.training for module in run.model.modules())
    for _ in range(3):
        for one in (run, other):
            one.apply_update()
            one.compute_gradient()
    assert all(
        torch.equal(a, b)
        for a, b in zip(run.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["nesterov", "amsgrad"])
def test_what_is_not_differentiated_is_refused(name):
    model, _ = problem()
    with pytest.raises(InvalidSettingError, match=name):
        Tangent(OPTIMIZERS[name](model.parameters()), list(model.parameters()), [1.0])


def test_mu_outside_its_domain_is_refused():
    with pytest.raises(InvalidSettingError, match=r"mu is 1\.5"):
        MARTHEController("m", mu=1.5)
