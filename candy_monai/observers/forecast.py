"""Forecast the best validation score and its epoch after each epoch.

Every forecast is written to the log. The console, where three lines per epoch would be too many, shows the first
forecast and those that differ notably from the last one shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from typing_extensions import override

from candy_monai.columns import SCORE
from candy_monai.experiment.events import EpochFinished
from candy_monai.experiment.score_prediction import chance_as_text, duration_as_text, score_as_text, seconds_until
from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import is_within
from candy_monai.observers.base import Observer

NOTABLE = 0.05
"""A change of the forecast by more than this fraction of the range of the scores so far is shown on the console."""


class Log(Protocol):
    """Writes one message."""

    def __call__(self, msg: str, *, on_screen: bool = True) -> None:
        """Write it to the log and, if requested, to the console."""


class ForecastObserver(Observer):
    """Logs the forecast of the best validation score, or once the reason why there is none."""

    name = "forecasting the best score"

    def __init__(self, log: Log, *, clock: Callable[[], datetime] = datetime.now) -> None:
        self._log = log
        self._clock = clock
        self._abstained = False
        self._shown_score = math.nan
        self._doubted_range = False

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._doubt_range(event)
        prediction = event.forecast
        if prediction is None or event.epoch >= event.num_epochs:
            return
        abstains = prediction.reason is not None
        if abstains and self._abstained:
            return
        on_screen = abstains or self._is_news(event, prediction.score)
        if on_screen:
            self._shown_score = math.nan if abstains else prediction.score
        for message in forecast_messages(event, prediction, self._clock()):
            self._log(message, on_screen=on_screen)
        self._abstained = abstains

    def _doubt_range(self, event: EpochFinished) -> None:
        """Log once that the scores exceed the range that the trainer declares."""
        if self._doubted_range or event.score is None or event.score_range is None:
            return
        if not is_within([event.score], event.score_range):
            self._doubted_range = True
            least, largest = event.score_range
            self._log(
                f"Warning: the validation score {event.score:g} is outside of the trainer's score_range ({least}, "
                f"{largest}), which the forecast therefore ignores: set score_range to the possible range of scores"
            )

    def _is_news(self, event: EpochFinished, score: float) -> bool:
        scores = [value for value in event.metrics[SCORE] if math.isfinite(value)]
        return not abs(score - self._shown_score) <= NOTABLE * (max(scores) - min(scores))


def forecast_messages(event: EpochFinished, prediction: Forecast, now: datetime) -> list[str]:
    """Return the log lines of a forecast: the score, its epoch, the uncertainty and the cost of stopping.

    If it abstains there is one line with the reason.
    """
    if prediction.interval is None:
        return [f"No forecast of the best validation score: {prediction.reason}"]
    best, metrics = event.best_score, event.metrics
    seconds = seconds_until(prediction.epoch, event.epoch, metrics)
    low, high = (limit - best for limit in prediction.interval)
    when = prediction.epoch if prediction.score > best else event.best_epoch
    end = duration_as_text(seconds_until(event.num_epochs, event.epoch, metrics))
    completion = now + timedelta(seconds=seconds)
    # If no better score is expected, the maximum is in the past.
    time = [f"Estimated time of completion in {seconds:.1f} seconds at {completion:%m-%d %H:%M:%S}"] if seconds else []
    return [
        f"Maximum validation score {prediction.score:.4f} predicted at epoch {when}",
        *time,
        f"Stopping now would cost {score_as_text(prediction.score - best)} "
        f"({score_as_text(low)} to {score_as_text(high)} in 80 % of the runs that get better)",
        f"The chance of a score above {best:.4f} is {chance_as_text(prediction.chance_above(best))}; the run ends at "
        f"epoch {event.num_epochs}, in {end}",
    ]
