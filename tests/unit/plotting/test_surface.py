from __future__ import annotations

import numpy as np
import pytest

from candy_monai.plotting import surface
from candy_monai.plotting.canvas.colors import class_color
from candy_monai.plotting.surface import camera_for, render_surface

ISOTROPIC = (1.0, 1.0, 1.0)


def _ball(side: int, radius: float, value: int = 1) -> np.ndarray:
    places = np.indices((side, side, side)) - (side - 1) / 2
    return np.where((places**2).sum(axis=0) <= radius**2, value, 0)


def _painted(picture: np.ndarray) -> np.ndarray:
    return (picture < 250).any(axis=2)


@pytest.fixture
def ids_drawn(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    seen: set[int] = set()
    colorize = surface.colorize

    def spy(ids: np.ndarray) -> np.ndarray:
        seen.update(np.unique(ids).tolist())
        return colorize(ids)

    monkeypatch.setattr(surface, "colorize", spy)
    return seen


def test_a_ball_is_a_disc() -> None:
    painted = _painted(render_surface(_ball(30, 12.0), spacing_mm=ISOTROPIC, size=120))
    rows, columns = np.nonzero(painted)
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert abs(width - height) <= 2
    assert painted.sum() == pytest.approx(np.pi / 4 * width * height, rel=0.02)


def test_a_ball_keeps_its_size_in_millimetres() -> None:
    label = _ball(30, 12.0)
    camera = camera_for([label], ISOTROPIC)
    assert camera is not None
    painted = _painted(render_surface(label, spacing_mm=ISOTROPIC, size=200))
    radius = np.sqrt(painted.sum() / np.pi) * (camera.high_mm - camera.low_mm)[:2].max() / (200 * 0.9)
    assert radius == pytest.approx(12.0, abs=0.7)


def test_thick_slices_of_a_ball_still_look_round() -> None:
    ball = _ball(40, 17.0)
    camera = camera_for([ball], ISOTROPIC)
    fine = _painted(render_surface(ball, spacing_mm=ISOTROPIC, size=160, camera=camera))
    thick = _painted(render_surface(ball[:, :, 2::5], spacing_mm=(1.0, 1.0, 5.0), size=160, camera=camera))
    overlap = 2 * (fine & thick).sum() / (fine.sum() + thick.sum())
    assert overlap > 0.95


@pytest.mark.parametrize("spacing_mm", [ISOTROPIC, (1.0, 1.0, 4.0)])
def test_a_thread_of_one_voxel_is_drawn_whole(spacing_mm: tuple[float, float, float]) -> None:
    label = np.zeros((30, 5, 5), dtype=int)
    label[:, 2, 2] = 1
    columns = _painted(render_surface(label, spacing_mm=spacing_mm, size=120)).any(axis=0)
    assert columns[20:100].all()  # the picture has a rim of one slice


def test_a_plate_of_one_voxel_between_thick_slices_has_no_holes() -> None:
    label = np.zeros((40, 40, 8), dtype=int)
    label[5:35, 20, :] = 1
    picture = render_surface(label, spacing_mm=(1.0, 1.0, 5.0), size=160)
    painted = _painted(picture)
    first, last = (np.flatnonzero(painted.any(axis=0))[[0, -1]]).tolist()
    middle = painted[60:100, (first + last) // 2 - 20 : (first + last) // 2 + 20]
    assert middle.all()


def test_an_empty_label_is_white() -> None:
    assert (render_surface(np.zeros((4, 5, 6), dtype=int), spacing_mm=ISOTROPIC, size=50) == 255).all()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 5), (2, 1, 9), (40, 3, 2)])
def test_a_volume_full_of_one_class_is_drawn(shape: tuple[int, int, int]) -> None:
    assert _painted(render_surface(np.ones(shape, dtype=np.uint8), spacing_mm=ISOTROPIC, size=60)).sum() > 20


def test_a_single_voxel_is_seen() -> None:
    label = np.zeros((20, 20, 20), dtype=int)
    label[4:16, 4:16, 4:6] = 1
    camera = camera_for([label], ISOTROPIC)
    alone = np.zeros_like(label)
    alone[10, 10, 5] = 2
    assert _painted(render_surface(alone, spacing_mm=ISOTROPIC, size=200, camera=camera)).sum() > 20


def test_no_id_appears_that_is_not_in_the_label(ids_drawn: set[int]) -> None:
    rng = np.random.default_rng(0)
    label = np.where(rng.random((16, 16, 8)) > 0.6, rng.choice([1, 5, 900, -3], (16, 16, 8)), 0)
    render_surface(label, spacing_mm=(1.0, 1.0, 3.0), size=100, max_volume=500)
    assert ids_drawn - {0} <= {1, 5, 900, -3}
    assert len(ids_drawn) > 2


def test_a_class_enclosed_by_another_shines_through(ids_drawn: set[int]) -> None:
    label = _ball(24, 11.0) + _ball(24, 4.0)
    picture = render_surface(label, spacing_mm=ISOTROPIC, size=100)
    hull_only = render_surface(_ball(24, 11.0), spacing_mm=ISOTROPIC, size=100)
    assert ids_drawn == {1, 2}
    shown = np.abs(picture.astype(int) - hull_only).sum(axis=2) > 30
    assert shown[40:60, 40:60].all()
    assert not shown[:20].any()


def test_the_patients_left_and_top_are_right_and_up_in_the_picture() -> None:
    label = np.zeros((21, 21, 21), dtype=int)  # axes run to the left, the back and the feet
    label[15:19, 8:12, 2:6] = 1
    label[2:6, 8:12, 15:19] = 2
    picture = render_surface(label, spacing_mm=ISOTROPIC, size=120)
    blue = picture[..., 2].astype(int) - picture[..., 0] > 40
    orange = picture[..., 0].astype(int) - picture[..., 2] > 40
    assert class_color(1)[2] > class_color(1)[0]
    assert np.nonzero(blue)[1].mean() > np.nonzero(orange)[1].mean()
    assert np.nonzero(blue)[0].mean() < np.nonzero(orange)[0].mean()


def test_a_shared_camera_shows_two_labels_in_the_same_place() -> None:
    large, small = _ball(30, 12.0), _ball(30, 6.0)
    camera = camera_for([large, small], ISOTROPIC)
    sizes = [
        _painted(render_surface(label, spacing_mm=ISOTROPIC, size=120, camera=camera)).sum() for label in (large, small)
    ]
    assert sizes[0] / sizes[1] == pytest.approx(4.0, rel=0.2)


def test_the_surface_is_brighter_on_the_side_of_the_lamp() -> None:
    picture = render_surface(_ball(30, 12.0), spacing_mm=ISOTROPIC, size=120).sum(axis=2).astype(int)
    assert picture[40, 40] > picture[85, 85]  # the lamp is at the upper left


def test_a_label_outside_of_the_picture_leaves_it_white() -> None:
    near, far = np.zeros((2, 60, 20, 20), dtype=int)
    near[:5], far[-5:] = 1, 1
    assert (render_surface(far, spacing_mm=ISOTROPIC, size=60, camera=camera_for([near], ISOTROPIC)) == 255).all()


def test_no_foreground_has_no_camera() -> None:
    assert camera_for([np.zeros((3, 3, 3), dtype=int)], ISOTROPIC) is None
