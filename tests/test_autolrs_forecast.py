"""Forecasts find exponentials under noise and outliers, and take any series."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.controllers.autolrs_search.forecast import denoise, fit_exponential, forecast

STEPS, HORIZON = np.arange(100), 1000


def curve(a=2.0, b=-0.03, c=0.5, steps=STEPS):
    return a * np.exp(b * np.asarray(steps, dtype=float)) + c


def noisy(rng, b, noise, outliers=2):
    series = curve(b=b) + noise * rng.standard_normal(len(STEPS))
    series[rng.integers(0, 50, outliers)] += 5.0
    return series


@pytest.mark.parametrize("b", [-0.01, -0.03, -0.1, -0.3, -1.0])
@pytest.mark.parametrize("a", [2.0, -1.0, 1e6, 1e-6])
@pytest.mark.parametrize("c", [0.5, -3.0, 0.0])
def test_an_exponential_is_found(a, b, c):
    found = fit_exponential(curve(a, b, c))
    assert found == pytest.approx((a, b, c), rel=2e-3, abs=2e-3 * abs(a))
    assert forecast(curve(a, b, c), HORIZON) == pytest.approx(
        float(curve(a, b, c, HORIZON)), rel=1e-3, abs=0.01 * abs(a)
    )


def test_gaps_do_not_move_the_fit():
    series = curve()
    series[[3, 40, 41, 77]] = np.nan, np.inf, -np.inf, np.nan
    assert fit_exponential(series) == pytest.approx((2.0, -0.03, 0.5), rel=1e-3)
    assert np.allclose(denoise(series)[0], curve(), atol=0.01)


@pytest.mark.parametrize("b", [-0.01, -0.03, -0.1])
def test_outliers_of_the_first_half_are_dropped(b):
    rng = np.random.default_rng(0)
    series = curve(b=b) + 0.02 * rng.standard_normal(len(STEPS))
    spiked = series.copy()
    spiked[[12, 30, 44]] += 5.0, 20.0, -4.0
    assert np.abs(denoise(spiked)[0][20:] - curve(b=b)[20:]).max() < 0.05
    assert abs(forecast(spiked, HORIZON) - forecast(series, HORIZON)) < 0.1


def test_one_outlier_of_a_short_series_is_dropped():
    series = curve(steps=range(12))
    series[3] += 5.0
    assert np.allclose(denoise(series)[0][4:], curve(steps=range(12))[4:], atol=0.05)


def test_noise_is_smoothed():
    rng = np.random.default_rng(1)
    series = curve() + 0.1 * rng.standard_normal(len(STEPS))
    before, after = (np.abs(x - curve()).mean() for x in (series, denoise(series)[0]))
    assert after < 0.5 * before


@pytest.mark.parametrize("caution", [0.0, 2.0])
@pytest.mark.parametrize(
    ("b", "noise"), [(-0.01, 0.02), (-0.01, 0.1), (-0.03, 0.1), (-0.03, 0.3), (-0.1, 0.3), (-0.3, 0.3)]
)
def test_a_forecast_is_nearer_than_the_last_loss(b, noise, caution):
    rng = np.random.default_rng(2)
    runs = [noisy(rng, b, noise) for _ in range(40)]
    truth = float(curve(b=b, steps=HORIZON))
    forecasts = np.median([abs(forecast(series, HORIZON, caution) - truth) for series in runs])
    assert forecasts < 0.75 * np.median([abs(series[-1] - truth) for series in runs])


def test_caution_keeps_noise_from_promising_a_fall():
    """A loss that hardly moves: without caution some forecasts are far below what it can reach."""
    rng = np.random.default_rng(3)
    runs = [5.0 - 0.001 * STEPS + 0.3 * rng.standard_normal(len(STEPS)) for _ in range(40)]
    worst = [min(forecast(series, HORIZON, caution) for series in runs) for caution in (0.0, 1.0, 2.0)]
    assert worst[0] < worst[1] < worst[2] and worst[0] < 3.8 and worst[2] > 4.3


def test_caution_changes_nothing_without_noise():
    assert forecast(curve(), HORIZON, 2.0) == pytest.approx(forecast(curve(), HORIZON), abs=2e-3)


def test_tolerance_takes_a_steeper_exponential():
    rates = [fit_exponential(curve() + 0.1 * np.sin(STEPS), tolerance)[1] for tolerance in (0.0, 0.1, 1.0)]
    assert rates[2] < rates[1] < rates[0] < 0.0


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ([], math.inf),
        ([2.0], 2.0),
        ([2.0, 1.0], 1.0),
        ([3.0] * 5, 3.0),
        ([0.0] * 100, 0.0),
        ([math.nan] * 5, math.inf),
        ([1.0, 1.0, math.nan], math.inf),
        ([1.0, 1.0, math.inf], math.inf),
        ([1.0, -math.inf], math.inf),
        ([math.nan, math.nan, math.nan, 1.0], math.inf),
        ([math.nan, 1.0, 1.0, 1.0], 1.0),
    ],
)
def test_what_is_no_exponential(series, expected):
    assert forecast(series, 50) == pytest.approx(expected)


@pytest.mark.parametrize("length", [5, 10, 100])
def test_rising_losses_are_forecast_to_stay_high(length):
    for series in (np.arange(length), np.exp(np.arange(length)), np.exp(7.0 * np.arange(length))):
        assert forecast(series, 10 * length) > 0.3 * series[-1]


@given(
    st.lists(st.floats() | st.floats(-10.0, 10.0) | st.sampled_from([1.0, 1e308, -1e308, 5e-324]), max_size=40),
    st.floats(0.0, 1e4),
    st.sampled_from([0.0, 1.0, 2.0]),
)
def test_any_series_gets_an_answer_without_a_warning(series, horizon, caution):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer, smooth, (_, b, _) = forecast(series, horizon, caution), denoise(series)[0], fit_exponential(series)
    assert -math.inf < answer <= math.inf
    assert len(smooth) == len(series) and b < 0.0
