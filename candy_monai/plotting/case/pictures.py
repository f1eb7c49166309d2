"""Draw one case several times, with the same slices, intensities and camera in all panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from candy_monai.aliases import Shape3d
from candy_monai.boxes import bounding_box
from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas import arrays, drawing
from candy_monai.plotting.canvas.arrays import Floats, Ids, ImageLike, Pixels
from candy_monai.plotting.canvas.colors import RGB, class_color, colorize
from candy_monai.plotting.case.geometry import PLANES, PatientAxes, Plane, patient_axes, telling_slices
from candy_monai.plotting.case.layout import CAPTION, GAP, Box, Layout, alone, arrange
from candy_monai.plotting.case.overlay import blend, outline
from candy_monai.plotting.surface import Camera, camera_for, render_surface

_WHITE: RGB = (255, 255, 255)
_OPACITY = 0.3
_MOST_CHANNELS = 4
_CAPTION_SIZE, _SIDE_SIZE, _TITLE_SIZE = 15, 15, 20
_MARGIN = 12
_MOST_SCORES_LISTED = 24


class CasePictures:
    """A case prepared for drawing.

    Args:
        image: ``(C, *spatial)`` or ``(*spatial)``, two or three spatial axes.
        labels: Label ids of the image's spatial shape, ``(1, *spatial)`` or ``(*spatial)``, the most reliable first, as
            it determines the slices.
        num_spatial: 2 for pictures, 3 for volumes; by default the number of spatial axes of the first label.
        spacing_mm: Of the three axes of a volume; by default from the image's affine.
        orientation: Axis codes of a volume such as ``"RAS"``; by default from the image's affine.
        max_volume: The maximum number of voxels for a surface.
        class_names: Names of the ids in the legend; by default ``class 1``.
        rgb: Whether three channels are colours; by default decided by the values for 2-D images.
    """

    def __init__(
        self,
        image: ImageLike,
        labels: Sequence[ImageLike],
        *,
        num_spatial: int | None = None,
        spacing_mm: Sequence[float] | None = None,
        orientation: str | None = None,
        max_volume: int = 1_000_000,
        class_names: Mapping[int, str] | None = None,
        rgb: bool | None = None,
    ) -> None:
        if num_spatial is None:
            num_spatial = _num_spatial(labels[0])
        channels = arrays.as_channels(image, num_spatial)
        ids = [arrays.as_ids(label, num_spatial) for label in labels]
        for label in ids:
            if label.shape != channels.shape[1:]:
                raise BadInputError(f"the image is {channels.shape[1:]}, a label {label.shape}: expected the same size")
        self._rgb = arrays.has_colors(channels, rgb)
        self._max_volume = max_volume
        self._class_names = class_names or {}
        if num_spatial == 2:  # a picture becomes the only axial slice of a volume
            self._geometry = PatientAxes()
            self._channels, self.ids = [part.T[..., None] for part in channels], [label.T[..., None] for label in ids]
        else:
            self._geometry = patient_axes(image, spacing_mm=spacing_mm, orientation=orientation)
            self._channels = [self._geometry.to_view(channel) for channel in channels]
            self.ids = [self._geometry.to_view(label) for label in ids]
        self._whole, self._first = self._shape, (0, 0, 0)
        if self.has_surface:
            self._crop()

    def _crop(self) -> None:
        """Crop the margin with the value of the image's corner and no label, which may be most of a masked image."""
        filled = np.zeros(self._whole, dtype=np.bool_)
        for channel in self._channels[:_MOST_CHANNELS]:
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
    def _shape(self) -> Shape3d:
        first, second, third = self._channels[0].shape
        return first, second, third

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        """The planes to draw: one for a single slice, three for a volume."""
        wide = tuple(plane for plane in PLANES if min(self._shape[axis] for axis in plane.axes) > 1)
        return wide if len(wide) in (1, 3) else PLANES[:1]

    @property
    def has_surface(self) -> bool:
        """Whether the case is a volume rather than a picture."""
        return len(self.planes) == 3

    @cached_property
    def slices(self) -> Shape3d:
        """The chosen slice along each view axis."""
        return telling_slices(self._shape, self.ids)

    @cached_property
    def _present(self) -> list[list[int]]:
        return [np.unique(ids[ids != 0]).tolist() for ids in self.ids]

    @cached_property
    def _camera(self) -> Camera | None:
        return camera_for(self.ids, self._geometry.view_spacing_mm)

    @cached_property
    def _limits(self) -> list[tuple[float, float]]:
        return [arrays.intensity_range(channel) for channel in self._channels[:_MOST_CHANNELS]]

    def size_mm(self, plane: Plane) -> tuple[float, float]:
        """Return width and height of a plane."""
        right, down = plane.axes
        spacing = self._geometry.view_spacing_mm
        return self._shape[right] * spacing[right], self._shape[down] * spacing[down]

    @property
    def finest_plane(self) -> Plane:
        """The plane with the smallest pixels."""
        spacing = self._geometry.view_spacing_mm
        return min(self.planes, key=lambda plane: spacing[plane.axes[0]] * spacing[plane.axes[1]])

    @property
    def num_rows(self) -> int:
        """The number of rows for all channels of the image: one per channel, at most four; one for colours."""
        return 1 if self._rgb else min(len(self._channels), _MOST_CHANNELS)

    @cached_property
    def layout(self) -> Layout:
        """The positions of the planes, and of the surface if the case has one."""
        sizes = [self.size_mm(plane) for plane in self.planes]
        if len(sizes) == 3:
            return arrange(sizes)
        right, down = self.planes[0].axes
        return alone(sizes[0], (self._shape[right], self._shape[down]))

    def plane(
        self,
        plane: Plane,
        size: tuple[int, int],
        *,
        image: bool = True,
        layer: int | None = None,
        channel: int = 0,
        tint: Pixels | None = None,
        reference: int | None = None,
    ) -> Pixels:
        """Draw one plane, in a height and width in pixels: a channel of the image, or black, and a label over it.

        The ``tint`` is a colour map, 256 colours from dark to bright, ``(256, 3)``; by default grey. The label of index
        ``reference`` is outlined in white below that of index ``layer``, to show missed regions.
        """
        index = self.slices[plane.normal]
        picture = drawing.blank(*size, 0)
        if image:
            picture = arrays.resize_image(arrays.to_pixels(self._cut(plane, index, channel)), size)
            picture = picture if tint is None or self._rgb else tint[picture[..., 0]]
        if reference is not None:
            expected = arrays.resize_ids(plane.cut(self.ids[reference], index), size)
            picture = np.where(outline(expected, 1)[..., None], np.uint8(255), picture)
        if layer is None:
            return picture
        ids = plane.cut(self.ids[layer], index)
        scale = size[0] / ids.shape[0]  # of a pixel of the label
        ids = arrays.resize_ids(ids, size)
        if not image:
            return colorize(ids)
        width = 0 if scale < 0.75 else 1 if scale < 2.5 else 2
        return arrays.to_pixels(blend(picture / np.float32(255.0), ids, opacity=_OPACITY, line_width=width))

    def _cut(self, plane: Plane, index: int, channel: int) -> Floats:
        if self._rgb:
            return arrays.to_rgb(np.stack([plane.cut(part, index) for part in self._channels]), rgb=True)
        grey = arrays.to_unit(plane.cut(self._channels[channel], index), limits=self._limits[channel])
        return np.repeat(grey[..., None], 3, axis=2)

    def surface(self, layer: int, size: int | None = None) -> Pixels | None:
        """Draw the surface of a label in a square, by default the layout's; ``None`` if the case is not a volume."""
        if self.layout.surface is None:
            return None
        size = size or self.layout.surface.width
        if not self._present[layer]:
            middle = (size // 2, size // 2)
            return drawing.write_on(
                drawing.blank(size, size), "no foreground", middle, 18, anchor="mm", color=drawing.FAINT
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
        image: bool = True,
        layer: int | None = None,
        channel: int = 0,
        surface: Pixels | None = None,
        tint: Pixels | None = None,
        reference: int | None = None,
    ) -> Pixels:
        """Draw all planes, with captions if there are several, and the result of ``surface`` beside them.

        The other arguments are those of ``plane``.
        """
        layout = self.layout
        square = layout.surface if surface is not None else None
        canvas = drawing.blank(layout.height, square.right if square is not None else layout.width)
        for plane, box in zip(self.planes, layout.planes, strict=True):
            how: dict[str, Any] = {"image": image, "layer": layer, "channel": channel, "tint": tint}
            picture = self.plane(plane, (box.height, box.width), reference=reference, **how)
            if len(self.planes) > 1:
                write_caption(canvas, box, self._caption(plane, channel if self.num_rows > 1 and image else None))
                if self._geometry.known:
                    picture = _with_sides(picture, plane)
            drawing.paste(canvas, picture, box.top, box.left)
        if square is not None and surface is not None:
            write_caption(canvas, square, "surface")
            drawing.paste(canvas, surface, square.top, square.left)
        return canvas

    def _caption(self, plane: Plane, channel: int | None) -> str:
        length = self._whole[plane.normal]
        index = self._first[plane.normal] + self.slices[plane.normal]
        number = length - index if self._geometry.flipped[plane.normal] else index + 1
        text = f"{plane.name}  {number} / {length}"
        return text if channel is None else f"{text}   channel {channel}"

    def page(
        self, panel: Pixels, title: str | None, *, layer: int | None = None, dice: Mapping[int, float] | None = None
    ) -> Pixels:
        """Return a panel with a title above, and below it a legend of the classes in a label and their Dice."""
        width = panel.shape[1]
        parts = [drawing.line_of_text(title, width, _TITLE_SIZE, bold=True)] if title else []
        parts.append(panel)
        present = self._present[layer] if layer is not None else []
        missed = sorted(set(dice or {}) - set(present))  # a class of the reference that was not predicted
        if present or missed:
            entries = self._legend(present, missed, dice or {})
            if dice:
                entries.append(("outline of the reference", _WHITE))
            parts.append(drawing.legend(entries, width))
        return drawing.stacked(parts, gap=GAP // 2, margin=_MARGIN)

    def _legend(
        self, present: Sequence[int], missed: Sequence[int], dice: Mapping[int, float]
    ) -> list[tuple[str, RGB | None]]:
        entries: list[tuple[str, RGB | None]] = []
        if dice:
            entries.append((f"{'Dice' if len(dice) == 1 else 'mean Dice'} {fmean(dice.values()):.3f}", None))
        for value in [*missed, *present]:
            name = self._class_names.get(value, f"class {value}")
            if value in missed:
                name += " (missed)"
            if value in dice and 1 < len(dice) <= _MOST_SCORES_LISTED:
                name = f"{name}  {dice[value]:.3f}"
            entries.append((name, class_color(value)))
        return entries


def dice_by_class(label: Ids, prediction: Ids, *, num_classes: int | None = None) -> dict[int, float]:
    """Compute the Dice of each foreground id in a label or its prediction, for display; an id in only one scores 0.

    Ids from ``num_classes`` on, such as an ignore value, are not classes: voxels where the reference has one, or a
    negative id, are ignored. ``None`` treats every positive id as a class.
    """
    counted = (label >= 0) & ((label > 0) | (prediction > 0))
    if num_classes is not None:
        counted &= label < num_classes
    reference, predicted = label[counted], prediction[counted]
    sizes = _sizes(reference) + _sizes(predicted)
    shared = _sizes(reference[reference == predicted])
    classes = sorted(value for value in sizes if value > 0 and (num_classes is None or value < num_classes))
    return {value: 2 * shared[value] / sizes[value] for value in classes}


def _sizes(ids: Ids) -> Counter[int]:
    found, counts = np.unique(ids, return_counts=True)
    return Counter(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def _num_spatial(label: ImageLike) -> int:
    shape = np.shape(label)
    if len(shape) not in (3, 4) or shape[0] != 1:
        raise BadInputError(f"a label has shape {shape}: expected (1, H, W) or (1, D, H, W)")
    return len(shape) - 1


def write_caption(canvas: Pixels, box: Box, text: str) -> None:
    """Write a line of text above a box onto a canvas, in place."""
    width = min(max(box.width, 150), canvas.shape[1] - box.left)
    line = drawing.line_of_text(text, width, _CAPTION_SIZE, color=drawing.FAINT)[:CAPTION]
    drawing.paste(canvas, line, box.top - CAPTION, box.left)


def _with_sides(picture: Pixels, plane: Plane) -> Pixels:
    height, width = picture.shape[:2]
    if min(height, width) < 70:
        return picture
    places = ((5, height // 2), (width - 5, height // 2), (width // 2, 4), (width // 2, height - 5))
    for letter, place, anchor in zip(plane.sides, places, ("lm", "rm", "mt", "mb"), strict=True):
        picture = drawing.write_on(picture, letter, place, _SIDE_SIZE, anchor=anchor)
    return picture
