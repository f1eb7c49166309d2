"""A shaded picture of a label's surface: rays marched through a small volume on the CPU, no graphics library.

Owns the camera, the rays and the light. The volume is resampled to cubic voxels first, at most as many as asked for;
the classes are looked up in the untouched label, so that no id can appear that is not in it.

A class that others enclose would never be seen. The few classes that are mostly hidden shine through what is in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from candy_monai.data.geometric import bounding_box
from candy_monai.plotting.colors import colorize
from candy_monai.plotting.display import Pixels
from candy_monai.plotting.rays import Camera, first_hits, scout
from candy_monai.plotting.solids import Solid, Vector

_AZIMUTH, _ELEVATION = math.radians(38.0), math.radians(22.0)
_SUBPIXELS = ((-1, -1), (1, -1), (-1, 1), (1, 1))  # quarters of a pixel
_MOST_CLASSES_TO_LOOK_BEHIND = 24
_MOST_HIDDEN_SHOWN = 6
_HIDDEN_BELOW = 0.25  # a class is hidden if less than this share of its silhouette is in front
_SHINE_THROUGH = 0.72


def camera_for(labels: Sequence[NDArray[np.integer]], spacing_mm: tuple[float, float, float]) -> Camera | None:
    """Place a camera before the patient's left front, a little above, that sees all foreground of all labels.

    The same camera makes the pictures of two labels comparable.

    Args:
        labels: ``(X, Y, Z)`` label ids in view order, all of one shape.
        spacing_mm: Of the axes in view order.

    Returns:
        The camera, or ``None`` if there is no foreground.
    """
    points = [_coarse_points(label, spacing_mm)[0] for label in labels]
    together = np.concatenate([*points, np.empty((0, 3), dtype=np.float32)])
    if not len(together):
        return None
    return Camera.around(together, rim_mm=max(spacing_mm), azimuth=_AZIMUTH, elevation=_ELEVATION)


def render_surface(
    ids: NDArray[np.integer],
    *,
    spacing_mm: tuple[float, float, float],
    size: int,
    max_volume: int = 1_000_000,
    camera: Camera | None = None,
) -> Pixels:
    """Draw the surface of a label on white.

    Args:
        ids: ``(X, Y, Z)`` label ids in view order (see ``Geometry.to_view``).
        spacing_mm: Of the axes in view order.
        size: Height and width of the picture in pixels.
        max_volume: Most voxels to march through.
        camera: From ``camera_for``; by default this label's own.

    Returns:
        ``(size, size, 3)``; all white if there is no foreground.
    """
    camera = camera or camera_for([ids], spacing_mm)
    box = bounding_box(ids != 0)
    if box is None or camera is None:
        return np.full((size, size, 3), 255, dtype=np.uint8)
    camera = replace(camera, size=size)
    inner, start = ids[box], _start(box)
    shown = _paint(inner, start, spacing_mm, camera, max_volume)
    for hidden in _hidden_classes(inner, spacing_mm, camera):
        part = bounding_box(inner == hidden)
        if part is not None:
            only = np.where(inner[part] == hidden, inner[part], 0)
            inside = _paint(only, start + _start(part), spacing_mm, camera, max_volume)
            shown = shown * (1 - np.float32(_SHINE_THROUGH) * inside[..., 3:]) + np.float32(_SHINE_THROUGH) * inside
    color = shown[..., :3] + (1 - shown[..., 3:])
    return np.rint(color.clip(0.0, 1.0) * 255.0).astype(np.uint8)


def _start(box: tuple[slice, ...]) -> NDArray[np.intp]:
    return np.array([side.start for side in box])


def _coarse_points(
    ids: NDArray[np.integer], spacing_mm: tuple[float, float, float]
) -> tuple[Vector, NDArray[np.integer], float]:
    """Return the centres of a part of the foreground's voxels, evenly spread, their ids, and how far they are apart."""
    stride = max(1, math.ceil((ids.size / 400_000) ** (1 / 3)))
    coarse = ids[::stride, ::stride, ::stride]
    places = np.nonzero(coarse)
    if not places[0].size and stride > 1:  # something tiny lies between
        coarse, stride, places = ids, 1, np.nonzero(ids)
    points = ((np.stack(places, axis=1) * stride + 0.5) * np.array(spacing_mm)).astype(np.float32)
    return points, coarse[places], float(max(spacing_mm)) * stride


