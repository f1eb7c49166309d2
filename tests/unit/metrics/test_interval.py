import math
import random
import statistics

import pytest

from candy_monai.metrics.interval import half_width, number_as_text


@pytest.mark.parametrize(("num_cases", "factor"), [(2, 12.706), (5, 2.776), (41, 2.021)])
def test_half_an_interval_is_as_many_standard_errors_as_student_s_t_says(num_cases, factor):
    assert half_width(0.01, num_cases) == pytest.approx(0.01 * factor, rel=1e-3)


def test_a_number_that_is_not_known_is_a_dash():
    assert [number_as_text(value) for value in (0.5, math.nan, None)] == ["0.5000", "-", "-"]


def test_of_one_case_nothing_is_known():
    assert math.isnan(half_width(math.nan, 1))
    assert math.isnan(half_width(0.1, 1))


def test_so_many_intervals_hold_the_true_mean_as_is_said():
    rng, held = random.Random(0), 0
    for _ in range(400):
        scores = [rng.gauss(0.8, 0.05) for _ in range(5)]
        half = half_width(statistics.stdev(scores) / math.sqrt(5), 5, confidence=0.9)
        held += abs(statistics.fmean(scores) - 0.8) < half
    assert 0.86 < held / 400 < 0.94
