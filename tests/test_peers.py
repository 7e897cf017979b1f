"""Schedule-free optimizers and Prodigy: switched, recalibrated and named right."""

import math
import sys
from dataclasses import replace

import pytest
import torch
from plain_loop import same_state, small_task

from agents.controllers import make_controller
from agents.controllers.peers import MissingPackageError
from envs.learning_rate_env import Episode
from envs.passes import evaluate_split
from envs.training_run import TrainingRun

BUDGET = 60


def episode(kind: str = "batch_norm", optimizer: str = "adam", rate: float = 0.01) -> Episode:
    return Episode(small_task(kind, batch_size=16), optimizer, BUDGET, rate, 1)


def session_of(kind: str, about: Episode, **settings):
    session = make_controller(kind, {"kind": kind, **settings}).start(about)
    while not session.finished:
        session.update()
    return session


@pytest.mark.parametrize("optimizer,name", [("adam", "AdamW"), ("adamw", "AdamW"), ("sgdm", "SGD"), ("sgd", "SGD")])
def test_the_optimizer_is_the_schedule_free_counterpart(optimizer, name):
    session = make_controller("s", {"kind": "schedule-free"}).start(episode(optimizer=optimizer))
    assert type(session.run.optimizer).__name__ == f"{name}ScheduleFree"
    (group,) = session.run.optimizer.param_groups
    assert group["weight_decay"] == (0.01 if optimizer == "adamw" else 0.0) and group["lr"] == 0.01
    assert group["warmup_steps"] == 3 and group["train_mode"]


def test_the_averaged_weights_are_evaluated_and_the_run_goes_on_as_if_nothing_had_been():
    session, other = session_of("schedule-free", episode()), session_of("schedule-free", episode())
    before = {name: value.clone() for name, value in session.run.model.state_dict().items()}
    inside = session.reward_loss()
    assert all(torch.equal(value, before[name]) for name, value in session.run.model.state_dict().items())
    assert session.run.optimizer.param_groups[0]["train_mode"]
    outside = session.run.evaluate_reward_split().loss
    assert inside != outside
    session.budget = other.budget = BUDGET + 20
    for _ in range(20):
        session.update()
        other.update()
    assert same_state(session.run.model, other.run.model)


def test_the_model_that_is_left_has_the_averaged_weights_and_statistics_of_its_own():
    session = session_of("schedule-free", episode())
    training = {name: value.clone() for name, value in session.run.model.state_dict().items()}
    inside = session.reward_loss()
    run = session.finish()
    assert run.reward_loss == inside
    found = evaluate_split(run.model, session.run.task, session.run.task.training_data().reward).loss
    assert found == pytest.approx(inside, rel=1e-6)
    left = run.model.state_dict()
    for name in ("1.weight", "2.running_mean"):
        assert not torch.equal(left[name], training[name])


def test_statistics_of_batch_norm_are_means_over_training_batches():
    task = small_task("batch_norm", batch_size=16)
    run = TrainingRun(task, "sgdm", 0.05, 0)
    for _ in range(20):
        run.compute_gradient()
        run.apply_update()
    rng, order = torch.get_rng_state(), run.state_dict()
    run.recalibrate_batch_norm(10**6)
    norm = run.model[2]
    inputs = task.training_data().train.inputs
    with torch.no_grad():
        whole = run.model[1](inputs.flatten(1))
    assert norm.running_mean == pytest.approx(whole.mean(0), abs=0.02)
    assert norm.running_var == pytest.approx(whole.var(0), rel=0.1)
    assert norm.momentum == 0.1 and run.model.training
    assert torch.equal(torch.get_rng_state(), rng)
    after = run.state_dict()
    assert after["cursor"] == order["cursor"] and torch.equal(after["random"][0], order["random"][0])
    assert torch.equal(after["model"]["1.weight"], order["model"]["1.weight"])


def test_warm_up_is_in_the_rates():
    run = make_controller("s", {"kind": "schedule-free", "warmup": 0.5}).train(episode())
    assert run.rates == pytest.approx([0.01 * min(1.0, (t + 1) / 30) for t in range(BUDGET)])


