"""A case in one row: what went in, what was expected, what came out. Writes no files."""

from __future__ import annotations

from collections.abc import Sequence

from candy_monai.plotting import drawing
from candy_monai.plotting.cases import CasePictures, paste, spatial_axes, write_caption
from candy_monai.plotting.display import ImageLike, Pixels
from candy_monai.plotting.layout import CAPTION, GAP, Box
from candy_monai.plotting.scores import Dice
from candy_monai.plotting.slices import Plane


def case_panel(
    image: ImageLike,
    label: ImageLike,
    prediction: ImageLike,
    *,
    num_spatial: int | None = None,
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
    height: int = 320,
    captions: bool = True,
    surfaces: bool = True,
) -> Pixels:
    """Draw a case in one row: image, reference, prediction, and for a volume the two surfaces.

    Of a volume the plane with the smallest pixels is shown.

    Args:
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)`` label ids.
        prediction: ``(1, *spatial)`` label ids.
        num_spatial: 2 or 3; by default the label's number of axes less its channel.
        spacing_mm: Of the three axes of a volume; by default the image's affine tells.
        orientation: Axis codes of a volume; by default the image's affine tells.
        height: Of each picture in pixels.
        captions: Whether to write above each what it is, with the mean Dice above the prediction.
        surfaces: Whether to draw surfaces.

    Returns:
        ``(H, W, 3)`` 8 bit, on white.

    Raises:
        BadInputError: If shapes do not fit.
    """
    case = CasePictures(
        image,
        [label, prediction],
        num_spatial=spatial_axes(label) if num_spatial is None else num_spatial,
        spacing_mm=spacing_mm,
        orientation=orientation,
    )
    plane = max(case.planes, key=lambda plane: _fineness(case, plane))
    wide, high = case.size_mm(plane)
    size = (height, max(1, min(round(height * wide / high), 3 * height)))
    names = ["image", "reference", "prediction"]
    tiles = [case.plane(plane, size, image=True, layer=layer) for layer in (None, 0, 1)]
    if surfaces and case.has_surface:
        names += ["reference", "prediction"]
        tiles += [case.surface(layer, height) for layer in (0, 1)]
    mean = Dice.between(case.ids[0], case.ids[1]).mean
    if mean is not None:
        names[2] = f"prediction, Dice {mean:.3f}"
    left, canvas = 0, drawing.blank(height + CAPTION * captions, sum(tile.shape[1] + GAP for tile in tiles) - GAP)
    for name, tile in zip(names, tiles, strict=True):
        box = Box(left=left, top=CAPTION * captions, width=tile.shape[1], height=height)
        if captions:
            write_caption(canvas, box, name)
        paste(canvas, box, tile)
        left += box.width + GAP
    return canvas


def case_tile(
    image: ImageLike,
    label: ImageLike,
    *,
    size: int = 256,
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
) -> Pixels:
    """Draw the most telling slice of a case with its label over it, in a square.

    Args:
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)`` label ids.
        size: Of the square in pixels.
        spacing_mm: Of the three axes of a volume; by default the image's affine tells.
        orientation: Axis codes of a volume; by default the image's affine tells.

    Returns:
        ``(size, size, 3)`` 8 bit, on black.

    Raises:
        BadInputError: If shapes do not fit.
    """
    case = CasePictures(image, [label], num_spatial=spatial_axes(label), spacing_mm=spacing_mm, orientation=orientation)
    plane = max(case.planes, key=lambda plane: _fineness(case, plane))
    wide, high = case.size_mm(plane)
    height, width = (max(1, round(size * side / max(wide, high))) for side in (high, wide))
    canvas = drawing.blank(size, size, (0, 0, 0))
    box = Box(left=(size - width) // 2, top=(size - height) // 2, width=width, height=height)
    paste(canvas, box, case.plane(plane, (height, width), image=True, layer=0))
    return canvas


def _fineness(case: CasePictures, plane: Plane) -> float:
    wide, high = case.size_mm(plane)
    return plane.cut(case.ids[0], 0).size / (wide * high)
