from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from candy_monai.transforms import RandWarp, RandWarpd
from candy_monai.transforms.warping import cut, sample, sampling_grid, source_box, start_anywhere, start_around
from tests.toys import blob

BOTH = {"keys": ("image", "label"), "mode": ("bilinear", "nearest")}
EVERYTHING = {"prob_rotate": 1.0, "prob_scale": 1.0, "prob_elastic": 1.0}
NOTHING = {"prob_rotate": 0.0, "prob_scale": 0.0}


def warped(transform, image, label, seed=0, **items):
    result = transform.set_random_state(seed)({"image": image, "label": label, **items})
    return result["image"], result["label"]


def test_the_source_box_of_an_elastic_deformation_holds_its_largest_displacement():
    displacement = torch.zeros(2, 4, 4)
    displacement[0, 1, 2], displacement[1, 0, 0] = 3.0, -2.0
    start, shape = source_box(
        np.eye(2), np.array([10.0, 10.0]), (5, 5), anisotropic_axis=None, displacement=displacement
    )
    assert (start.tolist(), shape) == ([5, 6], (11, 9))


def test_the_source_box_holds_every_sampled_position():
    angle = math.radians(30)
    matrix = 1.3 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, shape = np.array([10.2, 7.0]), (8, 6)
    start, size = source_box(matrix, centre, shape, anisotropic_axis=None)
    corners = np.array([[a, b] for a in (-3.5, 3.5) for b in (-2.5, 2.5)]) @ matrix.T + centre
    assert (corners >= start).all()
    assert (corners <= start + np.array(size) - 1).all()


@given(seed=st.integers(0, 10_000), dims=st.sampled_from([2, 3]))
@settings(max_examples=30)
def test_no_label_is_invented_and_shape_and_types_are_kept(seed, dims):
    image, label = blob((12, 14, 10)[:dims])
    new_image, new_label = warped(RandWarpd(**BOTH, **EVERYTHING), image, label, seed)
    assert new_image.shape == image.shape
    assert new_label.shape == label.shape
    assert (new_image.dtype, new_label.dtype) == (torch.float32, torch.int64)
    assert set(new_label.unique().tolist()) <= {0, 4, 9}


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_image_and_label_move_alike(name):
    image, label = blob((16, 16, 16))
    moved = False
    for seed in range(6):
        transform = RandWarpd(**BOTH, **{**NOTHING, name: 1.0}, elastic=0.4)
        new_image, new_label = warped(transform, image, label, seed)
        pure = torch.isin(new_image, torch.tensor([0.0, 4.0, 9.0]))  # away from borders the image is not blended
        assert torch.equal(new_image[pure].long(), new_label[pure])
        moved |= not torch.equal(new_label, label)
    assert moved


def test_nothing_drawn_is_a_plain_copy_around_the_centre():
    image, label = blob((12, 14, 10))
    transform = RandWarpd(**BOTH, spatial_size=(4, 6, 2), center_key="center", **NOTHING)
    new_image, new_label = warped(transform, image, label, center=(6, 7, 5))
    assert torch.equal(new_image, image[:, 4:8, 4:10, 4:6])
    assert torch.equal(new_label, label[:, 4:8, 4:10, 4:6])
    assert new_image.data_ptr() != image.data_ptr()


def test_without_a_centre_the_patch_comes_from_anywhere_or_from_the_middle():
    image = torch.arange(10.0)[None, :, None].expand(1, 10, 3)
    random = RandWarp((1, 3), **NOTHING).set_random_state(0)
    assert {int(random(image)[0, 0, 0]) for _ in range(200)} == set(range(10))
    assert int(RandWarp((2, 3), random_center=False, **NOTHING)(image)[0, 0, 0]) == 4


def test_beyond_the_image_it_is_filled_for_each_key_by_its_own():
    image, label = torch.ones(1, 2, 4), torch.ones(1, 2, 4, dtype=torch.uint8)
    new_image, new_label = warped(RandWarpd(**BOTH, spatial_size=(4, 4), fill=(0, 300), **NOTHING), image, label)
    assert new_image[0, :, 0].tolist() == [0, 1, 1, 0]
    assert new_label[0, :, 0].tolist() == [300, 1, 1, 300]


