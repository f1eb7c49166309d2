"""The best validation score of a run, foretold from the scores so far.

Owns the forecast and when to abstain. Knows nothing of training: scores in (higher is better), a statement out. Epochs
are counted from 1.

The curve is modelled as a quotient of two polynomials in ``t``, the share of the run. The denominator is
``1 + c t + (c t)**2 / 2! + ...`` up to some degree: it has no pole ahead and runs from a hyperbola to nearly an
exponential. The numerator lets the curve settle, overshoot or drift. For each ``c`` on a grid the numerator is a linear
regression with a normal posterior; degrees and forms are weighed by how well they foretell the held-out end of the
curve, the ``c`` of each by evidence. Draws from the average, with the noise of the epochs to come, give the
distribution of the run's best score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from candy_monai.forecasting.average import draw_best, noise_of

Array = NDArray[np.float64]

_LEAST_POINTS = 6
_QUANTILES = (0.1, 0.9)
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is expected of a run.

    Attributes:
        epoch: When the best score is expected, from now to the horizon; when abstaining, when the best so far came, or
            0 if there is none.
        score: The best score of the whole run, never below the best so far; when abstaining, the best so far, or NaN.
        interval: Where the best score lies with 80 % confidence; None when abstaining.
        reason: Why there is no forecast; None when there is one.
        quantiles: The best score's quantiles at 5 %, 10 % ... 95 %; empty when abstaining.
    """

    epoch: int
    score: float
    interval: tuple[float, float] | None
    reason: str | None
    quantiles: tuple[float, ...] = ()

    def chance_above(self, score: float) -> float:
        """Return the chance that the run's best score exceeds ``score``, as far as the quantiles tell: 0 to 1.

        Args:
            score: Any score; the best so far, for the chance that it is beaten.

        Raises:
            ValueError: If the forecast abstains.
        """
        if not self.quantiles:
            raise ValueError(f"there is no forecast: {self.reason}")
        below = np.interp(score, self.quantiles, LEVELS, left=0.0, right=1.0)
        # Many quantiles are alike where the best is over: all of them are not above it.
        last = int(np.searchsorted(self.quantiles, score, side="right")) - 1
        return float(1 - max(below, LEVELS[last] if last >= 0 else 0.0))


def forecast(
    scores: Sequence[float] | Array,
    horizon: int,
    *,
    degree: int = 5,
    ceiling: float | None = None,
    learning_rates: Sequence[float] | Array | None = None,
    method: Literal["combined", "quotient"] = "combined",
) -> Forecast:
    """Foretell the best score of a run from its scores so far. Takes milliseconds and always says the same.

    Args:
        scores: One score for each epoch from 1 on, higher is better; NaN where there is none.
        horizon: The planned number of epochs.
        degree: Upper bound of the degree of both polynomials, at least 1. There is no forecast before more than
            ``degree`` epochs are over.
        ceiling: The largest score that the metric can have. By default 0 if no score is positive (a negative loss), 1
            if all lie between 0 and 1 (Dice), else none.

    Raises:
        ValueError: If ``horizon`` or ``degree`` is less than 1, or a score exceeds ``ceiling``.
    """
    if horizon < 1 or degree < 1:
        raise ValueError(f"horizon and degree must be at least 1, got {horizon} and {degree}")
    values = np.asarray(scores, dtype=np.float64).ravel()
    finite = np.isfinite(values)
    if not finite.any():
        return Forecast(epoch=0, score=math.nan, interval=None, reason="there is no finite score yet")
    best_epoch = int(np.nanargmax(np.where(finite, values, np.nan))) + 1
    best = float(values[best_epoch - 1])
    top = _ceiling(values[finite], ceiling)
    reason = _why_not(values, finite, horizon, max(_LEAST_POINTS, degree + 1))
    if reason is not None:
        return Forecast(epoch=best_epoch, score=best, interval=None, reason=reason)
    now = len(values)
    epochs = (np.flatnonzero(finite) + 1).astype(np.float64)
    ends, when = draw_best(epochs, values[finite], now, horizon, degree=degree, best=best, top=top)
    low, score, high = np.quantile(ends, (_QUANTILES[0], 0.5, _QUANTILES[1]))
    quantiles = np.quantile(ends, LEVELS)
    return Forecast(
        epoch=int(np.clip(round(float(np.median(when))), now, horizon)),
        score=float(score),
        interval=(float(low), float(high)),
        reason=None,
        quantiles=tuple(quantiles.tolist()),
    )


def _ceiling(values: Array, ceiling: float | None) -> float:
    if ceiling is not None:
        if values.max() > ceiling:
            raise ValueError(f"a score of {values.max()} exceeds ceiling={ceiling}")
        return ceiling
    if values.max() <= 0:
        return 0.0
    return 1.0 if values.min() >= 0 and values.max() <= 1 else math.inf


def _why_not(values: Array, finite: NDArray[np.bool_], horizon: int, least: int) -> str | None:
    """Say why a forecast would be worth nothing, or None."""
    if len(values) >= horizon:
        return f"no epoch is left: {len(values)} of {horizon} are over"
    if finite.sum() < least:
        return f"too few points: {finite.sum()} finite scores, {least} are needed"
    if finite.mean() < 0.5 or not finite[-3:].any():
        return f"{(~finite).sum()} of {len(values)} scores are not finite"
    seen = values[finite]
    noise, spread = noise_of(seen), float(np.ptp(seen))
    if spread <= 1e-6 * max(1e-3, float(np.abs(seen).max())):
        return "the curve is flat"
    third = max(2, len(seen) // 3)
    change = float(np.median(seen[-third:]) - np.median(seen[:third]))
    # A pure noise has a standard deviation equal to the noise that its neighbours' differences show.
    if seen.std() < 1.3 * noise and abs(change) < 2.5 * noise / math.sqrt(third):
        return "the curve is flat: it moves no more than its noise"
    climbed = float(seen.max() - seen[0])
    if climbed < max(3 * noise, 0.1 * spread) and -change > max(3 * noise, 0.3 * spread):
        return "the curve diverges: it has been falling almost from the start"
    return None
