from datetime import datetime

import pytest

from candy_monai.experiment.score_prediction import predict_safely
from candy_monai.observers.forecast import ForecastObserver
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
def observer(messages):
    return ForecastObserver(messages.append, clock=lambda: datetime(2026, 11, 1, 15, 0))


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


def test_a_reason_for_no_forecast_is_said_once(observer, messages):
    for count in (8, 9, 10):
        observer.receive(_epoch([0.5] * count))
    assert len(messages) == 1
    assert messages[0].startswith("No forecast of the best validation score: ")
