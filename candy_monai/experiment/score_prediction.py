"""Forecast the best validation score of a run from its history, and format the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from typing_extensions import Unpack

from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, SCORE
from candy_monai.forecasting.best_score import LEVELS, Forecast, forecast, points_needed
from candy_monai.forecasting.curve import ScoreRange, is_within

Columns = Mapping[str, Sequence[float]]


class Knowledge(TypedDict, total=False):
    """What is known of a run in addition to its own scores."""

    score_range: ScoreRange | None
    references: Sequence[Sequence[float]]
    same_settings: bool


def predict_maximum(
    metrics: Columns,
    num_epochs: int,
    *,
    degree: int,
    score_range: ScoreRange | None = None,
    references: Sequence[Sequence[float]] = (),
    same_settings: bool = False,
) -> Forecast:
    """Forecast the best value of the column ``val score`` within ``num_epochs`` epochs, given the ``learning rate``.

    A range of scores that the curves exceed is treated as unknown; ``references`` are earlier curves of the same task,
    ``same_settings`` says whether they have the same settings as well.
    """
    scores, rates = metrics.get(SCORE, ()), metrics.get(LEARNING_RATE, ())
    is_kept = score_range is not None and all(is_within(curve, score_range) for curve in (scores, *references))
    return forecast(
        scores,
        num_epochs,
        degree=degree,
        score_range=score_range if is_kept else None,
        learning_rates=rates if len(rates) == len(scores) else None,
        references=references,
        same_settings=same_settings,
    )


def predict_safely(
    metrics: Columns, num_epochs: int, *, degree: int, **knowledge: Unpack[Knowledge]
) -> Forecast | None:
    """Forecast as `predict_maximum` does, without raising errors that would end a run.

    Returns:
        None if there are too few scores; a forecast that abstains if it failed.
    """
    if np.isfinite(metrics.get(SCORE, ())).sum() < points_needed(degree):
        return None
    try:
        return predict_maximum(metrics, num_epochs, degree=degree, **knowledge)
    except Exception as error:
        reason = f"it failed ({type(error).__name__}: {error})"
        return Forecast(epoch=0, score=math.nan, interval=None, reason=reason)


def chance_of_gain(prediction: Forecast | None, scores: Sequence[float], *, margin: float) -> float | None:
    """Return the probability that the best score will be exceeded by more than ``margin`` times the scores' range.

    It is None if there is no forecast, or if that abstains.
    """
    if prediction is None or prediction.reason is not None:
        return None
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    return prediction.chance_above(high + margin * (high - low))


def seconds_until(target_epoch: int, epoch: int, metrics: Columns) -> float:
    """Return the mean duration of an epoch times the number of epochs until ``target_epoch``, never negative."""
    durations = [duration for duration in metrics.get(EPOCH_DURATION, ()) if math.isfinite(duration)]
    mean = math.fsum(durations) / len(durations) if durations else 0.0
    return mean * max(0, target_epoch - epoch)


def chance_as_text(chance: float) -> str:
    """Return a probability in words, limited to the resolution of quantiles of 5 %."""
    least, most = 1 - LEVELS[-1], 1 - LEVELS[0]
    if chance >= most - 1e-9:
        return f"at least {most * 100:.0f} %"
    return f"at most {least * 100:.0f} %" if chance <= least + 1e-9 else f"{chance * 100:.0f} %"


def duration_as_text(seconds: float) -> str:
    """Return a duration in words, such as ``2 h 5 min``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds if not hours else 0, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "0 s"


def score_as_text(value: float) -> str:
    """Return a number with four decimals, or with three significant digits if these would all be 0."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.2e}"
