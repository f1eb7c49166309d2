from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.forecasting.best_score import Forecast, forecast, interval_of
from candy_monai.forecasting.continuation import continuation
from candy_monai.forecasting.curve import seen_curve

T = np.arange(1, 101) / 100


def saturating(tau: float) -> np.ndarray:
    return 0.85 * (1 - np.exp(-T / tau))


def peaked(at: float) -> np.ndarray:
    return 0.8 * (T / at) * np.exp(1 - T / at)


def noisy(curve: np.ndarray, seed: int) -> np.ndarray:
    return curve + 0.01 * np.random.default_rng(seed).standard_normal(len(curve))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("curve", [saturating(0.05), peaked(0.1), peaked(0.2)], ids=["saturates", "peak", "later peak"])
def test_a_curve_that_has_shown_its_best_is_foretold_within_two_hundredths(curve, seed):
    scores = noisy(curve, seed)
    result = forecast(scores[:30], 100)
    assert result.reason is None
    assert result.score == pytest.approx(scores.max(), abs=0.02)


@pytest.mark.parametrize(("method", "share"), [("combined", 0.75), ("quotient", 0.5)])
@pytest.mark.parametrize("tau", [0.1, 0.2, 0.3])
def test_of_slow_curves_most_intervals_cover_the_best_and_the_error_is_well_below_that_of_the_best_so_far(
    tau, method, share
):
    results, best, so_far = [], [], []
    for seed in range(10):
        scores = noisy(saturating(tau), seed)
        results.append(forecast(scores[:30], 100, method=method))
        best.append(scores.max())
        so_far.append(scores[:30].max())
    covered = [r.interval[0] <= b <= r.interval[1] for r, b in zip(results, best, strict=True)]
    errors = [abs(r.score - b) for r, b in zip(results, best, strict=True)]
    # of ten intervals of 80 %, fewer than 6 cover with a probability of 3 %
    assert sum(covered) >= 6
    assert np.mean(errors) < share * np.mean(np.subtract(best, so_far))


def test_a_peak_long_passed_is_the_best_there_will_be_and_the_time_left_is_none():
    scores = noisy(peaked(0.15), 0)[:50]
    result = forecast(scores, 100)
    assert result.score == scores.max()
    assert result.epoch == 50


@given(
    scores=st.lists(st.floats(-1e3, 1e3) | st.just(math.nan), min_size=1, max_size=40),
    left=st.integers(0, 100),
    degree=st.integers(1, 5),
)
@settings(max_examples=60)
def test_no_curve_breaks_it_and_no_forecast_falls_below_the_best_so_far(scores, left, degree):
    result = forecast(scores, len(scores) + left, degree=degree)
    if all(map(math.isnan, scores)):
        assert result.epoch == 0
        assert math.isnan(result.score)
        return
    best = np.nanmax(scores)
    assert result.score >= best
    if result.reason is None:
        low, high = result.interval
        assert best <= low <= result.score <= high < math.inf
        assert len(scores) <= result.epoch <= len(scores) + left
    else:
        assert result.score == best
        assert scores[result.epoch - 1] == best
        assert result.interval is None


def test_the_same_scores_give_the_same_forecast():
    scores = noisy(saturating(0.2), 0)[:30]
    assert forecast(scores, 100) == forecast(list(scores), 100)


def test_negative_losses_are_never_foretold_above_zero():
    scores = -1.0 / np.arange(1, 21)
    result = forecast(scores, 1000)
    assert result.reason is None
    assert scores.max() <= result.score <= result.interval[1] <= 0


def test_dice_is_never_foretold_above_one():
    assert forecast(np.linspace(0.1, 0.9, 20), 100).interval[1] <= 1


def test_an_unbounded_score_may_be_foretold_above_one():
    scores = 40 * saturating(0.3)[:30]
    assert forecast(scores, 100).score > scores.max()


def test_a_stated_ceiling_holds():
    assert forecast(np.linspace(1, 4, 20), 100, ceiling=4.5).interval[1] <= 4.5


def test_a_score_above_the_stated_ceiling_is_refused():
    with pytest.raises(ValueError, match="exceeds"):
        forecast([0.1, 0.2, 1.2], 10, ceiling=1.0)


def test_a_few_missing_scores_and_an_outlier_do_not_derail_it():
    clean = saturating(0.05)[:30]
    scores = clean + 0.005 * np.random.default_rng(0).standard_normal(30)
    scores[[7, 15]] = np.nan
    scores[25] = 0.1
    assert forecast(scores, 100).score == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_the_score_does_not_matter(scale):
    scores = noisy(saturating(0.2), 0)[:30] - 2.0  # negative throughout, so that the ceiling scales too
    expected, scaled = forecast(scores, 100), forecast(scores * scale, 100)
    assert scaled.score / scale == pytest.approx(expected.score, rel=1e-6)
    assert scaled.epoch == expected.epoch


