from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.plotting.case.layout import CAPTION, Layout, alone, arrange

LENGTH = st.floats(5.0, 2000.0)


def _sizes(x: float, y: float, z: float) -> list[tuple[float, float]]:
    return [(x, y), (x, z), (y, z)]


@given(LENGTH, LENGTH, LENGTH)
def test_tiles_and_captions_never_overlap_and_lie_inside(x: float, y: float, z: float) -> None:
    layout = arrange(_sizes(x, y, z))
    assert layout.surface is not None
    boxes = [*layout.planes, layout.surface]
    for box in boxes:
        assert box.top >= CAPTION
        assert box.right <= layout.surface.right
        assert box.bottom <= layout.height
    for one, other in combinations(boxes, 2):
        beside = one.left + one.width < other.left or other.left + other.width < one.left
        below = one.top + one.height <= other.top - CAPTION or other.top + other.height <= one.top - CAPTION
        assert beside or below
    assert layout.surface.right <= 1420


@given(LENGTH, LENGTH, LENGTH)
def test_all_planes_share_one_scale(x: float, y: float, z: float) -> None:
    planes = arrange(_sizes(x, y, z)).planes
    assert abs(planes[0].width - planes[1].width) <= 1
    assert abs(planes[1].height - planes[2].height) <= 1
    assert abs(planes[0].height - planes[2].width) <= 1


def test_flat_volumes_put_two_planes_below_each_other() -> None:
    planes = arrange(_sizes(192.0, 192.0, 40.0)).planes
    assert planes[2].left == planes[1].left
    assert planes[2].top > planes[1].top


def _size(layout: Layout) -> tuple[int, int]:
    return layout.width, layout.height


@pytest.mark.parametrize(
    ("shape", "size"),
    [((48, 48), (768, 768)), ((565, 584), (565, 584)), ((256, 200), (768, 600)), ((4000, 2000), (1600, 800))],
)
def test_square_pixels_grow_by_whole_numbers(shape: tuple[int, int], size: tuple[int, int]) -> None:
    assert _size(alone((float(shape[0]), float(shape[1])), shape)) == size


def test_long_pixels_keep_their_proportion() -> None:
    assert _size(alone((100.0, 50.0), (10, 50))) == (768, 384)
