"""A shaded rendering of a label's surface on the CPU, without a graphics library: resample, first hit, shading.

A class that is enclosed by others would be invisible: the few classes that are mostly hidden are drawn through them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional as F

from candy_monai.boxes import bounding_box
from candy_monai.plotting.canvas.arrays import Floats, Ids, Pixels, Spacing, sample_field, sample_ids
from candy_monai.plotting.canvas.colors import colorize

_AZIMUTH, _ELEVATION = math.radians(38.0), math.radians(22.0)
_LEVEL, _MISSED = 0.5, np.float32(1e6)  # occupancy at the surface; depth of a ray that misses it
_MOST_CLASSES_TO_LOOK_BEHIND, _MOST_HIDDEN_SHOWN = 24, 6
_HIDDEN_BELOW, _SHINE_THROUGH = 0.25, np.float32(0.72)


class Camera(NamedTuple):
    """Parallel rays: unit vectors to the right, down and ahead, and the start and end of the scene along these."""

    axes: Floats
    low_mm: Floats
    high_mm: Floats


def camera_for(labels: list[Ids], spacing_mm: Spacing) -> Camera | None:
    """Return a camera at the patient's left front, a little above, that sees all foreground of ``(X, Y, Z)`` labels."""
    points = np.concatenate([_points(label, spacing_mm)[0] for label in labels])
    if not len(points):
        return None
    (sin, cos), (up, level) = ((math.sin(angle), math.cos(angle)) for angle in (_AZIMUTH, _ELEVATION))
    axes = np.array([[cos, sin, 0.0], [sin * up, -cos * up, level], [-sin * level, cos * level, up]], dtype=np.float32)
    along, rim = points @ axes.T, np.float32(max(spacing_mm))
    return Camera(axes, along.min(axis=0) - rim, along.max(axis=0) + rim)


def render_surface(
    ids: Ids, *, spacing_mm: Spacing, size: int, max_volume: int = 1_000_000, camera: Camera | None = None
) -> Pixels:
    """Draw the surface of label ids ``(X, Y, Z)`` in view order (see ``PatientAxes``) on white: ``(size, size, 3)``.

    At most ``max_volume`` voxels are searched. A shared camera makes images comparable; by default it is the label's.
    """
    camera = camera or camera_for([ids], spacing_mm)
    if camera is None or not ids.any():
        return np.full((size, size, 3), 255, dtype=np.uint8)
    shown = _paint(ids, spacing_mm, camera, size, max_volume)
    for hidden in _hidden_classes(ids, spacing_mm, camera):
        inside = _paint(np.where(ids == hidden, ids, 0), spacing_mm, camera, size, max_volume)
        shown = shown * (1 - _SHINE_THROUGH * inside[..., 3:]) + _SHINE_THROUGH * inside
    return np.rint((shown[..., :3] + 1 - shown[..., 3:]).clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _paint(ids: Ids, spacing_mm: Spacing, camera: Camera, size: int, max_volume: int) -> Floats:
    """Return red, green, blue (times coverage) and coverage of the foreground, for every pixel."""
    axes, low_mm, high_mm = camera
    box = bounding_box(ids != 0) or ()
    field, corner_mm, step_mm = _resampled(ids[box] != 0, spacing_mm, max_volume)
    corner_mm = corner_mm + np.array([side.start for side in box]) * spacing_mm
    # Rays are in voxels of the field, which are cubes. The scene fills 0.9 of the screen.
    pixel, scene = (high_mm - low_mm)[:2].max() / (0.9 * size) / step_mm, (high_mm - low_mm)[2] / step_mm
    right, down = ((low_mm + high_mm)[:2] / 2 / step_mm)[:, None] + (np.arange(size) + 0.5 - size / 2) * pixel
    screen = np.stack([np.tile(right, size), np.repeat(down, size), np.full(size * size, low_mm[2] / step_mm)], axis=1)
    origins = (screen @ axes - corner_mm / step_mm).astype(np.float32)
    near, far = _reach(field, origins, axes)

    def trace(rays: NDArray[np.intp], shift: Floats) -> tuple[Floats, Ids, Floats]:
        starts = origins[rays] + shift
        depth = _first_hits(field, starts, axes[2], near[rays], far[rays])
        picture, classes = np.zeros((len(rays), 4), dtype=np.float32), np.zeros(len(rays), dtype=ids.dtype)
        hit = np.flatnonzero(depth < _MISSED)
        if not hit.size:
            return picture, classes, depth
        points = starts[hit] + depth[hit, None] * axes[2]
        corners = np.float32(0.7) * np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], dtype=np.float32)
        normals = -np.sum([corner * sample_field(field, points + corner)[:, None] for corner in corners], axis=0)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.float32(1e-9))
        for inwards in (0.0, 0.7, 1.5, 2.5, 4.0):  # smoothing may have moved the surface just outside the voxels
            lost = np.flatnonzero(classes[hit] == 0)
            places = points[lost] - np.float32(inwards) * normals[lost]
            classes[hit[lost]] = sample_ids(ids, (places * step_mm + corner_mm) / spacing_mm - 0.5)
        crowded = np.sum([sample_field(field, points + np.float32(reach) * normals) for reach in (2.5, 4.5)], axis=0)
        picture[hit, :3] = _shade(classes[hit], normals, 1 - 0.45 * crowded, depth[hit] / scene, axes)
        picture[hit, 3] = 1
        return picture * (classes != 0)[:, None], classes, depth

    picture, classes, depth = trace(np.arange(size * size), np.zeros(3, dtype=np.float32))
    # Where the class changes or the surface jumps, four rays through the quarters of the pixel.
    change = ndimage.morphological_gradient(classes.reshape(size, size), (3, 3)) != 0
    edges = np.flatnonzero(change | (ndimage.morphological_gradient(depth.reshape(size, size), (3, 3)) > 8 * pixel))
    quarters = (np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * pixel / 4 @ axes[:2]).astype(np.float32)
    finer = trace(np.tile(edges, 4), quarters.repeat(len(edges), axis=0))[0]
    picture[edges] = finer.reshape(4, len(edges), 4).mean(axis=0)
    return picture.reshape(size, size, 4)


