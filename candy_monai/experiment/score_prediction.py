"""The forecast of a run's best validation score, from its history, and what the log says about it. Fits nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np

from candy_monai.experiment.history import EPOCH_DURATION
from candy_monai.forecasting.best_score import Forecast, forecast, points_needed

Columns = Mapping[str, Sequence[float]]


def predict_maximum(metrics: Columns, num_epochs: int, *, degree: int) -> Forecast:
    """Forecast the best of the column ``val score`` within ``num_epochs`` epochs, knowing the ``learning rate``."""
    scores, rates = metrics.get("val score", ()), metrics.get("learning rate", ())
    return forecast(scores, num_epochs, degree=degree, learning_rates=rates if len(rates) == len(scores) else None)


def predict_safely(metrics: Columns, num_epochs: int, *, degree: int) -> Forecast | None:
    """Do the same during a run, which no failing forecast may end.

    Returns:
        None while there are too few scores for one; a forecast that abstains if it failed.
    """
    if np.isfinite(metrics.get("val score", ())).sum() < points_needed(degree):
        return None
    try:
        return predict_maximum(metrics, num_epochs, degree=degree)
    except Exception as error:
        reason = f"it failed ({type(error).__name__}: {error})"
        return Forecast(epoch=0, score=math.nan, interval=None, reason=reason)


def chance_of_gain(prediction: Forecast | None, scores: Sequence[float], *, margin: float) -> float | None:
    """Return the chance that the best score is yet beaten by more than ``margin`` times the range of the scores.

    Args:
        prediction: The forecast; None if there is none.
        scores: The scores so far.
        margin: A share of their range.

    Returns:
        The chance; None where the forecast abstains.
    """
    if prediction is None or prediction.reason is not None:
        return None
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    return prediction.chance_above(high + margin * (high - low))


def seconds_until(target_epoch: int, epoch: int, metrics: Columns) -> float:
    """Return the mean epoch's duration times the epochs that are left until ``target_epoch``, never negative."""
    durations = [duration for duration in metrics.get(EPOCH_DURATION, ()) if math.isfinite(duration)]
    mean = math.fsum(durations) / len(durations) if durations else 0.0
    return mean * max(0, target_epoch - epoch)


def forecast_messages(prediction: Forecast, seconds_left: float, *, best: float, now: datetime) -> list[str]:
    """Return the log's lines about a forecast: the score, when it comes and what stopping would cost, or why not.

    Args:
        prediction: The forecast.
        seconds_left: Until the epoch of the best score.
        best: The best score so far.
        now: The time.
    """
    if prediction.interval is None:
        return [f"No forecast of the best validation score: {prediction.reason}"]
    at = now + timedelta(seconds=seconds_left)
    low, high = (limit - best for limit in prediction.interval)
    return [
        f"Maximum validation score {prediction.score:.4f} predicted at epoch {prediction.epoch}",
        f"Estimated time of completion in {seconds_left:.1f} seconds at {at:%m-%d %H:%M:%S}",
        f"Stopping now would cost {prediction.score - best:.4f} ({low:.4f} to {high:.4f} in 80 % of runs)",
    ]
