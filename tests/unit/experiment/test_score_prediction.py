import math

import numpy as np
import pytest

from candy_monai.experiment.score_prediction import (
    chance_as_text,
    chance_of_gain,
    duration_as_text,
    predict_maximum,
    predict_safely,
    seconds_until,
)
from candy_monai.forecasting.best_score import Forecast


def test_the_time_left_is_the_mean_duration_of_an_epoch_times_the_epochs_left():
    assert seconds_until(10, 4, {"epoch duration": [1.0, 3.0, math.nan]}) == 12.0


def test_the_time_left_is_never_negative_and_zero_when_nothing_is_known():
    assert seconds_until(3, 4, {"epoch duration": [1.0]}) == 0.0
    assert seconds_until(10, 4, {}) == 0.0


def test_a_chance_is_never_said_to_be_all_or_nothing():
    assert [chance_as_text(chance) for chance in (0.0, 0.05, 0.35, 0.95, 1.0)] == [
        "at most 5 %",
        "at most 5 %",
        "35 %",
        "at least 95 %",
        "at least 95 %",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (59.6, "1 min"), (61.0, "1 min 1 s"), (3600.0, "1 h"), (7505.0, "2 h 5 min")]
)
def test_a_duration_is_said_in_words(seconds, text):
    assert duration_as_text(seconds) == text


def test_scores_that_do_not_keep_to_a_range_are_foretold_without_it():
    metrics = {"val score": [10.0, 30.0, 45.0, 55.0, 62.0, 66.0, 69.0]}
    inside = predict_maximum(metrics, 30, degree=5, score_range=(0, 100))
    assert 69 < inside.score <= inside.interval[1] <= 100
    assert predict_maximum(metrics, 30, degree=5, score_range=(0, 1)).interval[1] > 69


def test_a_run_without_scores_has_no_forecast():
    assert predict_maximum({}, 10, degree=5).reason is not None


@pytest.mark.parametrize(("degree", "needed"), [(1, 2), (2, 3), (5, 6), (8, 9)])
def test_there_is_no_forecast_before_there_are_enough_epochs_for_its_degree(degree, needed):
    assert predict_safely({"val score": [0.1] * (needed - 1)}, 10, degree=degree) is None
    assert predict_safely({"val score": [math.nan, 0.1] * (needed - 1)}, 30, degree=degree) is None
    first = predict_safely({"val score": [0.1 * (count + 1) for count in range(needed)]}, 30, degree=degree)
    assert first.reason is None
    assert first.interval[0] < first.interval[1]


def test_a_forecast_that_fails_abstains_and_says_why():
    prediction = predict_safely({"val score": [0.1, 0.2] * 3}, 0, degree=1)
    assert prediction.interval is None
    assert prediction.reason.startswith("it failed (ValueError: ")


def test_the_chance_of_a_gain_counts_from_the_margin_above_the_best():
    # quantiles at 5 %, 10 % ... 95 %; the scores range over 1, so a margin of 0.1 asks for more than 1.1
    prediction = Forecast(epoch=9, score=1.1, interval=(1, 1.2), reason=None, quantiles=tuple(np.linspace(1, 1.2, 19)))
    assert chance_of_gain(prediction, [0.0, 1.0], margin=0.1) == pytest.approx(0.5)
    assert chance_of_gain(prediction, [0.0, 1.0], margin=0.3) == 0.0


def test_where_the_forecast_abstains_the_chance_is_unknown():
    assert chance_of_gain(None, [0.0, 1.0], margin=0.1) is None
    abstained = Forecast(epoch=2, score=1.0, interval=None, reason="flat")
    assert chance_of_gain(abstained, [0.0, 1.0], margin=0.1) is None
