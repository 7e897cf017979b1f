"""The prior: profile REX from the calibrated default rate, whatever the initial rate is, as a policy with a name."""

import logging
import math

import numpy as np
import pytest
import torch
from plain_loop import small_task
from torch import nn

from envs import EnvConfig
from envs.batched.env import BatchedEnv
from envs.learning_rate_env import LearningRateEnv
from gns import DecisionConfig, GNSPolicy, GNSScheduler, layer_graph
from gns.policy.finding import PRIOR_FOLDER
from gns.policy.prior import prior_policy
from gns.scheduler.policy_source import fingerprint
from gns.schedules.calibrated import ENCODER_RATE, calibrated_rate, calibration
from gns.schedules.profiles import get_profile
from gns.schedules.static import FACTS, default_rate, facts_of_run, is_pretrained, moved_by

UPDATES = 40
REX = get_profile("rex")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def prior_rate(optimizer: torch.optim.Optimizer, model: nn.Module, profile: str = "rex") -> float:
    graph = layer_graph(model, model(torch.ones(2, 4)).sum())
    return default_rate(optimizer, model, graph, UPDATES, profile)


def rates_of(optimizer: torch.optim.Optimizer, model: nn.Module, **settings: object) -> list[list[float]]:
    """Return the rates of every group at every update of a scheduled run."""
    scheduler, rates = GNSScheduler(optimizer, model, UPDATES, policy="prior", **settings), []
    for _ in range(UPDATES):
        x = torch.randn(16, 4)
        loss = (model(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        scheduler.step(loss)
    return rates


def test_the_folder_is_what_the_code_makes():
    made, shipped = prior_policy(), GNSPolicy.from_pretrained("prior")
    assert shipped.config == made.config
    assert fingerprint(shipped) == fingerprint(made)
    assert (PRIOR_FOLDER / "README.md").is_file()
    assert all((parameter == 0).all() for parameter in shipped.parameters())


@pytest.mark.parametrize("initial", [1e-6, 1e-3, 1.0])
@pytest.mark.parametrize(
    "kind",
    [
        lambda p, lr: torch.optim.Adam(p, lr=lr),
        lambda p, lr: torch.optim.AdamW(p, lr=lr),
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    ],
    ids=["adam", "adamw", "sgdm"],
)
def test_the_rates_are_those_of_default_rex_from_every_initial_rate(kind, initial):
    model = net()
    optimizer = kind(model.parameters(), initial)
    expected = prior_rate(optimizer, model)
    found = [rate for (rate,) in rates_of(optimizer, model)]
    assert found == pytest.approx([expected * REX(t / UPDATES) for t in range(UPDATES)], rel=1e-6)


def test_groups_keep_their_ratios_and_the_largest_gets_the_default():
    model = net()
    groups = [{"params": model[2].parameters(), "lr": 0.5}, {"params": model[0].parameters(), "lr": 0.05}]
    optimizer = torch.optim.Adam(groups)
    first = rates_of(optimizer, model)[0]
    assert first == pytest.approx([10 * prior_rate(optimizer, model), prior_rate(optimizer, model)])


def test_an_optimizer_that_was_never_calibrated_keeps_its_rate_and_that_is_said(caplog):
    model = net()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.002)
    with caplog.at_level(logging.WARNING):
        assert rates_of(optimizer, model)[0] == [pytest.approx(0.002)]
    assert "initial rate is taken as it is given" in caplog.text


def test_the_initial_rate_may_be_trusted():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    found = [rate for (rate,) in rates_of(optimizer, model, trust_initial_rate=True)]
    assert found == pytest.approx([3e-4 * REX(t / UPDATES) for t in range(UPDATES)], rel=1e-6)


def test_a_run_that_trusted_its_initial_rate_is_resumed():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    scheduler = GNSScheduler(optimizer, model, UPDATES, trust_initial_rate=True)
    for _ in range(5):
        loss = model(torch.randn(4, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss.detach())
    again = GNSScheduler(torch.optim.Adam(model.parameters(), lr=3e-4), model, UPDATES, trust_initial_rate=True)
    again.load_state_dict(scheduler.state_dict())
    assert again.decision == scheduler.decision and again.get_last_lr() == scheduler.get_last_lr()


def test_an_environment_alone_and_environments_together_begin_at_the_default():
    task, decision = small_task(), DecisionConfig(mode="prior", num_decisions=4)
    config = EnvConfig(optimizers=("sgdm",), budgets=(8, 8), decision=decision)
    alone, together = LearningRateEnv([task], config), BatchedEnv(task, config, "sgdm", 2)
    alone.reset(options={"learning_rate": 1e-4, "seed": 1})
    together.set_options([{"learning_rate": 1e-4, "seed": 1}, {"learning_rate": 0.3, "seed": 1}])
    together.seed(0), together.reset()
    expected = default_rate(alone.run.optimizer, alone.run.model, alone.core.graph, 8)
    assert alone.core.learning_rate == pytest.approx(expected)
    assert [control.learning_rate for control in together.controls] == pytest.approx([expected] * 2)
    assert alone.core.level == pytest.approx(1.0)


# ---------------------------------------------------------------------- what a default is


def test_a_model_is_pretrained_where_its_normalisation_is_not_as_it_began():
    made = [nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)]
    assert not any(map(is_pretrained, made))
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    assert not is_pretrained(model)
    with torch.no_grad():
        model[1].bias.normal_()
    assert is_pretrained(model)


def test_pretrained_encoders_have_a_rate_of_their_own():
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    graph = layer_graph(encoder, encoder(torch.ones(2, 3, 8)).sum())
    adam = torch.optim.AdamW(encoder.parameters(), lr=1.0)
    new = default_rate(adam, encoder, graph, 100)
    with torch.no_grad():
        encoder.norm1.weight.normal_()
    assert default_rate(adam, encoder, graph, 100) == ENCODER_RATE != new
    assert default_rate(torch.optim.SGD(encoder.parameters(), lr=1.0), encoder, graph, 100) > ENCODER_RATE


def test_a_profile_that_was_not_measured_has_the_rate_of_rex():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    assert prior_rate(optimizer, model, "constant") == prior_rate(optimizer, model)
    assert prior_rate(optimizer, model, "linear") == prior_rate(optimizer, model, "cosine")


def test_static_facts_move_the_fixed_rate_and_no_further_than_they_were_seen_to():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    graph = layer_graph(model, model(torch.ones(2, 4)).sum())
    known = calibration()["static"]
    facts = dict(zip(FACTS, facts_of_run(optimizer, model, graph, 1000).tolist(), strict=True))
    assert facts["log_budget"] == 3.0 and facts["share_linear"] == 1.0 and facts["batch_norm"] == 0.0
    assert facts["log_parameters"] == pytest.approx(math.log10(58)) and facts["log_forgetting"] == pytest.approx(-1.0)
    moved = moved_by(np.array(list(facts.values())), known)
    rate = calibrated_rate(optimizer) * known["usual"]["adam"] * 10.0**moved
    assert default_rate(optimizer, model, graph, 1000) == pytest.approx(rate)
    assert default_rate(optimizer, model, graph, 10**9) == default_rate(optimizer, model, graph, 10**12)
    assert abs(moved) <= 3.0 * np.abs(known["weights"]).sum()