def _resampled(filled: NDArray[np.bool_], spacing_mm: Spacing, max_volume: int) -> tuple[torch.Tensor, Floats, float]:
    """Return the smoothed occupancy on cubes with an empty rim: ``(1, 1, X, Y, Z)``, their corner and side."""
    extent = np.multiply(filled.shape, spacing_mm)
    step = max(min(spacing_mm), (extent.prod() / max(max_volume, 64)) ** (1 / 3))
    shape = np.minimum(np.maximum(np.rint(extent / step), 1), filled.shape).astype(int)
    merged = F.adaptive_avg_pool3d(torch.from_numpy(filled.astype(np.float32))[None, None], shape.tolist())
    stretch = extent / shape / step
    rim = np.ceil(3 / stretch - 0.3).astype(int)
    merged = source = F.pad(merged, np.repeat(rim[::-1], 2).tolist())
    mask, thick = merged[0, 0].numpy() >= _LEVEL, stretch.max() > 1.8 and merged.numel() <= 400_000
    if thick:  # a mask would give steps: the distance to the outline is interpolated between slices instead
        inside, outside = (ndimage.distance_transform_edt(part, sampling=stretch) for part in (mask, ~mask))
        source = torch.from_numpy(((inside - outside + 0.5 - mask) / 2.5).astype(np.float32))[None, None]
    values = F.interpolate(source, scale_factor=stretch.tolist(), mode="trilinear")[0, 0].numpy()
    for axis, factor in enumerate(stretch):
        values = ndimage.gaussian_filter1d(values, max(0.7, 0.45 * factor), axis=axis, mode="nearest")
    values = (values + np.float32(_LEVEL)).clip(0.0, 1.0) if thick else values
    # Restore structures so thin that smoothing took them below the level: vessels, specks, single voxels.
    occupied = F.interpolate(merged, scale_factor=stretch.tolist(), mode="nearest-exact")[0, 0].numpy() > 0.1
    lost = occupied & ~ndimage.maximum_filter(values >= _LEVEL + 0.1 * thick, 2 * math.ceil(stretch.max() / 2) + 1)
    if lost.any():
        blurred = ndimage.gaussian_filter(lost.astype(np.float32), 0.7, mode="constant")
        ridges = np.maximum(ndimage.maximum_filter(blurred, 3), np.float32(1e-6))
        values = np.maximum(values, np.where(blurred > 0.02, blurred / ridges, np.float32(0.0)))
    return torch.from_numpy(values)[None, None], -rim * stretch * step, float(step)


