"""The search finds the best rate of a quadratic, and takes any scores."""

import math
import warnings
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.controllers.autolrs_search.search import best_tried, grid, propose, propose_random, scaled
from benchmarks.autolrs_quadratic import TAU, best_rate, expected_loss, found, quadratic
from envs.training_run import TrainingRun

LOW, HIGH = 1e-4, 1.0


def generator(seed=0):
    return np.random.default_rng(seed)


def searched(score, kappa=2.0, count=10, seed=0):
    tried = []
    for _ in range(count):
        rate = propose(tried, LOW, HIGH, kappa, generator(seed))
        tried.append((rate, score(rate)))
    return tried


def cliff(rate):
    """Falls with the rate up to 0.03, and diverges beyond."""
    return 1.0 - 20.0 * rate if rate < 0.03 else math.inf


# ---------------------------------------------------------------------- acceptance: a quadratic with a known best rate


@pytest.fixture(scope="module")
def on_quadratic():
    """Pairs of rate found and expected loss, one a seed, of each search."""
    return {search: found({"search": search}, range(200, 210), train=False) for search in ("bo", "random")}


def errors(pairs):
    return [abs(math.log(rate / best_rate())) for rate, _ in pairs]


def test_the_best_rate_of_a_quadratic_is_found(on_quadratic):
    assert sum(error <= math.log(1.2) for error in errors(on_quadratic["bo"])) >= 9


def test_bayesian_optimisation_is_no_worse_than_random_search(on_quadratic):
    one, other = on_quadratic["bo"], on_quadratic["random"]
    assert fmean(errors(one)) <= fmean(errors(other))
    assert fmean(loss for _, loss in one) <= fmean(loss for _, loss in other)


@pytest.mark.parametrize("rate", [0.1, 0.5, 1.2])
def test_the_known_loss_of_the_quadratic_is_what_runs_reach(rate):
    losses = []
    for seed in range(6):
        run = TrainingRun(quadratic(), "sgd", rate, seed)
        for _ in range(TAU):
            run.compute_gradient()
            run.apply_update()
        losses.append(run.model.excess())
    assert fmean(losses) == pytest.approx(float(expected_loss(rate)[0]), rel=0.3)


def test_the_best_rate_is_well_inside_and_worth_finding():
    best = best_rate()
    at = {factor: float(expected_loss(best * factor)[0]) / float(expected_loss(best)[0]) for factor in (0.5, 0.8, 1.3)}
    assert 1.0 < best < 2.0 and at[0.8] > 1.1 and at[0.5] > 1.5 and at[1.3] > 2.0  # factors of the loss


# ---------------------------------------------------------------------- proposals


def test_little_exploring_closes_in_on_the_best_rate():
    for seed in range(10):
        rates = [rate for rate, _ in searched(lambda rate: math.log10(rate / 0.02) ** 2, seed=seed)]
        assert min(abs(math.log(rate / 0.02)) for rate in rates) < math.log(1.2)
        assert 0.03 / 1.8 < best_tried(searched(cliff, seed=seed)) < 0.03


@pytest.mark.parametrize("kappa", [1e3, 1e6])
def test_much_exploring_spreads_rates_whatever_their_scores(kappa):
    one, other = (searched(score, kappa) for score in (math.log, lambda rate: -rate))
    places = np.sort([math.log10(rate) for rate, _ in one])
    assert np.diff(places).max() < 1.0
    assert [rate for rate, _ in one] == pytest.approx([rate for rate, _ in other], rel=0.2)


def test_no_rate_is_tried_twice():
    for score in (cliff, lambda rate: 1.0, lambda rate: math.nan):
        rates = [rate for rate, _ in searched(score, kappa=0.0, count=15)]
        assert len(set(rates)) == 15


def test_proposals_are_a_function_of_the_generator_and_what_was_tried():
    assert searched(cliff, seed=1) == searched(cliff, seed=1)
    assert searched(cliff, seed=1)[0] != searched(cliff, seed=2)[0]
    assert propose_random(LOW, HIGH, generator(1)) == propose_random(LOW, HIGH, generator(1))


def test_random_rates_are_even_in_the_logarithm():
    rng = generator()
    places = [math.log10(propose_random(LOW, HIGH, rng)) for _ in range(2000)]
    assert np.histogram(places, bins=4, range=(-4.0, 0.0))[0] == pytest.approx([500] * 4, rel=0.15)


def test_a_grid_has_both_ends():
    assert grid(LOW, HIGH, 5) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    assert grid(LOW, HIGH, 2) == [LOW, HIGH] and grid(LOW, HIGH, 1) == pytest.approx([1e-2])


def test_units_of_the_loss_do_not_matter():
    one = searched(lambda rate: math.log10(rate / 0.02) ** 2)
    other = searched(lambda rate: 1e-6 * math.log10(rate / 0.02) ** 2 - 7.0)
    assert [rate for rate, _ in one] == pytest.approx([rate for rate, _ in other], rel=0.02)


@given(st.lists(st.tuples(st.floats(LOW, HIGH), st.floats()), max_size=12), st.sampled_from([0.0, 1.0, 1e3, 1e6]))
def test_any_scores_give_a_rate_within_bounds_without_a_warning(tried, kappa):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rate = propose(tried, LOW, HIGH, kappa, generator())
        values = scaled([score for _, score in tried])
    assert LOW <= rate <= HIGH and len(values) == len(tried) and (values >= 0.0).all()
    if tried:
        assert best_tried(tried) in [rate for rate, _ in tried]


# ---------------------------------------------------------------------- scores


def test_scores_are_scaled_and_failures_told_apart():
    values = scaled([1.0, math.nan, 2.0, math.inf, 1.2, -math.inf, 1e30])
    assert values[[0, 2, 4]] == pytest.approx([0.0, 1.0 / 0.6, 0.2 / 0.6])
    assert np.isinf(values[[1, 3, 5, 6]]).all()
    assert np.isinf(scaled([math.nan, math.inf])).all() and scaled([7.0, math.nan])[0] == 0.0
    assert scaled([3.0] * 4).tolist() == [0.0] * 4


def test_a_rate_that_diverged_rules_out_those_near_and_above_it():
    tried = [(1e-3, 1.0), (1e-2, 0.8), (1e-1, math.nan)]
    for _ in range(6):
        rate = propose(tried, LOW, HIGH, 2.0, generator())
        good = [one for one, score in tried if score < 2.0]
        failed = min(one for one, score in tried if not score < 2.0)
        assert rate <= 1.01 * math.sqrt(max(good) * failed)
        tried.append((rate, cliff(rate)))
    assert 0.02 < best_tried(tried) < 0.03


def test_where_all_failed_lower_rates_are_tried():
    tried = [(1e-2, math.nan), (1e-1, math.inf), (1.0, math.nan)]
    rates = [propose(tried, LOW, HIGH, kappa, generator()) for kappa in (0.0, 2.0, 1e6)]
    assert max(rates) < 2e-3


def test_the_best_is_the_lowest_rate_where_all_failed():
    assert best_tried([(0.1, math.nan), (0.01, math.inf), (0.5, -math.inf)]) == 0.01
    assert best_tried([(0.1, math.nan), (0.2, 5.0), (0.01, math.inf)]) == 0.2
    assert best_tried([(0.3, 1.0), (0.2, 1.0), (0.4, 1.0)]) == 0.2
