"""Says after each epoch what the best validation score will be and when. Fits nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished
from candy_monai.experiment.score_prediction import forecast_messages, predict_maximum, seconds_until
from candy_monai.observers.base import Observer


class ForecastObserver(Observer):
    """Logs the forecast of the best validation score, or once why there is none.

    Args:
        log: Writes one message.
        degree: Upper bound of the forecast's polynomial degree, and the epochs before the first forecast.
        clock: Tells the time.
    """

    name = "forecasting the best score"

    def __init__(
        self, log: Callable[[str], None], *, degree: int, clock: Callable[[], datetime] = datetime.now
    ) -> None:
        self._log = log
        self._degree = degree
        self._clock = clock
        self._abstained = False

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        if event.score is None or not self._degree <= event.epoch < event.num_epochs:
            return
        prediction = predict_maximum(event.metrics, event.num_epochs, degree=self._degree)
        seconds_left = seconds_until(prediction.epoch, event.epoch, event.metrics)
        messages = forecast_messages(prediction, seconds_left, now=self._clock())
        if prediction.reason is None or not self._abstained:
            for message in messages:
                self._log(message)
        self._abstained = prediction.reason is not None
