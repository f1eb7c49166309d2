"""The distribution of the gain over the best score so far, from features of a curve with weights fitted to real runs.

With some probability there is no gain, as half of all runs are past their best by their middle; otherwise the gain is
log-normal. Both are the extrapolation of the quotients, corrected by three linear functions of the features that were
fitted to real curves (``benchmarks/curves/calibrate.py``) and are stored in `candy_monai.forecasting.coefficients`.

The probability of a gain is at least a share of the learning that is left, which is also stored there, and above one
half while the curve rises, because for any shape of the curve a few runs improve again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from candy_monai.forecasting.coefficients import CONSTANTS, FEATURES, LEAST_CHANCE, WIDENING
from candy_monai.forecasting.features import NAMES, headroom, left

Array = NDArray[np.float64]

_TABLE = np.array(list(FEATURES.values()))
MEANS, SCALES = _TABLE[:, 0], _TABLE[:, 1]
WEIGHTS = np.ascontiguousarray(np.column_stack([_TABLE[:, 2:].T, CONSTANTS]))
"""The weights for the three numbers, ``(3, features + 1)``, with a constant at the end of each row."""

FARTHEST_FEATURE = 3.0  # standard deviations; there were no runs beyond them, so nothing is extrapolated
FARTHEST_DEVIATION = 3.0
LEAST_SPREAD = 0.05
_NEARLY_CERTAIN = 0.1  # probability of no gain below which an interval excludes the best so far
_LARGEST = 50.0  # bound of a logarithm, against overflow
_MOST_MIDDLE = float(np.log(1.5))
_SHARES = (0.25, 0.5, 0.75)  # shares of the run for which the width of the distribution was fitted
_RISING_CHANCE = 0.602
"""The minimum probability of a gain while a curve rises: of real such curves with a lower prediction, two in three had
one. It is just enough for the forecast, the quantile at 40 %, to exceed the best so far."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """The distribution of the gain over the best score so far, in ranges of the scores so far."""

    none: float  # the probability of no gain, 0 to 1
    middle: float  # the logarithm of the median of a gain if there is one
    spread: float  # the standard deviation of its logarithm
    headroom: float = np.inf  # the distance to the largest possible score, near which gains are compressed
    widening: float = 1.0  # scales it about its median: four in five gains are within `interval`

    @classmethod
    def expected(cls, features: Array, *, rising: bool = False) -> Gain:
        """Compute the distribution from the features; a feature that is NaN is replaced by its mean."""
        standard = standardised(features, np.array(MEANS), np.array(SCALES))
        none, middle, spread = np.array(WEIGHTS) @ standard + promise(features)
        kind = int(features[NAMES.index("loss")] > 0.5)
        least = LEAST_CHANCE[kind] * float(left(features))
        return cls(
            none=min(float(expit(none)), 1 - max(least, _RISING_CHANCE if rising else 0.0)),
            middle=float(middle),
            spread=float(np.logaddexp(0.0, spread)) + LEAST_SPREAD,
            headroom=float(headroom(features)),
            widening=float(np.interp(features[NAMES.index("share")], _SHARES, WIDENING[kind])),
        )

    def quantiles(self, levels: Sequence[float] | Array) -> Array:
        """Return the gain's quantiles at ``levels`` between 0 and 1."""
        among_gains = (np.asarray(levels, dtype=np.float64) - self.none) / max(1 - self.none, 1e-9)
        return np.where(among_gains > 0, self._if_any(among_gains), 0.0)

    def interval(self) -> tuple[float, float]:
        """Return the interval of the gain: it contains four in five gains, and 0 unless a gain is nearly certain."""
        levels = (0.0, 0.8) if self.none > _NEARLY_CERTAIN else (0.1, 0.9)
        low, high = self._if_any(np.array(levels)).tolist()
        return (low if levels[0] else 0.0), high

    def _if_any(self, levels: Array) -> Array:
        """Return the quantiles of the gain if there is one."""
        deviation = _normal(levels)
        centre = float(_normal(np.array((0.5 - self.none) / max(1 - self.none, 1e-9)))) if self.none < 0.5 else 0.0
        deviation = centre + self.widening * (deviation - centre)
        middle = min(self.middle, _MOST_MIDDLE - self.spread * centre)
        gains = np.exp(np.clip(middle + self.spread * deviation, -_LARGEST, _LARGEST))
        # Half the harmonic mean of gain and headroom; each step is monotonic, so that rounding keeps the order.
        return np.asarray(1 / (1 / gains + 1 / max(self.headroom, 1e-9)))


def standardised(features: Array, means: Array, scales: Array) -> Array:
    """Normalize features ``(..., features)`` to mean 0 and standard deviation 1, and append a 1 for the constant."""
    standard = np.clip(np.nan_to_num((features - means) / scales), -FARTHEST_FEATURE, FARTHEST_FEATURE)
    return np.concatenate([standard, np.ones_like(standard[..., :1])], axis=-1)


def promise(features: Array) -> Array:
    """Return the three numbers from the extrapolation of the quotients, before any correction: ``(..., 3)``."""
    none, middle, spread = np.moveaxis(features[..., -3:], -1, 0)
    return np.stack([none, middle, np.log(np.expm1(np.maximum(spread, 0.1)))], axis=-1)


def _normal(share: Array) -> Array:
    deviation = ndtri(np.clip(share, 1e-6, 1 - 1e-6))
    return np.clip(deviation, -FARTHEST_DEVIATION, FARTHEST_DEVIATION)
