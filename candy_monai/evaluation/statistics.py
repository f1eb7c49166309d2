"""Statistics of the values of a metric: mean with its interval, median, and counts of undefined values."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from candy_monai.errors import SettingsError
from candy_monai.metrics.interval import CONFIDENCE, half_width

Method = Literal["t", "bootstrap"]

_RESAMPLES = 9999
_SEED = 0
_NOISE = 1e-12
"""Relative to the size of the values: the differences of equal values due to rounding."""
_AT_ONCE = 2_000_000
"""The number of values that the bootstrap holds in memory at once."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of the values of one metric over cases.

    Attributes:
        num_cases: The number of cases with a defined value, including infinite ones; for the mean over classes, of
            cases with a value of any class.
        undefined: The number of cases without a value.
        infinite: The number of cases with an infinite value.
        mean: The mean over the defined values; infinite if one value is, NaN without values.
        interval: The confidence interval of the mean; None if undefined: for fewer than two cases, if all have the same
            value, or if the mean is infinite.
        std: The sample standard deviation; NaN for fewer than two cases, and if a value is infinite.
        median: The median, the mean of the two middle values for an even number; infinite values are the largest.
        low: The minimum.
        high: The maximum.
    """

    num_cases: int
    undefined: int
    infinite: int
    mean: float
    interval: tuple[float, float] | None
    std: float
    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """Return the statistics for JSON: None for NaN, the text ``inf`` for infinity."""
        entries = {
            name: as_json_number(value) if isinstance(value, float) else value for name, value in vars(self).items()
        }
        return entries | {"interval": None if self.interval is None else list(self.interval)}


def as_json_number(value: float) -> float | str | None:
    """Return a number for JSON: None for NaN, ``inf`` or ``-inf`` as text."""
    return None if math.isnan(value) else float(value) if math.isfinite(value) else str(float(value))


def statistics_of(
    values: npt.ArrayLike,
    *,
    method: Method = "t",
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Statistics:
    """Return the statistics of one metric of one class.

    Args:
        values: One value per case; NaN where it is undefined.
        method: The method for the interval: Student's ``t``, or the bias-corrected and accelerated ``bootstrap`` over
            cases (with 9999 samples that are the same for the same values).
        confidence: The confidence level of the interval, between 0 and 1.
        bounds: The smallest and the largest possible value; the interval is clipped to them.
    """
    check_method(method, confidence)
    given = np.asarray(values, dtype=np.float64)
    known = given[~np.isnan(given)]
    infinite = int(np.isinf(known).sum())
    is_finite = not infinite and known.size > 1
    interval = None
    if is_finite and np.ptp(known) > _NOISE * np.abs(known).max():
        if method == "t":
            half = half_width(float(known.std(ddof=1)) / math.sqrt(known.size), known.size, confidence=confidence)
            interval = within(bounds, known.mean() - half, known.mean() + half)
        else:
            interval = bootstrapped(lambda rows: known[rows].mean(axis=-1), known.size, 1, confidence, bounds)
    return Statistics(
        num_cases=int(known.size),
        undefined=int(given.size - known.size),
        infinite=infinite,
        mean=float(known.mean()) if known.size else math.nan,
        interval=interval,
        std=float(known.std(ddof=1)) if is_finite else math.nan,
        median=statistics.median(known.tolist()) if known.size else math.nan,  # for two infinities NumPy's is NaN
        low=float(known.min()) if known.size else math.nan,
        high=float(known.max()) if known.size else math.nan,
    )


def interval_over_classes(
    values: npt.ArrayLike,
    *,
    method: Method = "t",
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, float] | None:
    """Return the confidence interval of the mean over classes of their means over cases; see `statistics_of`.

    A case without a class contributes only to the means of the others, as in the mean itself. A class in few cases
    widens the interval: its mean is based on these alone, and so are the degrees of freedom if it contributes most of
    the uncertainty (Welch and Satterthwaite). With a class in only two or three cases, a 95 % interval contains the
    true mean in about 88 to 93 % of all samples; with more cases of each class in 95 %.

    The values are ``(cases, classes)``, NaN if a case lacks a class; the ``bootstrap`` draws cases with all of their
    classes. None if the spread cannot be estimated: with fewer than two cases, a class in only one case, or equal
    scores of all cases.
    """
    given = np.asarray(values, dtype=np.float64)
    if not given.size:
        return None
    given = given[:, np.isfinite(given).any(0)]
    is_known = np.isfinite(given)
    counts = is_known.sum(0)
    if not given.size or counts.min() < 2:
        return None
    if method == "bootstrap":
        shown = np.where(is_known, given, np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sample may lack a class, which is then left out

            def mean_of_means(rows: npt.NDArray[np.int64]) -> _Floats:
                return np.asarray(np.nanmean(np.nanmean(shown[rows], axis=-2), axis=-1))

            return bootstrapped(mean_of_means, len(given), len(counts), confidence, bounds)
    means = np.where(is_known, given, 0.0).sum(0) / counts
    # The contribution of each case to the mean of the classes' means; their spread is that of the mean itself.
    influence = np.where(is_known, given - means, 0.0) / np.sqrt(counts * (counts - 1.0)) / len(means)
    variance, by_class = float((influence.sum(1) ** 2).sum()), (influence**2).sum(0)
    if not variance > (_NOISE * np.abs(means).max()) ** 2:
        return None
    freedom = min(is_known.any(1).sum() - 1.0, by_class.sum() ** 2 / (by_class**2 / (counts - 1.0)).sum())
    half = half_width(math.sqrt(variance), freedom + 1, confidence=confidence)
    return within(bounds, means.mean() - half, means.mean() + half)


def check_method(method: str, confidence: float) -> None:
    """Check that a method of intervals is known and a confidence level is valid."""
    if method not in get_args(Method):
        raise SettingsError(f"the method of intervals must be one of {', '.join(get_args(Method))}, got {method!r}")
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence must be between 0 and 1, got {confidence}")


def bootstrapped(
    statistic: Callable[[npt.NDArray[np.int64]], _Floats],
    num_cases: int,
    num_classes: int,
    confidence: float,
    bounds: tuple[float, float],
) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of a statistic of cases, computed by SciPy; None if undefined.

    ``statistic`` maps indices of cases ``(..., n)`` to the statistic ``(...)`` of each sample; the number of classes,
    each with a value per case, limits the samples that are held at once.
    """
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for samples that are all equal, whose interval is NaN and then None
        found = stats.bootstrap(
            (np.arange(num_cases),),
            lambda rows, axis: statistic(np.moveaxis(rows.astype(np.int64), axis, -1)),
            n_resamples=_RESAMPLES,
            batch=max(1, _AT_ONCE // (num_cases * num_classes)),
            vectorized=True,
            confidence_level=confidence,
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    return within(bounds, found.low, found.high)


def within(bounds: tuple[float, float], low: float, high: float) -> tuple[float, float] | None:
    """Return an interval clipped to the bounds; None if an end is NaN."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return max(bounds[0], float(low)), min(bounds[1], float(high))
