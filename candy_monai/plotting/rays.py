"""Parallel rays against a smoothed solid: where each ray first meets the surface. Knows no classes and no colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from candy_monai.plotting.solids import LEVEL, Solid, Vector

# In voxels, by how empty it is: the field is smooth, so that far from the surface it is almost 0.
_STEPS = np.array([0.5, 1.0, 1.5], dtype=np.float32)
_MARGIN = 0.05  # of the screen, on each side
_BISECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Parallel rays through a square screen.

    Args:
        forward: Unit vector of the rays.
        right: Unit vector along the screen's rows.
        down: Unit vector along the screen's columns.
        centre_mm: The point in the middle of the screen.
        reach_mm: From the middle of the screen to where the scene ends, to either side.
        size: Pixels along each side of the screen.
        near_mm: Depth along ``forward`` at which the scene begins.
        far_mm: Depth at which it ends.
    """

    forward: Vector
    right: Vector
    down: Vector
    centre_mm: Vector
    reach_mm: float
    size: int
    near_mm: float
    far_mm: float

    @classmethod
    def around(cls, points_mm: Vector, *, rim_mm: float, azimuth: float, elevation: float) -> Camera:
        """Place a camera so that points fill the screen.

        Args:
            points_mm: ``(n, 3)``, in axes that run to the patient's left, back and feet.
            rim_mm: How far the scene may go beyond the points.
            azimuth: How far from the front towards the patient's left the camera stands, in radians.
            elevation: How far above the horizon it stands, in radians.
        """
        forward = np.array(
            [-math.sin(azimuth) * math.cos(elevation), math.cos(azimuth) * math.cos(elevation), math.sin(elevation)],
            dtype=np.float32,
        )
        right = np.array([math.cos(azimuth), math.sin(azimuth), 0.0], dtype=np.float32)
        down = np.cross(right, forward).astype(np.float32)
        axes = np.stack([right, down, forward])
        along = points_mm @ axes.T
        low, high = along.min(axis=0) - rim_mm, along.max(axis=0) + rim_mm
        return cls(
            forward=forward,
            right=right,
            down=down,
            centre_mm=np.asarray((low + high) / 2 @ axes, dtype=np.float32),
            reach_mm=float((high - low)[:2].max()) / 2,
            size=1,
            near_mm=float(low[2]),
            far_mm=float(high[2]),
        )

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel."""
        return 2 * self.reach_mm / (self.size * (1 - 2 * _MARGIN))

    def origins(self) -> Vector:
        """Return a point on the ray through the middle of every pixel, row by row: ``(size * size, 3)``."""
        along = ((np.arange(self.size, dtype=np.float32) + 0.5) - self.size / 2) * np.float32(self.pixel_mm)
        rows = along[:, None, None] * self.down + along[None, :, None] * self.right
        return np.asarray(rows.reshape(-1, 3) + self.centre_mm, dtype=np.float32)


def scout(solid: Solid, camera: Camera) -> tuple[Vector, Vector]:
    """Tell between which distances the rays of each pixel may meet the surface.

    A few rays through a fattened solid tell it: one stands for a square of pixels about as wide as a voxel. Where the
    field reaches the level at a ray, one of the eight voxels around does, and that voxel is at most 2 voxels from the
    one that the scout is in at this depth.

    Args:
        solid: What the rays may meet.
        camera: Where they come from.

    Returns:
        Begin and end for each pixel, in voxels from ``Camera.origins``; begin is infinite where all rays miss.
    """
    origins, direction = solid.to_grid(camera.origins()), camera.forward
    every = max(1, min(int(solid.step_mm / camera.pixel_mm), camera.size))
    cells = -(-camera.size // every)
    middle = np.minimum(np.arange(cells) * every + every // 2, camera.size - 1)
    scouts = origins.reshape(camera.size, camera.size, 3)[middle[:, None], middle].reshape(-1, 3)
    first, last = _crossing(scouts, direction, solid.field.shape[2:])
    fat = ndimage.maximum_filter(solid.field[0, 0].numpy(), 5) >= LEVEL
    begin = np.full(len(scouts), np.inf, dtype=np.float32)
    rays = np.flatnonzero(first < last)
    at = first[rays]
    while rays.size:
        points = scouts[rays] + at[:, None] * direction
        place = points.astype(np.int32).clip(0, np.array(fat.shape, dtype=np.int32) - 1)
        met = fat[place[:, 0], place[:, 1], place[:, 2]]
        begin[rays[met]] = at[met] - 1
        at = at + np.maximum(solid.leap_at(points) - 2, 1.0)
        go_on = np.flatnonzero(~met & (at < last[rays]))
        rays, at = rays[go_on], at[go_on]

    def spread(values: Vector) -> Vector:
        square = values.reshape(cells, cells).repeat(every, axis=0).repeat(every, axis=1)
        return np.ascontiguousarray(square[: camera.size, : camera.size]).reshape(-1)

    return spread(begin), spread(last)


def first_hits(
    solid: Solid, origins_mm: Vector, forward: Vector, begin: Vector, end: Vector
) -> tuple[NDArray[np.intp], Vector]:
    """Find the first point of the surface on each ray.

    Args:
        solid: What the rays may meet.
        origins_mm: A point on each ray.
        forward: Their common direction.
        begin: Where to begin on each ray, in voxels from its origin; see ``scout``.
        end: Where to give up.

    Returns:
        The numbers of the rays that meet it, and the points in millimetres, one row each.
    """
    origins, direction = solid.to_grid(origins_mm), forward
    rays = np.flatnonzero(begin < end)
    at, end, start = begin[rays], end[rays], origins[rays]
    hit_rays: list[NDArray[np.intp]] = []
    hit_at: list[Vector] = []
    last_step: list[Vector] = []
    step = np.full(len(rays), _STEPS[0], dtype=np.float32)
    while rays.size:
        points = start + at[:, None] * direction
        ahead = solid.leap_at(points)
        near = np.flatnonzero(ahead <= 0)
        field = np.zeros(len(rays), dtype=np.float32)
        field[near] = solid.occupancy(points[near])
        met = field >= LEVEL
        hit_rays.append(rays[met])
        hit_at.append(at[met])
        last_step.append(step[met])
        step = np.maximum(ahead, np.choose((field < 0.1) + (field < 0.01).astype(np.int8), _STEPS))
        at += step
        go_on = np.flatnonzero(~met & (at < end))
        rays, at, end, start, step = rays[go_on], at[go_on], end[go_on], start[go_on], step[go_on]
    numbers = np.concatenate(hit_rays) if hit_rays else np.empty(0, dtype=np.intp)
    if not numbers.size:
        return numbers, np.empty((0, 3), dtype=np.float32)
    points = _refined(solid, origins[numbers], np.concatenate(hit_at), direction, np.concatenate(last_step))
    return numbers, points * np.float32(solid.step_mm) + solid.low_mm


def _refined(solid: Solid, origins: Vector, inside: Vector, direction: Vector, step: Vector) -> Vector:
    """Halve the last step of each ray a few times around the surface."""
    outside: Vector = inside - step
    for _ in range(_BISECTIONS):
        middle: Vector = (inside + outside) * np.float32(0.5)
        met = solid.occupancy(origins + middle[:, None] * direction) >= LEVEL
        inside, outside = np.where(met, middle, inside), np.where(met, outside, middle)
    return np.asarray(origins + inside[:, None] * direction, dtype=np.float32)


def _crossing(origins: Vector, direction: Vector, shape: Sequence[int]) -> tuple[Vector, Vector]:
    """Return where each ray enters and leaves the grid, as distances from its origin in voxels."""
    one, other = -origins / direction, (np.array(shape, dtype=np.float32) - origins) / direction
    return np.minimum(one, other).max(axis=1), np.maximum(one, other).min(axis=1)
