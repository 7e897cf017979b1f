import math

import numpy as np
import pytest
import torch
from plain_loop import same_state, small_task
from torch import nn
from twins.policy_run_twin import run_in_environment

from agents.controllers import ScheduleController, make_controller
from agents.controllers.policy import PolicyController
from agents.controllers.schedule import set_momentum
from agents.evaluation.sweep import Job, run_job, run_jobs
from envs.learning_rate_env import Episode
from envs.tasks import get_task
from envs.training_run import TrainingRun
from gns import (
    DecisionConfig,
    GNSPolicy,
    GuardConfig,
    InvalidSettingError,
    NetworkConfig,
    PolicyConfig,
    PolicyFormatError,
    UnknownNameError,
)
from gns.schedules.profiles import PROFILES, get_profile, onecycle_momentum


def episode(**changes) -> Episode:
    settings = {"task": get_task("digits_mlp"), "optimizer": "adam", "budget": 40, "learning_rate": 0.003, "seed": 3}
    return Episode(**{**settings, **changes})


@pytest.fixture
def policy_folder(tmp_path):
    torch.manual_seed(0)
    GNSPolicy().save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
def test_a_schedule_sets_its_closed_form_at_every_update(name, optimizer):
    run = ScheduleController(name, name).train(episode(optimizer=optimizer))
    profile = get_profile(name)
    assert run.rates == [0.003 * profile(t / 40) for t in range(40)]
    assert (run.ledger.updates, run.ledger.evaluations, run.ledger.rollbacks) == (40, 1, 0)
    assert math.isfinite(run.reward_loss)


def test_a_constant_schedule_is_plain_training_bit_for_bit():
    scheduled = ScheduleController("constant", "constant").train(episode()).model
    plain = TrainingRun(get_task("digits_mlp"), "adam", 0.003, 3)
    for _ in range(40):
        plain.compute_gradient()
        plain.apply_update()
    for a, b in zip(scheduled.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("optimizer", ["adam", "sgdm"])
def test_one_cycle_equals_pytorchs_with_its_momentum_cycle(optimizer):
    def fresh():
        model = nn.Linear(3, 2)
        if optimizer == "adam":
            return torch.optim.Adam(model.parameters(), lr=0.1)
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    ours, theirs, budget = fresh(), fresh(), 40
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        theirs,
        max_lr=0.1,
        total_steps=budget + 1,
        pct_start=(budget / 2 + 1) / (budget + 1),
        anneal_strategy="linear",
        div_factor=10,
        final_div_factor=1,
        base_momentum=0.85,
        max_momentum=0.95,
    )
    for update in range(budget):
        group, other = ours.param_groups[0], theirs.param_groups[0]
        set_momentum(group, onecycle_momentum(update / budget))
        assert 0.1 * get_profile("onecycle")(update / budget) == pytest.approx(other["lr"], abs=1e-12)
        key = "betas" if optimizer == "adam" else "momentum"
        assert group[key] == pytest.approx(other[key], abs=1e-12)
        theirs.step()
        scheduler.step()


def test_momentum_is_cycled_only_where_asked():
    with_cycle = ScheduleController("onecycle", "onecycle", cycle_momentum=True).train(episode())
    without = ScheduleController("onecycle", "onecycle").train(episode())
    assert with_cycle.rates == without.rates
    assert with_cycle.reward_loss != without.reward_loss


def test_a_policy_spends_no_pass_over_the_reward_split_but_the_last(policy_folder):
    run = PolicyController("policy", policy_folder).train(episode())
    assert (run.ledger.updates, run.ledger.evaluations, run.ledger.rollbacks) == (40, 1, 0)
    assert len(run.rates) == 40


def test_a_policy_is_the_same_function_of_the_seed_every_time(policy_folder):
    first, second = (PolicyController("policy", policy_folder).train(episode()) for _ in range(2))
    assert first.rates == second.rates and first.reward_loss == second.reward_loss


