"""Crop a patch with rotation, scaling and deformation in one interpolation, reading only part of the image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, RandomizableTransform, TraceableTransform
from monai.utils import ensure_tuple_rep, look_up_option
from torch import Tensor
from torch.nn import functional as F

from candy_monai.transforms.resampling import resample_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]

_POINTS = 4
_MODES = ("bilinear", "nearest")


def start_anywhere(volume: Shape, box: Shape, rng: np.random.Generator | np.random.RandomState) -> NDArray[np.int64]:
    """Draw a box's first voxel in a volume; if the volume is smaller, it is centred and the start is negative."""
    room = np.array(volume) - np.array(box)
    draw = rng.integers if isinstance(rng, np.random.Generator) else rng.randint
    return _centred_where_smaller(draw(0, np.maximum(room, 0) + 1), room)


def start_around(centre: Sequence[int] | NDArray[np.integer], volume: Shape, box: Shape) -> NDArray[np.int64]:
    """Return the first voxel of the box around a voxel, moved into the volume; centred if the volume is smaller."""
    room = np.array(volume) - np.array(box)
    return _centred_where_smaller(np.clip(np.array(centre) - np.array(box) // 2, 0, np.maximum(room, 0)), room)


def cut(array: NDArray[Any] | Tensor, start: Sequence[int] | NDArray[np.int64], shape: Shape, *, fill: float) -> Tensor:
    """Copy a box out of an array, without reading the rest; voxels outside the array are filled.

    Args:
        array: ``(C, *spatial)``: a tensor, an array, or one memory-mapped from a file.
        start: The box's first voxel; may be negative.
        shape: The box's shape; may extend beyond the array.
        fill: The value outside.
    """
    bounds = [(int(first), int(first) + size) for first, size in zip(start, shape, strict=True)]
    inside = tuple(slice(max(first, 0), max(stop, 0)) for first, stop in bounds)
    if isinstance(array, Tensor):
        found = (array.as_tensor() if isinstance(array, MetaTensor) else array)[(slice(None), *inside)].clone()
    else:
        found = torch.from_numpy(np.array(array[(slice(None), *inside)], order="C"))  # copies, also from a mapped file
    if tuple(found.shape[1:]) == tuple(shape):
        return found
    if not found.is_floating_point() and fill > torch.iinfo(found.dtype).max:
        found = found.long()  # the fill value does not fit the type of the image's ids
    padding: list[int] = []  # starting with the last axis
    for (first, _), size, held in zip(bounds, shape, found.shape[1:], strict=True):
        before = min(max(-first, 0), size - held)
        padding = [before, size - held - before, *padding]
    return F.pad(found, padding, value=fill)


class RandWarp(RandomizableTransform):
    """Crop a patch, and randomly rotate, scale and deform it. Everything is drawn first, then one box is read.

    The part to sample the patch from is computed before reading, so that the image may be a ``numpy.memmap`` of any
    size: about 1.4 patches are read, where ``RandAffine`` needs a box of 11 patches or the whole volume. If no change
    is drawn, the patch is copied, not interpolated. ``RandAffine(spatial_size=...)`` from a larger box also
    interpolates then (and blurs where box minus patch is odd), scales each axis by another factor, and rotates in
    voxels, which shears anatomy if spacings differ; it cannot work slice by slice, which for 160 x 160 x 8 takes 0.7 ms
    instead of 10.8.

    Args:
        spatial_size: The patch's shape; ``None`` for the image's own.
        prob_rotate: Probability of rotation.
        max_angle_deg: Largest angle about each axis.
        prob_scale: Probability of scaling, by one factor along all axes.
        scale: Smallest and largest factor of zooming out; below 1 zooms in. In and out are equally likely.
        prob_elastic: Probability of an elastic deformation.
        elastic: Its largest displacement as a share of the distance of the control points, four along each axis; below
            0.5 there is no folding.
        fixed_axis: The axis across thick slices, along which nothing is rotated, scaled or deformed.
        spacing: Distance of voxels along each axis, so that rotations keep anatomy rigid; ``None`` if all are equal.
        random_center: Whether a patch without a given centre is cropped at a random position, else in the middle.
        mode: ``bilinear`` for intensities, ``nearest`` for label ids.
        fill: The value outside the image. Samples from outside the box repeat the box's border.

    Raises:
        ValueError: If the mode is unknown.
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | None = None,
        *,
        prob_rotate: float = 0.2,
        max_angle_deg: float = 30.0,
        prob_scale: float = 0.2,
        scale: Sequence[float] = (0.7, 1.4),
        prob_elastic: float = 0.0,
        elastic: float = 0.2,
        fixed_axis: int | None = None,
        spacing: Sequence[float] | None = None,
        random_center: bool = True,
        mode: str = "bilinear",
        fill: float = 0.0,
    ) -> None:
        super().__init__(1.0)
        self.spatial_size = None if spatial_size is None else tuple(spatial_size)
        self.prob_rotate, self.max_angle_deg = prob_rotate, max_angle_deg
        self.prob_scale, self.scale = prob_scale, (float(scale[0]), float(scale[1]))
        self.prob_elastic, self.elastic = prob_elastic, elastic
        self.fixed_axis = fixed_axis
        self.spacing = None if spacing is None else tuple(spacing)
        self.random_center = random_center
        self.mode, self.fill = look_up_option(mode, _MODES), fill
        self.matrix: NDArray[np.float64] | None = None
        self.displacement: Tensor | None = None
        self.start: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.shape: Shape = ()
        self._grid: Tensor | None = None  # shared by image and label

    def randomize(self, data: Any, center: Sequence[int] | NDArray[np.integer] | None = None) -> None:
        """Draw the position, unless a centre is given, and the change.

        Args:
            data: The spatial shape of the image.
            center: The voxel to centre the patch on; moved so that the patch is within the image.
        """
        super().randomize(None)
        volume = tuple(int(size) for size in data)
        self.shape = volume if self.spatial_size is None else self.spatial_size
        if len(self.shape) != len(volume):
            raise ValueError(
                f"spatial_size {self.shape} has {len(self.shape)} axes, but the image has {len(volume)}: {volume}"
            )
        if center is not None:
            self.start = start_around(center, volume, self.shape)
        elif self.random_center:
            self.start = start_anywhere(volume, self.shape, self.R)
        else:
            self.start = (np.array(volume) - np.array(self.shape)) // 2
        self.matrix = self._drawn_matrix(len(volume))
        self.displacement = self._drawn_displacement()
        self._grid = None

    def __call__(
        self,
        img: Any,
        center: Sequence[int] | NDArray[np.integer] | None = None,
        mode: str | None = None,
        fill: float | None = None,
        randomize: bool = True,
    ) -> Tensor:
        """Return the patch ``(C, *spatial_size)``; intensities as float32, label ids in their own type.

        Args:
            img: ``(C, *spatial)``: a tensor, an array, or one memory-mapped from a file.
            center: The voxel to centre the patch on.
            mode: Replaces the transform's own.
            fill: Replaces the transform's own.
            randomize: Whether to draw new parameters; else the last ones are used.
        """
        if randomize:
            self.randomize(img.shape[1:], center)
        mode, fill = look_up_option(mode or self.mode, _MODES), self.fill if fill is None else fill
        patch = self._patch(img, mode, fill)
        if not (isinstance(img, MetaTensor) and get_track_meta()):
            return patch
        info = TraceableTransform.track_transform_meta(img, affine=self._affine())
        placed: Tensor = MetaTensor(patch).copy_meta_from(info)
        return placed

    def _patch(self, img: Any, mode: str, fill: float) -> Tensor:
        matrix = np.eye(len(self.shape)) if self.matrix is None else self.matrix
        centre = self.start + (np.array(self.shape) - 1) / 2
        warp: dict[str, Any] = {"anisotropic_axis": self.fixed_axis, "displacement": self.displacement}
        is_copy = self.matrix is None and self.displacement is None
        corner, box = (self.start, self.shape) if is_copy else source_box(matrix, centre, self.shape, **warp)
        values = cut(img, corner, box, fill=fill)
        values = values.float() if mode == "bilinear" else values
        if is_copy:
            return values
        if self._grid is None:
            self._grid = sampling_grid(matrix, list(centre - corner), box, self.shape, **warp)
        return sample(values, self._grid, mode=mode, anisotropic_axis=self.fixed_axis)

    def _affine(self) -> Tensor:
        """Return the affine from the patch's indices to the image's, without an elastic deformation."""
        count = len(self.shape)
        affine = np.eye(count + 1)
        affine[:count, :count] = np.eye(count) if self.matrix is None else self.matrix
        middle = (np.array(self.shape) - 1) / 2
        affine[:count, -1] = self.start + middle - affine[:count, :count] @ middle
        return torch.from_numpy(affine)

    def _drawn_matrix(self, num_dims: int) -> NDArray[np.float64] | None:
        """Draw rotation and scaling as one matrix, from offsets in the patch to offsets in the image, in voxels."""
        rotate, scale = self.R.random_sample(2) < (self.prob_rotate, self.prob_scale)
        if not rotate and not scale:
            return None
        matrix = self._rotation(num_dims) if rotate else np.eye(num_dims)
        if scale:
            low, high = self.scale
            low, high = (low, min(1.0, high)) if self.R.random_sample() < 0.5 else (max(1.0, low), high)
            free = [axis for axis in range(num_dims) if axis != self.fixed_axis]
            matrix[free] *= self.R.uniform(low, high)
        return matrix

    def _rotation(self, num_dims: int) -> NDArray[np.float64]:
        most = math.radians(self.max_angle_deg)
        planes = [(0, 1)] if num_dims == 2 else [(0, 1), (0, 2), (1, 2)]
        turned = np.eye(num_dims)
        for first, second in (plane for plane in planes if self.fixed_axis not in plane):
            angle = self.R.uniform(-most, most)
            turn = np.eye(num_dims)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            turned = turned @ turn
        spacing = np.array(self.spacing or (1.0,) * num_dims)
        # Convert voxels to millimetres, rotate, and convert back to voxels.
        matrix: NDArray[np.float64] = turned * spacing[None, :] / spacing[:, None]
        return matrix

    def _drawn_displacement(self) -> Tensor | None:
        """Draw the displacements of a coarse grid of points over the patch, ``(num_dims, *points)`` in voxels."""
        if not self.prob_elastic or self.R.random_sample() >= self.prob_elastic:
            return None
        count = len(self.shape)
        points = [1 if axis == self.fixed_axis else _POINTS for axis in range(count)]
        displacement = self.R.uniform(-1.0, 1.0, (count, *points)) * self.R.uniform(0.0, self.elastic)
        steps = [0.0 if axis == self.fixed_axis else size / _POINTS for axis, size in enumerate(self.shape)]
        return torch.from_numpy(displacement * np.array(steps).reshape(-1, *[1] * count)).float()


class RandWarpd(RandomizableTransform, MapTransform):
    """Dictionary form of `RandWarp`, with the same crop and change for all keys.

    Args:
        keys: Images and labels of one spatial shape.
        spatial_size: The patch's shape; ``None`` for the image's own.
        center_key: The key of the voxel to centre the patch on, ``(num_dims)`` indices. If it is missing or None, the
            patch is cropped at a random position. The key is removed.
        mode: One for all keys, or one per key: ``("bilinear", "nearest")`` for image and label.
        fill: The value outside the image; one for all keys, or one per key.
        allow_missing_keys: Whether a key may be missing.
        kwargs: Further options of `RandWarp`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int] | None = None,
        *,
        center_key: str | None = None,
        mode: Sequence[str] | str = "bilinear",
        fill: Sequence[float] | float = 0.0,
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.center_key = center_key
        self.mode = tuple(look_up_option(each, _MODES) for each in ensure_tuple_rep(mode, len(self.keys)))
        self.fill = tuple(float(each) for each in ensure_tuple_rep(fill, len(self.keys)))
        self.warper = RandWarp(spatial_size, **kwargs)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandWarpd:
        """Seed the transform, as MONAI's do."""
        super().set_random_state(seed, state)
        self.warper.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with a patch at each of the keys.

        Raises:
            ValueError: If the spatial shapes differ.
        """
        d = dict(data)
        center = None if self.center_key is None else d.pop(self.center_key, None)
        volume: Shape | None = None
        for key, mode, fill in self.key_iterator(d, self.mode, self.fill):
            shape = tuple(d[key].shape[1:])
            if volume is None:
                self.warper.randomize(shape, center)
            elif shape != volume:
                raise ValueError(f"{key} has the spatial shape {shape}, but another key has {volume}")
            volume = shape
            d[key] = self.warper(d[key], mode=mode, fill=fill, randomize=False)
        return d


def source_box(
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    shape: Shape,
    *,
    anisotropic_axis: int | None,
    displacement: Tensor | None = None,
) -> tuple[NDArray[np.int64], Shape]:
    """Return start and shape of the box of an image from which a warped patch is sampled.

    Args:
        matrix: From offsets in the patch to offsets in the image, in voxels.
        centre: The position of the patch's centre in the image, in voxels.
        shape: The patch's shape, which along a coarse axis is that of the box.
        anisotropic_axis: The axis across thick slices, along which nothing is warped.
        displacement: The displacements of points over the patch, ``(num_dims, *points)`` in voxels.
    """
    reach = np.abs(matrix) @ ((np.array(shape) - 1) / 2)
    if displacement is not None:
        reach = reach + displacement.abs().flatten(1).amax(1).numpy()
    start = np.floor(centre - reach).astype(np.int64)
    stop = np.ceil(centre + reach).astype(np.int64) + 1
    if anisotropic_axis is not None:
        start[anisotropic_axis] = round(float(centre[anisotropic_axis]) - (shape[anisotropic_axis] - 1) / 2)
        stop[anisotropic_axis] = start[anisotropic_axis] + shape[anisotropic_axis]
    return start, tuple(int(size) for size in stop - start)


def sampling_grid(
    matrix: NDArray[np.float64],
    centre: list[float],
    box: Shape,
    shape: Shape,
    *,
    anisotropic_axis: int | None = None,
    displacement: Tensor | None = None,
) -> Tensor:
    """Return PyTorch's sampling grid ``(1, *shape, num_dims)``, with coordinates from -1 to 1 and x first.

    The arguments are those of `source_box`, except that the centre is relative to the box, and the shape of the box is
    given. A coarse axis is left out of the grid, which is used for every slice across it.
    """
    axes = [axis for axis in range(len(shape)) if axis != anisotropic_axis]
    count = len(axes)
    grid = torch.empty(*(shape[axis] for axis in axes), count)
    for number, axis in enumerate(axes):
        scale = 2 / max(box[axis] - 1, 1)
        position = torch.full((1,) * count, scale * centre[axis] - 1)
        for place, other in enumerate(axes):
            steps = (torch.arange(shape[other]) - (shape[other] - 1) / 2) * (scale * float(matrix[axis, other]))
            position = position + steps.view(*(-1 if direction == place else 1 for direction in range(count)))
        grid[..., count - 1 - number] = position
    if displacement is not None:
        in_plane = displacement if anisotropic_axis is None else displacement[axes].squeeze(anisotropic_axis + 1)
        offsets = resample_image(in_plane, tuple(grid.shape[:-1]))  # smooth between the control points
        for number, axis in enumerate(axes):
            grid[..., count - 1 - number] += offsets[number] * (2 / max(box[axis] - 1, 1))
    return grid[None]


def sample(values: Tensor, grid: Tensor, *, mode: str, anisotropic_axis: int | None = None) -> Tensor:
    """Return ``(C, *box)`` values at the positions of a `sampling_grid`; the border is repeated outside.

    Slices across an axis that the grid leaves out are sampled in the same way.
    """
    if anisotropic_axis is not None:
        slices = values.movedim(anisotropic_axis + 1, 1)
        found = sample(slices.flatten(0, 1), grid, mode=mode)
        return found.view(*slices.shape[:2], *found.shape[1:]).movedim(1, anisotropic_axis + 1).contiguous()
    found = F.grid_sample(values[None].float(), grid, mode=mode, padding_mode="border", align_corners=True)
    return found[0].to(values.dtype)


def _centred_where_smaller(start: NDArray[np.integer], room: NDArray[np.integer]) -> NDArray[np.int64]:
    first: NDArray[np.int64] = np.where(room < 0, room // 2, start).astype(np.int64)
    return first
