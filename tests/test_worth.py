"""Worth k tries: closed forms, bounds, seeds that are never measured on themselves, and intervals."""

import numpy as np
import pytest

from agents.evaluation.worth import FEWEST, MOST, TuningCurve, expected_log_loss, log_loss, worth, worth_over_settings
from gns import InvalidSettingError

RATES = np.geomspace(1e-5, 1e-1, 13)
NEVER = 1e9  # a ceiling that no loss reaches


def curve(log_losses, measured=None, ceiling=NEVER):
    losses = np.exp(np.asarray(log_losses, dtype=float))
    return TuningCurve(
        RATES, losses, losses if measured is None else np.exp(np.asarray(measured, dtype=float)), ceiling
    )


def straight(offset=0.0):
    """Log loss that falls evenly from 1 at the lowest rate to 0 at the highest: the best of k uniform draws."""
    return np.linspace(1.0, 0.0, len(RATES)) + offset


@pytest.mark.parametrize("tries", [0.5, 1.0, 2.0, 8.0, 13.0])
def test_on_a_straight_curve_the_best_of_k_is_one_over_k_plus_one(tries):
    # E[min of k uniforms] = 1 / (k + 1); the second seed is the first, shifted by nothing but a constant far below it
    two = curve([straight(), straight(1e-12)])
    assert expected_log_loss(two, np.array([tries]))[0] == pytest.approx(1.0 / (tries + 1.0), abs=2e-3)
    assert worth(two, 1.0 / (tries + 1.0)) == pytest.approx(tries, rel=0.01)


def test_a_valley_is_worth_what_its_two_arms_are():
    valley = np.abs(np.linspace(-1.0, 1.0, len(RATES)))  # |x| of a uniform x in [-1, 1] is uniform in [0, 1]
    assert worth(curve([valley, valley + 1e-12]), 1.0 / 9.0) == pytest.approx(8.0, rel=0.01)


def test_a_rate_is_tuned_on_one_seed_and_measured_on_another():
    # Each seed has a rate at which it alone is lucky; the other seed is at 1 there.
    lucky = np.ones((2, len(RATES)))
    lucky[0, 3] = lucky[1, 9] = 0.0
    assert expected_log_loss(curve(lucky), np.array([1000.0]))[0] == pytest.approx(1.0)
    # Two seeds that agree on the rate keep what they gain.
    agreed = np.ones((2, len(RATES)))
    agreed[0, 3], agreed[1, 3] = 0.0, 0.1
    assert expected_log_loss(curve(agreed), np.array([1000.0]))[0] == pytest.approx(
        0.06, abs=0.01
    )  # half a cell beside


def test_the_choice_is_by_the_reward_split_alone():
    tuning, measured = np.tile(straight(), (2, 1)), np.tile(straight()[::-1], (2, 1))
    tuning[1] += 1e-9
    misled = curve(tuning, measured)
    # The rate that is best for tuning is the worst for reporting, and nobody may know. More tries than one only harm,
    # and nobody is made to take them: what is expected never rises.
    expected = expected_log_loss(misled, np.array([0.01, 1.0, 100.0]))
    assert expected[0] == pytest.approx(0.01, abs=0.01)
    assert (np.diff(expected) <= 0).all()


def test_a_diverged_run_counts_as_one_that_learned_nothing():
    assert log_loss(np.array([np.nan, np.inf, 50.0, 1.0]), 2.0) == pytest.approx(np.log([2.0, 2.0, 2.0, 1.0]))
    losses = np.exp([straight(), straight(1e-12)])
    losses[:, 0] = np.nan, np.inf
    assert np.isfinite(expected_log_loss(TuningCurve(RATES, losses, losses, 3.0), np.array([1.0, 5.0]))).all()


def test_worth_is_cut_off_where_the_curve_says_nothing():
    two = curve([straight(), straight(1e-12)])
    assert worth(two, -1.0) == MOST
    assert worth(two, 2.0) == FEWEST


def test_settings_are_summed_up_by_median_geometric_mean_and_pooled():
    easy, hard = curve([straight(), straight(1e-12)]), curve([10 * straight(), 10 * straight(1e-12)])
    method = [np.exp(np.full(3, 1.0 / 3.0)), np.exp(np.full(3, 10.0 / 9.0))]  # worth 2 and 8
    found = worth_over_settings([easy, hard], method, resamples=50)
    assert found.by_setting == pytest.approx((2.0, 8.0), rel=0.01)
    assert found.median == pytest.approx(5.0, rel=0.02)
    assert found.mean == pytest.approx(4.0, rel=0.02)
    assert 6.0 < found.pooled < 8.0  # (1/3 + 10/9) / 2 = 5.5 / (k + 1): 6.6
    assert found.intervals["median"] == pytest.approx((2.0, 8.0), rel=0.02)


def test_an_interval_holds_the_spread_of_seeds_and_is_the_same_for_one_seed_of_draws():
    rng = np.random.default_rng(0)
    noisy = [curve(straight() + 0.05 * rng.normal(size=(4, len(RATES)))) for _ in range(6)]
    method = [np.exp(0.2 + 0.05 * rng.normal(size=5)) for _ in noisy]
    one, again = (worth_over_settings(noisy, method, resamples=100, seed=3) for _ in range(2))
    assert one == again
    low, high = one.intervals["pooled"]
    assert low < one.pooled < high
    assert high < 4.0 * low


@pytest.mark.parametrize(
    ("rates", "tuning", "measured"),
    [
        (RATES, np.ones((1, 13)), np.ones((1, 13))),
        (RATES[:5], np.ones((2, 13)), np.ones((2, 13))),
        (RATES, np.ones((2, 13)), np.ones((3, 13))),
        (RATES[::-1], np.ones((2, 13)), np.ones((2, 13))),
    ],
)
def test_a_curve_that_says_nothing_is_refused(rates, tuning, measured):
    with pytest.raises(InvalidSettingError, match="tuning curve"):
        TuningCurve(rates, tuning, measured, 1.0)


def test_a_setting_without_runs_is_refused():
    with pytest.raises(InvalidSettingError, match="at least one run"):
        worth_over_settings([curve([straight(), straight(1e-12)])], [np.array([])])
