"""Forecast the best validation score of a run from its scores so far.

Higher scores are better. Epochs are counted from 1.

The average of many quotients of polynomials (`candy_monai.forecasting.model_average`) extrapolates the curve. The
result is corrected by a regression on features of the curve that was fitted to real runs
(`candy_monai.forecasting.gain`), half of which are past their best score by the middle of the run. If earlier curves of
the same task are known, their gains after the same point are also used (`candy_monai.forecasting.references`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from candy_monai.forecasting.continuation import continuation
from candy_monai.forecasting.curve import ScoreRange, SeenCurve, seen_curve
from candy_monai.forecasting.features import features_of
from candy_monai.forecasting.gain import Gain
from candy_monai.forecasting.model_average import draw_best, noise_of
from candy_monai.forecasting.references import ReferenceGain, checked_references, gain_by_references

Array = NDArray[np.float64]

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""The levels of the quantiles in a forecast."""

_LEAST_POINTS = 2
_POINTS_FOR_NOISE = 6
"""With fewer scores noise cannot be estimated, so that a curve is not refused because of it."""
_ROOM_TO_HOLD = {2: 0.8, 3: 0.8, 4: 0.7, 5: 0.6}
"""By the number of scores: the minimum upper end of the interval, as a share of the way from the best score so far to
the largest possible score, since so few scores are uninformative."""
_NEXT_TO_NOTHING, _SOMETHING = 0.04, 0.08
"""What a run has learned, as a share of what it can: the range of its scores divided by that up to the largest score.
Up to the first it is unknown whether the run will start to learn; from the second on it is known."""
_ROOM_TO_TAKE_OFF, _EARLY = 0.8, 0.25
"""The upper end of such a run's interval, as a share of the way to the largest score, until this share of the run."""
_UNBOUNDED_ROOM = 10.0  # in ranges of the scores so far, if a score has no bound
_SURE_OF_REFERENCES = 0.1
"""The minimum weight of references for a forecast of a curve that is uninformative by itself."""
_BEYOND = 0.005  # of the range: rounding and the model error of a fit
_POINT = 0.4
"""The quantile used as the forecast: just below the median, which is too high for fewer runs, with the same error."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A forecast of the best score of a run.

    Attributes:
        epoch: The epoch in which the best score is expected, from now to the horizon; when abstaining, that of the best
            score so far, or 0 if there is none.
        score: The best score of the whole run, never below the best so far; when abstaining, the best so far, or NaN.
        interval: The best score is in it for 80 % of the runs that improve; it starts at the best so far, to include
            the other runs, unless an improvement is nearly certain. None when abstaining.
        reason: Why there is no forecast; None if there is one.
        quantiles: The best score's quantiles at 5 %, 10 % ... 95 %; empty when abstaining.
        by_references: The weight of earlier curves in it, 0 to 1.
    """

    epoch: int
    score: float
    interval: tuple[float, float] | None
    reason: str | None
    quantiles: tuple[float, ...] = ()
    by_references: float = 0.0

    def chance_above(self, score: float) -> float:
        """Return the probability that the run's best score exceeds ``score``, from the quantiles: 0 to 1.

        Args:
            score: Any score; the best so far, for the probability that it is exceeded.

        Raises:
            ValueError: If the forecast abstains.
        """
        if not self.quantiles:
            raise ValueError(f"there is no forecast: {self.reason}")
        below = float(np.interp(score, self.quantiles, LEVELS, left=0.0, right=1.0))
        # If the run is past its best, many quantiles are equal, and none of these is above it.
        last = int(np.searchsorted(self.quantiles, score, side="right")) - 1
        return 1 - max(below, LEVELS[last] if last >= 0 else 0.0)


