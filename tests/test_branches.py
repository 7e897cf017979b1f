"""Copies of a run, each trained to the end at its own rates: the same side by side as one by one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_loop import small_task
from twins.branches_twin import ends_one_by_one, train_alone

from envs.batched.branches import begin_all, branch, rates_to_the_end, train_to_the_end
from envs.batched.runs import BatchedRuns
from envs.training_run import TrainingRun
from gns.errors import InvalidSettingError
from gns.schedules.profiles import cosine

RATES = {"sgd": 0.05, "sgdm": 0.02, "adam": 3e-3, "adamw": 3e-3}
BUDGET, UPDATE = 30, 12
FACTORS = (0.1, 0.5, 1.0, 3.0)


def everyone(count: int) -> torch.Tensor:
    return torch.ones(count, dtype=torch.bool)


def trained(task, optimizer: str, seeds: list[int], updates: int) -> BatchedRuns:
    runs = BatchedRuns(task, optimizer, len(seeds))
    begin_all(runs, seeds)
    for rate in rates_to_the_end([RATES[optimizer]] * len(seeds), ["cosine"] * len(seeds), BUDGET).T[:updates]:
        runs.apply_updates(rate, everyone(len(seeds)))
        runs.compute_gradients(everyone(len(seeds)))
    return runs


@pytest.mark.parametrize("kind", ["dropout", "batch_norm"])
@pytest.mark.parametrize("optimizer", sorted(RATES))
def test_branches_side_by_side_end_where_each_ends_alone(kind, optimizer):
    task = small_task(kind)
    runs = trained(task, optimizer, [5, 3], UPDATE)
    levels = [RATES[optimizer] * factor for factor in FACTORS]
    rates = rates_to_the_end(levels, ["cosine"] * 4, BUDGET, UPDATE)
    before = runs.weights.clone()
    ends = branch(BatchedRuns(task, optimizer, 4), [(runs, 1)] * 4, rates)
    assert torch.equal(runs.weights, before)
    alone = TrainingRun(task, optimizer, RATES[optimizer], seed=3)
    alone.compute_gradient()
    whole = np.array([RATES[optimizer] * cosine(update / BUDGET) for update in range(UPDATE)])
    train_alone(alone, whole)
    alone.compute_gradient()
    expected = ends_one_by_one(task, optimizer, alone, rates.numpy())
    assert ends.losses == pytest.approx([figures.loss for figures in expected], rel=2e-3)
    assert ends.metrics == pytest.approx([figures.metric for figures in expected], abs=0.011)
    assert not ends.diverged.any() and len(set(ends.losses.round(4))) == 4


def test_the_branch_of_factor_one_is_the_run_itself_and_copies_can_be_used_again():
    task = small_task("dropout")
    runs = trained(task, "adam", [5, 3, 9], UPDATE)
    on_its_way = rates_to_the_end([RATES["adam"]] * 3, ["cosine"] * 3, BUDGET, UPDATE)
    copies = BatchedRuns(task, "adam", 3)
    branch(copies, [(runs, 0)] * 3, 30.0 * on_its_way)
    ends = branch(copies, [(runs, 0), (runs, 1), (runs, 2)], on_its_way)
    whole = BatchedRuns(task, "adam", 3)
    begin_all(whole, [5, 3, 9])
    expected = train_to_the_end(whole, rates_to_the_end([RATES["adam"]] * 3, ["cosine"] * 3, BUDGET))
    assert (ends.losses == expected.losses).all() and torch.equal(copies.weights, whole.weights)


def test_a_lost_branch_is_told_and_has_a_bounded_loss():
    task = small_task("plain")
    runs = trained(task, "sgd", [5], UPDATE)
    rates = rates_to_the_end([0.05, 1e30], ["rex", "rex"], BUDGET, UPDATE)
    ends = branch(BatchedRuns(task, "sgd", 2), [(runs, 0)] * 2, rates)
    assert ends.diverged.tolist() == [False, True]
    assert ends.losses[1] == 1e6 and np.isnan(ends.metrics[1]) and ends.losses[0] < 10.0


def test_rates_follow_each_profile_from_where_the_run_stands():
    rates = rates_to_the_end([2.0, 3.0], ["linear", "cosine"], 4, update=1)
    assert rates.dtype == torch.float64
    expected = [[2.0 * 0.75, 2.0 * 0.5, 2.0 * 0.25], [3.0 * cosine(z) for z in (0.25, 0.5, 0.75)]]
    assert rates.numpy() == pytest.approx(np.array(expected))


def test_branches_that_cannot_be_are_refused():
    task = small_task("plain")
    runs = trained(task, "sgd", [5], UPDATE)
    copies = BatchedRuns(task, "sgd", 2)
    with pytest.raises(InvalidSettingError, match="1 runs were given to 2 copies"):
        branch(copies, [(runs, 0)], torch.zeros(2, 3))
    other = BatchedRuns(replace(task), "sgd", 2)
    with pytest.raises(InvalidSettingError, match="2 of them not of task"):
        branch(other, [(runs, 0)] * 2, torch.zeros(2, 3))
    with pytest.raises(InvalidSettingError, match="expected \\(2, at least 1\\)"):
        branch(copies, [(runs, 0)] * 2, torch.zeros(3, 3))
