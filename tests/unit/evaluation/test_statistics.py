import json
import math
import statistics

import numpy as np
import pytest
from scipy import stats

from candy_monai.errors import SettingsError
from candy_monai.evaluation.statistics import interval_over_classes, statistics_of
from candy_monai.metrics.interval import half_width

VALUES = np.random.default_rng(3).beta(8, 2, 30)


def test_the_t_interval_is_scipy_s():
    found = statistics_of(VALUES)
    expected = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert (found.mean, found.std, found.num_cases) == pytest.approx((VALUES.mean(), VALUES.std(ddof=1), 30))
    wider = statistics_of(VALUES, confidence=0.99).interval
    assert wider[0] < found.interval[0] < found.interval[1] < wider[1]


def test_the_bootstrap_interval_is_scipy_s_and_the_same_each_time():
    found = statistics_of(VALUES, method="bootstrap").interval
    expected = stats.bootstrap((VALUES,), np.mean, rng=np.random.default_rng(7)).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=2e-3)
    assert statistics_of(VALUES, method="bootstrap").interval == found


def test_the_t_interval_holds_the_mean_in_as_many_samples_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        low, high = statistics_of(draw.normal(1.0, 2.0, 6)).interval
        hits += low < 1.0 < high
    assert 0.93 < hits / 1000 < 0.97


def test_undefined_and_infinite_values_are_counted_and_no_interval_is_given_of_an_infinite_mean():
    found = statistics_of([1.0, math.nan, 3.0, math.inf, math.nan])
    assert (found.num_cases, found.undefined, found.infinite) == (3, 2, 1)
    assert (found.mean, found.interval, found.median, found.high) == (math.inf, None, 3.0, math.inf)
    assert math.isnan(found.std)
    described = found.to_dict()
    assert (described["mean"], described["std"], described["interval"]) == ("inf", None, None)
    json.dumps(described, allow_nan=False)


@pytest.mark.parametrize(("values", "median"), [([4.0, 1.0, 2.0, 3.0], 2.5), ([1.0, math.inf, math.inf], math.inf)])
def test_the_median_is_interpolated_and_infinite_values_are_the_largest(values, median):
    assert statistics_of(values).median == median


@pytest.mark.parametrize("method", ["t", "bootstrap"])
@pytest.mark.parametrize("values", [[], [math.nan], [0.5], [0.5, 0.5, 0.5]])
def test_without_a_spread_there_is_no_interval(values, method):
    assert statistics_of(values, method=method).interval is None


def test_an_interval_ends_where_values_do():
    low, high = statistics_of([0.2, 1.0, 1.0], bounds=(0.0, 1.0)).interval
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("options", [{"method": "z"}, {"confidence": 1.0}, {"confidence": 95}])
def test_other_methods_and_confidences_are_refused(options):
    with pytest.raises(SettingsError):
        statistics_of(VALUES, **options)


def test_the_interval_over_classes_is_that_of_the_cases_means_where_every_case_has_every_class():
    means = [0.75, 0.75, 0.75, 0.65]
    half = half_width(statistics.stdev(means) / 2, 4)
    ends = interval_over_classes([(0.7, 0.8), (0.6, 0.9), (0.8, 0.7), (0.5, 0.8)])
    assert ends == pytest.approx((statistics.fmean(means) - half, statistics.fmean(means) + half))


def test_the_interval_over_classes_lies_around_the_mean_of_their_means_where_some_cases_lack_one():
    low, high = interval_over_classes([(0.7, math.nan), (0.6, 0.9), (0.65, 0.85), (math.nan, math.nan)])
    assert (low + high) / 2 == pytest.approx((0.65 + 0.875) / 2)


def test_an_interval_over_classes_ends_where_there_can_be_no_score():
    assert interval_over_classes([(0.2,), (0.9,)], bounds=(0, 1)) == (0.0, 1.0)


@pytest.mark.parametrize("num_classes", [1, 3])
def test_a_class_that_few_cases_have_makes_the_interval_as_wide_as_it_must_be(num_classes):
    rng, held, runs = np.random.default_rng(0), 0, 1000
    for _ in range(runs):  # the first class is in 3 of 20 cases
        scores = 0.5 + 0.05 * rng.standard_normal((20, num_classes + 1))
        scores[3:, 0] = math.nan
        low, high = interval_over_classes(scores)
        held += low < 0.5 < high
    assert 0.905 < held / runs < 0.98


@pytest.mark.parametrize(
    "by_case",
    [
        [],
        [(0.8,)],
        [(0.8,), (math.nan,)],
        [(math.nan,), (math.nan,)],
        [(0.8, 0.5), (0.7, math.nan), (0.9, math.nan)],  # nothing tells the spread of the second class
        [(0.0,), (0.0,)],
    ],
)
def test_cases_that_show_no_spread_have_no_interval_over_classes(by_case):
    assert interval_over_classes(by_case) is None


def test_a_class_that_no_case_has_is_left_out_of_the_interval():
    with_it, without = [(0.8, math.nan), (0.7, math.nan)], [(0.8,), (0.7,)]
    assert interval_over_classes(with_it) == pytest.approx(interval_over_classes(without))