def forecast(
    scores: Sequence[float] | Array,
    horizon: int,
    *,
    degree: int = 5,
    ceiling: float | None = None,
    score_range: ScoreRange | None = None,
    learning_rates: Sequence[float] | Array | None = None,
    references: Sequence[Sequence[float] | Array] = (),
    same_settings: bool = False,
    method: Literal["combined", "quotient"] = "combined",
) -> Forecast:
    """Forecast the best score of a run from its scores so far. Deterministic, and takes less than a second.

    Args:
        scores: One score for each epoch from 1 on, higher is better; NaN where there is none.
        horizon: The planned number of epochs.
        degree: Upper bound of the degree of both polynomials, at least 1. A forecast needs more than ``degree`` epochs.
        ceiling: The largest possible score of the metric, as in ``score_range=(None, ceiling)``.
        score_range: The smallest and the largest possible score of the metric, each None for no bound: ``(0, 1)`` for
            Dice, ``(0, 100)`` for percent, ``(None, 0)`` for a negative loss, ``(None, None)`` for a score without
            bounds. If not given, the largest is 0 if no score is positive, 1 if all are between 0 and 1, and else
            unbounded.
        learning_rates: That of each epoch so far, if known, which shows how much of a decay is left. If the schedule is
            known in advance, also those of future epochs, which show a decay that has not started.
        references: The scores of finished runs of the same task, from the first epoch to the last, of any length: the
            other folds of a cross-validation, the trials of a sweep, earlier runs. Their weight depends on how well
            they predict each other. Only the first 40 are used.
        same_settings: Whether the references were trained with the settings of this run, as for the other folds of a
            cross-validation. They then get a higher weight, even if few of them are similar to this run.
        method: ``"combined"`` corrects the quotients' extrapolation by a fit to real runs; ``"quotient"`` does not.

    Raises:
        ValueError: If ``horizon`` or ``degree`` is less than 1, the method is unknown, a score is out of range, or a
            reference has fewer than three finite scores.
    """
    if horizon < 1 or degree < 1:
        raise ValueError(f"horizon and degree must be at least 1, got {horizon} and {degree}")
    if method not in ("combined", "quotient"):
        raise ValueError(f"method must be 'combined' or 'quotient', got {method!r}")
    earlier = checked_references(references)
    curve = seen_curve(
        scores,
        horizon,
        ceiling=ceiling,
        score_range=score_range,
        learning_rates=learning_rates,
        beside=np.concatenate(earlier) if earlier else (),
    )
    if not curve.values.size:
        return Forecast(epoch=0, score=math.nan, interval=None, reason="there is no finite score yet")
    reason = why_not(curve, points_needed(degree))
    by_references = None
    if earlier and curve.now < horizon:
        by_references = gain_by_references(curve, earlier, same_settings=same_settings)
    if reason is not None:
        sure = by_references is not None and by_references.trust > _SURE_OF_REFERENCES
        if sure and why_not(curve, points_needed(degree), moves=True) is None:
            return _joined(curve, _nothing_more(curve), by_references)
        best_epoch = int(curve.epochs[curve.values.argmax()])
        return Forecast(epoch=best_epoch, score=curve.best, interval=None, reason=reason)
    if method == "quotient":
        promised, when = draw_best(curve, degree=degree)
        quantiles = np.quantile(promised, LEVELS)
        stated = _stated(curve, quantiles, interval_of(promised, curve.best), when, promised > curve.best)
    else:
        stated = _learned(curve, degree)
        if curve.knows_rates:
            # By learning rates little is left to learn after a decay, yet scores rise during it, in some runs more than
            # in all epochs before. Neither measure is right for all runs.
            stated = _averaged(stated, _learned(curve.without_rates(), degree))
    return _continued(curve, _joined(curve, stated, by_references))


def _learned(curve: SeenCurve, degree: int) -> Forecast:
    """Return the forecast of the quotients, corrected by the fit to real runs."""
    promised, when = draw_best(curve, degree=degree)

    def score_of(gain: Array) -> Array:
        return np.minimum(curve.best + curve.range * gain, curve.top)

    expected = Gain.expected(features_of(curve, promised), rising=curve.rises)
    low, high = expected.interval()
    low, high = score_of(np.array((low, high))).tolist()
    quantiles = score_of(expected.quantiles(LEVELS))
    room = curve.top - curve.best if math.isfinite(curve.top) else _UNBOUNDED_ROOM * curve.range
    if takes_off := _chance_to_take_off(curve):
        reached = curve.best + _ROOM_TO_TAKE_OFF * takes_off * room
        high = max(high, reached)
        quantiles = np.maximum(quantiles, _spread(curve.best, reached, none=expected.none))
    high = max(high, curve.best + _ROOM_TO_HOLD.get(len(curve.values), 0.0) * room)
    # Losses deviate less from the median of their forecast.
    middle = float(score_of(replace(expected, widening=1.0).quantiles((_POINT,)))[0]) if curve.top == 0 else None
    return _stated(curve, quantiles, (low, high), when, promised > curve.best, middle=middle)


