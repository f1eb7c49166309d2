"""A mask as a smooth solid on cubic voxels, made so that rays can be marched through it quickly.

Owns resampling and smoothing. Knows no camera, no classes and no colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

Vector = NDArray[np.float32]

LEVEL = 0.5
"""The occupancy at which the surface lies."""

_BLOCK = 4
_PADDING = 3
_THICK = 1.8  # slices this many times thicker than the cubic voxels are interpolated by outline
_MOST_DISTANCES = 400_000


@dataclass(frozen=True, kw_only=True)
class Solid:
    """How filled space is, on cubic voxels, with what speeds up marching through it.

    Args:
        field: ``(1, 1, X, Y, Z)`` smoothed occupancy, 0 to 1.
        gradient: ``(1, 3, X, Y, Z)`` its slope.
        surroundings: ``(1, 1, x, y, z)`` occupancy blurred over several voxels, coarse.
        leap: For each block of 4 voxels a side, how many voxels a ray inside may safely go ahead.
        low_mm: The outer corner of the first voxel.
        step_mm: Side of a voxel.
    """

    field: torch.Tensor
    gradient: torch.Tensor
    surroundings: torch.Tensor
    leap: Vector
    low_mm: Vector
    step_mm: float

    @classmethod
    def from_mask(
        cls, filled: NDArray[np.bool_], *, low_mm: Vector, spacing_mm: tuple[float, float, float], max_volume: int
    ) -> Solid:
        """Resample a mask to cubic voxels and smooth it by about one voxel of either grid.

        Args:
            filled: ``(X, Y, Z)``.
            low_mm: The outer corner of its first voxel.
            spacing_mm: Of its axes.
            max_volume: Most cubic voxels, without the empty rim.
        """
        extent = [length * spacing for length, spacing in zip(filled.shape, spacing_mm, strict=True)]
        step = max(min(spacing_mm), (math.prod(extent) / max(max_volume, 64)) ** (1 / 3))
        shape = [max(1, round(side / step)) for side in extent]
        # Averaging where voxels merge keeps thin structures.
        merged = torch.nn.functional.adaptive_avg_pool3d(
            torch.from_numpy(filled.astype(np.float32))[None, None],
            (min(shape[0], filled.shape[0]), min(shape[1], filled.shape[1]), min(shape[2], filled.shape[2])),
        )[0, 0].numpy()
        stretch = [new / old for new, old in zip(shape, merged.shape, strict=True)]
        thick = int(np.argmax(stretch))
        by_outline = stretch[thick] >= _THICK and merged.size <= _MOST_DISTANCES
        values = _between_slices(merged, thick, shape) if by_outline else np.pad(_resized(merged, shape), _PADDING)
        occupied = values > 0.1
        for axis, factor in enumerate(stretch):
            values = ndimage.gaussian_filter1d(values, max(0.7, 0.45 * min(factor, _THICK)), axis=axis, mode="constant")
        values = _with_thin_parts(values, _vanished_parts(values, merged, shape) if by_outline else occupied)
        return cls(
            field=torch.from_numpy(values)[None, None],
            gradient=_slopes(values),
            surroundings=_surroundings(values),
            leap=_leaps(values),
            low_mm=(low_mm - _PADDING * step).astype(np.float32),
            step_mm=step,
        )

    def to_grid(self, points_mm: Vector) -> Vector:
        """Return points in voxels from the outer corner of the first voxel."""
        return np.asarray((points_mm - self.low_mm) / np.float32(self.step_mm), dtype=np.float32)

    def normals(self, points_mm: Vector) -> Vector:
        """Return unit vectors that point out of the solid."""
        slope = -self._sample(self.gradient, self.to_grid(points_mm)).T
        return np.asarray(slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9), dtype=np.float32)

    def openness(self, points_mm: Vector, normals: Vector) -> Vector:
        """Return how open the space before each point is: 1 on a plane or a bulge, less in a groove."""
        ahead = self._sample(self.surroundings, self.to_grid(points_mm) + normals * np.float32(3.0))[0]
        return np.asarray(1.0 - 0.9 * (ahead - 0.12).clip(0.0, 0.7), dtype=np.float32)

    def occupancy(self, places: Vector) -> Vector:
        """Return the smoothed occupancy at places in voxels; 0 outside."""
        sampled: Vector = self._sample(self.field, places)[0]
        return sampled

    def leap_at(self, places: Vector) -> Vector:
        """Return how many voxels a ray may go ahead from places in voxels; 0 where the surface may be near."""
        block = (places * np.float32(1 / _BLOCK)).astype(np.int32)
        last = np.array(self.leap.shape, dtype=np.int32) - 1
        np.minimum(block, last, out=block)
        np.maximum(block, 0, out=block)
        ahead: Vector = self.leap[block[:, 0], block[:, 1], block[:, 2]]
        return ahead

    def _sample(self, volume: torch.Tensor, places: Vector) -> Vector:
        unit = places * (np.float32(2.0) / np.array(self.field.shape[2:], dtype=np.float32)) - np.float32(1.0)
        grid = torch.from_numpy(np.ascontiguousarray(unit[:, ::-1]))[None, None, None]  # the last axis comes first
        sampled = torch.nn.functional.grid_sample(volume, grid, align_corners=False)
        return np.asarray(sampled[0, :, 0, 0].numpy(), dtype=np.float32)


def _resized(values: Vector, shape: Sequence[int]) -> Vector:
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=list(shape), mode="trilinear", align_corners=False
    )
    return np.asarray(resized[0, 0].numpy(), dtype=np.float32)


def _between_slices(filled: Vector, thick: int, shape: Sequence[int]) -> Vector:
    """Interpolate thick slices by their outlines: a mask itself would give a staircase.

    Within each slice the signed distance to the outline is taken, and it is the distance that is interpolated
    (shape-based interpolation: Raya and Udupa, 1990).

    Args:
        filled: Occupancy on slices.
        thick: The axis across the slices.
        shape: Of the cubic voxels, which are ``_PADDING`` more on each side in the result.
    """
    ratio = shape[thick] / filled.shape[thick]
    limit = np.float32(1.5 * ratio)
    mask = np.pad(filled, [(0, 0) if axis == thick else (_PADDING, _PADDING) for axis in range(3)]) >= LEVEL
    apart = [1e6 if axis == thick else 1.0 for axis in range(3)]
    inside = ndimage.distance_transform_edt(mask, sampling=apart)
    outside = ndimage.distance_transform_edt(~mask, sampling=apart)
    signed = (inside - outside - np.sign(inside - outside) * 0.5).clip(-limit, limit).astype(np.float32)
    # One slice more at each end closes the surface, on average half a slice beyond the last one.
    ends = [_closing(signed.take([end], axis=thick), limit) for end in (0, -1)]
    signed = np.concatenate([ends[0], signed, ends[1]], axis=thick)
    grown = [side + 2 * _PADDING for side in shape]
    grown[thick] = round(signed.shape[thick] * ratio)
    dense = ndimage.gaussian_filter1d(_resized(signed, grown), 0.4 * ratio, axis=thick, mode="nearest")
    wanted = shape[thick] + 2 * _PADDING
    extra = grown[thick] - wanted
    if extra > 0:
        dense = dense.take(range(extra // 2, extra // 2 + wanted), axis=thick)
    elif extra < 0:
        missing = [(0, 0) if axis != thick else (-extra // 2, -extra - -extra // 2) for axis in range(3)]
        dense = np.pad(dense, missing, constant_values=-limit)
    return np.asarray((dense + 0.5).clip(0.0, 1.0), dtype=np.float32)


def _with_thin_parts(values: Vector, occupied: NDArray[np.bool_]) -> Vector:
    """Put back what is so thin that smoothing took it below the level: vessels, specks, single voxels."""
    kept = ndimage.maximum_filter(values >= LEVEL, 3)
    lost = occupied & ~kept
    if not lost.any():
        return values
    blurred = ndimage.gaussian_filter(lost.astype(np.float32), 0.7, mode="constant")
    # Divided by the ridge nearby, a thread has the same profile as a sheet: 1 on the ridge, a third one voxel off.
    ridges = np.maximum(ndimage.maximum_filter(blurred, 3), np.float32(1e-6))
    return np.maximum(values, np.where(blurred > 0.02, blurred / ridges, np.float32(0.0)))


def _vanished_parts(values: Vector, merged: Vector, shape: Sequence[int]) -> NDArray[np.bool_]:
    """Find connected parts of thick slices of which nothing reaches the level."""
    parts, count = ndimage.label(merged >= LEVEL)
    nearest = [np.arange(new) * old // new for new, old in zip(shape, merged.shape, strict=True)]
    dense = np.pad(parts[np.ix_(*nearest)], _PADDING)
    vanished = np.ones(count + 1, dtype=np.bool_)
    vanished[dense[values >= LEVEL]] = False
    vanished[0] = False
    return np.asarray(vanished[dense])


def _closing(last: Vector, limit: np.float32) -> Vector:
    middle = np.median(last[last > 0]) if (last > 0).any() else limit
    return np.minimum(last, -middle)


def _slopes(values: Vector) -> torch.Tensor:
    slopes = np.zeros((1, 3, *values.shape), dtype=np.float32)
    slopes[0, 0, 1:-1] = values[2:] - values[:-2]
    slopes[0, 1, :, 1:-1] = values[:, 2:] - values[:, :-2]
    slopes[0, 2, :, :, 1:-1] = values[:, :, 2:] - values[:, :, :-2]
    return torch.from_numpy(slopes)


def _surroundings(values: Vector) -> torch.Tensor:
    coarse = torch.nn.functional.avg_pool3d(torch.from_numpy(values)[None, None], 2, ceil_mode=True)
    blurred = ndimage.gaussian_filter(coarse[0, 0].numpy(), 1.6, mode="constant")
    return torch.from_numpy(blurred)[None, None]


def _leaps(values: Vector) -> Vector:
    """For each block: 0 if the surface may be in it, else the voxels to the nearest block where it may be."""
    blocks = torch.nn.functional.max_pool3d(torch.from_numpy(values)[None, None], _BLOCK, ceil_mode=True)[0, 0].numpy()
    # Interpolation reaches half a voxel into the next block.
    occupied = ndimage.maximum_filter(blocks, 3) >= LEVEL
    if occupied.all():
        return np.zeros(blocks.shape, dtype=np.float32)
    distance = ndimage.distance_transform_cdt(~occupied, metric="chessboard")
    return np.asarray(np.maximum(distance - 1, 0) * _BLOCK + (distance > 0) * 0.5, dtype=np.float32)