@pytest.mark.parametrize(
    ("scores", "horizon", "reason"),
    [
        ([], 10, "no finite score"),
        ([math.nan] * 8, 10, "no finite score"),
        ([0.1, 0.2, 0.3, 0.35, 0.4], 10, "too few"),
        ([0.1, 0.2, math.nan, math.nan, math.nan, math.nan] * 4, 30, "not finite"),
        ([0.5] * 10, 20, "flat"),
        (list(0.5 + 0.01 * np.random.default_rng(0).standard_normal(30)), 100, "flat"),
        (list(-np.exp(np.arange(20) / 4)), 100, "diverges"),
        (list(-np.arange(20.0)), 100, "diverges"),
        ([0.1, 0.2, 0.3, 0.35, 0.4, 0.42, 0.43], 7, "no epoch is left"),
    ],
)
def test_where_it_does_not_know_it_says_why_and_names_the_best_so_far(scores, horizon, reason):
    result = forecast(scores, horizon)
    assert reason in result.reason
    assert result.interval is None
    if np.isfinite(scores).any():
        assert (result.epoch, result.score) == (int(np.nanargmax(scores)) + 1, np.nanmax(scores))


def test_no_forecast_is_made_before_more_epochs_than_the_degree():
    scores = saturating(0.3)[:7]
    assert "8 are needed" in forecast(scores, 100, degree=7).reason
    assert forecast(scores, 100, degree=5).reason is None


def test_a_method_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="'combined' or 'quotient'"):
        forecast([0.1, 0.2], 10, method="exponential")


def test_a_decaying_learning_rate_promises_less_than_a_constant_one():
    scores, left = noisy(saturating(0.2), 0)[:50], 1 - np.arange(50) / 100
    decaying = forecast(scores, 100, learning_rates=0.01 * left, method="quotient")
    constant = forecast(scores, 100, learning_rates=np.full(50, 0.01), method="quotient")
    assert decaying.score < constant.score


def test_a_drop_of_the_learning_rate_that_is_planned_promises_less_than_none():
    scores = noisy(saturating(0.2), 0)[:50]
    dropping = forecast(scores, 100, learning_rates=[0.01] * 50 + [0.001] * 50, method="quotient")
    constant = forecast(scores, 100, learning_rates=[0.01] * 100, method="quotient")
    assert dropping.score < constant.score
    assert constant == forecast(scores, 100, learning_rates=[0.01] * 50, method="quotient")


def test_an_interval_of_draws_leaves_a_tenth_of_the_better_ones_at_either_end_or_a_fifth_above_the_best_so_far():
    draws = np.arange(1, 102) / 100
    assert interval_of(draws, 0.0) == pytest.approx((0.11, 0.91))
    # of those above 0.5, from 0.51 to 1.01, four fifths do not exceed 0.91
    assert interval_of(draws, 0.5) == pytest.approx((0.5, 0.91))


def slow_rise(seed: int) -> np.ndarray:
    """Return the Dice of 80 epochs on few cases: a smooth rise of a fifth, with noise that lasts for some epochs."""
    noise = np.random.default_rng(seed).standard_normal(80)
    lasting = np.convolve(noise, 0.7 ** np.arange(12))[:80]
    return 0.15 + 0.25 * (np.arange(80) / 80) ** 0.8 + 0.008 * lasting


@pytest.mark.parametrize("seed", range(3))
def test_a_score_that_rises_slowly_to_the_end_is_never_said_to_be_over_and_most_intervals_hold_what_comes(seed):
    scores, rates = slow_rise(seed), 0.003 * (1 - np.arange(80) / 80)
    cuts = range(8, 76, 2)
    results = [forecast(scores[:now], 80, learning_rates=rates[:now]) for now in cuts]
    best = [scores[:now].max() for now in cuts]
    assert all(r.interval[1] - r.interval[0] > 1e-3 for r in results)
    assert all(r.chance_above(b) > 0.1 for r, b in zip(results, best, strict=True))
    held = [r.interval[0] <= scores.max() <= r.interval[1] for r in results]
    assert np.mean(held) >= 0.7


def test_while_the_last_score_is_the_best_a_better_one_is_expected():
    scores = [0.2, 0.3, 0.34, 0.36, 0.35, 0.355, 0.352, 0.358, 0.361]
    result = forecast(scores, 10)
    assert result.score > max(scores)
    assert result.epoch == 10
    assert result.chance_above(max(scores)) >= 0.6


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_range_of_a_score_is_what_it_is_said_to_be(scale):
    scores = scale * np.array([0.05, 0.2, 0.35, 0.5, 0.6, 0.68, 0.75, 0.81, 0.86, 0.9])
    assert forecast(scores, 100, score_range=(0, scale)).interval[1] <= scale
    assert forecast(scores, 100, score_range=(None, None)).interval[1] > scale


def test_errors_in_millimetres_are_never_foretold_to_fall_below_none():
    result = forecast(-20 / np.arange(1.0, 15), 200, score_range=(None, 0))
    assert -20 / 14 < result.score <= result.interval[1] <= 0