def test_only_the_box_is_read_from_a_mapped_file(tmp_path):
    values = np.random.default_rng(0).random((1, 40, 30, 20)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    touched = []

    class Watched:
        shape = mapped.shape

        def __getitem__(self, index):
            found = mapped[index]
            touched.append(found.size)
            return found

    transform = RandWarp((8, 8, 8), prob_rotate=1.0, prob_scale=1.0).set_random_state(3)
    found = transform(Watched())
    assert torch.equal(found, RandWarp((8, 8, 8), prob_rotate=1.0, prob_scale=1.0).set_random_state(3)(values))
    assert sum(touched) < 0.25 * values.size


def test_a_quarter_turn_is_a_quarter_turn():
    image = torch.arange(9.0).view(1, 3, 3)
    grid = sampling_grid(np.array([[0.0, -1.0], [1.0, 0.0]]), [1.0, 1.0], (3, 3), (3, 3))
    assert torch.allclose(sample(image, grid, mode="bilinear"), image.rot90(-1, (1, 2)), atol=1e-5)
    assert torch.equal(sample(image.long(), grid, mode="nearest"), image.long().rot90(-1, (1, 2)))


def test_the_affine_says_where_the_patch_lies():
    image = MetaTensor(torch.rand(1, 9, 9, 9), affine=torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0])))
    transform = RandWarp((3, 3, 3), prob_rotate=1.0, prob_scale=1.0).set_random_state(0)
    found = transform(image, center=(4, 4, 4))
    middle = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.allclose(found.affine @ middle, torch.tensor([8.0, 4.0, 4.0, 1.0], dtype=torch.float64))
    step = found.affine[:3, 0] / torch.tensor([2.0, 1.0, 1.0])
    assert np.allclose(step, transform.matrix[:, 0])


def test_across_thick_slices_nothing_is_turned_or_blended():
    image = torch.arange(6.0)[None, None, None].expand(1, 24, 24, 6).clone()
    options = {"fixed_axis": 2, "max_angle_deg": 180.0, "elastic": 0.4, "random_center": False}
    transform = RandWarp((6, 6, 6), **EVERYTHING, **options)
    for seed in range(5):
        assert torch.allclose(transform.set_random_state(seed)(image), image[:, :6, :6], atol=1e-5)
        assert transform.matrix[2].tolist() == transform.matrix[:, 2].tolist() == [0.0, 0.0, 1.0]


def test_rotation_is_rigid_in_millimetres():
    spacing = np.array([1.0, 2.0, 2.5])
    transform = RandWarp(None, prob_rotate=1.0, prob_scale=0.0, spacing=spacing.tolist()).set_random_state(0)
    transform.randomize((8, 8, 8))
    in_mm = np.diag(spacing) @ transform.matrix @ np.diag(1 / spacing)
    assert np.allclose(in_mm @ in_mm.T, np.eye(3))
    assert np.linalg.det(in_mm) == pytest.approx(1.0)


def test_scaling_takes_one_factor_along_all_axes_and_zooms_in_and_out_equally_often():
    transform = RandWarp(None, prob_rotate=0.0, prob_scale=1.0).set_random_state(0)
    factors = []
    for _ in range(400):
        transform.randomize((4, 4))
        assert transform.matrix[0, 0] == transform.matrix[1, 1]
        factors.append(transform.matrix[0, 0])
    assert 0.7 <= min(factors) < 0.72
    assert 1.38 < max(factors) <= 1.4
    assert np.mean(np.array(factors) < 1) == pytest.approx(0.5, abs=0.08)


def test_elastic_deformation_is_off_by_default():
    assert RandWarp().prob_elastic == 0


@pytest.mark.parametrize(
    ("start", "shape", "expected"),
    [((0, 0), (2, 2), [[1, 2], [4, 5]]), ((-1, 1), (2, 3), [[9, 9, 9], [2, 3, 9]]), ((5, 5), (1, 1), [[9]])],
)
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_box_is_cut_out_and_filled_outside(start, shape, expected, kind):
    array = kind(np.arange(1, 7).reshape(1, 2, 3))
    assert cut(array, start, shape, fill=9)[0].tolist() == expected


def test_a_box_is_moved_into_the_volume_and_centred_where_the_volume_is_smaller():
    assert start_around((0, 9), (10, 10), (4, 4)).tolist() == [0, 6]
    assert start_around((1, 1), (2, 10), (4, 4)).tolist() == [-1, 0]
    assert start_anywhere((2, 4), (4, 4), np.random.default_rng(0)).tolist() == [-1, 0]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="did you mean 'bilinear'"):
        RandWarp(mode="trilinear")
    with pytest.raises(ValueError, match="has 3 axes, but the image has 2"):
        RandWarp((2, 2, 2))(torch.rand(1, 4, 4))
    with pytest.raises(ValueError, match="label has the spatial shape"):
        RandWarpd(**BOTH)({"image": torch.rand(1, 4, 4), "label": torch.rand(1, 4, 5)})