def _reach(field: torch.Tensor, origins: Floats, axes: Floats) -> tuple[Floats, Floats]:
    """Return the depths between which each ray may meet the surface, from the outermost voxels on a coarse screen."""
    rays = origins @ axes.T
    mask = field[0, 0].numpy() >= _LEVEL
    filled = (np.argwhere(mask & ~ndimage.minimum_filter(mask, 3)).astype(np.float32) + np.float32(0.5)) @ axes.T
    low = rays.min(axis=0)
    of_rays, of_filled = (((along - low)[:, :2] / 2).astype(int).T for along in (rays, filled))
    shape, depths = tuple(of_rays.max(axis=1) + 1), filled[:, 2] - low[2]
    cells = np.ravel_multi_index(tuple(of_filled), shape, mode="clip")
    near, far = np.full(shape, np.inf, dtype=np.float32), np.full(shape, -np.inf, dtype=np.float32)
    np.minimum.at(near.reshape(-1), cells, depths)
    np.maximum.at(far.reshape(-1), cells, depths)
    # A ray that meets the surface is less than two voxels from the centre of a filled one.
    near, far = ndimage.minimum_filter(near, 3) - 2, ndimage.maximum_filter(far, 3) + 2
    return near[tuple(of_rays)], far[tuple(of_rays)]


def _first_hits(field: torch.Tensor, origins: Floats, ahead: Floats, near: Floats, far: Floats) -> Floats:
    """Return the depth at which each ray meets the surface, or ``_MISSED``."""
    depth, rays = np.full(len(origins), _MISSED), np.flatnonzero(near < far)
    at, before, step = near[rays], np.zeros(len(rays), dtype=np.float32), np.zeros(len(rays), dtype=np.float32)
    while rays.size:
        here = sample_field(field, origins[rays] + at[:, None] * ahead)
        met = here >= _LEVEL
        depth[rays[met]] = (at - step * (here - _LEVEL) / np.maximum(here - before, _LEVEL / 100))[met]
        step = (np.float32(1.5) - 8 * here).clip(np.float32(0.5))
        on = np.flatnonzero(~met & (at < far[rays]))
        rays, at, before, step = rays[on], (at + step)[on], here[on], step[on]
    return depth


def _shade(classes: Ids, normals: Floats, openness: Floats, depth: Floats, axes: Floats) -> Floats:
    """Shade points: a lamp beside the camera, dim ambient light, dark crevices and edges, haze at distances 0 to 1."""
    lamp = np.array([-0.45, -0.65, -1.0]) @ axes / math.sqrt(0.45**2 + 0.65**2 + 1)
    halfway = (lamp - axes[2]) / np.linalg.norm(lamp - axes[2])
    facing, diffuse, shine = ((normals @ towards).clip(0.0, 1.0)[:, None] for towards in (-axes[2], lamp, halfway))
    light = (0.34 + 0.74 * diffuse) * openness[:, None] * (1 - 0.45 * (1 - facing) ** 3)
    haze = 0.22 * depth[:, None].clip(0.0, 1.0)
    lit = colorize(classes) / np.float32(255.0) * light + 0.16 * shine**40
    return np.asarray((lit * (1 - haze) + 0.93 * haze).clip(0.0, 1.0), dtype=np.float32)


def _points(ids: Ids, spacing_mm: Spacing) -> tuple[Floats, Ids, float]:
    """Return the centres of an evenly spread part of the foreground's voxels, their ids, and their distance."""
    stride = max(1, math.ceil((ids.size / 400_000) ** (1 / 3)))
    coarse = ids[::stride, ::stride, ::stride]
    if not coarse.any():  # small objects may lie between
        coarse, stride = ids, 1
    points = ((np.argwhere(coarse) * stride + 0.5) * spacing_mm).astype(np.float32)
    return points, coarse[coarse != 0], max(spacing_mm) * stride


def _hidden_classes(ids: Ids, spacing_mm: Spacing, camera: Camera) -> list[int]:
    """Return the classes that are mostly hidden, largest first, from voxels projected onto a coarse screen."""
    points, found, cell = _points(ids, spacing_mm)
    classes, which = np.unique(found, return_inverse=True)
    if not 1 < len(classes) <= _MOST_CLASSES_TO_LOOK_BEHIND:
        return []
    along = (points @ camera.axes.T - camera.low_mm) / cell
    right, down = along[:, :2].astype(int).T
    pixel = down * (right.max() + 1) + right
    nearest_first = np.lexsort((along[:, 2], pixel))
    in_front = nearest_first[np.diff(pixel[nearest_first], prepend=-1) != 0]
    visible = np.bincount(which[in_front], minlength=len(classes))
    silhouettes = np.bincount(np.unique(pixel * len(classes) + which) % len(classes))
    hidden = np.flatnonzero(visible < _HIDDEN_BELOW * silhouettes)
    return [int(number) for number in classes[hidden[np.argsort(-silhouettes[hidden])]][:_MOST_HIDDEN_SHOWN]]
