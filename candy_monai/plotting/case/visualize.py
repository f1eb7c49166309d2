"""Show one picture or one volume as a figure, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.plotting.canvas.arrays import ImageLike, Pixels, as_ids, to_pixels
from candy_monai.plotting.case.pictures import CasePictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def visualize2d(
    image: ImageLike,
    *,
    title: str | None = None,
    cmap: str | None = None,
    is_label: bool = False,
    class_names: Mapping[int, str] | Sequence[str] = (),
    screenshot_as: PathLike | None = None,
) -> Figure:
    """Show a picture.

    Args:
        image: ``(C, H, W)`` or ``(H, W)``. Three channels that look like a colour picture are shown in colour;
            otherwise the first is shown, scaled between robust percentiles.
        title: The title above the picture.
        cmap: A Matplotlib colour map for one channel, by default grey.
        is_label: Whether the values are label ids, each shown in its own colour.
        class_names: Names by label id, or in order from the background, for the legend of a label.
        screenshot_as: A PNG file to also write.

    Returns:
        The figure. A notebook displays it if it is a cell's last value.

    Raises:
        BadInputError: If the image has another number of axes, or the colour map does not exist.
    """
    return _figure(_case(image, 2, is_label, None, 1, class_names), title, cmap, is_label, screenshot_as)


def visualize3d(
    image: ImageLike,
    *,
    title: str | None = None,
    cmap: str | None = None,
    max_volume: int = 1_000_000,
    is_label: bool = False,
    class_names: Mapping[int, str] | Sequence[str] = (),
    spacing_mm: Sequence[float] | None = None,
    screenshot_as: PathLike | None = None,
) -> Figure:
    """Show a volume: three planes and, for a label, its surface.

    The planes of an image are its middle slices, those of a label the most informative slices.

    Args:
        image: ``(C, D, H, W)`` or ``(D, H, W)``; the first channel is shown. A MetaTensor's affine sets the proportions
            and the directions; otherwise RAS axes are assumed.
        title: The title above the picture.
        cmap: A Matplotlib colour map for images, by default grey.
        max_volume: The maximum number of voxels for the surface.
        is_label: Whether the values are label ids.
        class_names: Names by label id, or in order from the background, for the legend of a label.
        spacing_mm: The spacing of the three axes; overrides the affine's.
        screenshot_as: A PNG file to also write.

    Returns:
        The figure. A notebook displays it if it is a cell's last value.

    Raises:
        BadInputError: If the image has another number of axes, or the colour map does not exist.
    """
    if max_volume < 1:
        raise BadInputError(f"max_volume is {max_volume}: expected at least 1 voxel")
    case = _case(image, 3, is_label, spacing_mm, max_volume, class_names)
    return _figure(case, title, cmap, is_label, screenshot_as)


def _case(
    image: ImageLike,
    num_spatial: int,
    is_label: bool,
    spacing_mm: Sequence[float] | None,
    max_volume: int,
    class_names: Mapping[int, str] | Sequence[str],
) -> CasePictures:
    ndim = np.ndim(image)
    if ndim not in (num_spatial, num_spatial + 1):
        axes, other = ("H, W", "3d shows volumes") if num_spatial == 2 else ("D, H, W", "2d shows pictures")
        raise BadInputError(
            f"visualize{num_spatial}d got {ndim} axes: expected ({axes}) or (C, {axes}) without a batch axis. "
            f"visualize{other}"
        )
    labels: list[ImageLike] = [as_ids(image, num_spatial)] if is_label else []
    return CasePictures(
        image,
        labels,
        num_spatial=num_spatial,
        spacing_mm=spacing_mm,
        max_volume=max_volume,
        class_names=class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names)),
    )


def _figure(
    case: CasePictures, title: str | None, cmap: str | None, is_label: bool, screenshot_as: PathLike | None
) -> Figure:
    from candy_monai.plotting.canvas.figures import figure_of, save_figure

    if is_label:
        page = case.page(case.panel(image=False, layer=0, surface=case.surface(0)), title, layer=0)
    else:
        page = case.page(case.panel(tint=None if cmap is None else _tint(cmap)), title)
    figure = figure_of(page)
    if screenshot_as is not None:
        save_figure(figure, screenshot_as)
    return figure


def _tint(name: str) -> Pixels:
    """Return the 256 colours of a colour map."""
    from matplotlib import colormaps

    if name not in colormaps:
        raise BadInputError(f"there is no colour map {name!r}.{did_you_mean(name, list(colormaps))}")
    return to_pixels(colormaps[name](np.linspace(0.0, 1.0, 256))[:, :3])