def _averaged(one: Forecast, other: Forecast) -> Forecast:
    """Return the mean of two forecasts of a curve; the interval starts at the lower of both ends."""
    assert one.interval is not None
    assert other.interval is not None
    (low, high), (other_low, other_high) = one.interval, other.interval
    return replace(
        one,
        epoch=round((one.epoch + other.epoch) / 2),
        score=(one.score + other.score) / 2,
        interval=(min(low, other_low), (high + other_high) / 2),
        quantiles=tuple((np.array(one.quantiles) + np.array(other.quantiles)) / 2),
    )


def _nothing_more(curve: SeenCurve) -> Forecast:
    """Return the forecast for an uninformative curve: the best score so far."""
    quantiles = (curve.best,) * len(LEVELS)
    interval = (curve.best, curve.best)
    return Forecast(epoch=curve.now, score=curve.best, interval=interval, reason=None, quantiles=quantiles)


def _joined(curve: SeenCurve, stated: Forecast, by_references: ReferenceGain | None) -> Forecast:
    """Average a forecast with that of the references, quantile by quantile, weighted by their trust."""
    if by_references is None or not by_references.trust or stated.interval is None:
        return stated
    trust = by_references.trust

    def mixed(own: ArrayLike, gains: ArrayLike) -> Array:
        joined = (1 - trust) * np.asarray(own) + trust * (curve.best + np.asarray(gains))
        return np.clip(joined, curve.best, curve.top)

    low, high = mixed(stated.interval, by_references.interval()).tolist()
    score = float(np.clip(mixed(stated.score, by_references.middle), low, high))
    comes = score > curve.best
    epoch = round((1 - trust) * stated.epoch + trust * max(curve.now, by_references.when * curve.horizon))
    return replace(
        stated,
        epoch=int(np.clip(epoch, curve.now + comes, curve.horizon)) if comes else curve.now,
        score=score,
        interval=(low, high),
        quantiles=tuple(mixed(stated.quantiles, by_references.quantiles(LEVELS)).tolist()),
        by_references=trust,
    )


def _chance_to_take_off(curve: SeenCurve) -> float:
    """Return a weight from 0 to 1 for the possibility that a run that has learned next to nothing will still learn."""
    if not math.isfinite(curve.top):
        return 0.0
    learned = curve.range / (curve.range + curve.top - curve.best)
    little = float(np.clip((_SOMETHING - learned) / (_SOMETHING - _NEXT_TO_NOTHING), 0.0, 1.0))
    time = (1 - curve.now / curve.horizon) / (1 - _EARLY)
    return little * min(1.0, time**2)


def _spread(best: float, reached: float, *, none: float) -> Array:
    """Return the quantiles of a uniform distribution of gains up to ``reached``; the lower half is the best so far."""
    start = max(0.5, none)
    return best + (reached - best) * np.clip((np.array(LEVELS) - start) / max(0.9 - start, 0.05), 0.0, 1.0)


