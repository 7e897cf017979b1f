"""Learning-rate finders: the rules as the packages have them, and a range test that is undone and counted."""

import math

import numpy as np
import pytest
import torch
from plain_loop import same_state, small_task
from torch.utils.data import DataLoader, TensorDataset

from agents.controllers import make_controller
from agents.controllers.finder import RULES, RangeTest, suggestion
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns import InvalidSettingError, UnknownNameError


def whole_batches():
    """A task whose batch is the whole training split, so that the order of the data says nothing."""
    task = small_task("plain")
    return small_task("plain", batch_size=len(task.training_data().train))


def finder(**settings):
    return make_controller("f", {"kind": "finder", **settings})


def test_the_range_test_and_its_steepest_slope_agree_with_torch_lr_finder(capsys):
    from torch_lr_finder import LRFinder

    task, run = whole_batches(), TrainingRun(whole_batches(), "adam", 0.01, 0)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=1e-5)
    train = task.training_data().train
    peer = LRFinder(run.model, optimizer, task.loss)
    peer.range_test(
        DataLoader(TensorDataset(task.prepare(train.inputs, True), train.targets), batch_size=len(train)),
        end_lr=10.0,
        num_iter=60,
    )
    _, expected = peer.plot(suggest_lr=True)
    session = finder(lowest=1e-5, updates=60).start(Episode(task, "adam", 20, 0.01, 0))
    session.before_gradient()
    assert session.own_state()["initial"] == pytest.approx(expected, rel=1e-6)
    assert session.ledger.search_updates == len(peer.history["lr"]) < 60  # it ended where the loss diverged
    capsys.readouterr()


def test_the_test_is_undone_and_counted():
    task = small_task("plain", batch_size=16)
    session, plain = finder().start(Episode(task, "sgdm", 30, 0.01, 3)), TrainingRun(task, "sgdm", 0.01, 3)
    session.before_gradient()
    assert 0 < session.ledger.search_updates <= 100 and session.ledger.updates == 0
    assert same_state(session.run.model, plain.model)
    while not session.finished:
        session.update()
    assert session.ledger.updates == 30 and len(session.rates) == 30 and math.isfinite(session.reward_loss())
    assert session.rates[0] == session.own_state()["initial"] > session.rates[-1]  # cosine from there


def test_the_initial_rate_given_does_not_matter():
    task = small_task("plain", batch_size=16)
    low, high = (finder(rule="valley").train(Episode(task, "adam", 30, rate, 3)) for rate in (1e-6, 1.0))
    assert low.rates == high.rates and low.reward_loss == high.reward_loss


def falling_then_rising(count=100):
    """Loss that is flat, falls evenly from point 40 to point 70, and rises again."""
    points = np.arange(count)
    losses = np.interp(points, [0, 40, 70, 99], [1.0, 1.0, 0.1, 3.0])
    losses[50:55] -= np.array([0.05, 0.1, 0.15, 0.1, 0.05])  # one steeper stretch
    return RangeTest(np.geomspace(1e-7, 10.0, count), losses)


def test_each_rule_reads_its_own_point():
    found = falling_then_rising()
    rates, losses = found.rates, found.losses
    assert suggestion(found, "minimum-over-10") == pytest.approx(rates[70] / 10)
    slopes = np.gradient(losses)
    assert suggestion(found, "steepest") == rates[int(slopes.argmin())]
    valley = suggestion(found, "valley")
    assert rates[40] < valley < rates[70]


def test_the_valley_is_half_way_down_the_longest_falling_stretch():
    # fastai's rule by hand: the falling stretch ends at point 40 of what is read and is 31 points long, which counts
    # back to point 9; a third of 31 is 10.3 and half of that 5.2, so the rate is that of point 9 + 10 + 5 = 24.
    losses = np.concatenate([np.full(10, 1.0), np.linspace(1.0, 0.0, 31), np.linspace(0.1, 2.0, 30)])
    rates = np.geomspace(1e-6, 1.0, len(losses))
    assert RULES["valley"](rates, losses) == rates[24]


def test_a_curve_too_short_to_be_read_gives_its_lowest_rate():
    short = RangeTest(np.geomspace(1e-7, 1e-6, 12), np.array([1.0] * 11 + [np.inf]))
    assert all(suggestion(short, rule) == 1e-7 for rule in RULES)


@pytest.mark.parametrize(
    "settings,error",
    [
        ({"rule": "deepest"}, UnknownNameError),
        ({"profile": "zigzag"}, UnknownNameError),
        ({"updates": 10}, InvalidSettingError),
        ({"lowest": 1.0, "highest": 0.1}, InvalidSettingError),
        ({"smoothing": 0.0}, InvalidSettingError),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, error):
    with pytest.raises(error):
        finder(**settings)
