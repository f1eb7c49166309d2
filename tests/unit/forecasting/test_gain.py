from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from candy_monai.forecasting import gain
from candy_monai.forecasting.coefficients import WIDENING
from candy_monai.forecasting.features import NAMES
from candy_monai.forecasting.gain import MEANS, SCALES, WEIGHTS, Gain, standardised

LEVELS = np.linspace(0.05, 0.95, 19)


def test_without_a_chance_of_none_the_median_is_the_middle():
    assert Gain(none=0.0, middle=np.log(0.2), spread=1.0).quantiles([0.5]) == pytest.approx([0.2], rel=1e-4)


def test_as_many_quantiles_are_zero_as_the_chance_of_none_says():
    quantiles = Gain(none=0.42, middle=-2.0, spread=1.0).quantiles(LEVELS)
    assert ((quantiles == 0) == (LEVELS <= 0.42)).all()


def test_a_wider_distribution_keeps_its_median():
    narrow = Gain(none=0.2, middle=-2.0, spread=0.5).quantiles([0.25, 0.5, 0.9])
    wide = Gain(none=0.2, middle=-2.0, spread=0.5, widening=2.0).quantiles([0.25, 0.5, 0.9])
    assert wide[1] == pytest.approx(narrow[1])
    assert wide[0] < narrow[0]
    assert wide[2] > narrow[2]


def test_a_gain_as_large_as_the_headroom_is_taken_for_half_of_it():
    # the nearer the largest possible score, the slower: 1 / (1 + 1)
    assert Gain(none=0.0, middle=0.0, spread=0.1, headroom=1.0).quantiles([0.5]) == pytest.approx([0.5], rel=1e-4)


@given(
    none=st.floats(0, 1),
    middle=st.floats(-8, 8),
    spread=st.floats(0.05, 5),
    headroom=st.floats(0, 100),
    wide=st.floats(1, 3),
)
@settings(max_examples=80)
def test_quantiles_rise_from_zero_to_no_more_than_the_headroom(none, middle, spread, headroom, wide):
    quantiles = Gain(none=none, middle=middle, spread=spread, headroom=headroom, widening=wide).quantiles(LEVELS)
    assert (np.diff(quantiles) >= 0).all()
    assert quantiles[0] >= 0
    assert quantiles[-1] <= headroom + 1e-6


@given(features=st.lists(st.floats(-50, 50), min_size=len(NAMES), max_size=len(NAMES)), rate_known=st.booleans())
@example(features=[0.0] * 15 + [8.0, 10.390625], rate_known=False)  # rounds to the headroom
@settings(max_examples=60)
def test_no_features_give_anything_but_a_distribution(features, rate_known):
    values = np.array(features)
    if not rate_known:
        values[NAMES.index("rate decayed")] = np.nan
    quantiles = Gain.expected(values).quantiles(LEVELS)
    assert np.isfinite(quantiles).all()
    assert (np.diff(quantiles) >= 0).all()


def test_what_was_learned_has_a_number_for_each_sign():
    assert len(MEANS) == len(SCALES) == len(NAMES)
    assert [len(line) for line in WEIGHTS] == [len(NAMES) + 1] * 3
    assert [len(line) for line in WIDENING] == [3, 3]


@pytest.mark.parametrize(("share", "loss", "widening"), [(0.1, 0, 2.0), (0.375, 0, 1.5), (0.75, 0, 0.5), (0.5, 1, 3.0)])
def test_how_wide_it_is_depends_on_the_share_of_the_run_and_on_whether_it_is_a_loss(share, loss, widening, monkeypatch):
    monkeypatch.setattr(gain, "WIDENING", ((2.0, 1.0, 0.5), (4.0, 3.0, 2.0)))
    features = np.array(MEANS)
    features[[NAMES.index("share"), NAMES.index("loss")]] = share, loss
    assert Gain.expected(features).widening == pytest.approx(widening)


def test_a_sign_that_is_unknown_counts_as_an_ordinary_one_and_none_as_further_off_than_three_deviations():
    values = standardised(np.array([np.nan, 50.0]), np.array([1.0, 2.0]), np.array([1.0, 2.0]))
    assert values.tolist() == [0.0, 3.0, 1.0]
