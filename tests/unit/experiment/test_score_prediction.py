import math
from datetime import datetime

from candy_monai.experiment.score_prediction import forecast_messages, predict_maximum, seconds_until
from candy_monai.forecasting.best_score import Forecast


def test_the_time_left_is_the_mean_duration_of_an_epoch_times_the_epochs_left():
    assert seconds_until(10, 4, {"epoch duration": [1.0, 3.0, math.nan]}) == 12.0


def test_the_time_left_is_never_negative_and_zero_when_nothing_is_known():
    assert seconds_until(3, 4, {"epoch duration": [1.0]}) == 0.0
    assert seconds_until(10, 4, {}) == 0.0


def test_the_two_lines_name_score_epoch_and_time():
    prediction = Forecast(epoch=87, score=0.85234, interval=(0.8, 0.9), reason=None)
    assert forecast_messages(prediction, 1245.34, now=datetime(2026, 11, 1, 15, 11, 25)) == [
        "Maximum validation score 0.8523 predicted at epoch 87",
        "Estimated time of completion in 1245.3 seconds at 11-01 15:32:10",
    ]


def test_a_run_without_scores_has_no_forecast():
    assert predict_maximum({}, 10, degree=5).reason is not None
