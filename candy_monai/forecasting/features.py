"""Features of a curve for forecasting, independent of the score's unit and the run's length.

Their relation to the future was learned from real runs: `candy_monai.forecasting.coefficients`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from candy_monai.forecasting.coefficients import FEATURES
from candy_monai.forecasting.curve import SeenCurve, slope
from candy_monai.forecasting.model_average import noise_of

Array = NDArray[np.float64]

NAMES = tuple(FEATURES)
"""The features, in the order of their values. The last three are from the extrapolation of the quotients."""

_UNBOUNDED = 10.0  # headroom that no run exhausts, in ranges of the scores so far
_NEAR_TOP = 0.05
_TINY = 0.01
_NONE = 0.002  # a gain of less than this share of the range is counted as none


def features_of(curve: SeenCurve, promised: Array) -> Array:
    """Return the features in the order of `NAMES`, given draws of the best score; NaN for an unknown one."""
    values, count, size = curve.values, len(curve.values), curve.range
    quarter = max(2, count // 4) if count > 3 else 1
    last, before = values[-quarter:].mean(), values[-2 * quarter : -quarter].mean()
    # The rise of the score per logarithm of the amount learned.
    done = np.log(curve.axis[curve.epochs.astype(int) - 1])
    to_come = curve.left_to_learn
    rise = slope(done[count // 2 :], values[count // 2 :]) / size
    late = slope(done[-max(3, quarter) :], values[-max(3, quarter) :]) / size
    return np.array(
        [
            math.log(to_come),
            math.log(max(rise, 0.0) * to_come + _TINY),
            math.log(max(late, 0.0) * to_come + _TINY),
            math.tanh(3 * rise),
            math.asinh((last - before) / size / (5 * _TINY)),
            math.log(noise_of(values) / size + _TINY / 2),
            1 - float(curve.epochs[int(values.argmax())]) / curve.now,
            math.log(max(0.0, curve.best - last) / size + _TINY),
            math.log(max(0.0, curve.best - values[:-quarter].max()) / size + _TINY),
            math.log(min((curve.top - curve.best) / size, _UNBOUNDED) + _NEAR_TOP),
            math.log(count),
            curve.now / curve.horizon,
            1 - curve.rate_left,
            float(curve.top == 0),  # no score is positive: losses are less noisy than scores from counts
            *_promise(promised, curve),
        ]
    )


def _promise(promised: Array, curve: SeenCurve) -> tuple[float, float, float]:
    """Return the log odds of no gain, and the median and the spread of the logarithm of a gain."""
    gains = (promised - curve.best) / curve.range
    none = float(np.clip((gains <= _NONE).mean(), 0.02, 0.98))
    some = gains[gains > _NONE]
    if len(some) < 10:  # too few for a quantile
        some = np.append(some, np.full(10, _TINY))
    low, middle, high = np.log(np.quantile(some, (0.2, 0.5, 0.8)))
    return math.log(none / (1 - none)), float(middle), float(high - low) / 1.68 + 0.05


def left(features: Array) -> Array:
    """Return the share of the run's learning that is left: ``(...)``."""
    return np.asarray(-np.expm1(-np.exp(features[..., NAMES.index("learning left")])))


def headroom(features: Array) -> Array:
    """Return the headroom in ranges of the scores so far: ``(...)``."""
    return np.asarray(np.maximum(0.0, np.exp(features[..., NAMES.index("headroom")]) - _NEAR_TOP))