def test_percent_that_lies_below_one_may_exceed_one():
    scores = np.linspace(0.05, 0.95, 12)
    assert forecast(scores, 100, score_range=(0, 100)).interval[1] > 1


def test_scores_out_of_their_range_are_refused():
    with pytest.raises(ValueError, match="score_range"):
        forecast([0.1, 0.2, 60.0], 10, degree=1, score_range=(0, 1))


def test_a_score_that_cannot_be_better_has_no_forecast():
    assert "no score can be better than 1" in forecast([0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0], 20).reason


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_so_few_scores_as_the_degree_asks_for_give_a_wide_interval(degree):
    scores = [0.9 - 0.8 * 0.8**epoch for epoch in range(degree + 1)]
    assert forecast(scores[:-1], 10, degree=degree).reason is not None
    result = forecast(scores, 10, degree=degree)
    assert max(scores) < result.score < 1
    assert result.interval[1] >= max(scores) + 0.6 * (1 - max(scores))


def test_the_chance_of_a_better_score_falls_from_one_below_the_quantiles_to_none_above_them():
    result = forecast(noisy(saturating(0.2), 0)[:30], 100)
    chances = [result.chance_above(score) for score in np.linspace(0.5, 1.0, 50)]
    assert (chances[0], chances[-1]) == (1.0, 0.0)
    assert (np.diff(chances) <= 1e-12).all()


def test_of_a_best_that_is_over_the_chance_of_better_is_what_the_quantiles_say():
    # ten of nineteen quantiles, up to 50 %, are the best so far
    over = Forecast(epoch=9, score=0.8, interval=(0.8, 0.9), reason=None, quantiles=(0.8,) * 10 + (0.9,) * 9)
    assert over.chance_above(0.8) == pytest.approx(0.5)


def test_where_there_is_no_forecast_no_chance_is_told():
    with pytest.raises(ValueError, match="no forecast: too few"):
        forecast([0.1, 0.2], 10).chance_above(0.3)


@pytest.mark.parametrize("arguments", [{"horizon": 0}, {"horizon": 10, "degree": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        forecast([0.1, 0.2], **arguments)


def test_a_run_that_validates_every_third_epoch_gets_a_forecast():
    scores = noisy(saturating(0.3), 0)[:36]
    sparse = np.where(np.arange(1, 37) % 3 == 0, scores, math.nan)
    found = forecast(sparse, 100)
    assert found.reason is None
    assert np.nanmax(sparse) <= found.score
    assert found.score == pytest.approx(forecast(scores, 100).score, abs=0.05)
    assert "not finite" in forecast([*sparse, *[math.nan] * 9], 100).reason


@pytest.mark.parametrize("known", [{}, {"range": True}, {"rates": True}, {"method": "quotient"}], ids=str)
@pytest.mark.parametrize("scale", [1, 100])
def test_a_curve_without_noise_is_continued_to_its_own_limit(scale, known):
    scores = [scale * (0.9 - 0.8 * 0.8**epoch) for epoch in range(30)]
    arguments = {"method": known.get("method", "combined")}
    if "range" in known:
        arguments["score_range"] = (0, scale)
    if "rates" in known:  # a decay that the scores do not follow
        arguments["learning_rates"] = [0.01 * (1 - epoch / 30) ** 0.9 for epoch in range(10)]
    result = forecast(scores[:10], 30, **arguments)
    assert result.epoch == 30
    assert result.score == pytest.approx(scores[-1], abs=1e-4 * scale)
    low, high = result.interval
    assert low <= scores[-1] <= high
    assert 0 < high - low < 0.01 * scale


def test_of_a_peak_ahead_without_noise_score_and_epoch_are_known():
    result = forecast(peaked(0.4)[:30], 100)
    assert (result.epoch, result.score) == (40, pytest.approx(0.8, abs=1e-3))


def test_a_peak_without_noise_that_is_passed_stays_the_best():
    scores = peaked(0.2)[:30]
    result = forecast(scores, 100)
    assert (result.epoch, result.score) == (30, scores.max())
    assert result.interval[0] == scores.max() < result.interval[1]


def test_the_interval_widens_as_the_noise_grows():
    noise = np.random.default_rng(0).standard_normal(30)
    results = [forecast(saturating(0.2)[:30] + size * noise, 100) for size in (0, 1e-4, 1e-3)]
    widths = [r.interval[1] - r.interval[0] for r in results]
    assert 0 < widths[0] < widths[1] < widths[2]
    assert widths[0] < 0.002


def test_at_the_noise_of_real_runs_no_continuation_is_trusted():
    for seed in range(3):
        scores = noisy(saturating(0.2), seed)[:30]
        assert continuation(seen_curve(scores, 100)) is None


def test_a_straight_line_that_would_leave_the_range_of_scores_is_not_continued_beyond_it():
    result = forecast(np.linspace(0.1, 0.9, 20), 100)
    assert 0.9 < result.score < result.interval[1] <= 1
