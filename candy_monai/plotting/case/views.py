"""Prepare a case for the slice viewer of a page: 8 bits, cropped to its foreground, downsampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from candy_monai.plotting.canvas.arrays import has_colors, intensity_range
from candy_monai.plotting.case.geometry import PatientAxes, patient_axes

MOST_VALUES = 700_000
"""The maximum number of values of an image in a view, for all channels together; half as many more for a picture."""
MOST_CHANNELS = 4
_MARGIN = 0.2
_LEAST_MARGIN = 8
_ROOM = 0.25  # margin around the usual range of intensities, for wider windows


@dataclass(frozen=True, kw_only=True)
class CaseView:
    """A reduced case.

    Arrays run from the patient's feet to head, front to back and right to left: ``(Z, Y, X)`` with the first slice on
    top. A picture is one slice.

    Attributes:
        image: ``(C, Z, Y, X)``, 8 bits.
        limits: For each channel the intensities represented by 0 and 255.
        windows: For each channel the intensities that are initially black and white.
        label: ``(Z, Y, X)``, ids; None without a reference.
        prediction: The same for the prediction.
        spacing_mm: The spacing of the elements, along X, Y and Z.
        is_oriented: Whether the directions of the axes in the patient are known.
        is_rgb: Whether the channels are red, green and blue.
        first: The first voxel of the crop in the whole case, along X, Y and Z.
        factors: The downsampling factors along X, Y and Z.
        whole: The size of the whole case, along X, Y and Z.
    """

    image: NDArray[np.uint8] = field(repr=False)
    limits: Sequence[tuple[float, float]]
    windows: Sequence[tuple[float, float]]
    label: NDArray[np.uint16] | None = field(repr=False)
    prediction: NDArray[np.uint16] | None = field(repr=False)
    spacing_mm: tuple[float, float, float]
    is_oriented: bool
    is_rgb: bool
    first: tuple[int, int, int]
    factors: tuple[int, int, int]
    whole: tuple[int, int, int]

    def present(self) -> tuple[set[int], set[int]]:
        """Return the ids, without the background, in the reference and in the prediction."""
        first, second = (
            set() if ids is None else set(np.unique(ids).tolist()) - {0} for ids in (self.label, self.prediction)
        )
        return first, second


def case_view(
    image: Tensor,
    label: Tensor | None,
    prediction: Tensor | None,
    *,
    spacing_mm: Sequence[float] | None = None,
    orientation: str | None = None,
    most_values: int = MOST_VALUES,
) -> CaseView:
    """Return a case prepared for a page: an image ``(C, *spatial)``, and ids ``(1, *spatial)`` of both maps.

    A case that is too large is cropped to its foreground, and then downsampled along its finest axes: images by means,
    label maps by subsampling, so that no new ids are created. Tensors on a GPU are reduced there. At most four channels
    are kept. Spacing and orientation of a volume are by default those of the image's affine.
    """
    is_volume = image.ndim == 4
    axes = patient_axes(image, spacing_mm=spacing_mm, orientation=orientation) if is_volume else PatientAxes()
    channels = torch.as_tensor(image)[:MOST_CHANNELS].detach()
    if not is_volume:
        most_values += most_values // 2
    maps = [None if ids is None else torch.as_tensor(ids)[0].detach() for ids in (label, prediction)]
    size = tuple(channels.shape[1:])
    spacing = axes.spacing_mm if is_volume else (1.0, 1.0)
    most = max(1, most_values // len(channels))
    box = _box(maps, size, spacing) if math.prod(size) > most else tuple(slice(0, length) for length in size)
    channels = channels[(slice(None), *box)]
    maps = [None if ids is None else ids[box] for ids in maps]
    factors = _factors(tuple(channels.shape[1:]), spacing, most)
    channels, maps = _thinned(channels, factors), [None if ids is None else _every(ids, factors) for ids in maps]
    values = channels.to("cpu", torch.float32).numpy()
    pixels, limits, windows, is_rgb = _quantized(values)
    first, scale, whole = _in_view(axes, box, factors, size)
    view_spacing = axes.view_spacing_mm if is_volume else (1.0, 1.0, 1.0)
    return CaseView(
        image=np.stack([_stored(axes, channel) for channel in pixels]),
        limits=limits,
        windows=windows,
        label=_ids(axes, maps[0]),
        prediction=_ids(axes, maps[1]),
        spacing_mm=(view_spacing[0] * scale[0], view_spacing[1] * scale[1], view_spacing[2] * scale[2]),
        is_oriented=is_volume and axes.known,
        is_rgb=is_rgb,
        first=first,
        factors=scale,
        whole=whole,
    )


def _box(maps: Sequence[Tensor | None], size: Sequence[int], spacing: Sequence[float]) -> tuple[slice, ...]:
    """Return the box around the foreground of all maps, with a margin; the whole case if there is none."""
    filled = [ids != 0 for ids in maps if ids is not None]
    if not filled:
        return tuple(slice(0, length) for length in size)
    foreground = filled[0] if len(filled) == 1 else filled[0] | filled[1]
    sides = []
    for axis in range(len(size)):
        others = tuple(other for other in range(len(size)) if other != axis)
        along = foreground.any(dim=others[0]) if len(others) == 1 else foreground.amax(dim=others).bool()
        places = along.nonzero()[:, 0].tolist()
        if not places:
            return tuple(slice(0, length) for length in size)
        sides.append((places[0], places[-1] + 1))
    # The same margin in millimetres on all sides.
    margin_mm = _MARGIN * max((stop - start) * step for (start, stop), step in zip(sides, spacing, strict=True))
    box = []
    for (start, stop), length, step in zip(sides, size, spacing, strict=True):
        margin = max(_LEAST_MARGIN if step <= 2 * min(spacing) else 1, round(margin_mm / step))
        box.append(slice(max(0, start - margin), min(length, stop + margin)))
    return tuple(box)


def _factors(size: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, ...]:
    """Return the downsampling factor of each axis such that at most a given number of voxels is left."""
    factors = [1] * len(size)
    while math.prod(-(-length // factor) for length, factor in zip(size, factors, strict=True)) > most:
        thin = [axis for axis, length in enumerate(size) if -(-length // factors[axis]) > 1]
        finest = min(thin, key=lambda axis: spacing[axis] * factors[axis])
        factors[finest] += 1
    return tuple(factors)


def _thinned(channels: Tensor, factors: tuple[int, ...]) -> Tensor:
    if max(factors) == 1:
        return channels
    pool = F.avg_pool2d if len(factors) == 2 else F.avg_pool3d
    averaged: Tensor = pool(channels.float()[None], factors, stride=factors, ceil_mode=True, count_include_pad=False)[0]
    return averaged


def _every(ids: Tensor, factors: Sequence[int]) -> Tensor:
    for axis, factor in enumerate(factors):
        if factor > 1:
            places = torch.arange(0, ids.shape[axis], factor, device=ids.device) + factor // 2
            ids = ids.index_select(axis, places.clamp(max=ids.shape[axis] - 1))
    return ids


def _quantized(
    values: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], list[tuple[float, float]], list[tuple[float, float]], bool]:
    """Return an image in 8 bits, the limits and the first window of each channel, and whether it has colours."""
    if has_colors(values):
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        limits = (
            (0.0, 255.0) if low >= 0 and 1.0 < high <= 255.0 else (0.0, 1.0) if 0 <= low <= high <= 1 else (low, high)
        )
        return np.stack([_to_bytes(channel, limits) for channel in values]), [limits] * 3, [limits] * 3, True
    windows = [intensity_range(channel) for channel in values]
    found = []
    for channel, (low, high) in zip(values, windows, strict=True):
        finite = channel[np.isfinite(channel)]
        room = _ROOM * (high - low)
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (low, high)
        found.append((max(least, low - room), min(most, high + room)))
    pixels = np.stack([_to_bytes(channel, ends) for channel, ends in zip(values, found, strict=True)])
    return pixels, found, windows, False


def _to_bytes(channel: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = limits
    if not high > low:
        return np.full(channel.shape, 128, dtype=np.uint8)
    unit = np.nan_to_num((channel - np.float32(low)) / np.float32(high - low), nan=0.0, posinf=1.0, neginf=0.0)
    pixels: NDArray[np.uint8] = np.rint(unit.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def _stored(axes: PatientAxes, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return an array in the order ``(Z, Y, X)`` of the view."""
    turned = array[None] if array.ndim == 2 else axes.to_view(array).transpose(2, 1, 0)
    return np.ascontiguousarray(turned)


