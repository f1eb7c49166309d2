from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from candy_monai.data.images.alignment import aligned, displacement, misalignment, mismatch
from candy_monai.data.images.geometry import Geometry
from candy_monai.errors import BadInputError

OBLIQUE = np.array([[0.8, -0.6, 0.0, 5.0], [0.6, 0.8, 0.0, -7.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


def grid(shape=(4, 5, 6), spacing=(1.0, 2.0, 3.0), base=None, **places):
    affine = (np.eye(4) if base is None else base) @ np.diag([*spacing, *[1.0] * (4 - len(spacing))])
    for axis, offset in places.items():
        affine["xyz".index(axis), 3] += offset
    return Geometry(spatial_shape=shape, num_channels=1, affine=affine, is_picture=False, file_shape=shape)


def turned(geometry, values, order, flips):
    """Store the same places in another order, by the definition of an affine: where each index is."""
    shape = tuple(geometry.spatial_shape[axis] for axis in order)
    old_index = np.eye(4)
    old_index[:3, :3] = 0
    for new, old in enumerate(order):
        old_index[old, new] = -1 if new in flips else 1
        old_index[old, 3] = shape[new] - 1 if new in flips else 0
    stored = np.flip(values.numpy().transpose(0, *(axis + 1 for axis in order)), [axis + 1 for axis in flips]).copy()
    affine = geometry.affine @ old_index
    return torch.from_numpy(stored), Geometry(
        spatial_shape=shape, num_channels=1, affine=affine, is_picture=False, file_shape=shape
    )


@pytest.mark.parametrize("base", [np.eye(4), OBLIQUE], ids=["straight", "oblique"])
def test_every_order_and_direction_of_the_axes_comes_back_to_the_sample(base):
    expected = grid(base=base)
    values = torch.arange(120).reshape(1, 4, 5, 6)
    for order in itertools.permutations(range(3)):
        for count in range(4):
            for flips in itertools.combinations(range(3), count):
                stored, found = turned(expected, values, order, flips)
                assert torch.equal(aligned(stored, found, expected, name="a", against="the reference has"), values)


def test_a_picture_s_two_axes_are_turned_as_well():
    expected = grid(shape=(4, 5), spacing=(1.0, 2.0))
    found = grid(shape=(4, 5), spacing=(1.0, 2.0))
    found.affine[:, 3] += found.affine[:, 0] * 3
    found.affine[:, 0] *= -1
    values = torch.arange(20).reshape(1, 4, 5)
    assert torch.equal(aligned(values, found, expected, name="a", against="b has"), values.flip(1))


def test_what_agrees_already_is_not_copied():
    values = torch.zeros(1, 4, 5, 6)
    assert aligned(values, grid(x=0.3), grid(), name="a", against="b has") is values


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (grid(x=40.0), r"a\.nii: origin \(40\.0, .*\) mm, the image has \(0\.0, .*40 voxels off"),
        (grid(spacing=(1.0, 2.0, 2.0)), r"a\.nii: spacing \(1\.0, 2\.0, 2\.0\) mm, the image has \(1\.0, 2\.0, 3\.0\)"),
        (grid(shape=(4, 5, 7)), r"a\.nii: shape \(4, 5, 7\), the image has \(4, 5, 6\)"),
        (grid(base=OBLIQUE), r"a\.nii: directions "),
        (grid(shape=(4, 5), spacing=(1.0, 2.0)), r"a\.nii: shape \(4, 5\), the image has \(4, 5, 6\)"),
    ],
)
def test_other_places_are_refused_with_both_grids(found, message):
    with pytest.raises(BadInputError, match=message):
        aligned(torch.zeros(1, *found.spatial_shape), found, grid(), name="a.nii", against="the image has")


def test_a_flip_about_another_centre_is_another_place():
    found = grid(x=40.0)
    found.affine[:, 0] *= -1
    assert "directions" in mismatch(found, grid(), against="b has")


@pytest.mark.parametrize("column", [np.nan, 0.0])
def test_an_affine_that_spans_no_space_is_refused(column):
    found = grid()
    found.affine[:3, 1] = column
    assert "affine" in mismatch(found, grid(), against="b has")
    assert mismatch(grid(), found, against="b has").startswith("b: the affine")


def test_a_small_turn_counts_by_how_far_it_moves_the_furthest_voxel():
    angle = 0.005  # of 400 voxels: 2 voxels at the far corner, though no cosine differs by 0.01
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    shape, spacing = (400, 400, 2), (1.0, 1.0, 1.0)
    problem = misalignment(grid(shape, spacing, base=turn), grid(shape, spacing), against="b has")
    assert problem.startswith("directions")
    assert misalignment(grid((40, 40, 2), spacing, base=turn), grid((40, 40, 2), spacing), against="b has") is None


def test_an_origin_off_by_voxels_of_a_micrometre_is_another_place():
    fine = (1e-3, 1e-3, 1e-3)
    assert "9 voxels off" in misalignment(grid(spacing=fine, x=9e-3), grid(spacing=fine), against="b has")
    assert displacement(grid(spacing=fine, x=1e-5), grid(spacing=fine), against="b has") is None
