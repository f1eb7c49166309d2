"""One picture or one volume as a figure, for notebooks and scripts. Owns no drawing of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.plotting import drawing
from candy_monai.plotting.cases import CasePictures
from candy_monai.plotting.display import ImageLike, Pixels, as_array, as_ids, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE_SIZE = 20
_MARGIN = 10


def visualize2d(
    image: ImageLike,
    *,
    title: str | None = None,
    cmap: str | None = None,
    is_label: bool = False,
    screenshot_as: PathLike | None = None,
) -> Figure:
    """Show a picture.

    Args:
        image: ``(C, H, W)`` or ``(H, W)``. Three channels that look like a picture are shown in colour, of others the
            first is shown, stretched between robust percentiles.
        title: Written above.
        cmap: A colour map of matplotlib for one channel, by default grey.
        is_label: Whether the values are label ids, each to be shown in its own colour.
        screenshot_as: A PNG file to write as well.

    Returns:
        The figure. A notebook shows it if it is a cell's last value.

    Raises:
        BadInputError: If the image has another number of axes, or there is no such colour map.
    """
    return _visualize(image, 2, title=title, cmap=cmap, is_label=is_label, screenshot_as=screenshot_as)


def visualize3d(
    image: ImageLike,
    *,
    title: str | None = None,
    cmap: str | None = None,
    max_volume: int = 1_000_000,
    is_label: bool = False,
    spacing_mm: Sequence[float] | None = None,
    screenshot_as: PathLike | None = None,
) -> Figure:
    """Show a volume: three planes and, of a label, its surface.

    Planes of an image are cut through its middle, those of a label where most can be seen of its classes.

    Args:
        image: ``(C, D, H, W)`` or ``(D, H, W)``; the first channel is shown. A MetaTensor's affine sets the proportions
            and the directions; otherwise the axes are taken for RAS.
        title: Written above.
        cmap: A colour map of matplotlib for images, by default grey.
        max_volume: Most voxels of the surface.
        is_label: Whether the values are label ids.
        spacing_mm: Of the three axes; overrides the affine's.
        screenshot_as: A PNG file to write as well.

    Returns:
        The figure. A notebook shows it if it is a cell's last value.

    Raises:
        BadInputError: If the image has another number of axes, or there is no such colour map.
    """
    if max_volume < 1:
        raise BadInputError(f"max_volume is {max_volume}: expected at least 1 voxel")
    return _visualize(
        image,
        3,
        title=title,
        cmap=cmap,
        is_label=is_label,
        screenshot_as=screenshot_as,
        spacing_mm=spacing_mm,
        max_volume=max_volume,
    )


def _visualize(
    image: ImageLike,
    num_spatial: int,
    *,
    title: str | None,
    cmap: str | None,
    is_label: bool,
    screenshot_as: PathLike | None,
    spacing_mm: Sequence[float] | None = None,
    max_volume: int = 1_000_000,
) -> Figure:
    from candy_monai.plotting.figures import figure_of, save_figure

    _check_axes(image, num_spatial)
    labels: list[ImageLike] = [as_ids(image, num_spatial)] if is_label else []
    case = CasePictures(image, labels, num_spatial=num_spatial, spacing_mm=spacing_mm, max_volume=max_volume)
    if is_label:
        square = case.layout().surface
        panel = case.panel(image=False, layer=0, surface=None if square is None else case.surface(0, square.width))
        legend = case.legend([0], panel.shape[1])
        parts = [panel] if legend is None else [panel, legend]
    else:
        parts = [case.panel(image=True, tint=None if cmap is None else _tint(cmap))]
    if title:
        parts.insert(0, drawing.line_of_text(title, parts[0].shape[1], _TITLE_SIZE, bold=True))
    figure = figure_of(drawing.framed(drawing.stacked(parts, gap=_MARGIN // 2), _MARGIN))
    if screenshot_as is not None:
        save_figure(figure, screenshot_as)
    return figure


def _check_axes(image: ImageLike, num_spatial: int) -> None:
    ndim = as_array(image).ndim if not hasattr(image, "ndim") else image.ndim
    if ndim not in (num_spatial, num_spatial + 1):
        axes = "H, W" if num_spatial == 2 else "D, H, W"
        other = ". visualize3d shows volumes" if num_spatial == 2 else ". visualize2d shows pictures"
        raise BadInputError(
            f"visualize{num_spatial}d got {ndim} axes: expected ({axes}) or (C, {axes}) without a batch axis{other}"
        )


def _tint(name: str) -> Pixels:
    """Return the 256 colours of a colour map."""
    from matplotlib import colormaps

    if name not in colormaps:
        raise BadInputError(f"there is no colour map {name!r}.{did_you_mean(name, list(colormaps))}")
    return to_pixels(colormaps[name](np.linspace(0.0, 1.0, 256))[:, :3])
