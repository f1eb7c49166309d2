from __future__ import annotations

import numpy as np
import pytest

from candy_monai.plotting.solids import LEVEL, Solid

ORIGIN = np.zeros(3, dtype=np.float32)


def _at(solid: Solid, *point_mm: float) -> float:
    return float(solid.occupancy(solid.to_grid(np.array([point_mm], dtype=np.float32)))[0])


def test_a_block_is_solid_inside_and_empty_outside() -> None:
    solid = Solid.from_mask(
        np.ones((10, 10, 10), dtype=bool), low_mm=ORIGIN, spacing_mm=(1.0, 1.0, 1.0), max_volume=10**6
    )
    assert _at(solid, 5.0, 5.0, 5.0) > 0.99
    assert _at(solid, -2.0, 5.0, 5.0) < 0.01
    assert _at(solid, 0.0, 5.0, 5.0) == pytest.approx(LEVEL, abs=0.02)  # the face of the outermost voxels


def test_no_more_voxels_are_used_than_allowed() -> None:
    solid = Solid.from_mask(
        np.ones((60, 60, 60), dtype=bool), low_mm=ORIGIN, spacing_mm=(1.0, 1.0, 1.0), max_volume=8000
    )
    assert [side - 6 for side in solid.field.shape[2:]] == [20, 20, 20]
    assert solid.step_mm == pytest.approx(3.0)
    assert _at(solid, 30.0, 30.0, 0.0) == pytest.approx(LEVEL, abs=0.02)


def test_normals_point_outwards() -> None:
    solid = Solid.from_mask(
        np.ones((10, 10, 10), dtype=bool), low_mm=ORIGIN, spacing_mm=(1.0, 1.0, 1.0), max_volume=10**6
    )
    faces = np.array([[0.0, 5.0, 5.0], [5.0, 10.0, 5.0]], dtype=np.float32)
    assert solid.normals(faces) == pytest.approx(np.array([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), abs=0.02)


def test_between_thick_slices_the_outline_moves_evenly() -> None:
    filled = np.zeros((40, 40, 2), dtype=bool)
    filled[:, :10, 0] = filled[:, :20, 1] = True  # the edge moves from 10 mm to 20 mm
    solid = Solid.from_mask(filled, low_mm=ORIGIN, spacing_mm=(1.0, 1.0, 8.0), max_volume=10**6)
    assert _at(solid, 20.0, 13.0, 8.0) > LEVEL  # halfway it is at 15 mm
    assert _at(solid, 20.0, 17.0, 8.0) < LEVEL


def test_openness_is_less_in_a_groove() -> None:
    filled = np.ones((30, 30, 30), dtype=bool)
    filled[:, 13:17, 15:] = False
    solid = Solid.from_mask(filled, low_mm=ORIGIN, spacing_mm=(1.0, 1.0, 1.0), max_volume=10**6)
    up = np.array([[0.0, 0.0, 1.0]] * 2, dtype=np.float32)
    groove, plane = solid.openness(np.array([[15.0, 15.0, 15.0], [15.0, 4.0, 30.0]], dtype=np.float32), up)
    assert groove < plane
