"""From any array to what can be shown: plain numpy arrays, intensities in 0..1, voxel geometry, PNG files.

Owns the conversions that every picture of this library starts or ends with. Knows no class colours and no layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_path

Pixels = NDArray[np.uint8]
"""A picture: ``(H, W, 3)``, red, green, blue."""

ImageLike = torch.Tensor | ArrayLike
"""A tensor on any device (a MetaTensor keeps its affine), a numpy array, or nested lists."""

_PERCENTILES = (0.5, 99.5)
_ENOUGH_SAMPLES = 200_000
_STRIDES = (1, 3, 7, 17, 37, 79, 163, 331)
_PICTURE_CORRELATION = 0.8


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the axes of a volume lie in the patient.

    Args:
        spacing_mm: Distance between voxel centres along each of the three axes, in millimetres.
        order: Which array axis runs closest to left-right, to front-back, and to bottom-top.
        flipped: Which of these run towards the right, the front or the top; all do in a file of axis codes RAS.
        known: Whether a file said so; otherwise RAS is assumed and no direction is written on a picture.
    """

    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (True, True, True)
    known: bool = False

    def to_view(self, volume: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return a view of a volume whose axes run to the patient's left, back and feet.

        Two of these axes at a time, the second one down and the first one to the right, are the pictures that
        radiologists look at.

        Args:
            volume: An array of three axes.
        """
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)
        return volume.transpose(self.order)[steps]

    @property
    def view_spacing_mm(self) -> tuple[float, float, float]:
        """Voxel distances along the axes of ``to_view``."""
        first, second, third = (self.spacing_mm[axis] for axis in self.order)
        return first, second, third


def as_array(image: ImageLike) -> NDArray[np.generic]:
    """Return a plain numpy array on the CPU; booleans become 0 and 1.

    Args:
        image: A tensor or an array.
    """
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
    """Return an image as ``(C, *spatial)``, adding the channel axis where it is missing.

    Args:
        image: ``(C, *spatial)`` or ``(*spatial)``.
        num_spatial: 2 for pictures, 3 for volumes.

    Raises:
        BadInputError: If the number of axes fits neither, or an axis is empty.
    """
    array = as_array(image)
    if array.ndim == num_spatial:
        array = array[None]
    if array.ndim != num_spatial + 1 or array.size == 0:
        axes = "H, W" if num_spatial == 2 else "D, H, W"
        raise BadInputError(f"cannot draw shape {array.shape}: expected ({axes}) or (C, {axes}), no axis empty")
    return array


def as_ids(label: ImageLike, num_spatial: int) -> NDArray[np.integer]:
    """Return label ids as integers of shape ``(*spatial)``; a NaN counts as background.

    Args:
        label: ``(1, *spatial)`` or ``(*spatial)``.
        num_spatial: 2 for pictures, 3 for volumes.

    Raises:
        BadInputError: If there are several channels: ids are expected, not probabilities.
    """
    array = as_channels(label, num_spatial)
    if len(array) != 1:
        raise BadInputError(
            f"a label of shape {array.shape} has {len(array)} channels: expected one channel of label ids"
        )
    ids: NDArray[np.generic] = array[0]
    if np.issubdtype(array.dtype, np.integer):
        return ids.astype(np.int64) if array.dtype == np.uint64 else cast("NDArray[np.integer]", ids)
    return np.rint(np.nan_to_num(ids.astype(np.float64), posinf=0.0, neginf=0.0)).astype(np.int64)


def geometry_of(
    image: ImageLike, *, spacing_mm: Sequence[float] | None = None, orientation: str | None = None
) -> Geometry:
    """Return how a volume lies in the patient.

    Args:
        image: The volume; a MetaTensor brings its own affine.
        spacing_mm: One number for each array axis; overrides the affine's.
        orientation: Axis codes such as ``"RAS"`` or ``"LPS"``, one letter for where each array axis leads to; overrides
            the affine's.

    Raises:
        BadInputError: If the spacing is not three positive numbers, or the orientation not three directions.
    """
    affine = getattr(image, "affine", None)
    matrix = np.eye(4) if affine is None else as_array(affine).astype(np.float64)
    usable = matrix.shape == (4, 4) and bool(np.isfinite(matrix).all()) and abs(np.linalg.det(matrix[:3, :3])) > 0
    if not usable:
        matrix, affine = np.eye(4), None  # a singular affine, or one of a 2-D file, tells nothing about three axes
    directions = _directions(matrix, orientation)
    spacing = [float(value) for value in (np.linalg.norm(matrix[:3, :3], axis=0) if spacing_mm is None else spacing_mm)]
    if len(spacing) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing):
        raise BadInputError(f"spacing_mm is {tuple(spacing)}: expected three positive numbers, one an axis")
    order = [int(np.flatnonzero(directions[:, 0] == world)[0]) for world in range(3)]
    flipped = [bool(directions[axis, 1] > 0) for axis in order]
    return Geometry(
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        order=(order[0], order[1], order[2]),
        flipped=(flipped[0], flipped[1], flipped[2]),
        known=affine is not None or orientation is not None,
    )


def _directions(matrix: NDArray[np.float64], orientation: str | None) -> NDArray[np.float64]:
    """For each array axis: the world axis that it is closest to, and whether it runs with it (1) or against it (-1)."""
    from nibabel.orientations import axcodes2ornt, io_orientation

    if orientation is None:
        return np.asarray(io_orientation(matrix), dtype=np.float64)
    letters = orientation.upper()
    if sorted("RAS"["RASLPI".index(letter) % 3] if letter in "RASLPI" else "?" for letter in letters) != list("ARS"):
        raise BadInputError(f"the orientation is {orientation!r}: expected axis codes such as 'RAS' or 'LPS'")
    return np.asarray(axcodes2ornt(letters), dtype=np.float64)


def intensity_range(values: NDArray[np.generic]) -> tuple[float, float]:
    """Return the robust darkest and brightest value, so that a few hot voxels do not darken the rest.

    Both are equal if the image is constant or holds no finite value.

    Args:
        values: Any shape.
    """
    # A prime stride does not fall in step with the rows of an image.
    stride = next(prime for prime in _STRIDES if values.size <= prime * _ENOUGH_SAMPLES or prime == _STRIDES[-1])
    samples = values.reshape(-1)[::stride].astype(np.float64)
    samples = samples[np.isfinite(samples)]
    if samples.size:
        low, high = np.percentile(samples, _PERCENTILES)
        if high > low:
            return float(low), float(high)
    finite = values[np.isfinite(values)]  # nearly all of it is one value: show what differs from it
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def to_unit(values: NDArray[np.generic], *, limits: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Scale intensities to 0..1.

    A constant image becomes mid-grey. NaN becomes 0, infinities the end of the range.

    Args:
        values: Any shape. All of it shares one scale.
        limits: What becomes 0 and 1; by default ``intensity_range(values)``.
    """
    low, high = limits or intensity_range(values)
    numbers = values.astype(np.float64)
    if high <= low:
        return np.where(np.isnan(numbers), np.float32(0.0), np.float32(0.5))
    with np.errstate(over="ignore", invalid="ignore"):
        unit = numbers / (high / 2 - low / 2) / 2 - low / (high / 2 - low / 2) / 2  # high - low might overflow
    return np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0).astype(np.float32)


