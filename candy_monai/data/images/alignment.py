"""Compare the grids of two images, and bring one onto the other by swapping and flipping axes, which is exact.

Equal indices of two aligned images are the same position. In every message, ``against`` names the owner of the expected
grid, with a verb: ``the image a.nii.gz has``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from nibabel.orientations import inv_ornt_aff, io_orientation

from candy_monai.data.images.geometry import Geometry
from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

HAS_NO_GRID = "has_no_grid"
"""Metadata key of a tensor that was made without metadata, so that its affine has no meaning."""

_POSITION_TOLERANCE = 1e-2  # millimetres and direction cosines; smaller differences are due to rounding
_SPACING_TOLERANCE = 1e-3  # relative; headers have single precision, and tools round
_MOST_VOXELS_APART = 0.5  # beyond this distance it is another voxel


def aligned(values: Tensor, found: Geometry, expected: Geometry, *, name: str, against: str) -> Tensor:
    """Return an image on another image's grid, with its axes swapped and flipped where they differ.

    Args:
        values: ``(C, *spatial)``; not copied if the grids agree already.
        found: The grid of these values.
        expected: The target grid.
        name: The name of the image in messages, such as its file.
        against: The owner of the expected grid.

    Raises:
        BadInputError: If the grids cover different regions; says how they differ.
    """
    if problem := mismatch(found, expected, against=against):
        raise BadInputError(f"{name}: {problem}")
    if misalignment(found, expected, against=against) is None:
        return values
    order, flips = _axes(_orientation(found, expected), values.ndim - 1)
    return values.permute(0, *(axis + 1 for axis in order)).flip([axis + 1 for axis in flips]).contiguous()


def mismatch(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return why an image cannot be brought onto another's grid by swapping and flipping axes; None if it can."""
    problem = misalignment(found, expected, against=against)
    is_comparable = len(found.spatial_shape) == len(expected.spatial_shape) and _is_grid(found) and _is_grid(expected)
    if problem is None or not is_comparable:
        return problem
    orientation = _orientation(found, expected)
    order, _ = _axes(orientation, len(found.spatial_shape))
    shape = (*found.spatial_shape, 1)[:3]
    turned = replace(
        found,
        spatial_shape=tuple(shape[axis] for axis in order),
        affine=found.affine @ inv_ornt_aff(orientation, shape),
    )
    return None if misalignment(turned, expected, against=against) is None else problem


def misalignment(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid differs from another if equal indices are different positions; None if they are not."""
    for geometry in (found, expected):
        if not _is_grid(geometry):
            whose = "" if geometry is found else f"{against.rsplit(' ', 1)[0]}: "
            return f"{whose}the affine {geometry.affine[:3].tolist()} does not define a grid; correct the header"
    if problem := misfit(found, expected, against=against):
        return problem
    if _voxels_apart(found, expected) > _MOST_VOXELS_APART:
        return f"{displacement(found, expected, against=against)}; correct the header that is wrong"
    return None


def misfit(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid differs from another in shape or spacing; None if it does not."""
    if expected.spatial_shape != found.spatial_shape:
        return f"shape {found.spatial_shape}, {against} {expected.spatial_shape}; resample to one grid"
    if not np.allclose(expected.spacing_mm, found.spacing_mm, rtol=_SPACING_TOLERANCE):
        there, here = (tuple(round(s, 4) for s in geometry.spacing_mm) for geometry in (found, expected))
        return f"spacing {there} mm, {against} {here}; correct the header that is wrong"
    return None


def displacement(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid of the same shape and spacing is shifted or rotated; None if it is not."""
    furthest, of_origins = _voxels_apart(found, expected), _voxels_apart(found, expected, corners=False)
    turned_by = np.abs(_directions(expected) - _directions(found)).max()
    if turned_by > _POSITION_TOLERANCE or (furthest > _MOST_VOXELS_APART >= of_origins):
        axes_there, axes_here = (_directions(geometry).round(4).tolist() for geometry in (found, expected))
        return f"directions {axes_there}, {against} {axes_here}"
    if furthest <= _MOST_VOXELS_APART and np.allclose(expected.affine, found.affine, atol=_POSITION_TOLERANCE):
        return None
    there, here = (tuple(geometry.affine[:3, 3].round(3).tolist()) for geometry in (found, expected))
    return f"origin {there} mm, {against} {here}, which is {of_origins:.2g} voxels off"


def _is_grid(geometry: Geometry) -> bool:
    return bool(np.isfinite(geometry.affine).all() and np.linalg.matrix_rank(geometry.affine[:3, :3]) == 3)


def _orientation(found: Geometry, expected: Geometry) -> NDArray[np.float64]:
    """Return for each axis of a grid the matching axis of another and its direction, in nibabel's form."""
    orientation: NDArray[np.float64] = io_orientation(np.linalg.inv(expected.affine) @ found.affine)
    return orientation


def _axes(orientation: NDArray[np.float64], num_dims: int) -> tuple[list[int], list[int]]:
    """Return the old axis for each new one, and the new axes that are flipped."""
    order = np.argsort(orientation[:, 0])[:num_dims].tolist()
    return order, [new for new, old in enumerate(order) if orientation[old, 1] < 0]


def _directions(geometry: Geometry) -> NDArray[np.float64]:
    """Return the direction cosines, with a column for each spatial axis."""
    spacing = np.maximum(np.array(geometry.spacing_mm), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float64] = geometry.affine[:3, : len(geometry.spatial_shape)] / spacing
    return cosines


def _voxels_apart(found: Geometry, expected: Geometry, *, corners: bool = True) -> float:
    """Return the largest distance between voxels of equal index on two grids of one shape, in voxels along an axis.

    The maximum is at a corner, since the distance is linear in the index. Without corners, the first voxel is compared.
    """
    last = np.zeros((3, 2))
    if corners:
        last[: len(found.spatial_shape), 1] = np.array(found.spatial_shape) - 1
    indices = np.array(np.meshgrid(*last)).reshape(3, -1)
    indices = np.vstack([indices, np.ones(indices.shape[1])])
    offset = np.linalg.pinv(expected.affine[:3, :3]) @ (found.affine[:3] - expected.affine[:3]) @ indices
    return float(np.abs(offset).max())
