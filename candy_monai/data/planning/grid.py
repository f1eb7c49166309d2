"""On which grid a dataset is trained: orientation, spacing, and the shapes that follow, by nnU-Net's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from candy_monai.aliases import Shape
from candy_monai.data.planning.entries import Overrides
from candy_monai.transforms.resampling import resampled_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.inspection.fingerprint import CaseFingerprint, Fingerprint, Orientation

_ANISOTROPIC = 3.0


def coarse_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> int | None:
    """Return the one axis of a volume across thick slices, if there is one.

    Args:
        spacing_mm: Distance of voxels along each axis.
        shape: Voxels along each axis.
    """
    if len(spacing_mm) < 3:
        return None
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        is_thick = spacing_mm[axis] > _ANISOTROPIC * max(spacing_mm[other] for other in others)
        is_flat = _ANISOTROPIC * shape[axis] < min(shape[other] for other in others)
        if is_thick or is_flat:
            return axis
    return None


def axis_order(source: Orientation, target: Orientation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how to bring a volume from one orientation to another.

    Returns:
        For each target axis the stored axis that it comes from, and the target axes that are to be flipped.
    """
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(source), nibabel.orientations.axcodes2ornt(target)
    )
    order = tuple(int(axis) for axis in np.argsort(change[:, 0]))
    return order, tuple(axis for axis, stored in enumerate(order) if change[stored, 1] < 0)


def majority_orientation(fingerprint: Fingerprint) -> Orientation | None:
    """Return the orientation that most cases have; ``None`` for anything 2-D."""
    found = sorted(case.orientation for case in fingerprint.cases if case.orientation is not None)
    return max(dict.fromkeys(found), key=found.count) if found else None


def target_grid(
    fingerprint: Fingerprint, orientation: Orientation | None, overrides: Overrides
) -> tuple[tuple[float, ...] | None, list[Shape]]:
    """Return the target spacing and every case's shape at it, in the plan's axes."""
    default = None
    if not fingerprint.is_picture:
        turned = [_turned(case, orientation) for case in fingerprint.cases]
        default = _target_spacing(
            np.array([spacing for _, spacing in turned]), np.array([shape for shape, _ in turned])
        )
    target = overrides.get("spacing_mm", default)
    return target, [planned_shape(case, orientation, target) for case in fingerprint.cases]


def planned_shape(case: CaseFingerprint, orientation: Orientation | None, spacing_mm: Sequence[float] | None) -> Shape:
    """Return a case's shape after reorientation, cropping to non-zero voxels and resampling.

    Args:
        case: The case.
        orientation: The plan's.
        spacing_mm: The plan's.
    """
    shape, spacing = _turned(case, orientation)
    return shape if spacing_mm is None else resampled_shape(shape, spacing, spacing_mm)


def _turned(case: CaseFingerprint, orientation: Orientation | None) -> tuple[Shape, tuple[float, ...]]:
    """Return a case's non-zero shape and its spacing in the axes of an orientation."""
    order = tuple(range(len(case.shape)))
    if orientation is not None and case.orientation is not None:
        order, _ = axis_order(case.orientation, orientation)
    return tuple(case.nonzero_shape[axis] for axis in order), tuple(case.spacing_mm[axis] for axis in order)


def median_shape(shapes: Sequence[Shape]) -> Shape:
    """Return the median along each axis, rounded up."""
    return tuple(math.ceil(size) for size in np.median(shapes, axis=0))


def _target_spacing(spacings: NDArray[np.float64], shapes: NDArray[np.integer]) -> tuple[float, ...]:
    target = np.median(spacings, axis=0)
    if len(target) < 3:
        return tuple(float(value) for value in target)
    median_shape = np.median(shapes * spacings / target, axis=0)
    axis = int(np.argmax(target))
    others = np.delete(target, axis)
    is_coarse = target[axis] > _ANISOTROPIC * others.max()
    is_short = median_shape[axis] * _ANISOTROPIC < np.delete(median_shape, axis).min()
    if is_coarse and is_short:
        target[axis] = max(float(np.percentile(spacings[:, axis], 10)), float(others.max()))
    return tuple(float(value) for value in target)