def looks_like_a_picture(image: NDArray[np.generic]) -> bool:
    """Tell whether three channels are red, green and blue rather than three modalities.

    They are if the values are those of a picture file (8 bit, 0..1 or whole numbers up to 255), or if the channels
    rise and fall together, as they still do after normalisation.

    Args:
        image: ``(C, H, W)``.
    """
    if len(image) != 3 or image.ndim != 3:
        return False
    if image.dtype == np.uint8:
        return True
    values = image.reshape(3, -1).astype(np.float64)[:, :: max(1, image[0].size // _ENOUGH_SAMPLES)]
    if not np.isfinite(values).all():
        return False
    if values.min() >= 0.0 and (values.max() <= 1.0 or (values.max() <= 255.0 and bool((values % 1 == 0).all()))):
        return True
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(np.corrcoef(values).min() > _PICTURE_CORRELATION)


def to_rgb(image: NDArray[np.generic], *, rgb: bool | None = None) -> NDArray[np.float32]:
    """Return an image as red, green, blue in 0..1: shape ``(*spatial, 3)``.

    Three channels that look like a picture keep their colours; of any other number of channels the first is shown in
    grey, since overlays of modalities mislead more than they tell.

    Args:
        image: ``(C, *spatial)``.
        rgb: Whether three channels are colours; by default two-dimensional images are looked at, volumes are not.

    Raises:
        BadInputError: If ``rgb`` is true and there are not three channels.
    """
    if rgb and len(image) != 3:
        raise BadInputError(f"an image of {len(image)} channels was called RGB: expected 3 channels")
    if rgb is None:
        rgb = looks_like_a_picture(image)
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


def to_pixels(picture: NDArray[np.floating]) -> Pixels:
    """Return red, green, blue in 0..1 as 8-bit pixels.

    Args:
        picture: ``(H, W, 3)``.
    """
    return np.rint(picture.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def resize_image(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize a picture smoothly, bicubic when it grows and averaging when it shrinks.

    Args:
        pixels: ``(H, W, 3)``.
        size: Height and width of the result.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def resize_ids(ids: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.integer]:
    """Resize a picture of label ids without inventing any: each pixel takes the nearest one.

    Args:
        ids: ``(H, W)``.
        size: Height and width of the result.
    """
    (height, width), (old_height, old_width) = size, ids.shape
    rows = ((np.arange(height) + 0.5) * old_height / height).astype(np.intp)
    columns = ((np.arange(width) + 0.5) * old_width / width).astype(np.intp)
    resized: NDArray[np.integer] = ids[rows[:, None], columns]
    return resized


def save_png(pixels: Pixels, path: PathLike) -> Path:
    """Write a picture as PNG; readers see the old file or the new one, never half of it.

    Args:
        pixels: ``(H, W, 3)``.
        path: The file to write. Its folder is made if need be.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=False) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="PNG", compress_level=1)
    return path