def _continued(curve: SeenCurve, stated: Forecast) -> Forecast:
    """Blend a forecast with the continuation of smooth fits, with a weight that depends on the scores' residuals."""
    ahead = continuation(curve)
    if ahead is None or stated.interval is None:
        return stated
    width = stated.interval[1] - stated.interval[0]
    trust = ahead.trust * width**2 / (width**2 + ahead.error**2)
    # A fit that exceeds the largest possible score is wrong, however well it has fitted so far.
    trust *= math.exp(-((max(0.0, ahead.score - curve.top) / (ahead.error + _BEYOND * curve.range)) ** 2))

    def mixed(said: Sequence[float], levels: Sequence[float]) -> Array:
        fitted = np.clip(ahead.quantiles(np.asarray(levels)), curve.best, curve.top)
        return (1 - trust) * np.asarray(said) + trust * fitted

    low, high = mixed(stated.interval, (0.1, 0.9)).tolist()
    high = max(high, min(low + ahead.error, curve.top))  # past a peak the fitted interval may be empty
    score = float(np.clip(mixed((stated.score,), (0.5,))[0], low, high))
    comes = score > curve.best
    epoch = round((1 - trust) * stated.epoch + trust * (ahead.epoch if ahead.score > curve.best else curve.now))
    return replace(
        stated,
        epoch=int(np.clip(epoch, curve.now + comes, curve.horizon)),
        score=score,
        interval=(low, high),
        quantiles=tuple(mixed(stated.quantiles, LEVELS).tolist()),
    )


def _stated(
    curve: SeenCurve,
    quantiles: Array,
    interval: tuple[float, float],
    when: Array,
    improved: NDArray[np.bool_],
    *,
    middle: float | None = None,
) -> Forecast:
    """Summarize a distribution as a forecast; the epoch is the median over the draws that improve."""
    at = dict(zip(LEVELS, quantiles.tolist(), strict=True))
    # At most the gain from growth with the logarithm of time, by the whole range so far for each factor e.
    most = curve.best + curve.range * curve.left_to_learn
    score = float(np.clip(min(at[_POINT] if middle is None else middle, most), *interval))
    comes = score > curve.best
    epoch = curve.now
    if comes:  # if no draw improves, any of the last epochs is possible
        epoch = round(float(np.median(when[improved]))) if improved.any() else curve.horizon
    return Forecast(
        epoch=int(np.clip(epoch, curve.now + comes, curve.horizon)),
        score=score,
        interval=interval,
        reason=None,
        quantiles=tuple(at.values()),
    )


def interval_of(promised: Array, best: float) -> tuple[float, float]:
    """Return the interval of the draws above the best score so far; it starts there if 10 % are not above."""
    better = promised[promised > best]
    if not better.size:
        return best, best
    low, high, end = np.quantile(better, (0.1, 0.9, 0.8)).tolist()
    return (low, high) if len(better) > 0.9 * len(promised) else (best, end)


def points_needed(degree: int) -> int:
    """Return the minimum number of finite scores for a forecast."""
    return max(_LEAST_POINTS, degree + 1)


def why_not(curve: SeenCurve, least: int, *, moves: bool = False) -> str | None:
    """Return why no useful forecast is possible, or None; with ``moves`` a curve may be flat or fall."""
    values, now = curve.values, curve.now
    if now >= curve.horizon:
        return f"no epoch is left: {now} of {curve.horizon} are over"
    if len(values) < least:
        return f"too few points: {len(values)} finite scores, {least} are needed"
    every = int(np.diff(curve.epochs).min())  # a run that validates every third epoch has no scores in the others
    if len(values) < 0.5 * (now // every) or curve.epochs[-1] <= now - 3 * every:
        return f"{now - len(values)} of {now} scores are not finite"
    noise = noise_of(values)
    if moves:
        return f"no score can be better than {curve.top:g}" if curve.best >= curve.top else None
    if curve.range <= 1e-6 * max(1e-3, float(np.abs(values).max())):
        return "the curve is flat"
    if len(values) >= _POINTS_FOR_NOISE:
        # For pure noise the standard deviation is equal to the noise estimated from differences of neighbours.
        third = max(2, len(values) // 3)
        change = float(np.median(values[-third:]) - np.median(values[:third]))
        climbed = curve.best - float(values[0])
        if values.std() < 1.3 * noise and abs(change) < 2.5 * noise / math.sqrt(third):
            return "the curve is flat: it moves no more than its noise"
        if climbed < max(3 * noise, 0.1 * curve.range) and -change > max(3 * noise, 0.3 * curve.range):
            return "the curve diverges: it has been falling almost from the start"
    return f"no score can be better than {curve.top:g}" if curve.best >= curve.top else None
