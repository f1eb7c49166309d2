"""Convert arrays for display: label ids, intensities in 0..1, 8-bit pixels."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.nn import functional as F

from candy_monai.errors import BadInputError

Pixels = NDArray[np.uint8]
"""A picture: ``(H, W, 3)``, red, green, blue."""

Ids = NDArray[np.integer]
"""Label ids, one for each pixel or voxel."""

Floats = NDArray[np.floating]
"""Intensities, coordinates or colours."""

Spacing = tuple[float, float, float]
"""Millimetres between voxel centres, along three axes."""

ImageLike = torch.Tensor | ArrayLike
"""A tensor on any device (a MetaTensor keeps its affine), a numpy array, or nested lists."""

_PERCENTILES = (0.5, 99.5)
_ENOUGH_SAMPLES = 200_000
_PICTURE_CORRELATION = 0.8


def as_array(image: ImageLike) -> NDArray[np.generic]:
    """Return a plain numpy array on the CPU; booleans become 0 and 1."""
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu().as_subclass(torch.Tensor)
        image = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    array = np.asarray(image)
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise BadInputError(f"cannot draw values of type {array.dtype}: expected real numbers")
    return array


def as_channels(image: ImageLike, num_spatial: int) -> NDArray[np.generic]:
    """Return an image ``(C, *spatial)`` or ``(*spatial)`` as ``(C, *spatial)``; raise for any other shape."""
    array = as_array(image)
    if array.ndim == num_spatial:
        array = array[None]
    if array.ndim != num_spatial + 1 or array.size == 0:
        axes = "H, W" if num_spatial == 2 else "D, H, W"
        raise BadInputError(f"cannot draw shape {array.shape}: expected ({axes}) or (C, {axes}), no axis empty")
    return array


def as_ids(label: ImageLike, num_spatial: int) -> Ids:
    """Return label ids ``(1, *spatial)`` or ``(*spatial)`` as integers ``(*spatial)``; NaN becomes background."""
    array = as_channels(label, num_spatial)
    if len(array) != 1:
        raise BadInputError(
            f"a label of shape {array.shape} has {len(array)} channels: expected one channel of label ids"
        )
    ids: NDArray[np.generic] = array[0]
    if np.issubdtype(array.dtype, np.integer):
        return ids.astype(np.int64) if array.dtype == np.uint64 else cast("Ids", ids)
    return np.rint(np.nan_to_num(ids.astype(np.float64), posinf=0.0, neginf=0.0)).astype(np.int64)


def intensity_range(values: NDArray[np.generic]) -> tuple[float, float]:
    """Return a robust minimum and maximum, so that a few outliers do not darken the rest.

    Both are equal if the image is constant or has no finite value.
    """
    samples = values.reshape(-1)
    if samples.size > _ENOUGH_SAMPLES:
        samples = samples[np.random.default_rng(0).integers(samples.size, size=_ENOUGH_SAMPLES)]
    samples = samples[np.isfinite(samples)].astype(np.float64)
    if samples.size:
        low, high = np.percentile(samples, _PERCENTILES)
        if high > low:
            return float(low), float(high)
    finite = values[np.isfinite(values)]  # nearly constant: show the other values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def to_unit(values: NDArray[np.generic], *, limits: tuple[float, float] | None = None) -> Floats:
    """Scale intensities by their limits to 0..1; a constant image becomes mid-grey, NaN becomes 0."""
    low, high = limits or intensity_range(values)
    numbers = values.astype(np.float64)
    if high <= low:
        return np.where(np.isnan(numbers), np.float32(0.0), np.float32(0.5))
    with np.errstate(over="ignore", invalid="ignore"):
        unit = numbers / (high / 2 - low / 2) / 2 - low / (high / 2 - low / 2) / 2  # high - low might overflow
    return np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0).astype(np.float32)


def has_colors(image: NDArray[np.generic], rgb: bool | None = None) -> bool:
    """Return whether the channels of an image ``(C, *spatial)`` are red, green and blue rather than modalities.

    They are for a 2-D image if the values are those of a picture file (8 bit, 0..1 or integers up to 255), or if the
    channels are correlated, as they still are after normalisation; the user's choice ``rgb`` takes precedence.
    """
    if rgb and len(image) != 3:
        raise BadInputError(f"an image of {len(image)} channels was called RGB: expected 3 channels")
    if rgb is not None or len(image) != 3 or image.ndim != 3:
        return bool(rgb)
    if image.dtype == np.uint8:
        return True
    values = image.reshape(3, -1).astype(np.float64)[:, :: max(1, image[0].size // _ENOUGH_SAMPLES)]
    if not np.isfinite(values).all():
        return False
    if values.min() >= 0.0 and (values.max() <= 1.0 or (values.max() <= 255.0 and bool((values % 1 == 0).all()))):
        return True
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(np.corrcoef(values).min() > _PICTURE_CORRELATION)


def to_rgb(image: NDArray[np.generic], *, rgb: bool) -> Floats:
    """Return an image ``(C, *spatial)`` as red, green, blue in 0..1, ``(*spatial, 3)``.

    Without colours the first channel is shown in grey, since overlays of modalities are misleading.
    """
    if not rgb:
        return np.repeat(to_unit(image[0])[..., None], 3, axis=-1)
    values = np.moveaxis(image, 0, -1)
    with np.errstate(invalid="ignore"):
        low, high = np.nanmin(values), np.nanmax(values)
    if image.dtype == np.uint8 or (low >= 0 and 1.0 < high <= 255.0):
        return (np.nan_to_num(values.astype(np.float32)) / np.float32(255.0)).clip(0.0, 1.0)
    if low >= 0 and high <= 1.0:
        return np.nan_to_num(values.astype(np.float32))
    return to_unit(values)


def to_pixels(picture: Floats) -> Pixels:
    """Return red, green, blue in 0..1 as 8-bit pixels."""
    return np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def resize_image(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize a picture smoothly to a height and width: bicubic for enlarging, averaging for shrinking."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def resize_ids(ids: Ids, size: tuple[int, int]) -> Ids:
    """Resize label ids ``(H, W)`` to a height and width without new ids, by nearest neighbour."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, ids.shape, strict=True)
    )
    resized: Ids = ids[rows[:, None], columns]
    return resized


