"""AutoLRS on a training run: searches leave no trace, training is a plain run at the rates found, all is resumed."""

import io
import math
from dataclasses import replace

import pytest
import torch
from plain_loop import plain_run, same_state, small_task

from agents.controllers.autolrs import AutoLRSController
from envs.learning_rate_env import Episode
from gns.errors import InvalidSettingError, UnknownNameError

CANDIDATES, TAU, TAU_MAX, EXPLORE = 3, 20, 40, 5
SHORT = AutoLRSController("autolrs", candidates=CANDIDATES, tau=TAU, tau_max=TAU_MAX, explore_share=0.25)
every_model = pytest.mark.parametrize("model", ["plain", "dropout", "batch_norm"])
every_optimizer = pytest.mark.parametrize("optimizer", ["sgdm", "adam"])


def episode(model="plain", optimizer="sgdm", budget=30, task=None, learning_rate=0.3, seed=3) -> Episode:
    return Episode(task or small_task(model), optimizer, budget, learning_rate, seed)


def equal(one, other) -> bool:
    """Whether nested values are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def finish(session):
    while not session.finished:
        session.update()
    return session


def state(session) -> dict:
    """All of a session but the seconds, as it looks after having been written to a file and read."""
    file = io.BytesIO()
    torch.save(session.state_dict(), file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    read["ledger"].pop("seconds")
    return read


@every_optimizer
@every_model
def test_a_search_leaves_no_trace(model, optimizer):
    session = SHORT.start(episode(model, optimizer, budget=60))
    for _ in range(2):
        assert session.searching
        before = session.run.state_dict()
        for update in range(CANDIDATES * 2 * EXPLORE):
            session.update()
            if not session.searching:
                break
            if update == 1:
                assert not equal(before["model"], session.run.state_dict()["model"])
        assert equal(before, session.run.state_dict())
        while not session.searching and not session.finished:
            session.update()


@every_optimizer
@every_model
def test_training_is_a_plain_run_at_the_rates_found(model, optimizer):
    task = small_task(model)
    session = finish(SHORT.start(episode(budget=50, task=task, optimizer=optimizer)))
    assert len(session.rates) == 50 and len(set(session.rates)) > 1
    plain = plain_run(task, optimizer, 0.3, 3, 50, session.rates.__getitem__)
    assert same_state(session.run.model, plain.model)


def test_the_ledger_counts_updates_of_search_and_training_apart():
    session = SHORT.start(episode(budget=100))
    phases = []
    while not session.finished:
        session.before_gradient()  # begins a stage where one is over
        phases.append(session.searching)
        session.update()
    lengths = [(TAU, 5), (TAU_MAX, 10), (TAU_MAX, 10)]  # 20 + 40 + 40 updates are the budget
    assert phases == [phase for tau, e in lengths for phase in [True] * (CANDIDATES * e) + [False] * tau]
    assert (session.ledger.updates, session.ledger.search_updates) == (100, CANDIDATES * 25)
    assert session.ledger.seconds > 0 and len(session.rates) == 100


def test_search_costs_as_many_updates_as_training_by_default():
    ledger = finish(AutoLRSController("autolrs").start(episode(budget=200))).ledger
    assert ledger.updates == ledger.search_updates == 200


def test_stages_double_and_the_reward_split_is_used_once_they_are_longest():
    controller = replace(SHORT, tau=10, explore_share=0.5)
    session = controller.start(episode(budget=10 + 20 + 40 + 40 + 5))
    found = []
    while not session.finished:
        session.before_gradient()
        stage = session.stage
        if not found or found[-1][0] != stage.number:
            before = session.ledger.evaluations
            found.append([stage.number, stage.length, stage.explore, 0])
        session.update()
        found[-1][-1] = session.ledger.evaluations - before
    # 20 updates of a candidate with about 16 evaluations: one after each; of 5 updates 5
    assert found == [[0, 10, 5, 0], [1, 20, 10, 0], [2, 40, 20, 60], [3, 40, 20, 60], [4, 5, 5, 15]]


def test_a_candidate_is_evaluated_at_even_distances_the_last_time_at_its_end():
    controller = replace(SHORT, candidates=1, tau=200, tau_max=200, validation_evaluations=16)
    session = controller.start(episode(budget=200))
    evaluated = []
    while session.searching:
        session.update()
        evaluated.append(session.ledger.evaluations)
    assert session.ledger.search_updates == 50
    times = [i + 1 for i, count in enumerate(evaluated) if count > ([0, *evaluated])[i]]
    assert times == list(range(2, 51, 3))


@pytest.mark.parametrize("stop", [1, 4, 5, 14, 15, 16, 34, 35, 36, 50, 65, 77])
def test_a_resumed_session_goes_on_bit_for_bit(stop):
    about = episode("dropout", "adam", budget=70)
    whole, first = SHORT.start(about), SHORT.start(about)
    for _ in range(stop):
        whole.update()
        first.update()
    saved = state(first)
    finish(first)  # what it does later must not reach into what was saved
    saved["ledger"]["seconds"] = 0.0
    resumed = SHORT.start(about)
    resumed.update()
    resumed.load_state_dict(saved)
    for _ in range(9):
        whole.update()
        resumed.update()
        assert equal(state(whole), state(resumed))
    assert equal(state(finish(whole)), state(finish(resumed))) and equal(state(whole), state(first))


def two_groups(model):
    early, *late = list(model.parameters())
    return [{"params": [early], "lr": 0.02}, {"params": late, "lr": 0.002}]


def test_parameter_groups_keep_their_ratio():
    session = SHORT.start(episode(task=small_task(parameter_groups=two_groups), learning_rate=0.7))
    while not session.finished:
        session.before_gradient()
        rate = session.stage.rate
        session.run.compute_gradient()
        session.before_update()
        assert [group["lr"] for group in session.run.optimizer.param_groups] == pytest.approx([rate, rate / 10])
        session.run.apply_update()
        session.after_update(session.run.loss)


def test_the_initial_rate_plays_no_part():
    one, other = (finish(SHORT.start(episode(learning_rate=rate))) for rate in (1e-4, 1.0))
    assert one.rates == other.rates and same_state(one.run.model, other.run.model)
    assert SHORT.own_rate and not SHORT.tuned


class Failing:
    """Makes losses what they should not be: after_update is told them in place of the real ones."""

    def __init__(self, session, failing):
        self.session, self.failing, self.seen = session, failing, []

    def run(self):
        session = self.session
        while not session.finished:
            session.before_gradient()
            session.run.compute_gradient()
            session.before_update()
            rate = session.run.optimizer.param_groups[0]["lr"]
            assert session.low <= rate <= session.high
            session.run.apply_update()
            number = len(session.stage.tried)
            if session.searching and number == len(self.seen):
                self.seen.append(rate)
            loss = session.run.loss
            bad = self.failing.get(number)
            session.after_update(loss if bad is None else torch.tensor(bad))
        return session


@pytest.mark.parametrize("search", ["bo", "random", "grid"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, -1e38])
def test_candidates_that_fail_are_survived(search, bad):
    controller = replace(SHORT, candidates=4, search=search)
    for failing in ({0: bad}, {1: bad, 3: bad}, {i: bad for i in range(4)}):
        driven = Failing(controller.start(episode(budget=20)), failing)
        session = driven.run()
        assert len(session.rates) == 20 and len(driven.seen) == 4
        if not math.isfinite(bad):
            good = [rate for i, rate in enumerate(driven.seen) if i not in failing] or [min(driven.seen)]
            assert session.rates[0] in good


def test_rates_that_diverge_are_left_alone():
    controller = replace(SHORT, search="grid", candidates=4, min_lr=1e-2, max_lr=1e7, tau=50, tau_max=100)
    session = finish(controller.start(episode(budget=100)))
    assert set(session.rates) == {1e-2}
    assert session.reward_loss() < 2.0


@pytest.mark.parametrize("search", ["random", "grid"])
def test_other_searches_try_what_they_say(search):
    controller = replace(SHORT, search=search, candidates=5)
    session = controller.start(episode(budget=20))
    tried = []
    while session.searching:
        session.before_gradient()
        tried.append(session.stage.rate)
        session.update()
    tried = tried[::EXPLORE]
    if search == "grid":
        assert tried == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    else:
        assert len(set(tried)) == 5 and all(1e-4 <= rate <= 1.0 for rate in tried)
    assert session.stage.rate in tried


@pytest.mark.parametrize("budget", [1, 3, 7, 49, 51, 100, 300])
def test_any_budget_is_used_up(budget):
    controller = AutoLRSController("autolrs", candidates=2)
    tau, tau_max = controller.stages(budget)
    assert 1 <= tau <= tau_max <= budget
    session = finish(controller.start(episode(budget=budget)))
    assert session.ledger.updates == len(session.rates) == budget


def test_default_stages_grow_with_the_budget():
    stages = AutoLRSController("autolrs").stages
    assert [stages(budget) for budget in (40, 100, 300, 1000, 112_000)] == [
        (40, 40),
        (100, 100),
        (300, 300),
        (200, 400),
        (1120, 8960),
    ]


def test_an_unknown_search_is_named():
    with pytest.raises(UnknownNameError, match="expected one of: bo, grid, random"):
        AutoLRSController("autolrs", search="bayes")


@pytest.mark.parametrize(
    "settings",
    [
        {"candidates": 0},
        {"tau": 0},
        {"tau_max": 2.5},
        {"tau": 100, "tau_max": 50},
        {"explore_share": 0.0},
        {"explore_share": 1.5},
        {"kappa": -1.0},
        {"kappa": math.nan},
        {"caution": -1.0},
        {"min_lr": 0.0},
        {"max_lr": math.inf},
        {"validation_evaluations": 0},
    ],
)
def test_settings_outside_their_domain_are_refused(settings):
    with pytest.raises(InvalidSettingError, match="expected"):
        AutoLRSController("autolrs", **settings)


def test_bounds_come_from_the_task_or_the_settings():
    about = episode(optimizer="adam")
    assert SHORT.bounds(about) == about.task.range_of("adam")
    assert replace(SHORT, max_lr=0.05).bounds(about) == (1e-5, 0.05)
    with pytest.raises(InvalidSettingError, match="min_lr"):
        replace(SHORT, min_lr=0.5).start(about)
