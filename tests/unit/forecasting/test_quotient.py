from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial.polynomial import polyval

from candy_monai.forecasting.quotient import quotient_bounds, quotient_derivative, quotient_regression


def value(p, q, x):
    return polyval(x, p) / polyval(x, q)


@pytest.mark.parametrize(
    ("p", "q"),
    [([2.0], [1.0]), ([1.0, 2.0], [1.0, 0.5]), ([0.0, 1.0], [1.0, 0.0, 1.0]), ([1.0], [5.0, -2.0, 1.0])],
)
def test_a_quotient_without_noise_is_found_again(p, q):
    x = np.linspace(0, 6, 40)
    found = quotient_regression(x, value(p, q, x), len(p) - 1, len(q) - 1)
    assert np.allclose(value(*found, x), value(p, q, x), atol=1e-6)
    assert found[1][0] == pytest.approx(1.0)


def test_epochs_in_the_thousands_are_no_harder_than_small_numbers():
    x = np.arange(1, 1001)
    y = 0.8 * x / (x + 100)
    p, q = quotient_regression(x, y, 2, 2)
    assert np.abs(value(p, q, x) - y).max() < 1e-6


def test_a_degree_of_zero_is_the_mean():
    p, q = quotient_regression([1, 2, 3], [1.0, 2.0, 6.0], 0, 0)
    assert (p.tolist(), q.tolist()) == (pytest.approx([3.0]), [1.0])


def test_points_that_are_not_finite_are_left_out():
    x, y = np.arange(8.0), 1 / (1 + np.arange(8.0))
    y[3] = np.nan
    p, q = quotient_regression(x, y, 0, 1)
    assert value(p, q, 3.0) == pytest.approx(1 / 4, abs=1e-6)


@given(seed=st.integers(0, 2**16), degree_p=st.integers(0, 5), degree_q=st.integers(1, 5), beyond=st.integers(0, 200))
@settings(max_examples=60)
def test_no_noise_puts_a_pole_between_the_first_point_and_the_horizon(seed, degree_p, degree_q, beyond):
    generator = np.random.default_rng(seed)
    x = np.arange(1, 31)
    y = 1 - np.exp(-x / 10) + 0.1 * generator.standard_normal(30)
    p, q = quotient_regression(x, y, degree_p, degree_q, until=30 + beyond)
    assert np.isfinite(quotient_bounds(p, q, 1, 30 + beyond)).all()
    assert (polyval(np.linspace(1, 30 + beyond, 2000), q) > 0).all()


def test_fewer_points_than_coefficients_are_refused():
    with pytest.raises(ValueError, match="5 coefficients"):
        quotient_regression([1, 2, 3, 3], [1, 2, 3, 4], 2, 2)


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in length"):
        quotient_regression([1, 2, 3], [1, 2], 0, 0)


def test_the_derivative_of_x_over_one_plus_x():
    numerator, denominator = quotient_derivative([0.0, 1.0], [1.0, 1.0])
    assert numerator[0] == 1
    assert not numerator[1:].any()
    assert denominator.tolist() == [1.0, 2.0, 1.0]


@given(seed=st.integers(0, 2**16))
@settings(max_examples=25)
def test_the_derivative_agrees_with_a_small_difference(seed):
    generator = np.random.default_rng(seed)
    p, q = generator.uniform(-1, 1, 4), generator.uniform(0.5, 1, 3)
    step = 1e-5
    slope = (value(p, q, 1 + step) - value(p, q, 1 - step)) / (2 * step)
    assert value(*quotient_derivative(p, q), 1.0) == pytest.approx(slope, abs=1e-6)


def test_the_bounds_of_a_curve_with_a_peak_inside():
    # x / (1 + x ** 2) has its maximum 1/2 at x = 1
    assert quotient_bounds([0.0, 1.0], [1.0, 0.0, 1.0], 0, 3) == pytest.approx((0.0, 0.5))


def test_the_bounds_of_a_rising_curve_are_at_its_ends():
    assert quotient_bounds([0.0, 1.0], [1.0, 1.0], 1, 3) == pytest.approx((0.5, 0.75))


def test_a_pole_inside_leaves_no_bounds():
    with pytest.raises(ValueError, match="pole"):
        quotient_bounds([1.0], [-2.0, 1.0], 0, 3)


def test_positions_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="lower <= upper"):
        quotient_bounds([1.0], [1.0], 3, 0)