def test_a_policy_that_is_not_there_is_refused_before_any_run(tmp_path):
    with pytest.raises(PolicyFormatError, match=r"config\.json"):
        make_controller("policy", {"kind": "policy", "policy": str(tmp_path)})


def test_a_controller_keeps_the_policy_it_was_made_with(policy_folder):
    controller = PolicyController("policy", policy_folder)
    before = controller.train(episode())
    torch.manual_seed(7)
    other = GNSPolicy()
    with torch.no_grad():
        other.network.actor[2].bias.fill_(1.0)
    other.save_pretrained(policy_folder)
    assert controller.train(episode()).rates == before.rates
    assert PolicyController("policy", policy_folder).train(episode()).rates != before.rates


def test_unknown_kinds_profiles_and_settings_are_named():
    with pytest.raises(UnknownNameError, match="schedule"):
        make_controller("x", {"kind": "shedule", "profile": "rex"})
    with pytest.raises(UnknownNameError, match="cosine"):
        make_controller("x", {"kind": "schedule", "profile": "cosin"})
    with pytest.raises(UnknownNameError, match="speed"):
        make_controller("x", {"kind": "schedule", "profile": "rex", "speed": 3})


def test_rows_are_the_same_in_one_process_and_in_two(policy_folder):
    jobs = [
        Job(controller, episode(seed=seed))
        for controller in (ScheduleController("rex", "rex"), PolicyController("policy", policy_folder))
        for seed in (0, 1)
    ]
    ticks = []
    here = run_jobs(jobs, workers=0, done=lambda *_: ticks.append(1))
    there = run_jobs(jobs, workers=2)
    for row in (*here, *there):
        row.pop("seconds")
    assert here == there and len(ticks) == 4
    assert [row["seed"] for row in there] == [0, 1, 0, 1]


def test_a_row_measures_the_test_split_only_when_it_reports():
    job = Job(ScheduleController("rex", "rex"), episode())
    reported, silent = run_job(job), run_job(Job(job.controller, job.episode, report=False))
    assert 0 < reported["test_loss"] < 5 and 0 <= reported["test_metric"] <= 1
    assert math.isnan(silent["test_loss"]) and math.isnan(silent["test_metric"])
    assert len(reported["path"]) == 40 and reported["path"][0] == (0.0, 0.003)


def test_a_diverged_run_has_an_infinite_loss_in_its_row():
    row = run_job(Job(ScheduleController("constant", "constant"), episode(optimizer="sgdm", learning_rate=1e12)))
    assert row["reward_loss"] == math.inf and row["test_loss"] == math.inf


@pytest.mark.parametrize("schema", ["gns-1", "srls"])
@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("optimizer,rate", [("adam", 0.003), ("sgdm", 0.1), ("sgdm", 9.0), ("adam", 5.0), ("sgd", 0.1)])
@pytest.mark.parametrize("kind", ["dropout", "batch_norm"])
def test_a_policys_run_is_the_environments_to_the_last_bit(tmp_path, schema, guarded, optimizer, rate, kind):
    torch.manual_seed(2)
    network = NetworkConfig(schema, "none" if schema == "srls" else "GCNConv")
    policy = GNSPolicy(PolicyConfig(network, DecisionConfig("recursive", num_decisions=8, features=schema)))
    with torch.no_grad():
        policy.network.actor[2].weight.mul_(40.0)
    policy.save_pretrained(tmp_path)
    guard = GuardConfig(enabled=guarded, loss_multiple=1.5, max_rollbacks=2)
    about = episode(task=small_task(kind), optimizer=optimizer, learning_rate=rate)
    env, info = run_in_environment(policy.eval(), guard, about)
    run = PolicyController("p", str(tmp_path), guard=guard).train(about)
    assert run.rates == env.rates
    assert same_state(run.model, env.run.model)
    assert (run.ledger.updates, run.ledger.rollbacks) == (info["update"], info["rollbacks"])
    assert min(run.reward_loss, 1e6) == info["reward_loss"] or not math.isfinite(run.reward_loss)


