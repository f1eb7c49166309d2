import math
import statistics

import numpy as np
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


@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_class_that_few_cases_have_makes_the_interval_as_wide_as_it_must_be(num_classes):
    rng, held, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):  # the first class is in 3 of 20 cases
        scores = 0.5 + 0.05 * rng.standard_normal((20, num_classes + 1))
        scores[3:, 0] = math.nan
        low, high = interval(_result(*((1, *case) for case in scores)))
        held += low < 0.5 < high
    assert 0.905 < held / runs < 0.98


@pytest.mark.parametrize(
    "dice_by_case",
    [
        [],
        [(1, 0.8)],
        [(1, 0.8), (1, math.nan)],
        [(1, math.nan), (1, math.nan)],
        [(1, 0.8, 0.5), (1, 0.7, math.nan), (1, 0.9, math.nan)],  # nothing tells the spread of the second class
        [(1, 0.0), (1, 0.0)],
    ],
)
def test_cases_that_show_no_spread_have_none(dice_by_case):
    assert interval(_result(*dice_by_case)) is None


def test_a_class_that_no_case_has_is_left_out():
    with_it, without = _result((1, 0.8, math.nan), (1, 0.7, math.nan)), _result((1, 0.8), (1, 0.7))
    assert interval(with_it) == pytest.approx(interval(without))
