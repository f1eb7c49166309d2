from __future__ import annotations

import math

import numpy as np
import pytest

from candy_monai.forecasting.curve import learning_axis, seen_curve
from candy_monai.forecasting.features import NAMES, features_of
from candy_monai.forecasting.model_average import draw_best

SCORES = 0.8 * (1 - np.exp(-np.arange(1, 21) / 8))


def features(scores=SCORES, horizon=60, **known):
    curve = seen_curve(scores, horizon, **known)
    return dict(zip(NAMES, features_of(curve, draw_best(curve, degree=5)[0]), strict=True))


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
    assert math.isfinite(features(learning_rates=[0.1] * 20 + [0.0] * 40)["learning left"])


def test_a_plan_does_not_look_like_a_decay_that_has_begun():
    assert features(learning_rates=[0.1] * 20 + [0.01] * 40)["rate decayed"] == 0.0


@pytest.mark.parametrize(("scores", "expected"), [(SCORES, 0.0), (SCORES - 0.9, 1.0)], ids=["dice", "negative loss"])
def test_scores_of_which_none_is_positive_are_losses(scores, expected):
    assert features(scores)["loss"] == expected


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (7.0, -50.0)])
def test_the_features_know_neither_unit_nor_origin_of_the_score(scale, shift):
    expected = features(ceiling=1.0)
    scaled = features(scale * SCORES + shift, ceiling=scale + shift)
    assert list(scaled.values()) == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-4, nan_ok=True)


def test_a_learning_rate_that_is_unknown_is_nan_and_one_that_halved_says_so():
    assert math.isnan(features()["rate decayed"])
    assert features(learning_rates=[0.1] * 10 + [0.05] * 10)["rate decayed"] == pytest.approx(0.5)


def test_how_long_ago_the_best_was_is_a_share_of_what_was_seen():
    peaked = np.concatenate([np.linspace(0, 0.8, 10), np.linspace(0.79, 0.5, 10)])
    assert features(peaked)["since best"] == pytest.approx(0.5)
    assert features()["since best"] == 0.0


def test_a_missing_score_is_no_epoch_less():
    scores = SCORES.copy()
    scores[[3, 9]] = math.nan
    curve = seen_curve(scores, 60)
    assert (curve.now, len(curve.values), curve.epochs[-1]) == (20, 18, 20)
