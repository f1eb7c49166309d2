from __future__ import annotations

import math

import numpy as np
import pytest

from candy_monai.forecasting.curve import learning_axis, seen_curve


def test_without_learning_rates_all_epochs_count_alike():
    assert learning_axis(None, 2, 4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert learning_axis([0.1, math.nan], 2, 4).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_a_constant_learning_rate_is_the_same_as_none():
    assert learning_axis([0.1, 0.1], 2, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_linear_decay_is_continued_to_its_end():
    # rates 4, 3, 2, 1 in the four epochs: shares of their sum, 10
    assert learning_axis([4.0, 3.0], 2, 4) == pytest.approx([0.4, 0.7, 0.9, 1.0])


def test_a_polynomial_decay_is_continued_to_its_end():
    rates = 0.01 * (1 - np.arange(50) / 50) ** 0.9
    assert learning_axis(rates[:20], 20, 50) == pytest.approx(np.cumsum(rates) / rates.sum(), abs=1e-9)


def test_a_warm_up_does_not_look_like_a_schedule_that_grows_for_ever():
    axis = learning_axis([0.001, 0.005, 0.01, 0.01], 4, 8)
    assert (np.diff(axis) > 0).all()
    assert np.diff(axis)[3:] == pytest.approx(np.diff(axis)[3])


def test_a_drop_that_is_planned_is_foreseen():
    rates = [1.0, 1.0, 0.1, 0.1]
    assert learning_axis(rates, 2, 4) == pytest.approx(np.cumsum(rates) / 2.2)
    assert learning_axis(rates[:2], 2, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_what_is_planned_beyond_the_horizon_is_no_part_of_the_run():
    assert learning_axis([1.0] * 8, 2, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_of_a_plan_that_is_known_in_part_the_rest_is_continued():
    assert learning_axis([4.0, 3.0, 2.0], 1, 4) == pytest.approx([0.4, 0.7, 0.9, 1.0])


def test_a_schedule_may_end_at_zero():
    axis = learning_axis([1.0, 1.0, 0.0, 0.0], 2, 4)
    assert axis == pytest.approx([0.5, 1.0, 1.0, 1.0], abs=1e-5)
    assert axis[1] < 1


def test_a_missing_score_is_no_epoch_less():
    scores = np.linspace(0.1, 0.9, 20)
    scores[[3, 9]] = math.nan
    curve = seen_curve(scores, 60)
    assert (curve.now, len(curve.values), curve.epochs[-1]) == (20, 18, 20)
