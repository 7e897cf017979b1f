"""One diverging run through environment, batched environment, controller and scheduler: judged alike, ended alike."""

import logging

import numpy as np
import pytest
import torch
from plain_loop import same_state, small_task
from scheduler_loop import lively_policy

from agents.controllers import PolicyController
from envs import EnvConfig, LearningRateEnv
from envs.batched.env import BatchedEnv
from envs.episode import Episode, new_run
from gns import GNSPolicy, GNSScheduler, GuardConfig
from gns.deciding.guard import Judgement, Watch

BUDGET, SEED = 20, 5
TASK = small_task()


@pytest.fixture
def judgements(monkeypatch) -> list[tuple[int, Judgement]]:
    """What was judged not to be good, and after which update."""
    seen, judge = [], Watch.judge

    def watched(watch, control, guard, last=False):
        judgement = judge(watch, control, guard, last)
        if judgement is not Judgement.GOOD:
            seen.append((control.update, judgement))
        return judgement

    monkeypatch.setattr(Watch, "judge", watched)
    return seen


@pytest.fixture
def policy(tmp_path) -> GNSPolicy:
    """A policy that keeps the rate, whatever it is."""
    still = lively_policy(mode="recursive", max_lr=1e9)
    with torch.no_grad():
        still.network.actor[2].weight.zero_()
        still.network.actor[2].bias.zero_()
    still.save_pretrained(tmp_path)
    return still


class Places:
    """The same run in four places; each returns its weights where it ended, and its rate there."""

    def __init__(self, policy: GNSPolicy, folder, guard: GuardConfig, optimizer: str, rate: float) -> None:
        self.policy, self.folder, self.guard = policy, folder, guard
        self.episode = Episode(TASK, optimizer, BUDGET, rate, SEED)
        decision, rates = policy.config.decision, {optimizer: (1e-3, 1e9)}
        settings = {"optimizers": (optimizer,), "budgets": (BUDGET, BUDGET), "learning_rates": rates}
        self.config = EnvConfig(**settings, decision=decision, guard=guard)
        self.options = {"seed": SEED, "learning_rate": rate}

    def environment(self):
        env, terminated = LearningRateEnv([TASK], self.config), False
        env.reset(seed=0, options=self.options)
        while not terminated:
            *_, terminated, _, info = env.step(np.zeros(1, dtype=np.float32))
        return env.run.model, env.core.learning_rate, info["diverged"], info["rollbacks"]

    def batched(self):
        env = BatchedEnv(TASK, self.config, self.episode.optimizer, 1)
        env.set_options(self.options)
        env.reset()
        done = [False]
        while not done[0]:
            # A new episode begins where one ends: the weights are those before.
            good = env.runs.state({0: env.runs.positions([0])[0]})["tensors"][0][0].clone()
            _, _, done, infos = env.step(np.zeros((1, 1), dtype=np.float32))
        model = TASK.new_model()
        torch.nn.utils.vector_to_parameters(good, model.parameters())
        return model, infos[0]["learning_rate"], infos[0]["diverged"], infos[0]["rollbacks"]

    def controller(self):
        session = PolicyController("still", str(self.folder), guard=self.guard).start(self.episode)
        while not session.finished:
            session.update()
        rate = session.rates[-1] * (self.guard.cut if session.ledger.updates < BUDGET else 1.0)
        return session.run.model, rate, session.ledger.updates < BUDGET, session.ledger.rollbacks

    def scheduler(self):
        run = new_run(self.episode)
        scheduler = GNSScheduler(run.optimizer, run.model, BUDGET, self.policy, guard=self.guard)
        while scheduler.last_epoch < BUDGET and scheduler.rollbacks <= self.guard.max_rollbacks:
            run.compute_gradient()
            run.apply_update()
            scheduler.step(run.loss)
        return run.model, scheduler.history[-1].learning_rate, scheduler.last_epoch < BUDGET, scheduler.rollbacks

    def all(self):
        return [self.environment, self.batched, self.controller, self.scheduler]


@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
@pytest.mark.parametrize("allowed", [0, 2])
def test_a_run_that_only_diverges_is_taken_back_as_often_restored_and_ended(
    allowed, optimizer, policy, tmp_path, judgements, caplog
):
    start = 1e9
    guard, seen = GuardConfig(max_rollbacks=allowed), []
    expected = [(4 * (n + 1), Judgement.TAKE_BACK) for n in range(allowed)]
    expected.append((4 * (allowed + 1), Judgement.LOST))
    places = Places(policy, tmp_path, guard, optimizer, start)
    first = new_run(places.episode).model
    for place in places.all():
        judgements.clear()
        model, rate, diverged, rollbacks = place()
        seen.append(judgements[:])
        assert same_state(model, first), place.__name__  # restored, the last time too
        assert rate == pytest.approx(start * 0.1 ** (allowed + 1)), place.__name__
        assert (diverged, rollbacks) == (True, allowed + 1), place.__name__
    assert seen == [expected] * 4
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] * allowed + [logging.ERROR]


def test_a_run_that_a_cut_saves_goes_on_to_its_end_everywhere(policy, tmp_path, judgements):
    seen = []
    for place in Places(policy, tmp_path, GuardConfig(cut=1e-12), "adam", 1e9).all():
        judgements.clear()
        _, rate, diverged, rollbacks = place()
        seen.append(judgements[:])
        assert (rate, diverged, rollbacks) == (pytest.approx(1e-3), False, 1), place.__name__
    assert seen == [[(4, Judgement.TAKE_BACK)]] * 4


def test_without_a_guard_a_run_is_lost_where_it_is_not_finite_and_stays_as_it_is(policy, tmp_path, judgements):
    places = Places(policy, tmp_path, GuardConfig(enabled=False), "sgdm", 1e9)
    for place in places.all():
        judgements.clear()
        model, *_, rollbacks = place()
        assert rollbacks == 0 and judgements[0] == (4, Judgement.LOST), place.__name__
        if place != places.batched:
            assert not all(p.isfinite().all() for p in model.parameters()), place.__name__