def _paint(
    ids: NDArray[np.integer],
    start: NDArray[np.intp],
    spacing_mm: tuple[float, float, float],
    camera: Camera,
    max_volume: int,
) -> Vector:
    """Return red, green, blue (times coverage) and coverage of what is not background, for every pixel."""
    low_mm = (start * np.array(spacing_mm)).astype(np.float32)
    solid = Solid.from_mask(ids != 0, low_mm=low_mm, spacing_mm=spacing_mm, max_volume=max_volume)
    origins = camera.origins()
    begin, end = scout(solid, camera)

    def trace(starts: Vector, begin: Vector, end: Vector) -> tuple[Vector, NDArray[np.integer], Vector]:
        rays, points = first_hits(solid, starts, camera.forward, begin, end)
        colors, depth = np.zeros((len(starts), 4), dtype=np.float32), np.full(len(starts), np.inf, dtype=np.float32)
        classes = np.zeros(len(starts), dtype=ids.dtype)
        if rays.size:
            normals = solid.normals(points)
            found = _ids_at(ids, points, normals, low_mm, spacing_mm, solid.step_mm)
            sky = solid.openness(points, normals)
            lit = _shade(colorize(found).astype(np.float32) / np.float32(255.0), points, normals, camera, sky)
            cover = (found != 0).astype(np.float32)[:, None]
            colors[rays], classes[rays] = np.concatenate([lit * cover, cover], axis=1), found
            depth[rays] = (points - origins[0]) @ camera.forward / np.float32(solid.step_mm)
        return colors, classes, depth

    picture, classes, depth = trace(origins, begin, end)
    edges, begin, end = _edges(classes, depth, camera, solid.step_mm)
    if edges.size:
        quarter = np.float32(camera.pixel_mm / 4)
        shifts = [quarter * (right * camera.right + down * camera.down) for right, down in _SUBPIXELS]
        starts = np.concatenate([origins[edges] + shift for shift in shifts])
        finer = trace(starts, np.tile(begin, len(shifts)), np.tile(end, len(shifts)))[0]
        picture[edges] = finer.reshape(len(shifts), edges.size, 4).mean(axis=0)
    return picture.reshape(camera.size, camera.size, 4)


def _edges(
    classes: NDArray[np.integer], depth: Vector, camera: Camera, step_mm: float
) -> tuple[NDArray[np.intp], Vector, Vector]:
    """Find the pixels where the class changes or the surface jumps: only they need more than one ray.

    Returns:
        The pixels, and between which depths to look for the surface there: those of the pixels around.
    """
    side = (camera.size, camera.size)
    nearest = ndimage.minimum_filter(depth.reshape(side), 3, mode="nearest")
    farthest = ndimage.maximum_filter(np.where(np.isinf(depth), -1.0, depth).reshape(side), 3, mode="nearest")
    hit = ndimage.minimum_filter((classes != 0).reshape(side), 3, mode="nearest")
    lowest = ndimage.minimum_filter(classes.reshape(side), 3, mode="nearest")
    highest = ndimage.maximum_filter(classes.reshape(side), 3, mode="nearest")
    jump = 8 * camera.pixel_mm / step_mm
    edge = (lowest != highest) | (hit & (farthest - nearest > jump))
    found = np.flatnonzero(edge & (farthest >= 0))
    return found, nearest.reshape(-1)[found] - 2, farthest.reshape(-1)[found] + 2


