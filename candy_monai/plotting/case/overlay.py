"""Label overlays on images: a translucent area and an opaque outline for every class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.arrays import Floats, Ids, ImageLike, as_channels, as_ids, has_colors, to_rgb
from candy_monai.plotting.canvas.colors import colorize


def overlay(
    image: ImageLike, label: ImageLike, *, max_label_opacity: float = 0.5, contour: bool = True, rgb: bool | None = None
) -> torch.Tensor:
    """Draw a label over a picture.

    Intensities are scaled between robust percentiles. Three channels that look like a colour picture are drawn in
    colour; of two, or more than three, the first is drawn in grey.

    Args:
        image: ``(C, H, W)`` or ``(H, W)``, any range of values.
        label: ``(1, H, W)`` or ``(H, W)``, label ids; 0 is transparent.
        max_label_opacity: Opacity of the areas, 0 to 1. An outline is always opaque, and with it the area has half of
            this opacity, so that the image remains visible.
        contour: Whether to draw the outline of every class, one pixel wide along the inside.
        rgb: Whether three channels are colours; ``None`` decides by their values.

    Returns:
        ``(3, H, W)`` float32 in 0..1, on the CPU.

    Raises:
        BadInputError: If the shapes do not match, or the opacity is outside 0..1.
    """
    if not 0.0 <= max_label_opacity <= 1.0:
        raise BadInputError(f"max_label_opacity is {max_label_opacity}: expected 0 to 1")
    channels, ids = as_channels(image, 2), as_ids(label, 2)
    if channels.shape[1:] != ids.shape:
        raise BadInputError(f"the image is {channels.shape[1:]} and the label {ids.shape}: expected the same size")
    picture = to_rgb(channels, rgb=has_colors(channels, rgb))
    painted = blend(picture, ids, opacity=max_label_opacity / (1 + contour), line_width=int(contour))
    return torch.from_numpy(np.ascontiguousarray(painted.transpose(2, 0, 1)))


def blend(picture: Floats, ids: Ids, *, opacity: float, line_width: int) -> Floats:
    """Return a picture ``(H, W, 3)`` in 0..1 with the colours of label ids ``(H, W)`` mixed in."""
    colors = colorize(ids).astype(np.float32) / np.float32(255.0)
    weight = np.where(ids != 0, np.float32(opacity), np.float32(0.0))
    weight[outline(ids, line_width)] = 1.0
    return picture + (colors - picture) * weight[..., None]


def outline(ids: Ids, width: int) -> NDArray[np.bool_]:
    """Return the pixels of each class within ``width`` of another class or the background.

    The border of the picture is not an outline, as the class may continue beyond it.
    """
    height, breadth = ids.shape
    padded = np.pad(ids, width, mode="edge")
    found: NDArray[np.bool_] = np.zeros(ids.shape, dtype=np.bool_)
    for reach in range(1, width + 1):
        for down, right in np.ndindex(3, 3):
            top, left = width + reach * (down - 1), width + reach * (right - 1)
            found |= padded[top : top + height, left : left + breadth] != ids
    found &= ids != 0
    return found
