"""A training run among others is the run it is alone."""

import math

import numpy as np
import pytest
import torch
from plain_loop import small_task
from torch import nn

from envs import get_task
from envs.batched.model import FoldedMaxPool2d, NotBatchableError, cross_entropies
from envs.batched.observing import sums_of
from envs.batched.optimizers import BATCHED_OPTIMIZERS
from envs.batched.runs import BatchedRuns
from envs.training_run import OPTIMIZERS, TrainingRun
from gns.features.sums import read_sums
from gns.graph.layer_graph import layer_graph

RATES = {"sgd": 0.05, "sgdm": 0.02, "adam": 3e-3, "adamw": 3e-3, "nadamw": 0.005}
SEEDS = [3, 11, 4, 90]
UPDATES = 60


def task_of(kind: str):
    if kind in ("plain", "dropout", "batch_norm"):
        return small_task(kind)
    if kind == "accumulated":
        return small_task("dropout", accumulation=2, clip_norm=0.5)
    return get_task(kind)


KINDS = ["digits_mlp", "digits_cnn", "mnist1d_mlp", "mnist1d_cnn", "plain", "dropout", "batch_norm", "accumulated"]


def alone(task, optimizer: str, seed: int, rates: list[float]) -> tuple[TrainingRun, list[float]]:
    run, losses = TrainingRun(task, optimizer, 1e-3, seed), []
    for rate in rates:
        losses.append(run.compute_gradient().item())
        run.optimizer.param_groups[0]["lr"] = rate
        run.apply_update()
    return run, losses


def everyone(count: int = len(SEEDS)) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


def rates_of(optimizer: str, run: int) -> list[float]:
    """Rates that differ between runs and fall."""
    return [RATES[optimizer] * (1 + run) / 2 * (1 - t / UPDATES) for t in range(UPDATES)]


def train(runs: BatchedRuns, rates: list[list[float]], begin: int, end: int) -> list[list[float]]:
    losses, many = [], everyone(len(rates))
    for t in range(begin, end):
        runs.compute_gradients(many)
        losses.append(runs.losses.tolist())
        runs.apply_updates(torch.tensor([of_run[t] for of_run in rates], dtype=torch.float64), many)
    return losses


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("kind", KINDS)
def test_runs_side_by_side_end_where_each_ends_alone(kind, optimizer):
    task = task_of(kind)
    runs, rates = BatchedRuns(task, optimizer, len(SEEDS)), [rates_of(optimizer, i) for i in range(len(SEEDS))]
    outside = torch.get_rng_state()
    runs.begin(range(len(SEEDS)), SEEDS)
    losses = train(runs, rates, 0, UPDATES)
    assert torch.equal(torch.get_rng_state(), outside)
    found = runs.evaluate_reward_split(range(len(SEEDS)))
    for i, seed in enumerate(SEEDS):
        run, its_losses = alone(task, optimizer, seed, rates[i])
        assert losses[0][i] == pytest.approx(its_losses[0], rel=1e-5)
        expected = run.evaluate_reward_split()
        assert found[i].loss == pytest.approx(expected.loss, rel=2e-3)
        assert found[i].metric == pytest.approx(expected.metric, abs=0.01)
        assert [row[i] for row in losses] == pytest.approx(its_losses, rel=0.02, abs=1e-3)
    assert len({round(figures.loss, 3) for figures in found}) == len(SEEDS)


@pytest.mark.parametrize("kind", ["digits_cnn", "accumulated", "batch_norm"])
def test_a_run_that_is_left_out_stays_as_it_is(kind):
    task, optimizer = task_of(kind), "sgdm"  # Adam's first steps make much of the rounding of small gradients
    runs = BatchedRuns(task, optimizer, 3)
    runs.begin(range(3), SEEDS[:3])
    rates = torch.full((3,), RATES[optimizer], dtype=torch.float64)
    for t in range(20):
        active = torch.tensor([True, t % 2 == 0, t % 5 == 0])
        runs.compute_gradients(active)
        runs.apply_updates(rates, active)
    found = runs.evaluate_reward_split(range(3))
    for i, count in enumerate((20, 10, 4)):
        run, _ = alone(task, optimizer, SEEDS[i], [RATES[optimizer]] * count)
        assert found[i].loss == pytest.approx(run.evaluate_reward_split().loss, rel=1e-5)
    some = runs.evaluate_reward_split([2, 0])
    assert [figures.loss for figures in some] == pytest.approx([found[2].loss, found[0].loss], rel=1e-6)


