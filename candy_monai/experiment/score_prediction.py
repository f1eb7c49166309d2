"""The forecast of a run's best validation score, from its history, and what the log says about it. Fits nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from candy_monai.experiment.history import EPOCH_DURATION
from candy_monai.forecasting.best_score import Forecast, forecast

Columns = Mapping[str, Sequence[float]]


def predict_maximum(metrics: Columns, num_epochs: int, *, degree: int) -> Forecast:
    """Forecast the best of the column ``val score`` within ``num_epochs`` epochs."""
    return forecast(metrics.get("val score", ()), num_epochs, degree=degree)


def seconds_until(target_epoch: int, epoch: int, metrics: Columns) -> float:
    """Return the mean epoch's duration times the epochs that are left until ``target_epoch``, never negative."""
    durations = [duration for duration in metrics.get(EPOCH_DURATION, ()) if math.isfinite(duration)]
    mean = math.fsum(durations) / len(durations) if durations else 0.0
    return mean * max(0, target_epoch - epoch)


def forecast_messages(prediction: Forecast, seconds_left: float, *, now: datetime) -> list[str]:
    """Return the log's lines about a forecast: the score and when it comes, or why there is none."""
    if prediction.reason is not None:
        return [f"No forecast of the best validation score: {prediction.reason}"]
    at = now + timedelta(seconds=seconds_left)
    return [
        f"Maximum validation score {prediction.score:.4f} predicted at epoch {prediction.epoch}",
        f"Estimated time of completion in {seconds_left:.1f} seconds at {at:%m-%d %H:%M:%S}",
    ]
