"""The grid of an image file's samples, and the check of affines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from candy_monai.aliases import Shape

_FLATTEST = 1e-3
"""Least extent of the unit vectors along the axes in any direction: about 0.7 for gantry tilt, 0 for a plane."""

IN_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "nm": 1e-6}
"""Millimetres for each unit of length in headers."""


class UnusableFileError(ValueError):
    """A file was decoded, but its content cannot be used; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The grid of an image file's samples.

    Attributes:
        spatial_shape: The spatial axes in the file's order; (row, column) for a picture.
        num_channels: Samples at each position.
        affine: 4 x 4, from indices to millimetres in RAS+; the identity for a picture.
        is_picture: Whether the format has no physical space.
        file_shape: The shape as declared by the file, to write results with the same number of axes.
    """

    spatial_shape: Shape
    num_channels: int
    affine: NDArray[np.float64]
    is_picture: bool
    file_shape: Shape

    @classmethod
    def in_space(cls, shape: Sequence[int], affine: NDArray[np.float64], *, num_channels: int) -> Geometry:
        """Build the grid for a file's shape: axes after the third are channels, at most one of them longer than 1."""
        spatial, rest = tuple(shape[:3]), [length for length in shape[3:] if length > 1]
        if len(spatial) < 2 or len(rest) > 1 or (rest and num_channels > 1):
            raise UnusableFileError(
                f"has the shape {tuple(shape)}, expected 2 or 3 spatial axes and at most one channel axis"
            )
        return cls(
            spatial_shape=spatial,
            num_channels=num_channels * (rest[0] if rest else 1),
            affine=np.asarray(affine, dtype=np.float64),
            is_picture=False,
            file_shape=tuple(shape),
        )

    @classmethod
    def unknown(cls, shape: Shape, *, num_channels: int, is_picture: bool = False) -> Geometry:
        """Build an axis-aligned grid of 1 mm, for samples of unknown position."""
        return cls(
            spatial_shape=shape, num_channels=num_channels, affine=np.eye(4), is_picture=is_picture, file_shape=shape
        )

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """The distance between neighbouring samples along each spatial axis, in millimetres; 1 for a picture."""
        lengths = np.linalg.norm(self.affine[:3, : len(self.spatial_shape)], axis=0)
        return tuple(float(length) for length in lengths)

    @property
    def voxel_ml(self) -> float | None:
        """The volume of a sample in millilitres; None for pictures and for flat images."""
        if self.is_picture or len(self.spatial_shape) != 3:
            return None
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    @property
    def trailing_axes(self) -> int:
        """The number of axes of length 1 after the spatial ones in the file."""
        trailing = self.file_shape[len(self.spatial_shape) :]
        return len(trailing) if set(trailing) == {1} else 0


def affine_problem(affine: NDArray[np.floating], num_dims: int) -> str | None:
    """Return why a 4 x 4 affine is invalid for an image of 2 or 3 axes; ``None`` if it is valid."""
    axes = np.asarray(affine, dtype=np.float64)[:3, :num_dims]
    if not (np.isfinite(axes).all() and np.isfinite(np.asarray(affine)[:3, 3]).all()):
        return "holds NaN or infinite numbers"
    lengths = np.linalg.norm(axes, axis=0)
    if not lengths.all():
        return f"has the voxel size 0 along axis {int(np.argmin(lengths))}"
    if not np.isfinite(lengths).all() or np.linalg.svd(axes / lengths, compute_uv=False)[-1] < _FLATTEST:
        return "is singular (all axes lie in one plane or line, so that voxels have no volume)"
    return None


def in_ras(image: MetaTensor) -> MetaTensor:
    """Return a tensor with its affine to RAS+ if its metadata state LPS+; any other unchanged.

    MONAI's readers for ITK and DICOM state it with ``affine_lps_to_ras=False``.
    """
    if image.meta.get("space") != "LPS":
        return image
    import torch
    from monai.data import MetaTensor

    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    meta = {**image.meta, "space": "RAS"}
    for key in ("affine", "original_affine"):
        if key in meta:
            rank = len(affine := torch.as_tensor(meta[key]).double())
            meta[key] = torch.from_numpy(turn[:rank, :rank]).to(affine) @ affine
    return MetaTensor(image.as_tensor(), meta=meta)
