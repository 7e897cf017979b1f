"""Calibrated defaults: a schedule that takes no initial rate, from a rate that no reported task had a part in."""

import pytest
import torch
from plain_loop import same_state, small_task

from agents.controllers import make_controller
from envs import get_task
from envs.learning_rate_env import Episode
from envs.training_run import TrainingRun
from gns.schedules.calibrated import ENCODER_RATE, calibrated_rate, calibration


def default(profile="rex"):
    return make_controller("d", {"kind": "default", "profile": profile})


@pytest.mark.parametrize("optimizer", ["sgd", "sgdm", "adam", "adamw", "nadamw"])
@pytest.mark.parametrize("profile", ["rex", "cosine", "linear"])
def test_it_is_the_schedule_from_the_calibrated_rate(optimizer, profile):
    task = small_task("plain", batch_size=16)
    session = default(profile).start(Episode(task, optimizer, 20, 1e-7, 0))
    session.update()
    assert session.rates[0] == pytest.approx(calibrated_rate(session.run.optimizer, profile))
    schedule = make_controller("s", {"kind": "schedule", "profile": profile})
    found = default(profile).train(Episode(task, optimizer, 20, 1.0, 0))
    same = schedule.train(Episode(task, optimizer, 20, session.rates[0], 0))
    assert same_state(found.model, same.model)


def test_momentum_is_minded():
    parameter = torch.nn.Parameter(torch.zeros(1))
    plain, heavy = (torch.optim.SGD([parameter], lr=1.0, momentum=momentum) for momentum in (0.0, 0.9))
    assert calibrated_rate(plain) == pytest.approx(10 * calibrated_rate(heavy))


def test_an_encoder_gets_a_rate_for_encoders():
    made = default()
    task = small_task("plain", learning_rates=dict(get_task("glue_mrpc").learning_rates))
    assert made.rate(TrainingRun(task, "adamw", 1.0, 0)) == ENCODER_RATE


def test_the_rates_say_when_and_from_how_many_tasks_they_are():
    about = calibration()
    assert about["date"] and about["tasks"] >= 50
    for kinds in about["profiles"].values():
        assert all(kinds[kind]["low"] <= kinds[kind]["rate"] <= kinds[kind]["high"] for kind in ("adam", "sgd"))
