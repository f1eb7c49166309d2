"""The known part of a run's curve, and how much of the run's learning is done after each epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MOST_DECAY = 3.0
_LEAST_RATE = 1e-6  # of the largest: a schedule may end at 0
_RISING = 2.0  # in standard deviations of the effect of noise alone
_LATE_SHARES, _LEAST_LATE = (1 / 3, 1 / 2), 6  # of the scores: the part in which a rise is tested
_ROUNDING = 1e-6

ScoreRange = tuple[float | None, float | None]
"""The smallest and the largest possible score; None for no bound."""


@dataclass(frozen=True, kw_only=True)
class SeenCurve:
    """The known part of a curve."""

    epochs: Array  # those with a finite score, from 1
    values: Array
    now: int  # the number of finished epochs
    horizon: int  # the planned number of epochs
    top: float  # the largest possible score of the metric
    axis: Array  # the share of the whole run's learning that is done after each planned epoch, rising to 1
    rate_left: float = math.nan  # the learning rate now as a share of the largest so far; NaN if unknown

    @property
    def best(self) -> float:
        """The best score so far."""
        return float(self.values.max())

    @property
    def left_to_learn(self) -> float:
        """The logarithm of the ratio of the learning at the end to the learning so far."""
        return -math.log(float(self.axis[self.now - 1]))

    @property
    def knows_rates(self) -> bool:
        """Whether the axis differs from that of the epochs, because learning rates are known."""
        return not np.allclose(self.axis, _by_epochs(self.now, self.horizon))

    def without_rates(self) -> SeenCurve:
        """Return the curve without its learning rates."""
        return replace(self, axis=_by_epochs(self.now, self.horizon), rate_left=math.nan)

    @property
    def range(self) -> float:
        """Best minus worst score so far."""
        return float(np.ptp(self.values))

    @property
    def rises(self) -> bool:
        """Whether the last score is the best, or the last third or half of them rises by more than noise would."""
        if self.values[-1] == self.best:
            return True
        counts = (max(_LEAST_LATE, int(share * len(self.values))) for share in _LATE_SHARES)
        return any(_trend(self.values[-count:]) > _RISING for count in counts)


def seen_curve(
    scores: Sequence[float] | Array,
    horizon: int,
    *,
    ceiling: float | None = None,
    score_range: ScoreRange | None = None,
    learning_rates: Sequence[float] | Array | None = None,
    beside: Sequence[float] | Array = (),
) -> SeenCurve:
    """Collect the known data of a run with at least one finite score; see `forecast` for the arguments.

    ``beside`` contains scores of other runs, which are also used to infer the range of the metric.
    """
    values = np.asarray(scores, dtype=np.float64).ravel()
    finite = np.isfinite(values)
    others = np.asarray(beside, dtype=np.float64)
    all_values = np.concatenate([values[finite], others[np.isfinite(others)]])
    return SeenCurve(
        epochs=(np.flatnonzero(finite) + 1).astype(np.float64),
        values=values[finite],
        now=len(values),
        horizon=horizon,
        top=_ceiling(all_values, ceiling, score_range) if finite.any() else math.inf,
        axis=learning_axis(learning_rates, len(values), horizon),
        rate_left=_rate_left(learning_rates, len(values)),
    )


def is_within(scores: Sequence[float] | Array, score_range: ScoreRange) -> bool:
    """Return whether all finite scores are within a range, up to rounding: a Dice in float32 may exceed 1."""
    values = np.asarray(scores, dtype=np.float64).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return True
    slack = _ROUNDING * max(1.0, float(np.abs(values).max()))
    least, largest = (bound if bound is not None else math.nan for bound in score_range)
    return not (values.min() < least - slack or values.max() > largest + slack)


def learning_axis(learning_rates: Sequence[float] | Array | None, now: int, horizon: int) -> Array:
    """Return the share of a run's learning that is done after each planned epoch, rising to 1.

    Learning is measured by the sum of the learning rates, those of each epoch so far, and of future epochs as far as
    known. Unknown future rates are extrapolated as a power of the time left, which is exact for a linear or polynomial
    decay and for a constant rate, and approximate for a cosine. If rates of earlier epochs are missing, all epochs have
    the same weight.
    """
    rates = np.asarray(() if learning_rates is None else learning_rates, dtype=np.float64).ravel()[:horizon]
    if not 0 < now < horizon or len(rates) < now or not np.isfinite(rates).all() or rates[:now].min() <= 0:
        return _by_epochs(now, horizon)
    rates = np.maximum(rates, _LEAST_RATE * rates.max())
    known = len(rates)
    left = 1 - np.arange(known - 1, horizon) / horizon  # the start of each epoch, from the last known one on
    decay = math.log(rates[-1] / rates.max()) / math.log(left[0]) if known > 1 else 0.0
    ahead = rates[-1] * (left[1:] / left[0]) ** float(np.clip(decay, 0.0, _MOST_DECAY))
    done = np.cumsum(np.concatenate([rates, ahead]))
    return np.asarray(done / done[-1])


def _by_epochs(now: int, horizon: int) -> Array:
    return np.arange(1, max(now, horizon) + 1) / horizon


def slope(places: Array, values: Array) -> float:
    """Return the slope of a straight line through values."""
    deviations = places - places.mean()
    return float(deviations @ values / max(float(deviations @ deviations), 1e-12))


def _trend(values: Array) -> float:
    """Return the rise of values in standard deviations (Mann-Kendall test), corrected for similar neighbours."""
    count, places = len(values), np.arange(float(len(values)))
    if count < _LEAST_LATE:
        return 0.0
    rises = np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum()
    residuals = values - values.mean() - slope(places, values) * (places - places.mean())
    alike = float(residuals[1:] @ residuals[:-1]) / max(float(residuals @ residuals), 1e-30)
    alike = float(np.clip(alike, 0.0, 0.9))
    variance = count * (count - 1) * (2 * count + 5) / 18
    return float(rises) / math.sqrt(variance * (1 + alike) / (1 - alike))


def _ceiling(values: Array, ceiling: float | None, score_range: ScoreRange | None) -> float:
    if score_range is not None:
        if not is_within(values, score_range):
            raise ValueError(f"scores from {values.min()} to {values.max()} exceed score_range={score_range}")
        if ceiling is None:
            return math.inf if score_range[1] is None else max(float(score_range[1]), float(values.max()))
    if ceiling is not None:
        if values.max() > ceiling:
            raise ValueError(f"a score of {values.max()} exceeds ceiling={ceiling}")
        return ceiling
    if values.max() <= 0:
        return 0.0
    return 1.0 if values.min() >= 0 and values.max() <= 1 else math.inf


def _rate_left(learning_rates: Sequence[float] | Array | None, now: int) -> float:
    rates = np.asarray(() if learning_rates is None else learning_rates, dtype=np.float64).ravel()[:now]
    rates = rates[np.isfinite(rates)]
    return float(rates[-1] / rates.max()) if rates.size and rates.max() > 0 else math.nan


def mirrored(score_range: ScoreRange | None) -> ScoreRange | None:
    """Return the range of the negative of a metric."""
    if score_range is None:
        return None
    least, largest = (None if bound is None else -bound for bound in reversed(score_range))
    return least, largest
