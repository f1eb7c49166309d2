from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, Invertd, Spacing, SpatialResample
from monai.transforms.utils import scale_affine

from candy_monai.transforms import ResampleToSpacing, ResampleToSpacingd
from candy_monai.transforms.resampling import (
    resample_image,
    resample_label,
    resample_scores,
    resampled_shape,
    separate_axis,
    thick_axis,
)


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
    found = resample_image(image, (1, 1, 8), anisotropic_axis=2).flatten()
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 0.0, 1.5, 4.5, 4.5, 1.5, 0.0]), atol=1e-6)


def test_doubling_a_label_doubles_each_box():
    label = torch.tensor([[[0, 3], [7, 0]]])
    expected = label.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(resample_label(label, (4, 4)), expected)


def test_thick_slices_of_a_label_are_copied():
    label = torch.tensor([1, 2]).view(1, 1, 1, 2)
    assert resample_label(label, (1, 1, 5), anisotropic_axis=2).flatten().tolist() == [1, 1, 2, 2, 2]


@given(
    old=st.tuples(*[st.integers(1, 7)] * 3),
    new=st.tuples(*[st.integers(1, 9)] * 3),
    coarse=st.sampled_from([None, 0, 2]),
)
@settings(max_examples=60)
def test_resampled_labels_hold_no_id_that_was_not_there(old, new, coarse):
    label = torch.randint(0, 4, (1, *old), generator=torch.Generator().manual_seed(0)) * 5
    resampled = resample_label(label, new, anisotropic_axis=coarse)
    assert resampled.shape == (1, *new)
    assert resampled.dtype == label.dtype
    assert set(resampled.unique().tolist()) <= set(label.unique().tolist())


@pytest.mark.parametrize("resample", [resample_image, resample_scores])
@pytest.mark.parametrize("shape", [(4, 9), (4, 9, 3)])
def test_pictures_and_volumes_reach_the_asked_shape(resample, shape):
    image = torch.rand(2, *[6] * len(shape))
    assert resample(image, shape).shape == (2, *shape)


def placed(values, spacing, origin=(5.0, -3.0, 2.0)):
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing)
    affine[:3, 3] = origin
    return MetaTensor(values, affine=torch.from_numpy(affine))


def test_the_extent_is_kept_and_the_affine_says_so():
    image = placed(torch.rand(1, 7, 9, 5), (1.0, 1.5, 2.0))
    found = ResampleToSpacing((0.8, 0.9, 1.3))(image)
    assert found.shape == (1, 9, 15, 8)
    for corner, size in ((-0.5, None), (0.5, 1)):  # outer edges of the first and the last voxel
        before, after = (
            each.affine.numpy() @ [*(((n - 1) if size else 0) + corner for n in each.shape[1:]), 1.0]
            for each in (image, found)
        )
        assert np.allclose(before, after)


def test_the_result_is_that_of_monais_cubic_resampling_on_the_same_grid():
    image = placed(torch.rand(1, 8, 9, 10), (1.0, 1.5, 2.0))
    found = ResampleToSpacing((0.8, 0.9, 1.3))(image)
    grid = image.affine @ torch.as_tensor(scale_affine([8, 9, 10], found.shape[1:]))
    expected = SpatialResample(mode=3, padding_mode="nearest", dtype=torch.float64)(
        image, dst_affine=grid, spatial_size=found.shape[1:]
    )
    assert torch.allclose(found, expected.float().clamp(image.min(), image.max()), atol=1e-5)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    mode=st.sampled_from(["cubic", "linear", "nearest", "majority"]),
)
@settings(max_examples=40)
def test_the_inverse_restores_shape_and_affine_exactly(shape, spacing, mode):
    resample = ResampleToSpacing((1.0, 1.3, 2.0), mode=mode)
    image = placed(torch.randint(0, 3, (1, *shape)), spacing)
    back = resample.inverse(resample(image))
    assert back.shape == image.shape
    assert torch.equal(back.affine, image.affine)
    assert back.applied_operations == []


def test_scores_go_back_linearly_and_labels_by_majority_unless_nearest_is_asked_for():
    both = ("image", "label")
    transform = Compose([ResampleToSpacingd(both, (2.0, 2.0), mode=("cubic", "majority"))])
    image = torch.arange(16.0).view(1, 4, 4)
    done = transform({"image": MetaTensor(image), "label": MetaTensor((image > 7).long())})
    scores = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    ways = {}
    for nearest in (False, True):
        invert = Compose(
            [EnsureTyped("pred", track_meta=True), Invertd("pred", transform, "image", nearest_interp=nearest)]
        )
        ways[nearest] = invert({"pred": scores, "image": done["image"]})["pred"]
    assert torch.equal(ways[False][0, 0].as_tensor(), torch.tensor([0.0, 1.0, 3.0, 4.0]))
    assert torch.equal(ways[True][0, 0].as_tensor(), torch.tensor([0.0, 0.0, 4.0, 4.0]))
    assert torch.equal(transform.inverse(done)["label"].as_tensor(), (image > 7).long())


