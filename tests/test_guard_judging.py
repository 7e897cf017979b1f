"""What the guard takes for a divergence, measured: not only NaN, and no healthy noise."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from envs import EnvConfig, LearningRateEnv
from gns import DecisionConfig, GNSScheduler, GuardConfig
from gns.deciding import guard
from gns.deciding.guard import Judgement, Watch
from gns.deciding.rate_control import RateControl

GOOD, DOUBTFUL, TAKE_BACK = Judgement.GOOD, Judgement.DOUBTFUL, Judgement.TAKE_BACK
K = 6


def judged(intervals, gradients=None, guard: GuardConfig | None = None) -> list[Judgement]:
    """Judgements of a run with such losses an interval, up to the first that takes it back; the last is not the end."""
    control = RateControl(K * (len(intervals) + 1), DecisionConfig("recursive", decision_interval=K), [0.01])
    watch, found = Watch(), []
    control.note_observation(np.zeros(0), True, 1.0)
    watch.judge(control, guard or GuardConfig())
    for number, losses in enumerate(intervals):
        control.decide(0.0)
        control.count_updates(K)
        finite = bool(np.isfinite(losses).all())
        control.note_observation(np.array(losses, dtype=float), finite, gradients[number] if gradients else 1.0)
        found.append(watch.judge(control, guard or GuardConfig()))
        if not found[-1].goes_on:
            break
    return found


def around(level: float, spread: float = 0.01) -> list[float]:
    return [level + spread * (-1) ** i for i in range(K)]


RISE = [2.3, 2.6, 6.0, 5.0, 4.0, 2.4]


def test_a_run_that_rose_and_stays_where_it_began_has_diverged_after_two_intervals():
    assert judged([RISE, around(2.31), around(2.31), around(2.31)]) == [GOOD, DOUBTFUL, TAKE_BACK]
    assert judged([around(2.3), around(0.5), [0.5, 4.0, 8.0, 5.0, 3.0, 2.4], around(2.29), around(2.31)])[3:] == [
        DOUBTFUL,
        TAKE_BACK,
    ]


@pytest.mark.parametrize(
    "intervals",
    [
        [around(2.3)] * 9,  # learns nothing yet, and did not rise
        [RISE, around(2.31), around(2.2), around(2.31)],  # comes back by itself
        [RISE, *[around(2.1)] * 5],  # is better than it began
        [RISE, *[[2.9, 1.9, 2.6, 2.2, 2.8, 2.0]] * 5],  # noisy
        [[2.3, 2.3, 8.0, 2.3, 2.3, 2.3], *[around(2.31)] * 5],  # one bad batch
        [around(-3.0), [-3.0, -2.8, -2.5, -2.4, -3.0, -3.1], *[around(-3.4)] * 3],  # of losses below zero
    ],
)
def test_a_healthy_run_is_not_taken_back(intervals):
    assert all(judgement.goes_on for judgement in judged(intervals))


@pytest.mark.parametrize("draw", ["normal", "students", "spikes"])
def test_noise_alone_is_hardly_ever_a_divergence(draw):
    rng = np.random.default_rng(0)
    fired = 0
    for _ in range(200):
        noise = {
            "normal": lambda size: 2.3 + 0.3 * rng.standard_normal(size),
            "students": lambda size: 2.3 + 0.1 * rng.standard_t(3, size),
            "spikes": lambda size: 2.3 + 0.05 * rng.standard_normal(size) + 3.0 * (rng.random(size) < 0.02),
        }[draw]((20, K))
        fired += not all(judgement.goes_on for judgement in judged(noise.tolist()))
    assert fired <= 2  # of 200 runs that learn nothing


def test_a_state_about_to_diverge_is_none_to_go_back_to():
    assert judged([around(1.0), [1.0, 1.0, 1.0, 1.1, 1.5, 4.5], around(1.0)]) == [GOOD, DOUBTFUL, GOOD]
    assert judged([around(1.0)] * 4, [1.0, 19.0, 500.0, 500.0]) == [GOOD, GOOD, DOUBTFUL, GOOD]
    assert judged([around(1.0), around(5.0)]) == [GOOD, TAKE_BACK]


def test_dead_units_are_brought_back_to_life():
    """From a rate at which a network dies without a loss that is very high, or NaN."""
    ends = {}
    for enabled in (True, False):
        decision = DecisionConfig("recursive", num_decisions=20)
        config = EnvConfig(
            optimizers=("sgdm",), budgets=(100, 100), decision=decision, guard=GuardConfig(enabled=enabled)
        )
        env = LearningRateEnv(["digits_mlp"], config)
        env.reset(seed=0, options={"seed": 5, "learning_rate": 1.5})
        start, terminated = env.run.evaluate_reward_split().loss, False
        while not terminated:
            *_, terminated, _, info = env.step(np.zeros(1, dtype=np.float32))
        ends[enabled] = (info["reward_loss"], info["rollbacks"])
    assert ends[False][0] > 0.9 * start and ends[True][1] >= 1
    assert ends[True][0] < 0.5 * start


class Autoencoder(nn.Module):
    """A variational one, whose loss is summed over a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(20, 16), nn.Linear(4, 20)
        self.mean, self.log_variance = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        hidden = self.encoder(x).relu()
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        loss = F.mse_loss(self.decoder(code), x, reduction="sum")
        return loss - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()


@pytest.mark.parametrize("updates", [60, 200])
@pytest.mark.parametrize("rate", [1e-3, 1e-2])
def test_a_summed_loss_does_not_end_in_nan_where_no_guard_is_named(rate, updates, caplog):
    torch.manual_seed(3)
    data, model = torch.randn(512, 20), Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    scheduler = GNSScheduler(optimizer, model, total_steps=updates, policy="learned")
    with caplog.at_level(logging.ERROR, "gns"):
        for number in range(updates):
            loss = model(data[torch.randint(512, (128,))])
            if number == 0:
                start = loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)
    assert scheduler.guard == GuardConfig() and scheduler.rollbacks >= 1
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert math.isfinite(end := model(data[:128]).item()) and end < GuardConfig().loss_multiple * start


def test_the_prior_takes_a_summed_loss_without_a_rollback():
    torch.manual_seed(3)
    data, model = torch.randn(512, 20), Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    scheduler = GNSScheduler(optimizer, model, total_steps=200)
    with torch.no_grad():
        start = model(data).item()
    for _ in range(200):
        loss = model(data[torch.randint(512, (128,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.rollbacks == 0 and model(data).item() < start


def test_a_model_whose_snapshot_is_large_has_no_guard_but_one_that_is_asked_for(monkeypatch, caplog):
    model = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(model.parameters())
    monkeypatch.setattr(guard, "_LARGEST_SNAPSHOT", 10_000)
    assert GNSScheduler(optimizer, model, total_steps=20).guard is None
    assert "No guard against divergence" in caplog.text and "guard=GuardConfig(folder=" in caplog.text
    assert GNSScheduler(optimizer, model, total_steps=20, guard=GuardConfig()).guard == GuardConfig()
    caplog.clear()
    assert GNSScheduler(optimizer, model, total_steps=20, guard=None).guard is None
    assert "No guard" not in caplog.text
