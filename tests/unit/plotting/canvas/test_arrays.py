from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.arrays import (
    as_array,
    as_channels,
    as_ids,
    has_colors,
    intensity_range,
    resize_ids,
    to_rgb,
    to_unit,
)

FLOATS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3),
    elements=st.floats(allow_nan=True, allow_infinity=True, width=32),
)


@given(FLOATS)
def test_any_intensities_end_within_0_and_1(values: np.ndarray) -> None:
    unit = to_unit(values)
    assert unit.shape == values.shape
    assert np.isfinite(unit).all()
    assert unit.min() >= 0.0
    assert unit.max() <= 1.0


def test_a_constant_image_is_mid_grey() -> None:
    assert (to_unit(np.full((3, 3), 7.0)) == 0.5).all()


def test_one_hot_voxel_does_not_darken_the_rest() -> None:
    values = np.linspace(0.0, 1.0, 10_000)
    values[5000] = 1e6
    assert to_unit(values)[7500] == pytest.approx(0.75, abs=0.02)


def test_a_rare_difference_is_shown_when_the_percentiles_see_none() -> None:
    values = np.zeros(10_000)
    values[3] = 5.0
    assert intensity_range(values) == (0.0, 5.0)
    assert to_unit(values)[3] == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.int64])
def test_tensors_of_any_type_become_arrays(dtype: torch.dtype) -> None:
    assert as_array(torch.ones(2, 2).to(dtype)).sum() == 4


def test_a_tensor_with_gradients_becomes_an_array() -> None:
    assert as_array(torch.ones(2, requires_grad=True)).tolist() == [1.0, 1.0]


def test_words_are_refused() -> None:
    with pytest.raises(BadInputError, match="real numbers"):
        as_array(np.array(["a"]))


def test_a_channel_is_added_where_it_is_missing() -> None:
    assert as_channels(np.zeros((4, 5)), 2).shape == (1, 4, 5)


def test_a_batch_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"expected \(H, W\) or \(C, H, W\)"):
        as_channels(np.zeros((2, 1, 4, 5)), 2)


def test_probabilities_are_no_label() -> None:
    with pytest.raises(BadInputError, match="one channel of label ids"):
        as_ids(np.zeros((3, 4, 5)), 2)


def test_float_labels_are_rounded_and_nan_is_background() -> None:
    assert as_ids(np.array([[1.0, np.nan], [2.0000001, 0.0]]), 2).tolist() == [[1, 0], [2, 0]]


def test_a_photograph_is_recognised_before_and_after_normalisation() -> None:
    rows = np.linspace(0, 200, 400).reshape(20, 20)
    photograph = np.stack([rows, rows * 0.8, rows * 0.5 + 20]).round()
    assert has_colors(photograph)
    assert has_colors((photograph - photograph.mean()) / photograph.std())


def test_three_unrelated_modalities_are_no_photograph() -> None:
    assert not has_colors(np.random.default_rng(0).normal(size=(3, 20, 20)))


def test_a_photograph_keeps_its_colours() -> None:
    image = np.array([255, 128, 0], dtype=np.uint8).reshape(3, 1, 1)
    assert to_rgb(image, rgb=True)[0, 0].tolist() == pytest.approx([1.0, 128 / 255, 0.0])


def test_of_two_channels_the_first_is_shown_in_grey() -> None:
    image = np.stack([np.array([[0.0, 4.0]]), np.array([[9.0, -9.0]])])
    assert to_rgb(image, rgb=has_colors(image)).tolist() == [[[0.0] * 3, [1.0] * 3]]


def test_calling_two_channels_rgb_is_refused() -> None:
    with pytest.raises(BadInputError, match="expected 3 channels"):
        has_colors(np.zeros((2, 3, 3)), rgb=True)


@given(hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 900)), st.integers(1, 40))
def test_resizing_invents_no_id(ids: np.ndarray, height: int) -> None:
    resized = resize_ids(ids, (height, 7))
    assert resized.shape == (height, 7)
    assert set(resized.flat) <= set(ids.flat)


def test_doubling_a_label_repeats_each_pixel() -> None:
    assert resize_ids(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