def sample_ids(ids: Ids, places: Floats) -> Ids:
    """Return the class at positions in voxels, ``(n, axes)``, by a distance-weighted vote without the background."""
    base = np.floor(places).astype(np.intp)
    picks, last = list(np.ndindex((2,) * ids.ndim)), np.array(ids.shape) - 1
    corners = np.stack([ids[tuple((base + pick).clip(0, last).T)] for pick in picks])
    found: Ids = corners.max(axis=0)
    mixed = np.flatnonzero(((corners != found) & (corners != 0)).any(axis=0))  # few positions are between two classes
    part, corners = (places - base)[mixed], corners[:, mixed]
    weights = np.stack([np.abs(part + pick - 1).prod(axis=1) for pick in picks]) * (corners != 0)
    votes = np.stack([(weights * (corners == corner)).sum(axis=0) for corner in corners])
    found[mixed] = np.take_along_axis(corners, votes.argmax(axis=0)[None], axis=0)[0]
    return found


def sample_field(field: torch.Tensor, places: Floats) -> Floats:
    """Return a field ``(1, 1, X, Y, Z)`` at positions in voxels from its corner, ``(n, 3)``, interpolated linearly."""
    unit = places * (np.float32(2.0) / np.array(field.shape[2:], dtype=np.float32)) - np.float32(1.0)
    grid = torch.from_numpy(np.ascontiguousarray(unit[:, ::-1]))[None, None, None]  # the last axis comes first
    return np.asarray(F.grid_sample(field, grid, align_corners=False)[0, 0, 0, 0].numpy())
