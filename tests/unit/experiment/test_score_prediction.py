import math
from datetime import datetime

import numpy as np
import pytest

from candy_monai.experiment.score_prediction import (
    chance_of_gain,
    forecast_messages,
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


def test_the_lines_name_score_epoch_time_and_the_cost_of_stopping_now():
    prediction = Forecast(epoch=87, score=0.85234, interval=(0.8, 0.9), reason=None)
    assert forecast_messages(prediction, 1245.34, best=0.8, now=datetime(2026, 11, 1, 15, 11, 25)) == [
        "Maximum validation score 0.8523 predicted at epoch 87",
        "Estimated time of completion in 1245.3 seconds at 11-01 15:32:10",
        "Stopping now would cost 0.0523 (0.0000 to 0.1000 in 80 % of runs)",
    ]


def test_a_run_without_scores_has_no_forecast():
    assert predict_maximum({}, 10, degree=5).reason is not None


@pytest.mark.parametrize(("degree", "needed"), [(1, 6), (5, 6), (8, 9)])
def test_there_is_no_forecast_before_there_are_enough_epochs_for_its_degree(degree, needed):
    assert predict_safely({"val score": [0.1] * (needed - 1)}, 10, degree=degree) is None
    assert predict_safely({"val score": [math.nan, 0.1] * (needed - 1)}, 30, degree=degree) is None
    assert predict_safely({"val score": [0.1] * needed}, 10, degree=degree) is not None


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
