from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.data.resampling import resample_image, resample_label, resample_scores


def test_resampling_to_the_same_shape_is_the_identity_itself():
    image = torch.rand(1, 3, 4, 5)
    label = torch.ones(1, 3, 4, 5, dtype=torch.int64)
    assert resample_image(image, (3, 4, 5)) is image
    assert resample_label(label, (3, 4, 5)) is label
    assert resample_scores(image, (3, 4, 5)) is image


def test_a_constant_stays_that_constant():
    assert torch.allclose(resample_image(torch.full((2, 5, 6, 7), 3.5), (9, 4, 1)), torch.tensor(3.5))


def test_a_cubic_spline_follows_a_wave_more_closely_than_straight_lines_do():
    def wave(samples):
        return torch.cos(2 * torch.pi * (torch.arange(float(samples)) + 0.5) / samples)

    coarse = wave(16).view(1, 16, 1).expand(1, 16, 4)
    cubic = resample_image(coarse, (48, 4))[0, :, 0]
    straight = resample_scores(coarse, (48, 4))[0, :, 0]
    inside = slice(6, 18)  # away from the ends, where both repeat the border, and from the clipped extremum
    assert (cubic - wave(48))[inside].abs().max() < 0.1 * (straight - wave(48))[inside].abs().max()


def test_a_sharp_edge_does_not_overshoot():
    edge = torch.zeros(1, 8, 8)
    edge[:, 4:] = 1.0
    resampled = resample_image(edge, (32, 8))
    assert (resampled.min(), resampled.max()) == (0.0, 1.0)


def test_across_thick_slices_intensities_are_interpolated_linearly():
    image = torch.tensor([0.0, 0.0, 6.0, 0.0]).view(1, 1, 1, 4)
    found = resample_image(image, (1, 1, 8), coarse_axis=2).flatten()
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 0.0, 1.5, 4.5, 4.5, 1.5, 0.0]), atol=1e-6)


def test_doubling_a_label_doubles_each_box():
    label = torch.tensor([[[0, 3], [7, 0]]])
    expected = label.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(resample_label(label, (4, 4)), expected)


def test_thick_slices_of_a_label_are_copied():
    label = torch.tensor([1, 2]).view(1, 1, 1, 2)
    assert resample_label(label, (1, 1, 5), coarse_axis=2).flatten().tolist() == [1, 1, 2, 2, 2]


@given(
    old=st.tuples(*[st.integers(1, 7)] * 3),
    new=st.tuples(*[st.integers(1, 9)] * 3),
    coarse=st.sampled_from([None, 0, 2]),
)
@settings(max_examples=60, deadline=None)
def test_resampled_labels_hold_no_id_that_was_not_there(old, new, coarse):
    label = torch.randint(0, 4, (1, *old), generator=torch.Generator().manual_seed(0)) * 5
    resampled = resample_label(label, new, coarse_axis=coarse)
    assert resampled.shape == (1, *new)
    assert resampled.dtype == label.dtype
    assert set(resampled.unique().tolist()) <= set(label.unique().tolist())


@pytest.mark.parametrize("resample", [resample_image, resample_scores])
@pytest.mark.parametrize("shape", [(4, 9), (4, 9, 3)])
def test_pictures_and_volumes_reach_the_asked_shape(resample, shape):
    image = torch.rand(2, *[6] * len(shape))
    assert resample(image, shape).shape == (2, *shape)
