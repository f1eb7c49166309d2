from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.plotting.rays import Camera, first_hits, scout
from candy_monai.plotting.solids import Solid

CORNERS = np.array([[0, 0, 0], [20, 20, 20]], dtype=np.float32)


def _camera(azimuth: float = 0.6, elevation: float = 0.4, size: int = 60) -> Camera:
    from dataclasses import replace

    return replace(Camera.around(CORNERS, rim_mm=8.0, azimuth=azimuth, elevation=elevation), size=size)


@given(st.floats(-3.0, 3.0), st.floats(-1.4, 1.4))
def test_the_camera_is_upright_and_no_mirror(azimuth: float, elevation: float) -> None:
    camera = _camera(azimuth, elevation)
    axes = np.stack([camera.right, camera.down, camera.forward])
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-5)
    assert np.linalg.det(axes) == pytest.approx(-1.0, abs=1e-5)  # left, back, feet is itself a left-handed frame
    assert camera.down[2] > 0  # the feet are down


def test_from_the_front_the_patients_left_is_on_the_right() -> None:
    camera = _camera(0.0, 0.0)
    assert camera.right == pytest.approx([1.0, 0.0, 0.0])
    assert camera.forward == pytest.approx([0.0, 1.0, 0.0])


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 1.3), st.floats(0.1, 1.2))
def test_every_hit_on_a_ball_lies_on_the_ball(azimuth: float, elevation: float) -> None:
    places = np.indices((20, 20, 20)) - 9.5
    filled = (places**2).sum(axis=0) <= 8.0**2
    solid = Solid.from_mask(filled, low_mm=np.zeros(3, dtype=np.float32), spacing_mm=(1.0, 1.0, 1.0), max_volume=10**6)
    camera = _camera(azimuth, elevation)
    begin, end = scout(solid, camera)
    rays, points = first_hits(solid, camera.origins(), camera.forward, begin, end)
    radii = np.linalg.norm(points - 10.0, axis=1)
    assert radii == pytest.approx(np.full(len(rays), 8.0), abs=0.8)  # within a voxel
    assert len(rays) == pytest.approx(math.pi * 8.0**2 / camera.pixel_mm**2, rel=0.08)
    assert ((points - 10.0) @ camera.forward < 1.5).all()  # on the near side


def test_scouting_never_loses_a_hit() -> None:
    rng = np.random.default_rng(3)
    filled = rng.random((20, 20, 20)) > 0.93
    solid = Solid.from_mask(filled, low_mm=np.zeros(3, dtype=np.float32), spacing_mm=(1.0, 1.0, 1.0), max_volume=10**6)
    camera = _camera(size=90)
    begin, end = scout(solid, camera)
    scouted, points = first_hits(solid, camera.origins(), camera.forward, begin, end)
    everything, reference = first_hits(
        solid,
        camera.origins(),
        camera.forward,
        np.full(90 * 90, -60, dtype=np.float32),
        np.full(90 * 90, 60, dtype=np.float32),
    )
    one, other = set(scouted.tolist()), set(everything.tolist())
    assert len(one ^ other) <= 0.02 * len(other)  # other starting points see other grazing hits
    assert len(points) == len(scouted)
    assert len(reference) > 1000
