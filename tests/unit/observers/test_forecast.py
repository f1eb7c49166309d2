from datetime import datetime

import pytest

from candy_monai.experiment.score_prediction import predict_safely
from candy_monai.forecasting.best_score import Forecast
from candy_monai.observers.forecast import ForecastObserver, forecast_messages
from tests.events import epoch_finished


def _epoch(scores, *, num_epochs=50, validated=True):
    metrics = {"val score": scores, "epoch duration": [2.0] * len(scores)}
    return epoch_finished(
        len(scores),
        num_epochs=num_epochs,
        metrics=metrics,
        score=scores[-1] if validated else None,
        best_score=max(scores),
        forecast=predict_safely(metrics, num_epochs, degree=5) if validated else None,
    )


@pytest.fixture
def messages():
    return []


@pytest.fixture
def shown():
    return []


@pytest.fixture
def observer(messages, shown):
    def log(msg, *, on_screen=True):
        messages.append(msg)
        if on_screen:
            shown.append(msg)

    return ForecastObserver(log, clock=lambda: datetime(2026, 11, 1, 15, 0))


def _expecting(score, *, epoch=10):
    expected = Forecast(epoch=40, score=score, interval=(0.5, 0.9), reason=None, quantiles=(0.5,) * 8 + (0.9,) * 11)
    metrics = {"val score": [0.0] * (epoch - 1) + [0.5], "epoch duration": [2.0] * epoch}
    return epoch_finished(epoch, num_epochs=50, metrics=metrics, score=0.5, best_score=0.5, forecast=expected)


def test_it_says_the_score_its_epoch_and_the_time_until_then(observer, messages):
    observer.receive(_epoch([1 - 0.8**epoch for epoch in range(1, 15)]))
    assert messages[0].startswith("Maximum validation score ")
    epoch = int(messages[0].rsplit(" ", 1)[1])
    assert messages[1].startswith(f"Estimated time of completion in {2.0 * (epoch - 14):.1f} seconds at 11-01 15:0")
    assert messages[2].startswith("Stopping now would cost ")


def test_it_says_nothing_after_the_last_epoch_or_without_validation(observer, messages):
    scores = [1 - 0.8**epoch for epoch in range(1, 15)]
    observer.receive(_epoch(scores, num_epochs=14))
    observer.receive(_epoch(scores, validated=False))
    assert messages == []


def test_a_reason_for_no_forecast_is_said_once(observer, messages, shown):
    for count in (8, 9, 10):
        observer.receive(_epoch([0.5] * count))
    assert len(messages) == len(shown) == 1
    assert messages[0].startswith("No forecast of the best validation score: ")


def test_it_says_nothing_while_there_are_too_few_epochs_for_a_forecast(observer, messages):
    for count in range(1, 6):
        observer.receive(_epoch([0.1 * count + 0.1 for count in range(count)]))
    assert messages == []


def test_each_forecast_is_logged_but_only_the_first_and_those_that_change_much_are_shown(observer, messages, shown):
    # the scores range over 0.5, so a change of more than 0.025 is one
    for score in (0.70, 0.71, 0.72, 0.73, 0.74):
        observer.receive(_expecting(score))
    scores = [[line.split()[3] for line in lines if line.startswith("Maximum")] for lines in (messages, shown)]
    assert scores == [["0.7000", "0.7100", "0.7200", "0.7300", "0.7400"], ["0.7000", "0.7300"]]


def test_a_forecast_after_a_reason_for_none_is_shown_again(observer, shown):
    observer.receive(_expecting(0.7))
    observer.receive(_epoch([0.5] * 8))
    observer.receive(_expecting(0.7))
    assert len(shown) == 4 + 1 + 4


def test_a_score_outside_of_the_trainer_s_range_is_said_once(observer, shown):
    for count in (1, 2):
        scores = [66.2] * count
        metrics = {"val score": scores}
        observer.receive(epoch_finished(count, metrics=metrics, score=66.2, best_score=66.2, score_range=(0, 1)))
    assert len(shown) == 1
    assert "score 66.2 is outside of the trainer's score_range (0, 1)" in shown[0]


def test_a_mean_of_dice_that_exceeds_one_by_rounding_is_within_its_range(observer, messages):
    observer.receive(epoch_finished(1, metrics={}, score=1.0000001, best_score=1.0, score_range=(0, 1)))
    assert messages == []


def _messages(score, quantiles, *, high=0.9, epoch=87):
    prediction = Forecast(epoch=epoch, score=score, interval=(0.8, high), reason=None, quantiles=quantiles)
    metrics = {"epoch duration": [16.0] * 10}
    event = epoch_finished(10, num_epochs=100, best_score=0.8, best_epoch=6, metrics=metrics)
    return forecast_messages(event, prediction, datetime(2026, 11, 1, 15, 11, 25))


def test_the_lines_name_score_epoch_time_the_cost_of_stopping_now_the_chance_of_better_and_the_run_s_end():
    # Of the quantiles those up to 35 % are the best so far; 77 epochs of 16 s are left to the best, 90 to the end.
    assert _messages(0.85234, (0.8,) * 7 + (0.9,) * 12) == [
        "Maximum validation score 0.8523 predicted at epoch 87",
        "Estimated time of completion in 1232.0 seconds at 11-01 15:31:57",
        "Stopping now would cost 0.0523 (0.0000 to 0.1000 in 80 % of the runs that get better)",
        "The chance of a score above 0.8000 is 65 %; the run ends at epoch 100, in 24 min",
    ]


def test_where_no_better_score_is_expected_the_lines_name_the_epoch_of_the_best_and_the_chance_that_one_comes():
    lines = _messages(0.8, (0.8,) * 19, high=0.80002)
    assert lines[0] == "Maximum validation score 0.8000 predicted at epoch 6"
    assert lines[2] == "Stopping now would cost 0.0000 (0.0000 to 2.00e-05 in 80 % of the runs that get better)"
    assert "The chance of a score above 0.8000 is at most 5 %" in lines[3]


def test_there_is_no_time_until_a_maximum_that_is_past():
    lines = _messages(0.8, (0.8,) * 19, epoch=10)
    assert [line.split()[0] for line in lines] == ["Maximum", "Stopping", "The"]
