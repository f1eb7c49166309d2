"""The positions of the planes and the surface of a volume in a picture, in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 10  # between two tiles
CAPTION = 24  # above each tile

_WIDTH = 1400
_MOST_HEIGHT = 600
_LEAST_SURFACE, _MOST_SURFACE = 240, 400
_ALONE, _LEAST_ALONE, _MOST_ALONE = 768, 512, 1600
_MOST_PIXELS_PER_MM = 40.0
_MUCH = 1.4


@dataclass(frozen=True, kw_only=True)
class Box:
    """A tile, relative to the top left corner of the picture. Its caption is above it."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column to the right of it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A tile for each plane, all with the same millimetres per pixel, and a square one for the surface, if any."""

    planes: tuple[Box, ...]
    surface: Box | None = None

    @property
    def width(self) -> int:
        """The width of the planes alone."""
        return max(box.right for box in self.planes)

    @property
    def height(self) -> int:
        """The total height."""
        return max(box.bottom for box in (*self.planes, self.surface or self.planes[0]))


def arrange(sizes_mm: Sequence[tuple[float, float]]) -> Layout:
    """Place three planes of given sizes side by side, or two below each other if they are then much larger.

    The surface is on the right.
    """
    row, stack = (_arranged(sizes_mm, stack=stack) for stack in (False, True))
    return stack if stack.planes[0].width > _MUCH * row.planes[0].width else row


def alone(size_mm: tuple[float, float], shape: tuple[int, int]) -> Layout:
    """Place the only plane of a picture or a slice, given its width and height and its columns and rows.

    Square pixels are enlarged by an integer factor, so that they stay even.
    """
    wide, high = size_mm
    if wide / shape[0] == high / shape[1]:
        factor = max(1.0, round(_ALONE / max(shape)), -(-_LEAST_ALONE // max(shape)))
        factor = min(factor, _MOST_ALONE / max(shape))
        width, height = shape[0] * factor, shape[1] * factor
    else:
        scale = _ALONE / max(wide, high)
        width, height = wide * scale, high * scale
    return Layout(planes=(Box(left=0, top=0, width=max(1, round(width)), height=max(1, round(height))),))


def _arranged(sizes_mm: Sequence[tuple[float, float]], *, stack: bool) -> Layout:
    first, second, third = sizes_mm
    columns = [first[0], max(second[0], third[0])] if stack else [size[0] for size in sizes_mm]
    height = max(first[1], second[1] + third[1]) if stack else max(size[1] for size in sizes_mm)
    extra = CAPTION + GAP if stack else 0  # between the two stacked planes
    # The surface is as high as the planes, so that both share the width: scale * (columns + height) + gaps.
    free = _WIDTH - GAP * len(columns)
    most = min((_MOST_HEIGHT - extra) / height, _MOST_PIXELS_PER_MM)
    scale = min((free - extra) / (sum(columns) + height), most)
    side = min(max(height * scale + extra, _LEAST_SURFACE), _MOST_SURFACE)
    if side != height * scale + extra:
        scale = min((free - side) / sum(columns), most)
    boxes: list[Box] = []
    left, top = 0, CAPTION
    for wide, high in sizes_mm:
        if stack and len(boxes) == 2:
            left, top = boxes[1].left, boxes[1].bottom + extra
        boxes.append(Box(left=left, top=top, width=max(1, round(wide * scale)), height=max(1, round(high * scale))))
        left = boxes[-1].right + GAP
    square = Box(left=max(box.right for box in boxes) + GAP, top=CAPTION, width=round(side), height=round(side))
    return Layout(planes=tuple(boxes), surface=square)
