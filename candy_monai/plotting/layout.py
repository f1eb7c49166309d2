"""Where the planes of a volume and its surface go in a picture. Numbers only: draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 10
"""Pixels between two tiles."""

CAPTION = 24
"""Pixels above each tile for its caption."""

_WIDTH = 1400
_MOST_HEIGHT = 600
_LEAST_SURFACE, _MOST_SURFACE = 240, 400
_ALONE = 768
_LEAST_ALONE = 512
_MOST_ALONE = 1600
_MOST_PIXELS_PER_MM = 40.0
_MUCH = 1.4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A tile, in pixels from the top left corner of the picture. Its caption is above it."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything goes.

    Args:
        planes: One tile for each plane, all at the same millimetres per pixel.
        surface: The square tile of the surface, if there is one.
        planes_width: Of the planes alone.
        width: Of the whole.
        height: Of the whole.
    """

    planes: tuple[Box, ...]
    surface: Box | None
    planes_width: int
    width: int
    height: int


def arrange(sizes_mm: Sequence[tuple[float, float]]) -> Layout:
    """Place three planes side by side, or the last two below each other if that shows much more; then the surface.

    Args:
        sizes_mm: Width and height of the axial, coronal and sagittal plane.
    """
    row, stack = (_arranged(sizes_mm, stack=stack) for stack in (False, True))
    return stack if stack.planes[0].width > _MUCH * row.planes[0].width else row


def alone(size_mm: tuple[float, float], shape: tuple[int, int]) -> Layout:
    """Place the only plane of a picture or of a single slice.

    Args:
        size_mm: Its width and height.
        shape: Its columns and rows. Square pixels grow by a whole number, so that they stay even.
    """
    wide, high = size_mm
    if wide / shape[0] == high / shape[1]:
        factor = max(1.0, round(_ALONE / max(shape)), -(-_LEAST_ALONE // max(shape)))
        factor = min(factor, _MOST_ALONE / max(shape))
        width, height = shape[0] * factor, shape[1] * factor
    else:
        scale = _ALONE / max(wide, high)
        width, height = wide * scale, high * scale
    box = Box(left=0, top=0, width=max(1, round(width)), height=max(1, round(height)))
    return Layout(planes=(box,), surface=None, planes_width=box.width, width=box.width, height=box.height)


def _arranged(sizes_mm: Sequence[tuple[float, float]], *, stack: bool) -> Layout:
    first, second, third = sizes_mm
    columns = [first[0], max(second[0], third[0])] if stack else [size[0] for size in sizes_mm]
    height = max(first[1], second[1] + third[1]) if stack else max(size[1] for size in sizes_mm)
    extra = CAPTION + GAP if stack else 0  # between the two planes below each other
    # The surface is as high as the planes, so that both share the width: scale * (columns + height) + gaps.
    free = _WIDTH - GAP * len(columns)
    scale = min((free - extra) / (sum(columns) + height), (_MOST_HEIGHT - extra) / height, _MOST_PIXELS_PER_MM)
    side = min(max(height * scale + extra, _LEAST_SURFACE), _MOST_SURFACE)
    if side != height * scale + extra:
        scale = min((free - side) / sum(columns), (_MOST_HEIGHT - extra) / height, _MOST_PIXELS_PER_MM)
    boxes: list[Box] = []
    left = 0
    for number, (wide, high) in enumerate(sizes_mm):
        top = CAPTION
        if stack and number == 2:
            left, top = boxes[1].left, top + boxes[1].height + extra
        boxes.append(Box(left=left, top=top, width=max(1, round(wide * scale)), height=max(1, round(high * scale))))
        left += boxes[-1].width + GAP
    right = max(box.left + box.width for box in boxes)
    bottom = max(box.top + box.height for box in boxes)
    square = Box(left=right + GAP, top=CAPTION, width=round(side), height=round(side))
    return Layout(
        planes=tuple(boxes),
        surface=square,
        planes_width=right,
        width=square.left + square.width,
        height=max(bottom, square.top + square.height),
    )
