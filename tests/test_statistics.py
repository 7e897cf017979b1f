"""Statistics over settings: by hand, against slow readable twins, and what holds for any scores."""

import math
import statistics as plain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.stats import rankdata

from agents.evaluation.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean_ranks,
    regret,
    stratified_interval,
    top_shares,
)

# settings x methods x 1 seed: a clear order, a tie for the first place, a diverged method, one that is no number
HAND = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [2.0, 1.0, math.inf], [math.nan, 2.0, 1.0]])[:, :, None]


def scores_of(low: float = -10.0, high: float = 10.0):
    numbers = st.floats(low, high).map(lambda number: round(number, 3))
    return array_shapes(min_dims=3, max_dims=3, max_side=6).flatmap(
        lambda shape: arrays(float, shape, elements=numbers)
    )


def slow_shares(scores, k):
    """For each setting and method: are fewer than k methods better?"""
    settings, methods, _ = scores.shape
    shares = []
    for method in range(methods):
        hits = 0
        for setting in range(settings):
            means = [plain.fmean(scores[setting, other]) for other in range(methods)]
            better = [m for m in means if m < means[method] and not math.isclose(m, means[method], rel_tol=1e-6)]
            hits += len(better) < k
        shares.append(hits / settings)
    return shares


def slow_interquartile_mean(values):
    cut = len(values) // 4
    return plain.fmean(sorted(values)[cut : len(values) - cut])


def test_shares_count_ties_for_every_method_and_divergence_for_none():
    assert top_shares(HAND, 1).tolist() == [0.5, 0.5, 0.25]
    assert top_shares(HAND, 2).tolist() == [0.75, 1.0, 0.25]
    assert top_shares(HAND, 3).tolist() == [0.75, 1.0, 0.75]


def test_shares_of_the_first_place_may_add_up_to_more_than_one():
    assert top_shares(np.ones((2, 3, 2)), 1).tolist() == [1.0, 1.0, 1.0]


def test_ranks_of_ties_are_shared_and_the_worst_is_what_diverged():
    assert mean_ranks(HAND).tolist() == [(1 + 1.5 + 2 + 3) / 4, (2 + 1.5 + 1 + 2) / 4, (3 + 3 + 3 + 1) / 4]


def test_equal_counts_tie_although_their_means_were_taken_in_another_order():
    a, b = np.float32([349 / 360, 351 / 360]), np.float32([350 / 360, 350 / 360])
    scores = -np.array([[a, b, b + np.float32(0.5 / 10_000)]], dtype=float)
    assert scores[0, 0].mean() != scores[0, 1].mean()
    assert mean_ranks(scores).tolist() == [2.5, 2.5, 1.0]


def test_the_mean_over_seeds_is_what_is_ranked():
    scores = np.array([[[0.0, 9.0, 9.0], [5.0, 5.0, 5.0]]])
    assert top_shares(scores, 1).tolist() == [0.0, 1.0]


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    scores = np.array([[[1.0, 2.0, 3.0, 100.0]], [[4.0, 5.0, 6.0, -50.0]]])
    assert interquartile_mean(scores).tolist() == [(2.0 + 3.0 + 4.0 + 5.0) / 4]
    scores[0, 0, 3] = math.inf  # a quarter of the runs may diverge
    assert interquartile_mean(scores).tolist() == [3.5]
    scores[0, 0, :] = math.nan  # a setting that tells nothing
    assert interquartile_mean(scores).tolist() == [4.5]
    assert math.isnan(interquartile_mean(scores[:1])[0])


def test_regret_is_the_log_ratio_to_the_best_mean_of_the_setting():
    losses = np.array([[[1.0, 3.0], [4.0, 4.0]], [[math.nan, 1.0], [math.e, math.e]]])
    expected = [[[-math.log(2), math.log(1.5)], [math.log(2)] * 2], [[math.inf, -1.0], [0.0, 0.0]]]
    np.testing.assert_allclose(regret(losses), expected, atol=1e-12)
    assert np.isnan(regret(np.full((1, 2, 2), math.inf))).all()


@given(scores_of(0.1, 10.0), st.integers(1, 4))
def test_shares_and_ranks_are_those_of_the_slow_twins(scores, k):
    assert top_shares(scores, k) == pytest.approx(slow_shares(scores, k))
    rounded = np.round(scores.mean(axis=2), 9)  # as far as scores of three digits can differ
    assert mean_ranks(rounded[:, :, None]) == pytest.approx(rankdata(rounded, axis=1).mean(axis=0))


