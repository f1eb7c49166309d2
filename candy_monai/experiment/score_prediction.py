"""The forecast of a run's best validation score, from its history, and its numbers in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, SCORE
from candy_monai.forecasting.best_score import LEVELS, Forecast, forecast, points_needed
from candy_monai.forecasting.curve import ScoreRange, is_within

Columns = Mapping[str, Sequence[float]]


def predict_maximum(
    metrics: Columns,
    num_epochs: int,
    *,
    degree: int,
    score_range: ScoreRange | None = None,
    references: Sequence[Sequence[float]] = (),
    same_settings: bool = False,
) -> Forecast:
    """Forecast the best of the column ``val score`` within ``num_epochs`` epochs, knowing the ``learning rate``.

    A range of scores that these curves do not keep to counts as unknown; ``references`` are earlier curves of the same
    task, ``same_settings`` says whether of the same settings, too.
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
    metrics: Columns,
    num_epochs: int,
    *,
    degree: int,
    score_range: ScoreRange | None = None,
    references: Sequence[Sequence[float]] = (),
    same_settings: bool = False,
) -> Forecast | None:
    """Forecast as `predict_maximum` does during a run, which no failing forecast may end.

    Returns:
        None while there are too few scores for one; a forecast that abstains if it failed.
    """
    if np.isfinite(metrics.get(SCORE, ())).sum() < points_needed(degree):
        return None
    try:
        return predict_maximum(
            metrics,
            num_epochs,
            degree=degree,
            score_range=score_range,
            references=references,
            same_settings=same_settings,
        )
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


def chance_as_text(chance: float) -> str:
    """Return a chance in words: quantiles of 5 % tell of no smaller one, and none is certain."""
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


def number_as_text(value: float) -> str:
    """Return a number with four decimals, or with three digits where those would show nothing of it."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.2e}"
