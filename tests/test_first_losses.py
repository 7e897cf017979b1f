"""One loss that is infinite, or of 1e30, steers nothing: neither the start that a run is compared with, nor a mean."""

import math

import numpy as np
import pytest
import torch
from test_features import GRAPH, statistics
from torch import nn
from torch.nn import functional as F

from gns import DecisionConfig, GNSScheduler
from gns.deciding.guard import diverged
from gns.deciding.rate_control import RateControl
from gns.features.schemas import SCHEMAS, compute_features
from gns.features.statistics import usual_losses

LOSSES = [2.3, 2.2, 2.4, 2.1, 2.0]
OUTLIERS = [math.inf, math.nan, 1e30, -1e30, 1e7]
outliers = pytest.mark.parametrize("outlier", OUTLIERS)


def control_after(*intervals: list[float]) -> RateControl:
    """A run of five updates an interval, decided on after each of these."""
    control = RateControl(100, DecisionConfig(num_decisions=20), [0.01])
    for losses in ([], *intervals):
        control.count_updates(len(losses))
        control.note_observation(np.array(losses), bool(np.isfinite(losses).all()))
        control.decide(0.0)
    return control


@outliers
@pytest.mark.parametrize("place", range(5))
def test_the_start_is_that_of_the_other_losses(outlier, place):
    others = LOSSES[:place] + LOSSES[place + 1 :]
    memory = control_after([*LOSSES[:place], outlier, *LOSSES[place + 1 :]], LOSSES).memory
    assert memory.first_loss == np.mean(others) and memory.start_loss == others[0]
    assert memory.previous_loss == np.mean(LOSSES)


def test_where_the_first_interval_has_no_loss_that_is_a_number_the_next_is_the_start():
    memory = control_after([math.inf] * 5, [math.nan] * 5, LOSSES).memory
    assert memory.first_loss == np.mean(LOSSES) and memory.start_loss == LOSSES[0]


@pytest.mark.parametrize(
    "losses",
    [LOSSES, [2.3, 0.4, 0.05, 0.01, 0.0024], [0.0] * 5, [-3.0, -2.0, 0.1, 1.0, 900.0], [5e4, 4e4, 900.0, 800.0, 700.0]],
)
def test_the_losses_of_a_usual_run_all_count_to_the_last_bit(losses):
    memory = control_after(losses).memory
    assert memory.first_loss == float(np.array(losses).mean()) and memory.start_loss == losses[0]


def test_a_later_loss_may_be_as_much_larger_as_the_first():
    """A hard batch of a network that has learned its data is no outlier."""
    control = control_after(LOSSES, [1e-6, 1e-7, 1.9, 1e-6, 1e-6])
    assert control.memory.previous_loss == float(np.array([1e-6, 1e-7, 1.9, 1e-6, 1e-6]).mean())


@outliers
@pytest.mark.parametrize("schema", ["gns-1", "gns-paper", "srls"])
def test_features_do_not_see_one_that_the_run_has_come_back_from(schema, outlier):
    known = {"first_loss": 2.2, "previous_loss": 2.2}
    spoiled = statistics(0, losses=np.array([2.3, outlier, 2.4, 2.1, 2.0]), **known)
    seen = compute_features(schema, GRAPH, spoiled)
    # Where it stood the interval has a gap: its halves are those of five losses.
    expected = compute_features(schema, GRAPH, statistics(0, losses=np.array([2.3, 2.4, 2.1, 2.0]), **known))
    slope = SCHEMAS[schema].globals.index("loss_slope") if schema == "gns-1" else -1
    for found, wanted in zip(seen, expected, strict=True):
        if slope >= 0 and found.shape == seen[1].shape:
            found, wanted = np.delete(found, slope), np.delete(wanted, slope)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert not bool(spoiled.finite) or math.isfinite(outlier)


@pytest.mark.parametrize("last", [math.inf, 1e30, 1e5])
def test_features_see_a_run_that_is_leaving(last):
    names = SCHEMAS["gns-1"].globals
    run = statistics(0, losses=np.array([2.3, 2.4, 20.0, 400.0, last]), first_loss=2.2, previous_loss=2.2)
    seen = dict(zip(names, compute_features("gns-1", GRAPH, run)[1].tolist(), strict=True))
    assert seen["log_loss"] == pytest.approx(min(0.5 * math.log(np.mean([2.3, 2.4, 20.0, 400.0, last])), 5.0))
    assert seen["log_loss_change"] == 5.0


def test_runs_side_by_side_are_judged_one_by_one():
    losses = np.array([[2.3, 1e30, 2.4, 0.0], [2.3, 2.2, 2.4, 2.5], [1e30, 0.0, 0.0, 0.0], [math.inf, 2.0, 2.1, 1e30]])
    present = np.arange(4) < np.array([3, 4, 1, 4])[:, None]
    usual = usual_losses(losses, present, np.array([math.nan, 2.0, math.nan, 2.0]))
    assert usual.tolist() == [
        [True, False, True, False],
        [True, True, True, True],
        [True, False, False, False],  # one loss is its own median
        [False, True, True, False],
    ]
    assert usual_losses(losses[1:2], present[1:2]) is not None and usual_losses(losses[:0], present[:0]).shape == (0, 4)


@pytest.mark.parametrize("place", range(5))
def test_an_outlier_is_no_start_that_blinds_the_guard(place):
    control = control_after()
    control.count_updates(5)
    control.note_observation(np.array([*LOSSES[:place], 1e30, *LOSSES[place + 1 :]]), finite=True)
    assert diverged(control, 4.0)  # its mean is what the guard judges
    control.decide(0.0)
    control.count_updates(5)
    control.note_observation(np.array([9.6, 9.4, 9.2, 9.7, 9.1]), finite=True)  # four times the start, 2.3 or 2.2
    assert diverged(control, 4.0)


@pytest.mark.parametrize("first", [math.inf, math.nan, 1e30])
@pytest.mark.parametrize("update", [0, 3])
def test_a_scheduler_goes_on_as_without_it(first, update):
    def path(told: float | None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        inputs = torch.randn(64, 8)
        targets = inputs[:, :3].argmax(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        scheduler = GNSScheduler(optimizer, model, total_steps=100)
        for number in range(100):
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss if told is None or number != update else told)
        return [record.learning_rate for record in scheduler.history]

    ratio = np.abs(np.log(np.array(path(first)) / np.array(path(None))))
    assert ratio.max() < math.log(1.3)
