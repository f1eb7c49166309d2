from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.data.augmentation import Augmentation
from tests.toys import blob

NOTHING = {field.name: 0.0 for field in fields(Augmentation) if field.name.startswith("p_")}
SPATIAL = ("p_rotation", "p_scale", "p_elastic")
EVERYTHING = dict.fromkeys(NOTHING, 1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


@given(seed=st.integers(0, 10_000), dims=st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_augmentation_invents_no_label_and_keeps_shape_and_types(seed, dims):
    image, label = blob((12, 14, 10)[:dims])
    augmentation = Augmentation(num_dims=dims, mirror_axes=tuple(range(dims)), **EVERYTHING)
    new_image, new_label = augmentation(image, label, generator(seed))
    assert new_image.shape == image.shape
    assert new_label.shape == label.shape
    assert (new_image.dtype, new_label.dtype) == (torch.float32, torch.int64)
    assert set(new_label.unique().tolist()) <= {0, 4, 9}
    assert bool(torch.isfinite(new_image).all())


def test_augmentation_is_a_function_of_its_generator():
    image, label = blob()
    augmentation = Augmentation(num_dims=3, mirror_axes=(0, 1, 2), **EVERYTHING)
    one, same, other = (augmentation(image, label, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one[0], same[0])
    assert torch.equal(one[1], same[1])
    assert not torch.equal(one[0], other[0])


def test_neither_input_is_changed():
    image, label = blob()
    before = image.clone(), label.clone()
    Augmentation(num_dims=3, mirror_axes=(0, 1, 2), **EVERYTHING)(image, label, generator())
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_switched_off_it_is_the_identity():
    image, label = blob()
    new_image, new_label = Augmentation(num_dims=3, **NOTHING)(image, label, generator())
    assert torch.equal(new_image, image)
    assert torch.equal(new_label, label)


@pytest.mark.parametrize("name", [name for name in NOTHING if name not in SPATIAL])
def test_each_intensity_change_acts_on_the_image_and_leaves_the_label(name):
    image, label = blob()
    image = image + torch.arange(image.numel()).view_as(image) / image.numel()
    augmentation = Augmentation(num_dims=3, **{**NOTHING, name: 1.0})
    changed = [augmentation(image, label, generator(seed)) for seed in range(8)]
    assert any(not torch.equal(new_image, image) for new_image, _ in changed)
    assert all(torch.equal(new_label, label) for _, new_label in changed)


@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_changes_move_image_and_label_alike(name):
    image, label = blob((16, 16, 16))
    augmentation = Augmentation(num_dims=3, **{**NOTHING, name: 1.0})
    moved = False
    for seed in range(6):
        new_image, new_label = augmentation(image, label, generator(seed))
        pure = torch.isin(new_image, torch.tensor([0.0, 4.0, 9.0]))  # away from borders the image is not blended
        assert torch.equal(new_image[pure].long(), new_label[pure])
        moved |= not torch.equal(new_label, label)
    assert moved


def test_an_elastic_deformation_is_off_by_default_and_moves_image_and_label_alike():
    image, label = blob((24, 24, 24))
    quiet = Augmentation(num_dims=3, **NOTHING)
    assert quiet.p_elastic == 0
    assert torch.equal(quiet(image, label, generator())[1], label)
    new_image, new_label = replace(quiet, p_elastic=1.0, elastic=0.4)(image, label, generator(1))
    assert not torch.equal(new_label, label)
    assert set(new_label.unique().tolist()) <= {0, 4, 9}
    agree = (new_image - new_label).abs() < 2.5  # apart from the interpolated edges
    assert agree.float().mean() > 0.97


def test_an_elastic_deformation_moves_nothing_across_thick_slices():
    image = torch.arange(6.0)[None, None, None].expand(1, 12, 12, 6).clone()
    elastic = replace(Augmentation(num_dims=3, coarse_axis=2, **NOTHING), p_elastic=1.0, elastic=0.4)
    new_image, _ = elastic(image, image.long(), generator())
    assert torch.allclose(new_image, image, atol=1e-5)


def test_mirroring_flips_both_along_the_allowed_axes_only():
    image, label = blob((6, 6))
    augmentation = Augmentation(num_dims=2, mirror_axes=(1,), **NOTHING)
    seen = set()
    for seed in range(20):
        new_image, new_label = augmentation(image, label, generator(seed))
        assert torch.equal(new_image.long(), new_label)
        flipped = torch.equal(new_label, label.flip(2))
        assert flipped or torch.equal(new_label, label)
        seen.add(flipped)
    assert seen == {True, False}


def test_a_quarter_turn_is_a_quarter_turn():
    image, label = torch.arange(9.0).view(1, 3, 3), torch.arange(9).view(1, 3, 3)
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    new_image, new_label = Augmentation(num_dims=2).warp(image, label, turn, [1.0, 1.0], (3, 3))
    assert torch.allclose(new_image, image.rot90(-1, (1, 2)), atol=1e-5)
    assert torch.equal(new_label, label.rot90(-1, (1, 2)))


def test_warping_by_the_identity_cuts_the_patch_out_of_its_box():
    image, label = blob((12, 14, 10))
    centre = [5.5, 6.5, 4.5]
    new_image, new_label = Augmentation(num_dims=3).warp(image, label, np.eye(3), centre, (4, 6, 2))
    assert torch.allclose(new_image, image[:, 4:8, 4:10, 4:6], atol=1e-5)
    assert torch.equal(new_label, label[:, 4:8, 4:10, 4:6])


def test_across_thick_slices_nothing_is_blended():
    augmentation = Augmentation(num_dims=3, coarse_axis=2, max_rotation_deg=180.0, **EVERYTHING)
    for seed in range(10):
        matrix = augmentation.draw_matrix(generator(seed))
        assert matrix[2].tolist() == [0.0, 0.0, 1.0]
        assert matrix[:, 2].tolist() == [0.0, 0.0, 1.0]
    image = torch.zeros(1, 9, 9, 4)
    image[..., 2] = 1.0
    warped, _ = augmentation.warp(image, image.long(), matrix, [4.0, 4.0, 1.5], (9, 9, 4))
    assert torch.allclose(warped, image)


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array([1.0, 2.0, 2.5])
    augmentation = Augmentation(num_dims=3, spacing_mm=tuple(spacing), **{**NOTHING, "p_rotation": 1.0})
    matrix = augmentation.draw_matrix(generator())
    in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
    assert np.allclose(in_mm @ in_mm.T, np.eye(3))
    assert np.linalg.det(in_mm) == pytest.approx(1.0)


def test_gamma_keeps_mean_and_deviation():
    image = torch.rand(2, 8, 8)
    augmentation = Augmentation(num_dims=2, **{**NOTHING, "p_gamma": 1.0})
    changed = augmentation.change_intensities(image, generator())
    assert torch.allclose(changed.mean((1, 2)), image.mean((1, 2)), atol=1e-5)
    assert torch.allclose(changed.std((1, 2)), image.std((1, 2)), atol=1e-5)


def test_blur_keeps_a_constant_and_a_one_slice_axis():
    image = torch.full((1, 6, 6, 1), 2.5)
    augmentation = replace(Augmentation(num_dims=3, **NOTHING), p_blur=1.0)
    assert all(
        torch.allclose(augmentation.change_intensities(image, generator(seed)), image, atol=1e-6) for seed in range(4)
    )
