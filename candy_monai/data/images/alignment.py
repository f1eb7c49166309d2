"""Whether two images lie on the same grid, so that equal indices are the same places, and how to bring them onto one.

Axes that run another way are swapped and flipped, which is exact. Nothing is interpolated here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.images.formats import Geometry
from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

POSITION_TOLERANCE = 1e-2
"""Millimetres and direction cosines; what differs by less is the rounding of some tool."""

HAS_NO_GRID = "has_no_grid"
"""In the metadata of a tensor whose affine says nothing, since it was made of one without metadata."""

_SPACING_TOLERANCE = 1e-3  # relative; headers store single precision, and tools round
_MOST_VOXELS_APART = 0.5  # a voxel that is further off is another voxel
_PARALLEL = 0.9  # cosine from which an axis runs along another; how exactly is seen once they are swapped and flipped


def aligned(values: Tensor, found: Geometry, expected: Geometry, *, name: str, against: str) -> Tensor:
    """Return an image's samples on another image's grid, with its axes swapped and flipped where they run another way.

    The one function for wherever two images meet: the channels of a case, a prediction and its reference. A sample
    never changes, and nothing is copied where the grids agree already.

    Args:
        values: ``(C, *spatial)``.
        found: The grid of these.
        expected: The grid to bring them onto.
        name: What to call the image in a message, such as its file.
        against: Whose the expected grid is, with a verb: ``the image a.nii.gz has``.

    Returns:
        ``(C, *spatial)`` in the order and direction of the expected grid's axes.

    Raises:
        BadInputError: If the grids cover other places; says what of each differs.
    """
    if problem := mismatch(found, expected, against=against):
        raise BadInputError(f"{name}: {problem}")
    if misalignment(found, expected, against=against) is None:
        return values
    turn = _Turn.between(found, expected)
    assert turn is not None  # or there had been a mismatch
    turned = values.permute(0, *(axis + 1 for axis in turn.order)).flip([axis + 1 for axis in turn.flips])
    return turned.contiguous()


def mismatch(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return why an image cannot be brought onto another's grid by swapping and flipping axes; None where it can.

    Args:
        found: The grid of the image at fault.
        expected: The grid to compare with.
        against: Whose that is, with a verb: ``the image a.nii.gz has``.
    """
    problem = misalignment(found, expected, against=against)
    if problem is None:
        return None
    turn = _Turn.between(found, expected)
    if turn is None or misalignment(turn.applied(found), expected, against=against) is not None:
        return problem
    return None


def misalignment(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid differs from another so much that equal indices are other places; None where it does not.

    Args:
        found: The grid of the image at fault.
        expected: The grid to compare with.
        against: Whose that is, with a verb: ``the image a.nii.gz has``.
    """
    for geometry in (found, expected):
        if not np.isfinite(geometry.affine).all() or np.linalg.matrix_rank(geometry.affine[:3, :3]) < 3:
            whose = "" if geometry is found else f"{against.rsplit(' ', 1)[0]}: "
            return f"{whose}affine {geometry.affine[:3].tolist()} is none of a grid; correct the header"
    if problem := misfit(found, expected, against=against):
        return problem
    if _voxels_apart(expected, found) > _MOST_VOXELS_APART:
        return f"{displacement(found, expected, against=against)}; correct the header that is wrong"
    return None


def misfit(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid differs from another in shape or spacing; None where it does not."""
    if expected.spatial_shape != found.spatial_shape:
        return f"shape {found.spatial_shape}, {against} {expected.spatial_shape}; resample to one grid"
    if not np.allclose(expected.spacing_mm, found.spacing_mm, rtol=_SPACING_TOLERANCE):
        there, here = (tuple(round(s, 4) for s in geometry.spacing_mm) for geometry in (found, expected))
        return f"spacing {there} mm, {against} {here}; correct the header that is wrong"
    return None


def displacement(found: Geometry, expected: Geometry, *, against: str) -> str | None:
    """Return how a grid of the same shape and spacing lies elsewhere or turned; None where it does not."""
    furthest, of_origins = _voxels_apart(expected, found), _voxels_apart(expected, found, corners=False)
    turned_by = np.abs(_directions(expected) - _directions(found)).max()
    if turned_by > POSITION_TOLERANCE or (furthest > _MOST_VOXELS_APART >= of_origins):
        axes_there, axes_here = (_directions(geometry).round(4).tolist() for geometry in (found, expected))
        return f"directions {axes_there}, {against} {axes_here}"
    if furthest <= _MOST_VOXELS_APART and np.allclose(expected.affine, found.affine, atol=POSITION_TOLERANCE):
        return None
    there, here = (tuple(geometry.affine[:3, 3].round(3).tolist()) for geometry in (found, expected))
    return f"origin {there} mm, {against} {here}, which is {of_origins:.2g} voxels off"


@dataclass(frozen=True, kw_only=True)
class _Turn:
    """Which axis of a grid becomes which, and which of the new ones run backwards."""

    order: tuple[int, ...]
    flips: tuple[int, ...]

    @classmethod
    def between(cls, found: Geometry, expected: Geometry) -> _Turn | None:
        """Return the turn that brings a grid's axes onto another's; None where they are not parallel."""
        if len(found.spatial_shape) != len(expected.spatial_shape) or not np.isfinite(found.affine).all():
            return None
        cosines = _directions(expected).T @ _directions(found)
        order = np.abs(cosines).argmax(axis=1)
        along = cosines[np.arange(len(order)), order]
        if len(set(order.tolist())) < len(order) or np.abs(along).min() < _PARALLEL:
            return None
        return cls(order=tuple(order.tolist()), flips=tuple(np.flatnonzero(along < 0).tolist()))

    def applied(self, geometry: Geometry) -> Geometry:
        """Return the grid after the turn."""
        shape = tuple(geometry.spatial_shape[axis] for axis in self.order)
        affine = geometry.affine.copy()
        affine[:, : len(shape)] = affine[:, list(self.order)]
        for axis in self.flips:
            affine[:, 3] += affine[:, axis] * (shape[axis] - 1)
            affine[:, axis] *= -1
        return replace(geometry, spatial_shape=shape, file_shape=shape, affine=affine)


def _directions(geometry: Geometry) -> NDArray[np.float64]:
    """Return the direction cosines, a column for each spatial axis."""
    spacing = np.maximum(np.array(geometry.spacing_mm), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float64] = geometry.affine[:3, : len(geometry.spatial_shape)] / spacing
    return cosines


def _voxels_apart(one: Geometry, other: Geometry, *, corners: bool = True) -> float:
    """Return how far a voxel of one grid lies from that of the same index on the other, at most, in voxels of an axis.

    Both have the same shape; the furthest voxel is one of the corners, since the distance is linear in the index.
    Without corners it is the distance of the first voxels.
    """
    last = np.zeros((3, 2))
    if corners:
        last[: len(one.spatial_shape), 1] = np.array(one.spatial_shape) - 1
    indices = np.array(np.meshgrid(*last)).reshape(3, -1)
    indices = np.vstack([indices, np.ones(indices.shape[1])])
    offset = np.linalg.pinv(one.affine[:3, :3]) @ (other.affine[:3] - one.affine[:3]) @ indices
    return float(np.abs(offset).max())