def test_a_run_that_is_given_up_ends_as_in_the_environment(tmp_path):
    policy = GNSPolicy(PolicyConfig(decision=DecisionConfig("recursive", num_decisions=8)))
    policy.save_pretrained(tmp_path)
    guard = GuardConfig(loss_multiple=1.5, max_rollbacks=0)
    about = episode(optimizer="sgdm", learning_rate=9.0)
    run = PolicyController("p", str(tmp_path), guard=guard).train(about)
    env, info = run_in_environment(policy.eval(), guard, about)
    assert info["diverged"] and run.ledger.rollbacks == 1
    assert run.rates == env.rates and run.ledger.updates == info["update"] < 40
    assert same_state(run.model, env.run.model)


def test_a_budget_smaller_than_the_decisions_is_refused_before_any_run(policy_folder):
    with pytest.raises(InvalidSettingError, match="num_decisions"):
        PolicyController("p", policy_folder).check(get_task("digits_mlp"), "adam", 10)


def test_hf_schedules_equal_their_closed_forms_and_refuse_what_they_are_not():
    linear = make_controller("l", {"kind": "hf-scheduler", "scheduler": "linear"}).train(episode())
    assert linear.rates == pytest.approx([0.003 * (1 - t / 40) for t in range(40)], rel=1e-12)
    warm = make_controller("w", {"kind": "hf-scheduler", "scheduler": "cosine", "warmup": 0.25}).train(episode())
    assert warm.rates[:11] == pytest.approx([0.003 * t / 10 for t in range(11)], rel=1e-12)
    for name in ("cosine_with_restarts", "polynomial", "inverse_sqrt", "warmup_stable_decay", "constant"):
        run = make_controller("x", {"kind": "hf-scheduler", "scheduler": name}).train(episode())
        assert len(run.rates) == 40 and all(rate > 0 for rate in run.rates)
    with pytest.raises(UnknownNameError, match="cosine"):
        make_controller("x", {"kind": "hf-scheduler", "scheduler": "cosin"})
    with pytest.raises(InvalidSettingError, match="plateau"):
        make_controller("x", {"kind": "hf-scheduler", "scheduler": "reduce_lr_on_plateau"})
    with pytest.raises(InvalidSettingError, match="num_cycle"):
        settings = {"kind": "hf-scheduler", "scheduler": "cosine_with_restarts", "settings": {"num_cycle": 3}}
        make_controller("x", settings).train(episode())


def test_a_plateau_cuts_the_rate_when_the_reward_loss_stops_falling():
    settings = {"kind": "plateau", "every": 0.1, "patience": 0, "factor": 0.5, "threshold": 0.9}
    run = make_controller("p", settings).train(episode())
    # The first look improves on nothing seen; each later one falls short of 90 %.
    assert run.rates == [0.003] * 8 + [0.003 * 0.5**k for k in range(1, 9) for _ in range(4)]
    assert run.ledger.evaluations == 9 + 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("factor", 1.0), ("every", 0.0), ("patience", -1), ("cooldown", -1), ("threshold", math.nan)],
)
def test_settings_of_a_plateau_outside_their_domain_are_refused(name, value):
    with pytest.raises(InvalidSettingError, match=f"{name} is .*; expected a"):
        make_controller("p", {"kind": "plateau", name: value})


def test_one_cycle_turns_its_momentum_where_its_rate_peaks_after_a_warm_up():
    session = ScheduleController("o", "onecycle", cycle_momentum=True, warmup=0.5).start(episode(optimizer="sgdm"))
    momenta = []
    for _ in range(40):
        session.update()
        momenta.append(session.run.optimizer.param_groups[0]["momentum"])
    assert int(np.argmax(session.rates)) == 30 and momenta[30] == pytest.approx(0.85)