def test_a_run_is_the_same_whoever_its_neighbours_are():
    task, final = task_of("dropout"), []
    for others in ([], [1, 2, 5], list(range(20, 35))):
        runs = BatchedRuns(task, "adam", 1 + len(others))
        runs.begin(range(1 + len(others)), [7, *others])
        many = everyone(1 + len(others))
        for _ in range(40):
            runs.compute_gradients(many)
            runs.apply_updates(torch.full((len(many),), 3e-3, dtype=torch.float64), many)
        final.append(runs.evaluate_reward_split([0])[0].loss)
    assert final[1:] == pytest.approx([final[0]] * 2, rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "accumulated", "batch_norm"])
def test_a_run_goes_back_to_its_state_and_repeats_itself_while_others_go_on(kind):
    task = task_of(kind)
    runs, rates = BatchedRuns(task, "adam", len(SEEDS)), [rates_of("adam", i) for i in range(len(SEEDS))]
    runs.begin(range(len(SEEDS)), SEEDS)
    train(runs, rates, 0, 10)
    state = runs.state(runs.positions(range(len(SEEDS))))
    train(runs, rates, 10, 20)
    others = [runs.weights[i].clone() for i in (0, 2)]
    once = runs.evaluate_reward_split([1, 3])
    runs.load_state([3, 1], state, [3, 1])
    assert all(torch.equal(runs.weights[i], before) for i, before in zip((0, 2), others, strict=True))
    train(runs, rates, 10, 20)
    assert runs.evaluate_reward_split([1, 3]) == once


@pytest.mark.parametrize("kind", ["plain", "accumulated", "batch_norm"])
def test_runs_that_moved_to_other_rows_go_on_as_they_were(kind):
    task = task_of(kind)
    left, right = (BatchedRuns(task, "adam", len(SEEDS)) for _ in range(2))
    rates, found = [rates_of("adam", i) for i in range(len(SEEDS))], []
    for runs, orders in ((left, [[0, 0, 0, 0]]), (right, [[3, 0, 9, 9], [0, 1, 2, 3], [5, 1, 5, 1]])):
        runs.begin(range(len(SEEDS)), SEEDS)
        for t in range(12):
            runs.arrange(np.array(orders[t % len(orders)]))
            runs.compute_gradients(everyone())
            runs.arrange(np.array(orders[(t + 1) % len(orders)]))
            by_run = torch.tensor([of_run[t] for of_run in rates], dtype=torch.float64)
            runs.apply_updates(by_run, everyone())
        found.append([figures.loss for figures in runs.evaluate_reward_split(range(len(SEEDS)))])
    assert right.rows.tolist() != left.rows.tolist() == [0, 1, 2, 3]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert torch.allclose(right.weights[right.rows], left.weights[left.rows], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("optimizer", sorted(name for name, known in BATCHED_OPTIMIZERS.items() if known.readable))
def test_sums_over_weights_gradients_and_state_are_those_of_each_run(optimizer):
    task = task_of("digits_mlp")
    runs, rates = BatchedRuns(task, optimizer, len(SEEDS)), [rates_of(optimizer, i) for i in range(len(SEEDS))]
    first = TrainingRun(task, optimizer, 1e-3, seed=0)
    graph = layer_graph(first.model, first.compute_gradient())
    runs.begin(range(len(SEEDS)), SEEDS)
    for updates in (0, 3):
        train(runs, rates, 0, updates)
        runs.arrange(np.array([1, 2, 2, 3]))
        runs.compute_gradients(everyone())
        sums, losses = sums_of(runs, graph, runs.losses.unsqueeze(1))
        for i, seed in enumerate(SEEDS):
            run, _ = alone(task, optimizer, seed, rates[i][:updates])
            loss = run.compute_gradient()
            parameters = dict(run.model.named_parameters())
            ordered = [parameters[name] for layer in graph.parameters for name in layer]
            expected = read_sums(run.optimizer, ordered, [p.grad for p in ordered], updates).sums
            np.testing.assert_allclose(sums[i], expected.numpy(), rtol=1e-3, atol=1e-4)
            assert losses[i] == pytest.approx([loss.item()], rel=1e-4)
        runs.begin(range(len(SEEDS)), SEEDS)


def test_runs_of_highest_priority_stand_in_the_first_rows():
    runs = BatchedRuns(task_of("plain"), "sgd", 4)
    runs.arrange(np.array([1, 7, 3, 7]))
    assert runs.rows.tolist() == [3, 0, 2, 1]
    runs.arrange(np.array([1, 8, 3, 7]))  # they stand in order
    assert runs.rows.tolist() == [3, 0, 2, 1]


def test_a_diverged_run_does_not_spoil_its_neighbours():
    runs = BatchedRuns(task_of("batch_norm"), "sgdm", 3)
    runs.begin(range(3), SEEDS[:3])
    for _ in range(30):
        runs.compute_gradients(everyone(3))
        runs.apply_updates(torch.tensor([0.02, math.inf, 0.02], dtype=torch.float64), everyone(3))
    found = runs.evaluate_reward_split(range(3))
    assert math.isnan(found[1].loss)
    for i in (0, 2):
        run, _ = alone(task_of("batch_norm"), "sgdm", SEEDS[i], [0.02] * 30)
        assert found[i].loss == pytest.approx(run.evaluate_reward_split().loss, rel=1e-3)


def test_a_run_that_begins_in_a_used_row_knows_nothing_of_the_last_one():
    task = task_of("batch_norm")
    runs = BatchedRuns(task, "sgdm", 2)
    runs.begin(range(2), [1, 2])
    rates = [[1e-2] * 30, [2e-2] * 30]
    train(runs, rates, 0, 15)
    runs.begin([0], [5])
    train(runs, rates, 15, 30)
    run, _ = alone(task, "sgdm", 5, rates[0][15:])
    assert runs.evaluate_reward_split([0])[0].loss == pytest.approx(run.evaluate_reward_split().loss, rel=1e-4)
    other, _ = alone(task, "sgdm", 2, rates[1])
    assert runs.evaluate_reward_split([1])[0].loss == pytest.approx(other.evaluate_reward_split().loss, rel=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (2, 2)])
