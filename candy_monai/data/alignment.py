"""Whether two files of one case lie on the same grid, so that their voxels can be taken for the same places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.formats import Geometry

if TYPE_CHECKING:
    from numpy.typing import NDArray

POSITION_TOLERANCE = 1e-2
"""Millimetres and direction cosines; what differs by less is the rounding of some tool."""

_SPACING_TOLERANCE = 1e-3  # relative; headers store single precision, and tools round
_MOST_VOXELS_APART = 0.5  # an origin that is further off makes another voxel out of each


def misalignment(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Say how a grid differs from another so much that voxels are not the same places; ``None`` where it does not.

    Args:
        found: The grid of the file at fault.
        expected: The grid to compare with.
        against: Whose that is, with a verb: ``the image a.nii.gz has``.
    """
    if problem := misfit(found, expected, against=against):
        return problem
    is_turned = np.abs(_directions(expected) - _directions(found)).max() > POSITION_TOLERANCE
    if is_turned or _voxels_apart(expected, found) > _MOST_VOXELS_APART:
        return f"{displacement(found, expected, against=against)}; correct the header that is wrong"
    return None


def misfit(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Say how a grid differs from another in shape or spacing; ``None`` where it does not."""
    if expected.spatial_shape != found.spatial_shape:
        return f"shape {found.spatial_shape}, {against} {expected.spatial_shape}; resample to one grid"
    if not np.allclose(expected.spacing_mm, found.spacing_mm, rtol=_SPACING_TOLERANCE):
        there, here = (tuple(round(s, 4) for s in geometry.spacing_mm) for geometry in (found, expected))
        return f"spacing {there} mm, {against} {here}; correct the header that is wrong"
    return None


def displacement(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Say how a grid of the same shape and spacing lies elsewhere or turned; ``None`` where it does not."""
    if np.abs(_directions(expected) - _directions(found)).max() > POSITION_TOLERANCE:
        axes_there, axes_here = (_directions(geometry).round(3).tolist() for geometry in (found, expected))
        return f"directions {axes_there}, {against} {axes_here}"
    if np.allclose(expected.affine, found.affine, atol=POSITION_TOLERANCE):
        return None
    there, here = (tuple(geometry.affine[:3, 3].round(3).tolist()) for geometry in (found, expected))
    return f"origin {there} mm, {against} {here}, which is {_voxels_apart(expected, found):.2g} voxels off"


def _directions(geometry: Geometry) -> NDArray[np.float64]:
    """Return the direction cosines, a column for each spatial axis."""
    spacing = np.maximum(np.array(geometry.spacing_mm), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float64] = geometry.affine[:3, : len(geometry.spatial_shape)] / spacing
    return cosines


def _voxels_apart(one: Geometry, other: Geometry) -> float:
    """Return how far the origins lie apart, in voxels along the axis where they do most."""
    offset = np.linalg.pinv(one.affine[:3, :3]) @ (other.affine[:3, 3] - one.affine[:3, 3])
    return float(np.abs(offset).max())
