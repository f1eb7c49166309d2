"""Says after each epoch what the best validation score will be and when. Fits nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished
from candy_monai.experiment.score_prediction import forecast_messages, seconds_until
from candy_monai.observers.base import Observer


class ForecastObserver(Observer):
    """Logs the forecast of the best validation score, or once why there is none.

    Args:
        log: Writes one message.
        clock: Tells the time.
    """

    name = "forecasting the best score"

    def __init__(self, log: Callable[[str], None], *, clock: Callable[[], datetime] = datetime.now) -> None:
        self._log = log
        self._clock = clock
        self._abstained = False

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        prediction = event.forecast
        if prediction is None or event.epoch >= event.num_epochs:
            return
        seconds_left = seconds_until(prediction.epoch, event.epoch, event.metrics)
        if prediction.reason is None or not self._abstained:
            for message in forecast_messages(prediction, seconds_left, best=event.best_score, now=self._clock()):
                self._log(message)
        self._abstained = prediction.reason is not None
