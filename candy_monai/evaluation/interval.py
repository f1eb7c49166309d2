"""The confidence interval of an evaluation's mean."""

from __future__ import annotations

import numpy as np

from candy_monai.evaluation.results import EvalResult
from candy_monai.metrics.interval import CONFIDENCE, half_width


def interval(
    result: EvalResult, metric: str = "dice", *, confidence: float = CONFIDENCE, bounds: tuple[float, float] = (0, 1)
) -> tuple[float, float] | None:
    """Return the confidence interval of a metric's mean over the foreground classes' means, by Student's t over cases.

    A case that lacks a class counts for the means of the others alone, as in the mean itself.

    Args:
        result: The evaluation.
        metric: One of its metrics of classes.
        confidence: Share of such intervals that hold the true mean.
        bounds: The least and the largest value that there can be; the interval is cut there.

    Returns:
        Its ends; None for fewer than two cases, or where no class has values of two.
    """
    classes = [index for index in result.class_means if index != 0]
    values = np.array([[case.classes[index][metric] for index in classes] for case in result], dtype=float)
    is_known = np.isfinite(values)
    values = values[:, is_known.any(0)] if len(values) else values
    is_known = np.isfinite(values)
    num_cases = int(is_known.any(1).sum()) if values.size else 0
    if num_cases < 2:
        return None
    means = np.nanmean(np.where(is_known, values, np.nan), axis=0)
    # What each case adds to the mean of the classes' means; their spread is that of the mean itself.
    influence = np.where(is_known, values - means, 0.0) / is_known.sum(0)
    by_case = influence.mean(1)
    standard_error = float(np.sqrt((by_case**2).sum() * num_cases / (num_cases - 1)))
    half = half_width(standard_error, num_cases, confidence=confidence)
    mean, (least, largest) = float(means.mean()), bounds
    return max(least, mean - half), min(largest, mean + half)