def _shade(colors: Vector, points: Vector, normals: Vector, camera: Camera, open_sky: Vector) -> Vector:
    """Light the points: a lamp beside the camera, a dim sky, dark crevices and edges, haze in the distance."""
    towards_eye = -camera.forward
    lamp = towards_eye - 0.45 * camera.right - 0.65 * camera.down
    lamp = lamp / np.linalg.norm(lamp)
    facing = (normals @ towards_eye).clip(0.0, 1.0)
    diffuse = (normals @ lamp).clip(0.0, 1.0)
    shine = (normals @ ((lamp + towards_eye) / np.linalg.norm(lamp + towards_eye))).clip(0.0, 1.0) ** 40
    light = (0.34 + 0.74 * diffuse) * open_sky * (1.0 - 0.45 * (1.0 - facing) ** 3)
    depth = (points @ camera.forward - camera.near_mm) / max(camera.far_mm - camera.near_mm, 1e-6)
    haze = 0.22 * depth.clip(0.0, 1.0)[:, None]
    lit = colors * light[:, None] + 0.16 * shine[:, None]
    return np.asarray((lit * (1.0 - haze) + 0.93 * haze).clip(0.0, 1.0), dtype=np.float32)


def _ids_at(
    ids: NDArray[np.integer],
    points: Vector,
    normals: Vector,
    low_mm: Vector,
    spacing_mm: tuple[float, float, float],
    step_mm: float,
) -> NDArray[np.integer]:
    """Look up the class at each point: the eight voxels around it vote by nearness, the background has no vote."""
    spacing = np.array(spacing_mm, dtype=np.float32)
    found = _vote(ids, (points - low_mm) / spacing - 0.5)
    for depth in (0.7, 1.5, 2.5, 4.0):  # smoothing may have put the surface just outside of the voxels
        missing = np.flatnonzero(found == 0)
        if missing.size == 0:
            break
        deeper = points[missing] - normals[missing] * np.float32(depth * step_mm)
        found[missing] = _vote(ids, (deeper - low_mm) / spacing - 0.5)
    return found


def _vote(ids: NDArray[np.integer], places: Vector) -> NDArray[np.integer]:
    base = np.floor(places).astype(np.int32)
    last = np.array(ids.shape, dtype=np.int32) - 1
    low, high = base.clip(0, last), (base + 1).clip(0, last)
    corners = np.stack([ids[tuple(np.where(pick, high, low).T)] for pick in np.ndindex(2, 2, 2)])
    best: NDArray[np.integer] = corners[0].copy()
    for corner in corners[1:]:
        np.copyto(best, corner, where=best == 0)
    mixed = np.flatnonzero(((corners != 0) & (corners != best)).any(axis=0))  # few points lie between two classes
    if mixed.size:
        corners, part = corners[:, mixed], (places - base)[mixed]
        weights = np.stack([np.where(pick, part, 1 - part).prod(axis=1) for pick in np.ndindex(2, 2, 2)])
        votes = np.stack([(weights * (corners == corner)).sum(axis=0) * (corner != 0) for corner in corners])
        best[mixed] = np.take_along_axis(corners, votes.argmax(axis=0)[None], axis=0)[0]
    return best


def _hidden_classes(ids: NDArray[np.integer], spacing_mm: tuple[float, float, float], camera: Camera) -> list[int]:
    """List the classes of which little can be seen, largest first, by projecting voxels onto a coarse screen."""
    points, found, cell = _coarse_points(ids, spacing_mm)
    classes, which = np.unique(found, return_inverse=True)
    if not 1 < len(classes) <= _MOST_CLASSES_TO_LOOK_BEHIND:
        return []
    right = np.floor(points @ camera.right / cell).astype(np.int64)
    down = np.floor(points @ camera.down / cell).astype(np.int64)
    width = int(right.max() - right.min()) + 1
    pixel = (down - down.min()) * width + right - right.min()
    screen = np.full(int(pixel.max()) + 1, -1)
    far_first = np.argsort(-(points @ camera.forward), kind="stable")
    screen[pixel[far_first]] = which[far_first]  # the nearest is written last and stays
    silhouettes = np.bincount(np.unique(pixel * len(classes) + which) % len(classes), minlength=len(classes))
    visible = np.bincount(screen[screen >= 0], minlength=len(classes))
    hidden = [int(number) for number in np.flatnonzero(visible < _HIDDEN_BELOW * silhouettes)]
    hidden.sort(key=lambda number: -int(silhouettes[number]))
    return [int(classes[number]) for number in hidden[:_MOST_HIDDEN_SHOWN]]
