from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.images.geometry import Geometry, affine_problem, in_ras
from candy_monai.data.images.reading import geometry_of

TURN = np.array([[0.0, -1.0, 0.0], [0.6, 0.0, 0.8], [0.8, 0.0, -0.6]])  # a rotation
TILT = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])  # a gantry's tilt of 27 degrees


def affine(axes: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = axes
    return matrix


@pytest.mark.parametrize("axes", [np.eye(3), TURN * [0.01, 1.0, 100.0], TILT * [0.5, 0.5, 5.0]])
def test_axes_that_span_space_are_no_problem(axes):
    assert affine_problem(affine(axes), 3) is None


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        (np.diag([1.0, np.nan, 1.0]), "NaN or infinite"),
        (np.diag([1.0, 1.0, np.inf]), "NaN or infinite"),
        (np.diag([1.0, 0.0, 1.0]), "the voxel size 0 along axis 1"),
        (np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), "one plane"),
        (np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), "one plane"),
    ],
)
def test_axes_that_give_no_place_are_named(axes, problem):
    assert problem in affine_problem(affine(axes), 3)


def test_what_a_flat_image_says_of_the_third_axis_does_not_count():
    assert affine_problem(affine(np.diag([1.0, 1.0, 0.0])), 2) is None
    assert "plane or line" in affine_problem(affine(np.ones((3, 3))), 2)


def test_a_position_that_is_no_number_is_a_problem():
    matrix = np.eye(4)
    matrix[1, 3] = np.nan
    assert "NaN" in affine_problem(matrix, 3)


def test_a_voxel_has_a_volume_in_space_alone():
    turned = affine(TURN * [0.5, 2.0, 3.0])
    assert Geometry.in_space((4, 5, 6), turned, num_channels=1).voxel_ml == pytest.approx(0.003)
    assert Geometry.in_space((4, 5), turned, num_channels=1).voxel_ml is None
    assert Geometry.unknown((4, 5, 6), num_channels=1, is_picture=True).voxel_ml is None


@pytest.mark.parametrize("rank", [3, 4])
def test_an_affine_whose_metadata_state_lps_is_turned_to_ras_and_no_other(rank):
    given = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0][4 - rank :]))
    image = MetaTensor(torch.zeros([1] * rank), affine=given, meta={"space": "LPS"})
    turned = in_ras(image)
    assert turned.affine.diagonal()[:2].tolist() == [-given[0, 0], -given[1, 1]]
    assert turned.affine[-1, -1] == 1
    assert in_ras(turned) is turned
    assert np.array_equal(geometry_of(image).affine, geometry_of(turned).affine)