def test_prodigy_finds_a_rate_whatever_it_is_given(capsys):
    runs = [make_controller("p", {"kind": "prodigy"}).train(episode("plain", "adamw", rate)) for rate in (1e-5, 1.0)]
    assert runs[0].rates == runs[1].rates and runs[0].reward_loss == runs[1].reward_loss
    assert max(runs[0].rates) > 100 * runs[0].rates[0] and runs[0].reward_loss < 1.0
    assert capsys.readouterr().out == ""
    assert runs[0].rates[-1] < 0.02 * max(runs[0].rates)  # its factor follows a cosine


@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
@pytest.mark.parametrize("kind", ["mechanic", "d-adaptation", "momo", "dog"])
def test_an_optimizer_that_sets_its_rate_ignores_the_one_that_is_given(kind, optimizer):
    of_kind = make_controller("p", {"kind": kind})
    low, high = (of_kind.train(episode("plain", optimizer, rate)) for rate in (1e-5, 1.0))
    assert low.rates == high.rates and low.reward_loss == high.reward_loss
    assert low.rates[-1] != low.rates[0] or kind == "momo"  # which does not tell its step


def test_the_scale_multiplies_what_a_peer_estimates():
    once, twice = (make_controller("p", {"kind": "momo", "scale": scale}).train(episode("plain")) for scale in (1, 2))
    assert twice.rates == [2 * rate for rate in once.rates] and once.reward_loss != twice.reward_loss


def test_dog_starts_with_a_larger_step_where_there_is_batch_norm_and_averages():
    plain, normed = (make_controller("d", {"kind": "dog"}).start(episode(kind)) for kind in ("plain", "batch_norm"))
    assert [s.run.optimizer.param_groups[0]["reps_rel"] for s in (plain, normed)] == [1e-6, 1e-4]
    while not plain.finished:
        plain.update()
    inside = plain.reward_loss()
    assert inside != plain.run.evaluate_reward_split().loss  # the run goes on with its own weights
    assert plain.finish().reward_loss == inside


@pytest.mark.parametrize(
    "kind,updates",
    [
        ("schedule-free", 60),
        ("prodigy", 60),
        ("d-adaptation", 60),
        ("momo", 60),
        ("mechanic", 200),  # this and the next begin with a very small step
        ("dog", 500),
    ],
)
def test_training_learns(kind, updates):
    run = make_controller(kind, {"kind": kind}).train(replace(episode("plain"), budget=updates))
    fresh = TrainingRun(small_task("plain", batch_size=16), "adam", 0.01, 1).evaluate_reward_split().loss
    assert run.reward_loss < 0.5 * fresh and math.isfinite(run.reward_loss)


@pytest.mark.parametrize(
    "kind,name",
    [
        ("schedule-free", "schedulefree"),
        ("prodigy", "prodigyopt"),
        ("mechanic", "mechanic_pytorch"),
        ("d-adaptation", "dadaptation"),
        ("momo", "momo"),
        ("dog", "dog"),
    ],
)
def test_a_package_that_is_not_there_is_named_with_its_extra(kind, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=rf"'{name}'.*\[peers\]"):
        make_controller(kind, {"kind": kind}).start(episode())


def test_optuna_tries_rates_on_another_seed_and_trains_at_the_best():
    session = make_controller("o", {"kind": "optuna", "trials": 4}).start(episode("plain"))
    low, high = session.run.task.range_of("adam")
    fresh = TrainingRun(session.run.task, "adam", 0.01, 1)
    session.before_gradient()
    assert same_state(session.run.model, fresh.model)  # the run that counts has not begun
    assert 2 * BUDGET <= session.ledger.search_updates <= 4 * BUDGET and session.ledger.updates == 0
    assert low <= session.own_state()["initial"] <= high
    again = make_controller("o", {"kind": "optuna", "trials": 4}).start(episode("plain"))
    again.before_gradient()
    assert again.own_state() == session.own_state()


def test_optuna_survives_rates_at_which_training_diverges():
    settings = {"kind": "optuna", "trials": 3, "min_lr": 1e3, "max_lr": 1e6}
    session = make_controller("o", settings).start(episode("plain", "sgd"))
    session.before_gradient()
    assert 1e3 <= session.own_state()["initial"] <= 1e6
