"""Choose the grid for training on a dataset: orientation, spacing, and the resulting shapes, by nnU-Net's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from candy_monai.aliases import Shape
from candy_monai.transforms.resampling import resampled_shape, thick_axis

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import CaseFingerprint, Fingerprint, Orientation

_ANISOTROPIC = 3.0


def anisotropic_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> int | None:
    """Return the axis of a volume across thick slices; None if there is none."""
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
    """Return the axes that bring a volume from one orientation to another.

    Returns:
        For each target axis the stored axis, and the target axes to flip.
    """
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt(source), nibabel.orientations.axcodes2ornt(target)
    )
    order = tuple(int(axis) for axis in np.argsort(change[:, 0]))
    return order, tuple(axis for axis, stored in enumerate(order) if change[stored, 1] < 0)


def majority_orientation(fingerprint: Fingerprint) -> Orientation | None:
    """Return the most frequent orientation of the cases; ``None`` for 2-D images."""
    found = sorted(case.orientation for case in fingerprint.cases if case.orientation is not None)
    return max(dict.fromkeys(found), key=found.count) if found else None


def target_spacing(fingerprint: Fingerprint, orientation: Orientation | None) -> tuple[float, ...] | None:
    """Return the target spacing for the cases, in the plan's axes; ``None`` for pictures."""
    if fingerprint.is_picture:
        return None
    turned = [_turned(case, orientation) for case in fingerprint.cases]
    shapes, spacings = (np.array(of_cases) for of_cases in zip(*turned, strict=True))
    target = np.median(spacings, axis=0)
    if (axis := thick_axis(target.tolist())) is not None:
        others = np.delete(target, axis)
        median_shape = np.median(shapes * spacings / target, axis=0)
        if median_shape[axis] * _ANISOTROPIC < np.delete(median_shape, axis).min():
            target[axis] = max(float(np.percentile(spacings[:, axis], 10)), float(others.max()))
    return tuple(float(value) for value in target)


def default_slice_axis(spacing_mm: Sequence[float]) -> int:
    """Return the axis across the slices for a 2-D network: the coarsest one, the last (axial in RAS) of equal ones."""
    coarsest = max(spacing_mm)
    return max(axis for axis, length in enumerate(spacing_mm) if length > 0.99 * coarsest)


def pixdim(spacing_mm: Sequence[float] | None, slice_axis: int | None) -> tuple[float, ...] | None:
    """Return the spacing for a resampling transform: -1, which keeps it, across the slices of a 2-D network."""
    if spacing_mm is None:
        return None
    return tuple(-1.0 if axis == slice_axis else length for axis, length in enumerate(spacing_mm))


def planned_shape(case: CaseFingerprint, orientation: Orientation | None, spacing_mm: Sequence[float] | None) -> Shape:
    """Return a case's shape after reorientation, cropping to non-zero voxels and resampling."""
    shape, spacing = _turned(case, orientation)
    return shape if spacing_mm is None else resampled_shape(shape, spacing, spacing_mm)


def _turned(case: CaseFingerprint, orientation: Orientation | None) -> tuple[Shape, tuple[float, ...]]:
    """Return a case's non-zero shape and its spacing in the axes of an orientation."""
    order = tuple(range(len(case.shape)))
    if orientation is not None and case.orientation is not None:
        order, _ = axis_order(case.orientation, orientation)
    return tuple(case.nonzero_shape[axis] for axis in order), tuple(case.spacing_mm[axis] for axis in order)


def median_of_shapes(shapes: Sequence[Shape]) -> Shape:
    """Return the median along each axis, rounded up."""
    return tuple(math.ceil(size) for size in np.median(shapes, axis=0))