def _ids(axes: PatientAxes, ids: Tensor | None) -> NDArray[np.uint16] | None:
    if ids is None:
        return None
    numbers = torch.nan_to_num(ids.float()).round() if ids.is_floating_point() else ids
    found = numbers.to("cpu", torch.int64).clamp(0, 65_535).numpy().astype(np.uint16)
    return _stored(axes, found).astype(np.uint16, copy=False)


def _in_view(
    axes: PatientAxes, box: Sequence[slice], factors: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]:
    """Return the start of a box, the factors and the size of the whole case, along the axes of the view."""
    if len(size) == 2:  # rows run down, columns to the right
        return (box[1].start, box[0].start, 0), (factors[1], factors[0], 1), (size[1], size[0], 1)
    start = [
        size[axis] - box[axis].stop if flip else box[axis].start
        for axis, flip in zip(axes.order, axes.flipped, strict=True)
    ]
    a, b, c = axes.order
    return (start[0], start[1], start[2]), (factors[a], factors[b], factors[c]), (size[a], size[b], size[c])


def dice_in_view(view: CaseView) -> Mapping[int, float]:
    """Compute the Dice of each id in the label or prediction of a view; empty if one of the two is missing."""
    if view.label is None or view.prediction is None:
        return {}
    from candy_monai.plotting.case.pictures import dice_by_class

    return dice_by_class(view.label, view.prediction)