def test_an_image_without_affine_has_a_spacing_of_one():
    assert ResampleToSpacing(0.5)(torch.rand(2, 4, 5)).shape == (2, 8, 10)


def test_thick_slices_are_found_in_the_image_or_else_in_the_target():
    assert thick_axis((1.0, 1.0, 3.5)) == 2
    assert thick_axis((1.0, 1.0, 3.0)) is None
    assert thick_axis((1.0, 9.0)) is None
    image = placed(torch.tensor([0.0, 0.0, 6.0, 0.0]).view(1, 1, 1, 4), (1.0, 1.0, 8.0))
    expected = torch.tensor([0.0, 0.0, 0.0, 1.5, 4.5, 4.5, 1.5, 0.0])
    assert torch.allclose(ResampleToSpacing((1.0, 1.0, 4.0))(image).flatten(), expected, atol=1e-6)
    ids = placed(torch.tensor([1, 2]).view(1, 1, 1, 2), (1.0, 1.0, 8.0))
    found = ResampleToSpacing((1.0, 1.0, 16 / 5), mode="majority")(ids)
    assert found.flatten().tolist() == [1, 1, 2, 2, 2]


def test_an_axis_without_a_positive_spacing_stays_as_it_is_as_in_monai():
    image = placed(torch.rand(1, 6, 5, 4), (1.0, 1.0, 8.0))
    resampled = ResampleToSpacing((0.5, 1.0, -1.0), mode="linear")(image)
    assert resampled.shape == Spacing((0.5, 1.0, -1.0), scale_extent=True)(image).shape == (1, 12, 5, 4)
    assert tuple(resampled.pixdim.tolist()) == (0.5, 1.0, 8.0)
    for slice_, before in zip(resampled.unbind(3), image.unbind(3), strict=True):
        alone = ResampleToSpacing((0.5, 1.0), mode="linear")(torch.as_tensor(before))
        assert torch.allclose(torch.as_tensor(slice_), alone, atol=1e-6)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'cubic'"):
        ResampleToSpacingd("image", (1.0, 1.0), mode="cubick")
    with pytest.raises(ValueError, match="must be finite"):
        ResampleToSpacing((1.0, float("nan")))
    with pytest.raises(ValueError, match="pixdim has 2 entries"):
        ResampleToSpacing((1.0, 1.0))(torch.rand(1, 3, 3, 3))


def test_resampling_keeps_the_space_that_is_covered():
    assert resampled_shape((10, 10, 5), (1.0, 1.0, 4.0), (0.5, 2.0, 4.0)) == (20, 5, 5)
    assert resampled_shape((1, 1, 1), (0.1, 1.0, 1.0), (5.0, 1.0, 1.0)) == (1, 1, 1)


def test_slices_apart_are_copied_within_their_own_range_and_scores_come_back_so():
    image = torch.zeros(1, 4, 4, 2)
    image[0, 2:, :, 0], image[0, :, :, 1] = 1.0, 9.0
    resample = ResampleToSpacing((0.5, 1.0, 2.0), separate_z=True)
    done = resample(placed(image, (1.0, 1.0, 5.0)))
    assert done.shape == (1, 8, 4, 5)
    below, above = done.as_tensor()[0, ..., :2], done.as_tensor()[0, ..., 3:]
    assert (below.min(), below.max()) == (0.0, 1.0)  # a spline alone would leave the range of the slice
    assert torch.equal(below[..., 0], below[..., 1])
    assert torch.equal(above, torch.full_like(above, 9.0))
    back = resample.inverse(done)
    expected = resample_scores(done.as_tensor().clone(), (4, 4, 2), nearest_axis=2)
    assert torch.equal(back.as_tensor(), expected)
    assert torch.equal(expected[..., 0], resample_scores(done.as_tensor()[..., 1], (4, 4)))


def test_slices_are_apart_by_the_rule_of_nnunet():
    assert separate_axis((1.0, 2.0, 3.5)) == 2  # the least side counts, where others ask for both
    assert separate_axis((1.0, 1.0, 3.0)) is None
    assert separate_axis((1.0, 4.0, 4.0)) is None
    assert separate_axis((1.0, 4.0, 4.0), (1.0, 1.0, 9.0)) is None  # the first one decides
    assert separate_axis((1.0, 1.0, 1.0), (9.0, 1.0, 1.0)) == 0
    assert separate_axis((1.0, 9.0)) is None
    flat = placed(torch.tensor([0.0, 6.0]).view(1, 1, 1, 2), (1.0, 1.0, 2.0))
    mixed = ResampleToSpacing((1.0, 1.0, 1.0), mode="linear")(flat)
    assert torch.equal(mixed, ResampleToSpacing((1.0, 1.0, 1.0), mode="linear", separate_z=True)(flat))
