"""The loss of what has learned nothing."""

import math

import numpy as np
import pytest
import torch
from conformance import conformance_task

from envs.tasks import Split, TrainingData, get_task
from envs.tasks.base import Task
from envs.training_run import TrainingRun
from envs.trivial import learned_nothing, trivial_loss


def classification(labels: list[int], **about) -> Task:
    targets = torch.tensor(labels)
    split = Split(torch.zeros(len(labels), 2), targets)
    return Task(
        "t", lambda: TrainingData(split, split), lambda: torch.nn.Linear(2, 4), budget=10, batch_size=2, **about
    )


def test_of_a_classification_it_is_the_entropy_of_the_label_shares():
    assert trivial_loss(classification([0, 1, 2, 3])) == pytest.approx(math.log(4))
    three_to_one = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert trivial_loss(classification([0, 0, 0, 3])) == pytest.approx(three_to_one)
    assert trivial_loss(classification([2, 2])) == 0.0


def test_no_constant_prediction_does_better():
    labels = torch.tensor([0, 0, 0, 1, 1, 3])
    best = trivial_loss(classification(labels.tolist()))
    for seed in range(20):
        logits = torch.randn(4, generator=torch.Generator().manual_seed(seed)).expand(len(labels), 4)
        assert float(torch.nn.functional.cross_entropy(logits, labels)) > best


def test_of_another_loss_it_is_the_untrained_networks_on_the_reward_split():
    task = conformance_task("fashion_mnist_vae")
    untrained = TrainingRun(task, "adam", 1e-3, seed=0).evaluate_reward_split().loss
    assert trivial_loss(task) == untrained == pytest.approx(784 * math.log(2), rel=0.05)


def test_the_digits_have_ten_classes_of_about_one_size():
    assert trivial_loss(get_task("digits_mlp")) == pytest.approx(math.log(10), abs=1e-3)


def test_a_run_has_learned_nothing_unless_it_is_clearly_better():
    losses = np.array([math.nan, math.inf, 1.96, 3.0, 1.95, 0.0])
    assert learned_nothing(losses, 2.0).tolist() == [True] * 4 + [False] * 2
    assert learned_nothing(losses[2:4], np.array([3.0, math.inf])).tolist() == [False, False]  # of tasks unlike
