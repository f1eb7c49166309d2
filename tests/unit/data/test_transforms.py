from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import RandAffined, RandFlipd, RandGaussianNoised
from torch.utils.data import DataLoader, Dataset

from candy_monai.data.transforms import Augmentation, JointTransform, source_box
from candy_monai.errors import BadInputError
from candy_monai.seeding import set_seed

NOTHING = {field.name: 0.0 for field in fields(Augmentation) if field.name.startswith("p_")}
EVERYTHING = dict.fromkeys(NOTHING, 1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


def blob(shape=(12, 14, 10)):
    """Return an off-centre box with three ids and an image that equals it."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[(0, *(slice(2, 6) for _ in shape))] = 4
    label[(0, *(slice(5, 8) for _ in shape))] = 9
    return label.float(), label


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


@pytest.mark.parametrize("name", [name for name in NOTHING if name not in ("p_rotation", "p_scale")])
def test_each_intensity_change_acts_on_the_image_and_leaves_the_label(name):
    image, label = blob()
    image = image + torch.arange(image.numel()).view_as(image) / image.numel()
    augmentation = Augmentation(num_dims=3, **{**NOTHING, name: 1.0})
    changed = [augmentation(image, label, generator(seed)) for seed in range(8)]
    assert any(not torch.equal(new_image, image) for new_image, _ in changed)
    assert all(torch.equal(new_label, label) for _, new_label in changed)


@pytest.mark.parametrize("name", ["p_rotation", "p_scale"])
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


def test_the_source_box_holds_every_sampled_position():
    angle = math.radians(30)
    matrix = 1.3 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, shape = np.array([10.2, 7.0]), (8, 6)
    start, size = source_box(matrix, centre, shape, coarse_axis=None)
    corners = np.array([[a, b] for a in (-3.5, 3.5) for b in (-2.5, 2.5)]) @ matrix.T + centre
    assert (corners >= start).all()
    assert (corners <= start + np.array(size) - 1).all()


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


def test_a_joint_transform_flips_both_or_neither():
    image, label = blob((6, 6))
    joint = JointTransform(RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0))
    joint.set_random_state(0)
    seen = set()
    for _ in range(20):
        new_image, new_label = joint(image, label)
        assert torch.equal(torch.as_tensor(new_image).long(), torch.as_tensor(new_label))
        seen.add(torch.equal(torch.as_tensor(new_label), label))
    assert seen == {True, False}


def test_a_joint_transform_never_mutates_its_input():
    def spoil(pair):
        pair["image"].zero_()
        pair["label"].zero_()
        return pair

    image, label = blob((6, 6))
    before = image.clone(), label.clone()
    JointTransform(spoil, image_transform=lambda x: x.add_(1), label_transform=lambda x: x.add_(1))(image, label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_one_sided_transforms_see_one_side():
    image, label = blob((6, 6))
    new_image, new_label = JointTransform(image_transform=lambda x: x * 2, label_transform=lambda x: (x > 0).long())(
        image, label
    )
    assert torch.equal(new_image, image * 2)
    assert set(new_label.unique().tolist()) == {0, 1}


def test_a_transform_that_blends_labels_is_found_out():
    image, label = blob()
    blending = JointTransform(
        RandAffined(keys=["image", "label"], prob=1.0, rotate_range=(0.5, 0.5, 0.5), mode="bilinear")
    )
    with pytest.raises(BadInputError, match="nearest neighbour"):
        blending(image, label)


def test_the_label_keeps_its_type_through_monai():
    image, label = blob()
    nearest = JointTransform(
        RandAffined(keys=["image", "label"], prob=1.0, rotate_range=(0.5, 0.5, 0.5), mode=("bilinear", "nearest"))
    )
    _, new_label = nearest(image, label)
    assert new_label.dtype == torch.int64
    assert set(torch.as_tensor(new_label).unique().tolist()) <= {0, 4, 9}


def noise():
    return JointTransform(RandGaussianNoised(keys=["image"], prob=1.0))


class Noisy(Dataset):
    """Four equal cases, told apart by nothing but their noise."""

    def __init__(self):
        self.transform = noise()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return float(self.transform(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))[0].sum())


def test_no_two_samples_of_any_worker_and_epoch_are_augmented_alike():
    loader = DataLoader(Noisy(), batch_size=1, num_workers=2)
    sums = [float(value) for _ in range(2) for value in loader]
    assert len(set(sums)) == 8


def test_the_seed_of_everything_decides_the_numbers_of_every_worker():
    def epoch(seed, workers):
        set_seed(seed)
        return [float(value) for value in DataLoader(Noisy(), batch_size=1, num_workers=workers)]

    for workers in (0, 2):
        assert epoch(1, workers) == epoch(1, workers)
        assert epoch(1, workers) != epoch(2, workers)


def test_a_state_that_the_caller_sets_is_not_overruled():
    image, label = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    first, second = noise(), noise()
    first.set_random_state(5)
    second.set_random_state(5)
    assert torch.equal(torch.as_tensor(first(image, label)[0]), torch.as_tensor(second(image, label)[0]))


def test_a_transform_without_randomness_leaves_the_generators_alone():
    image, label = blob((6, 6))
    before = torch.get_rng_state()
    JointTransform(image_transform=lambda x: x * 2)(image, label)
    assert torch.equal(torch.get_rng_state(), before)
