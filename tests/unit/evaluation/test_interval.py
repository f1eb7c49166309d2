import math
import statistics

import pytest

from candy_monai.evaluation.interval import interval
from candy_monai.evaluation.results import EvalCase, EvalResult
from candy_monai.metrics.interval import half_width


def _result(*dice_by_case):
    return EvalResult(
        cases=tuple(
            EvalCase(
                case_id=str(number),
                classes={index: {"dice": value} for index, value in enumerate(values)},
                counts={},
                values={},
            )
            for number, values in enumerate(dice_by_case)
        )
    )


def test_the_interval_is_that_of_the_cases_means_where_every_case_has_every_class():
    result = _result((0.99, 0.7, 0.8), (0.99, 0.6, 0.9), (0.99, 0.8, 0.7), (0.99, 0.5, 0.8))
    means = [0.75, 0.75, 0.75, 0.65]
    half = half_width(statistics.stdev(means) / 2, 4)
    assert interval(result) == pytest.approx((statistics.fmean(means) - half, statistics.fmean(means) + half))
    assert sum(interval(result)) / 2 == pytest.approx(result.mean_metrics["dice"])


def test_the_interval_lies_around_the_mean_of_the_classes_where_some_cases_lack_one():
    result = _result((1, 0.7, math.nan), (1, 0.6, 0.9), (1, 0.65, 0.85), (1, math.nan, math.nan))
    low, high = interval(result, bounds=(-9, 9))
    assert (low + high) / 2 == pytest.approx(result.mean_metrics["dice"])


def test_an_interval_ends_where_there_can_be_no_score():
    low, high = interval(_result((1, 0.2), (1, 0.9)))
    assert (low, high) == (0.0, 1.0)


def test_fewer_than_two_cases_have_none():
    assert interval(_result((1, 0.8))) is None
    assert interval(_result((1, 0.8), (1, math.nan))) is None
