"""Means over few cases with their uncertainty: a confidence interval instead of only the standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95


def mean_of_known(values: Iterable[float]) -> float:
    """Return the mean of the values other than NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def half_width(standard_error: float, num_cases: float, *, confidence: float = CONFIDENCE) -> float:
    """Return half the width of the confidence interval of a mean, by Student's t; NaN for fewer than two cases.

    For 5 cases it is 2.8 standard errors, for 40 it is 2.0. The interval is of the mean over further cases of the same
    kind; it does not cover the variation between runs with different seeds. ``num_cases`` is one more than the degrees
    of freedom.
    """
    if num_cases < 2 or not math.isfinite(standard_error):
        return math.nan
    from scipy.special import stdtrit

    return float(stdtrit(num_cases - 1, 0.5 + confidence / 2)) * standard_error


def number_as_text(value: float | None, digits: int = 4) -> str:
    """Return a number in the format of tables; a dash for NaN and None."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval_as_text(ends: Sequence[float] | None) -> str:
    """Return the ends of an interval in the format of tables, such as ``0.8123 to 0.9012``; a dash for None."""
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"
