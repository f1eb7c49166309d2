from __future__ import annotations

import math

import numpy as np
import pytest

from candy_monai.forecasting.curve import seen_curve
from candy_monai.forecasting.features import NAMES, features_of
from candy_monai.forecasting.model_average import draw_best

SCORES = 0.8 * (1 - np.exp(-np.arange(1, 21) / 8))


def features(scores=SCORES, horizon=60, **known):
    curve = seen_curve(scores, horizon, **known)
    return dict(zip(NAMES, features_of(curve, draw_best(curve, degree=5)[0]), strict=True))


def test_of_a_schedule_that_ends_at_zero_what_is_left_is_known():
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
