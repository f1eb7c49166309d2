"""What earlier curves of the same task say of a run's best score: a distribution, read off the most alike of them.

At the same share of its length each earlier curve had a best score so far, and a gain came after it. The gains of those
that looked most like this one until then, corrected for where this one stands, are what is expected of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from candy_monai.forecasting.curve import SeenCurve

Array = NDArray[np.float64]

PLACES = 12
ALIKE = 0.15
LEAST_WEIGHT = 0.02
SLOPE = -0.4
SLOPE_WEIGHT = 0.3
BLUR = 0.35
LEAST_BLUR = 0.02
OWN = 1.0
_POINTS = ndtri((np.arange(9) + 0.5) / 9)


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The best scores that references suggest, each with its share."""

    values: Array
    shares: Array
    trust: float


def stack(references, share):
    seen, gains, ranges = [], [], []
    for values in references:
        values = np.asarray(values, float).ravel()
        at = np.flatnonzero(np.isfinite(values))
        places, v = (at + 1) / len(values), values[at]
        top = np.maximum.accumulate(v)
        smooth = v
        grid = share * (np.arange(PLACES) + 1) / PLACES
        seen.append(np.interp(grid, places, top))
        gains.append(float(top[-1]) - seen[-1][-1])
        ranges.append(np.ptp(v))
    return np.array(seen), np.array(gains), np.array(ranges)


def alike(a, b, scale):
    d = np.sqrt((((a - b) / scale) ** 2).mean(-1))
    return np.exp(-0.5 * (d / ALIKE) ** 2) + LEAST_WEIGHT


def expected(weights, bests, gains, best, scale):
    """gain of a curve with best so far `best`, and each reference's version of it."""
    share = weights / weights.sum(-1, keepdims=True)
    mb = (share * bests).sum(-1, keepdims=True); mg = (share * gains).sum(-1, keepdims=True)
    cov = (share * (bests - mb) * (gains - mg)).sum(-1, keepdims=True)
    var = (share * (bests - mb) ** 2).sum(-1, keepdims=True)
    n = weights.sum(-1, keepdims=True)
    prior = SLOPE_WEIGHT * scale**2 / n
    slope = np.clip((cov + prior * SLOPE) / (var + prior), -1, 0.5)
    return gains + slope * (best[..., None] - bests), share
