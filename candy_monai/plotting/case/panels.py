"""Draw a case in one row, or in one square, for sheets of several cases."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from candy_monai.plotting.canvas import drawing
from candy_monai.plotting.canvas.arrays import ImageLike, Pixels
from candy_monai.plotting.case.layout import CAPTION, GAP, Box
from candy_monai.plotting.case.pictures import CasePictures, dice_by_class, write_caption

_HEIGHT = 320


def case_panel(image: ImageLike, label: ImageLike, prediction: ImageLike) -> Pixels:
    """Draw a case in one row: image, reference, prediction with its mean Dice, and for a volume the two surfaces.

    For an image ``(C, *spatial)`` the plane with the smallest pixels is shown; labels are ids ``(1, *spatial)``.
    """
    case = CasePictures(image, [label, prediction])
    plane, size = case.finest_plane, _size_in_a_row(case)
    dice = dice_by_class(case.ids[0], case.ids[1])
    score = f", Dice {fmean(dice.values()):.3f}" if dice else ""
    tiles = [
        ("image", case.plane(plane, size)),
        ("reference", case.plane(plane, size, layer=0)),
        (f"prediction{score}", case.plane(plane, size, layer=1)),
        ("reference", case.surface(0, _HEIGHT)),
        ("prediction", case.surface(1, _HEIGHT)),
    ]
    return _in_a_row([(name, tile) for name, tile in tiles if tile is not None])


def region_panel(image: ImageLike, label: ImageLike, prediction: ImageLike, region: ImageLike) -> Pixels:
    """Draw the plane of a case through a region, which is 1, else 0: image, region, label and prediction.

    The image is ``(C, *spatial)``, the others are ids ``(1, *spatial)``.
    """
    case = CasePictures(image, [region, label, prediction])
    plane, size = case.finest_plane, _size_in_a_row(case)
    layers = {"image": None, "region": 0, "label": 1, "prediction": 2}
    return _in_a_row([(name, case.plane(plane, size, layer=layer)) for name, layer in layers.items()])


def case_tile(image: ImageLike, label: ImageLike, *, size: int) -> Pixels:
    """Draw the most informative slice of a case as ``case_panel`` does, with its label, in a black square."""
    case = CasePictures(image, [label])
    wide, high = case.size_mm(case.finest_plane)
    height, width = (max(1, round(size * side / max(wide, high))) for side in (high, wide))
    canvas = drawing.blank(size, size, 0)
    picture = case.plane(case.finest_plane, (height, width), layer=0)
    drawing.paste(canvas, picture, (size - height) // 2, (size - width) // 2)
    return canvas


def _size_in_a_row(case: CasePictures) -> tuple[int, int]:
    """Return height and width of the plane with the smallest pixels in a row."""
    wide, high = case.size_mm(case.finest_plane)
    return _HEIGHT, max(1, min(round(_HEIGHT * wide / high), 3 * _HEIGHT))


def _in_a_row(tiles: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Return pictures of the same height side by side, each below its name."""
    canvas = drawing.blank(CAPTION + _HEIGHT, sum(tile.shape[1] + GAP for _, tile in tiles) - GAP)
    left = 0
    for name, tile in tiles:
        box = Box(left=left, top=CAPTION, width=tile.shape[1], height=_HEIGHT)
        write_caption(canvas, box, name)
        drawing.paste(canvas, tile, box.top, box.left)
        left = box.right + GAP
    return canvas