def test_pooling_for_many_runs_is_pytorchs(size):
    inputs = torch.randn(4, 5, 3, *size).relu().requires_grad_()  # with many equal entries
    pooled = torch.vmap(FoldedMaxPool2d())(inputs)
    expected = nn.MaxPool2d(2)(inputs.flatten(0, 1)).unflatten(0, (4, 5))
    assert torch.equal(pooled, expected)
    weights = torch.randn_like(pooled)
    gradients = [torch.autograd.grad((out * weights).sum(), inputs, retain_graph=True)[0] for out in (pooled, expected)]
    assert torch.equal(*gradients)


def two_groups(model: nn.Module, **of_second: object) -> list[dict]:
    first, *rest = model.parameters()
    return [{"params": [first]}, {"params": rest, **of_second}]


class Noisy(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs) + torch.randn(10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bfloat16"}, "runs at precision bfloat16"),
        ({"parameter_groups": lambda model: two_groups(model, betas=(0.8, 0.9))}, "have betas of their own"),
        ({"parameter_groups": lambda model: two_groups(model, lr=0.1)}, "have lr of their own"),
        ({"parameter_groups": lambda model: two_groups(model, amsgrad=True)}, "have amsgrad of their own"),
        ({"parameter_groups": lambda model: list(model.parameters())[1:]}, "leave out 1 parameters"),
        ({"accumulation": 3}, "parts of unequal size"),
        ({"build_model": lambda: Noisy(nn.Flatten(), nn.Linear(64, 10))}, "cannot be evaluated for many runs"),
    ],
)
def test_runs_that_cannot_share_a_forward_pass_are_refused_by_name(changes, message):
    with pytest.raises(NotBatchableError, match=message) as raised:
        runs = BatchedRuns(small_task("plain", **changes), "adam", 2)
        runs.begin(range(2), [0, 1])
        runs.compute_gradients(everyone(2))
    assert "one at a time" in str(raised.value)


def test_cross_entropy_of_many_runs_is_pytorchs():
    generator = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(4, 6, 3, generator=generator)).requires_grad_()
    targets = torch.randint(3, (4, 6), generator=generator)
    each = cross_entropies(logits, targets)
    expected = torch.stack([nn.functional.cross_entropy(*pair) for pair in zip(logits, targets, strict=True)])
    assert torch.allclose(each, expected, rtol=1e-6)
    gradients = [torch.autograd.grad((out * torch.arange(4.0)).sum(), logits)[0] for out in (each, expected)]
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-8)
