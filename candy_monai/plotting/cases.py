"""One case, drawn: a picture as it is, a volume as three planes and a surface. Writes no files.

A case is prepared once and drawn several times, so that all its panels show the same slices, in the same intensities,
from the same camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from candy_monai.data.geometric import bounding_box
from candy_monai.errors import BadInputError
from candy_monai.plotting import drawing
from candy_monai.plotting.colors import class_color, colorize
from candy_monai.plotting.display import (
    Geometry,
    ImageLike,
    Pixels,
    as_channels,
    as_ids,
    geometry_of,
    intensity_range,
    looks_like_a_picture,
    resize_ids,
    resize_image,
    to_pixels,
    to_rgb,
    to_unit,
)
from candy_monai.plotting.layout import CAPTION, Box, Layout, alone, arrange
from candy_monai.plotting.overlay import blend_pixels
from candy_monai.plotting.rays import Camera
from candy_monai.plotting.scores import Dice
from candy_monai.plotting.slices import PLANES, Plane, telling_slices
from candy_monai.plotting.surfaces import camera_for, render_surface

_OPACITY = 0.3
_MOST_CHANNELS = 4
_CAPTION_SIZE = 15
_LEGEND_SIZE = 17
_MOST_SCORES_LISTED = 24


class CasePictures:
    """One case, ready to be drawn.

    Args:
        image: ``(C, *spatial)`` or ``(*spatial)``, two or three spatial axes.
        labels: Label ids of the image's spatial shape, ``(1, *spatial)`` or ``(*spatial)``, the most trusted first: it
            chooses the slices.
        num_spatial: 2 for pictures, 3 for volumes.
        spacing_mm: Of the three axes of a volume; by default the image's affine tells.
        orientation: Axis codes of a volume such as ``"RAS"``; by default the image's affine tells.
        max_volume: Most voxels of a surface.
        class_names: What the legend calls the ids; by default ``class 1``.
        rgb: Whether three channels are colours; by default those of 2-D images are looked at.

    Raises:
        BadInputError: If shapes do not fit.
    """

    def __init__(
        self,
        image: ImageLike,
        labels: Sequence[ImageLike],
        *,
        num_spatial: int,
        spacing_mm: Sequence[float] | None = None,
        orientation: str | None = None,
        max_volume: int = 1_000_000,
        class_names: Mapping[int, str] | None = None,
        rgb: bool | None = None,
    ) -> None:
        channels = as_channels(image, num_spatial)
        if rgb and len(channels) != 3:
            raise BadInputError(f"an image of {len(channels)} channels was called RGB: expected 3 channels")
        if rgb is None:
            rgb = num_spatial == 2 and looks_like_a_picture(channels)
        self._rgb = rgb
        self._is_volume = num_spatial == 3
        self._geometry = Geometry()
        if self._is_volume:
            self._geometry = geometry_of(image, spacing_mm=spacing_mm, orientation=orientation)
        self._channels = [self._view(channel) for channel in channels]
        self._max_volume = max_volume
        self._class_names = dict(class_names or {})
        self.ids: list[NDArray[np.integer]] = []
        for label in labels:
            ids = as_ids(label, num_spatial)
            if ids.shape != channels.shape[1:]:
                raise BadInputError(f"the image is {channels.shape[1:]}, a label {ids.shape}: expected the same size")
            self.ids.append(cast("NDArray[np.integer]", self._view(ids)))
        self._whole, self._first = self._shape, (0, 0, 0)
        if self.has_surface:
            self._crop()

    def _view(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a volume in view order; a picture becomes the only axial slice of one."""
        return self._geometry.to_view(array) if self._is_volume else array.T[:, :, None]

    def _crop(self) -> None:
        """Cut off what is as empty as the image's corner and holds no label: masked images may be mostly that."""
        filled = self._channels[0] != self._channels[0][0, 0, 0]
        for channel in self._channels[1:_MOST_CHANNELS]:
            filled |= channel != channel[0, 0, 0]
        for ids in self.ids:
            filled |= ids != 0
        box = bounding_box(filled)
        if box is None:
            return
        rims = [max(2, length // 32) for length in self._whole]
        cut = tuple(slice(max(0, side.start - rim), side.stop + rim) for side, rim in zip(box, rims, strict=True))
        self._channels = [channel[cut] for channel in self._channels]
        self.ids = [ids[cut] for ids in self.ids]
        self._first = (cut[0].start, cut[1].start, cut[2].start)

    @property
    def _shape(self) -> tuple[int, int, int]:
        first, second, third = self._channels[0].shape
        return first, second, third

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The planes that show something: a single slice has one, a volume three."""
        wide = tuple(plane for plane in PLANES if min(self._shape[axis] for axis in plane.axes) > 1)
        return wide if len(wide) in (1, 3) else PLANES[:1]

    @cached_property
    def slices(self) -> tuple[int, int, int]:
        """The chosen slice of each view axis."""
        return telling_slices(self._shape, self.ids)

    @cached_property
    def has_surface(self) -> bool:
        """Whether the case is a body rather than a picture."""
        return len(self.planes) == 3

    @cached_property
    def _present(self) -> list[list[int]]:
        return [np.unique(ids[ids != 0]).tolist() for ids in self.ids]

    @cached_property
    def _camera(self) -> Camera | None:
        return camera_for(self.ids, self._geometry.view_spacing_mm)

    @cached_property
    def _limits(self) -> list[tuple[float, float]]:
        return [intensity_range(channel) for channel in self._channels[:_MOST_CHANNELS]]

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Return width and height of a plane."""
        right, down = plane.axes
        spacing = self._geometry.view_spacing_mm
        return self._shape[right] * spacing[right], self._shape[down] * spacing[down]

    @property
    def num_rows(self) -> int:
        """How many rows show all of the image: one a channel, at most four; colours are one."""
        return 1 if self._rgb else min(len(self._channels), _MOST_CHANNELS)

    def layout(self) -> Layout:
        """Place the planes, and the surface if the case has one."""
        sizes = [self.size_mm(plane) for plane in self.planes]
        if len(self.planes) == 1:
            right, down = self.planes[0].axes
            return alone(sizes[0], (self._shape[right], self._shape[down]))
        return arrange(sizes)

    def plane(
        self,
        plane: Plane,
        size: tuple[int, int],
        *,
        image: bool,
        layer: int | None,
        channel: int = 0,
        tint: Pixels | None = None,
    ) -> Pixels:
        """Draw one plane.

        Args:
            plane: Which one.
            size: Height and width in pixels.
            image: Whether to draw the image, or black.
            layer: Which of the labels to draw, if any.
            channel: Which channel of the image.
            tint: The 256 colours of dark to bright, ``(256, 3)``; by default grey.
        """
        index = self.slices[plane.normal]
        picture = drawing.blank(*size, (0, 0, 0))
        if image:
            picture = resize_image(to_pixels(self._cut(plane, index, channel)), size)
            picture = picture if tint is None or self._rgb else tint[picture[..., 0]]
        if layer is None:
            return picture
        ids = plane.cut(self.ids[layer], index)
        scale = size[0] / ids.shape[0]
        ids = resize_ids(ids.astype(self.ids[layer].dtype, copy=False), size)
        if not image:
            return colorize(ids)
        return blend_pixels(picture, ids, opacity=_OPACITY, line_width=_line_width(scale))

    def _cut(self, plane: Plane, index: int, channel: int) -> NDArray[np.float32]:
        if self._rgb:
            return to_rgb(np.stack([plane.cut(part, index) for part in self._channels]), rgb=True)
        grey = to_unit(plane.cut(self._channels[channel], index), limits=self._limits[channel])
        return np.repeat(grey[..., None], 3, axis=2)

    def surface(self, layer: int, size: int) -> Pixels:
        """Draw the surface of one of the labels, all from the same camera.

        Args:
            layer: Which label.
            size: Height and width in pixels.
        """
        if not self._present[layer]:
            return drawing.write_on(
                drawing.blank(size, size), "no foreground", (size // 2, size // 2), 18, anchor="mm", color=drawing.FAINT
            )
        return render_surface(
            self.ids[layer],
            spacing_mm=self._geometry.view_spacing_mm,
            size=size,
            max_volume=self._max_volume,
            camera=self._camera,
        )

    def panel(
        self,
        *,
        image: bool,
        layer: int | None = None,
        channel: int = 0,
        surface: Pixels | None = None,
        tint: Pixels | None = None,
    ) -> Pixels:
        """Draw all planes, with captions if there are several, and a surface beside them.

        Args:
            image: Whether to draw the image below the label.
            layer: Which of the labels to draw, if any.
            channel: Which channel of the image.
            surface: What ``surface`` drew, of the layout's size.
            tint: The 256 colours of dark to bright; by default grey.
        """
        layout = self.layout()
        width = layout.width if surface is not None else layout.planes_width
        canvas = drawing.blank(layout.height, width)
        for plane, box in zip(self.planes, layout.planes, strict=True):
            size = (box.height, box.width)
            picture = self.plane(plane, size, image=image, layer=layer, channel=channel, tint=tint)
            if len(self.planes) > 1:
                write_caption(canvas, box, self._caption(plane, channel if self.num_rows > 1 and image else None))
                if self._geometry.known:
                    picture = _with_sides(picture, plane)
            paste(canvas, box, picture)
        if surface is not None and layout.surface is not None:
            write_caption(canvas, layout.surface, "surface")
            paste(canvas, layout.surface, surface)
        return canvas

    def _caption(self, plane: Plane, channel: int | None) -> str:
        length = self._whole[plane.normal]
        index = self._first[plane.normal] + self.slices[plane.normal]
        number = length - index if self._geometry.flipped[plane.normal] else index + 1
        text = f"{plane.name}  {number} / {length}"
        return text if channel is None else f"{text}   channel {channel}"

    def legend(self, layers: Sequence[int], width: int, *, dice: Dice | None = None) -> Pixels | None:
        """Draw a legend of the classes that some labels hold; ``None`` if they hold none.

        Args:
            layers: Which labels.
            width: In pixels.
            dice: Written beside each class, unless there are too many, and their mean at the end.
        """
        present = sorted({value for layer in layers for value in self._present[layer]})
        if not present:
            return None
        scores = dice.per_class if dice is not None else {}
        listed = len(scores) <= _MOST_SCORES_LISTED
        entries = []
        if dice is not None and scores:
            mean = sum(scores.values()) / len(scores)
            entries.append(
                drawing.LegendEntry(text=f"Dice {mean:.3f}" if len(scores) == 1 else f"mean Dice {mean:.3f}")
            )
        for value in present:
            name = self._class_names.get(value, f"class {value}")
            if value in scores and listed and len(scores) > 1:
                name = f"{name}  {scores[value]:.3f}"
            entries.append(drawing.LegendEntry(text=name, color=class_color(value)))
        return drawing.legend(entries, width, _LEGEND_SIZE)


def spatial_axes(label: ImageLike) -> int:
    """Return how many spatial axes a label ``(1, *spatial)`` has.

    Args:
        label: With its channel axis.

    Raises:
        BadInputError: If they are neither two nor three.
    """
    shape = tuple(np.shape(label) if not hasattr(label, "shape") else label.shape)
    if len(shape) not in (3, 4) or shape[0] != 1:
        raise BadInputError(f"a label has shape {shape}: expected (1, H, W) or (1, D, H, W)")
    return len(shape) - 1


def _line_width(scale: float) -> int:
    """Return how wide an outline is when a pixel of the label takes ``scale`` pixels of the picture."""
    return 0 if scale < 0.75 else 1 if scale < 2.5 else 2


def paste(canvas: Pixels, box: Box, picture: Pixels) -> None:
    """Put a picture of the box's size onto a canvas, which is changed."""
    canvas[box.top : box.top + box.height, box.left : box.left + box.width] = picture


def write_caption(canvas: Pixels, box: Box, text: str) -> None:
    """Write a line above a box onto a canvas, which is changed."""
    width = min(max(box.width, 150), canvas.shape[1] - box.left)
    line = drawing.line_of_text(text, width, _CAPTION_SIZE, color=drawing.FAINT)[:CAPTION]
    canvas[box.top - CAPTION : box.top - CAPTION + len(line), box.left : box.left + width] = line


def _with_sides(picture: Pixels, plane: Plane) -> Pixels:
    height, width = picture.shape[:2]
    if min(height, width) < 70:
        return picture
    left, right, top, bottom = plane.sides
    size = 15
    picture = drawing.write_on(picture, left, (5, height // 2), size, anchor="lm")
    picture = drawing.write_on(picture, right, (width - 5, height // 2), size, anchor="rm")
    picture = drawing.write_on(picture, top, (width // 2, 4), size, anchor="mt")
    return drawing.write_on(picture, bottom, (width // 2, height - 5), size, anchor="mb")
