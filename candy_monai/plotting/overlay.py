"""Labels drawn over images: a translucent area and a crisp line for every class. Owns no files and no layout."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from candy_monai.errors import BadInputError
from candy_monai.plotting.colors import colorize
from candy_monai.plotting.display import ImageLike, Pixels, as_channels, as_ids, to_rgb


def overlay(
    image: ImageLike,
    label: ImageLike,
    *,
    max_label_opacity: float = 0.5,
    contour: bool = True,
    rgb: bool | None = None,
) -> torch.Tensor:
    """Draw a label over a picture.

    The image's intensities are stretched between robust percentiles. Three channels that look like a picture are drawn
    in colour; of two, or more than three, the first is drawn in grey.

    Args:
        image: ``(C, H, W)`` or ``(H, W)``, any range of values.
        label: ``(1, H, W)`` or ``(H, W)``, label ids; 0 is left transparent.
        max_label_opacity: Opacity of the areas, 0 to 1. A contour is always opaque, and with one the area is drawn at
            half of this, so that the image below remains visible.
        contour: Whether to draw the outline of every class, inside of it and one pixel wide.
        rgb: Whether three channels are colours; ``None`` looks at them.

    Returns:
        ``(3, H, W)`` float32 in 0..1, on the CPU.

    Raises:
        BadInputError: If the shapes do not fit each other, or the opacity is outside 0..1.
    """
    if not 0.0 <= max_label_opacity <= 1.0:
        raise BadInputError(f"max_label_opacity is {max_label_opacity}: expected 0 to 1")
    channels, ids = as_channels(image, 2), as_ids(label, 2)
    if channels.shape[1:] != ids.shape:
        raise BadInputError(f"the image is {channels.shape[1:]} and the label {ids.shape}: expected the same size")
    painted = blend(
        to_rgb(channels, rgb=rgb),
        ids,
        opacity=max_label_opacity / 2 if contour else max_label_opacity,
        line_width=1 if contour else 0,
    )
    return torch.from_numpy(np.ascontiguousarray(painted.transpose(2, 0, 1)))


def blend(
    picture: NDArray[np.float32], ids: NDArray[np.integer], *, opacity: float, line_width: int
) -> NDArray[np.float32]:
    """Mix the colours of the classes into a picture.

    Args:
        picture: ``(H, W, 3)`` in 0..1.
        ids: ``(H, W)`` label ids.
        opacity: Of the areas, 0 to 1.
        line_width: Of the outlines in pixels; 0 draws none.

    Returns:
        A new picture of the same shape.
    """
    colors = colorize(ids).astype(np.float32) / np.float32(255.0)
    weight = np.where(ids != 0, np.float32(opacity), np.float32(0.0))
    if line_width > 0:
        weight[outline(ids, line_width)] = 1.0
    return picture + (colors - picture) * weight[..., None]


def blend_pixels(pixels: Pixels, ids: NDArray[np.integer], *, opacity: float, line_width: int) -> Pixels:
    """Mix the colours of the classes into 8-bit pixels; see ``blend``.

    Args:
        pixels: ``(H, W, 3)``.
        ids: ``(H, W)`` label ids.
        opacity: Of the areas, 0 to 1.
        line_width: Of the outlines in pixels; 0 draws none.
    """
    rows, columns = np.nonzero(ids)
    painted = pixels.copy()
    if rows.size == 0:
        return painted
    area = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    # One pixel more on each side lets the outline see the background beyond the area.
    grown = tuple(slice(max(0, side.start - line_width), side.stop + line_width) for side in area)
    below = painted[grown].astype(np.float32) / np.float32(255.0)
    mixed = blend(below, ids[grown], opacity=opacity, line_width=line_width)
    painted[grown] = np.rint(mixed * 255.0).astype(np.uint8)
    return painted


def outline(ids: NDArray[np.integer], width: int) -> NDArray[np.bool_]:
    """Find the pixels of each class that lie within ``width`` of another class or the background.

    The border of the picture is no outline: the class may go on beyond it.

    Args:
        ids: ``(H, W)`` label ids.
        width: In pixels, at least 1.
    """
    height, breadth = ids.shape
    padded = np.pad(ids, width, mode="edge")
    found: NDArray[np.bool_] = np.zeros(ids.shape, dtype=np.bool_)
    for reach in range(1, width + 1):
        for down, right in _NEIGHBOURS:
            top, left = width + reach * down, width + reach * right
            found |= padded[top : top + height, left : left + breadth] != ids
    found &= ids != 0
    return found


_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