@given(scores_of())
def test_the_interquartile_mean_is_that_of_the_slow_twin(scores):
    twin = [slow_interquartile_mean(scores[:, method].ravel().tolist()) for method in range(scores.shape[1])]
    assert interquartile_mean(scores) == pytest.approx(twin, abs=1e-9)


@given(scores_of(), st.integers(1, 4))
def test_shares_lie_in_the_unit_interval_grow_with_k_and_someone_is_first(scores, k):
    shares = top_shares(scores, k)
    assert ((shares >= 0) & (shares <= 1)).all() and (top_shares(scores, k + 1) >= shares).all()
    assert top_shares(scores, 1).sum() >= 1 - 1e-12
    assert (top_shares(scores, scores.shape[1]) == 1).all()
    assert mean_ranks(scores).sum() == pytest.approx(sum(range(1, scores.shape[1] + 1)))


@given(scores_of(0.1, 10.0), st.randoms(use_true_random=False))
def test_methods_in_another_order_have_the_same_figures_in_that_order(scores, random):
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    for statistic in (
        interquartile_mean,
        mean_ranks,
        lambda s: top_shares(s, 2),
        lambda s: interquartile_mean(regret(s)),
    ):
        assert statistic(scores[:, order]) == pytest.approx(statistic(scores)[order])
    for a, b in zip(
        stratified_interval(scores[:, order], interquartile_mean, resamples=20),
        stratified_interval(scores, interquartile_mean, resamples=20),
        strict=True,
    ):
        assert a == pytest.approx(b[order], nan_ok=True)


@given(scores_of(0.1, 10.0))
def test_regret_knows_no_units_and_the_best_method_of_a_setting_has_about_none(losses):
    units = 10.0 ** np.arange(len(losses))[:, None, None]
    assert regret(losses * units) == pytest.approx(regret(losses), abs=1e-9)
    assert np.exp(regret(losses)).mean(axis=2).min(axis=1) == pytest.approx(1.0)


@given(scores_of())
def test_an_interval_lies_within_what_was_seen(scores):
    low, high = stratified_interval(scores, interquartile_mean, resamples=30)
    if scores.shape[2] < 2:
        assert np.isnan([low, high]).all()
        return
    assert (low <= high).all()
    assert (low >= scores.min(axis=(0, 2)) - 1e-9).all() and (high <= scores.max(axis=(0, 2)) + 1e-9).all()


def test_seeds_are_drawn_within_settings():
    constant = np.array([[[5.0] * 4], [[-5.0] * 4]])  # drawing settings too would move the mean
    low, high = stratified_interval(constant, lambda scores: scores.mean(axis=(0, 2)))
    assert low.tolist() == high.tolist() == [0.0]


def test_methods_are_drawn_together():
    noise = np.random.default_rng(0).normal(size=(3, 1, 6))
    scores = np.concatenate([noise, noise + 0.1], axis=1)
    low, high = stratified_interval(scores, lambda s: s.mean(axis=(0, 2)) - s[:, :1].mean())
    assert low == pytest.approx([0.0, 0.1]) and high == pytest.approx([0.0, 0.1])


def test_the_stratified_interval_covers_and_is_repeatable():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        scores = rng.normal(np.arange(5.0)[:, None, None], 1.0, (5, 1, 10))
        low, high = stratified_interval(scores, lambda s: s.mean(axis=(0, 2)), resamples=300)
        hits += int(low[0] <= 2.0 <= high[0])
    assert 84 <= hits <= 99
    again = stratified_interval(scores, lambda s: s.mean(axis=(0, 2)), resamples=300)
    assert (low, high) == again


def test_diverged_runs_leave_an_interval_without_nan():
    scores = np.array([[[1.0, 2.0, math.inf]]])
    low, high = stratified_interval(scores, lambda s: s.mean(axis=(0, 2)))
    assert 1.0 <= low[0] <= 2.0 and high[0] == math.inf


def test_the_bootstrap_interval_covers_and_is_repeatable():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(2.0, 1.0, 30))
        hits += low <= 2.0 <= high
    assert 86 <= hits <= 99
    assert bootstrap_interval(np.arange(5.0)) == bootstrap_interval(np.arange(5.0))
    assert all(math.isnan(end) for end in bootstrap_interval(np.array([1.0])))
