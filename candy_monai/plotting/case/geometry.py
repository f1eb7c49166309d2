"""Map a volume to patient axes, the three anatomical planes, and the most informative slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candy_monai.aliases import Shape3d
from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.arrays import Ids, ImageLike, Spacing, as_array


@dataclass(frozen=True, kw_only=True)
class PatientAxes:
    """The orientation of the axes of a volume in the patient."""

    spacing_mm: Spacing = (1.0, 1.0, 1.0)
    order: Shape3d = (0, 1, 2)  # the array axes that are closest to left-right, front-back, and bottom-top
    flipped: tuple[bool, bool, bool] = (True, True, True)  # which run to the right, front or top; in RAS all do
    known: bool = False  # from a file; otherwise RAS is assumed and pictures have no direction labels

    def to_view(self, volume: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a volume with axes to the patient's left, back and feet, the radiological convention."""
        steps = tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flipped)
        return volume.transpose(self.order)[steps]

    @property
    def view_spacing_mm(self) -> Spacing:
        """Voxel distances along the axes of ``to_view``."""
        first, second, third = (self.spacing_mm[axis] for axis in self.order)
        return first, second, third


def patient_axes(
    image: ImageLike, *, spacing_mm: Sequence[float] | None = None, orientation: str | None = None
) -> PatientAxes:
    """Return the orientation of a volume in the patient, by a MetaTensor's affine unless it is given.

    Both are by array axis; the orientation is axis codes such as ``"RAS"`` or ``"LPS"``.
    """
    affine = getattr(image, "affine", None)
    matrix = np.eye(4) if affine is None else as_array(affine).astype(np.float64)
    if not (matrix.shape == (4, 4) and np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 0):
        matrix, affine = np.eye(4), None  # a singular affine, or one of a 2-D file, does not define three axes
    directions = _directions(matrix, orientation)
    spacing = [float(value) for value in (np.linalg.norm(matrix[:3, :3], axis=0) if spacing_mm is None else spacing_mm)]
    if len(spacing) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing):
        raise BadInputError(f"spacing_mm is {tuple(spacing)}: expected three positive numbers, one per axis")
    first, second, third = (int(axis) for axis in np.argsort(directions[:, 0]))
    return PatientAxes(
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        order=(first, second, third),
        flipped=(bool(directions[first, 1] > 0), bool(directions[second, 1] > 0), bool(directions[third, 1] > 0)),
        known=affine is not None or orientation is not None,
    )


def _directions(matrix: NDArray[np.float64], orientation: str | None) -> NDArray[np.float64]:
    """Return for each array axis the closest world axis, and whether it has the same (1) or opposite (-1) direction."""
    from nibabel.orientations import axcodes2ornt, io_orientation

    if orientation is None:
        return np.asarray(io_orientation(matrix), dtype=np.float64)
    letters = orientation.upper()
    if sorted("RAS"["RASLPI".index(letter) % 3] if letter in "RASLPI" else "?" for letter in letters) != list("ARS"):
        raise BadInputError(f"the orientation is {orientation!r}: expected axis codes such as 'RAS' or 'LPS'")
    return np.asarray(axcodes2ornt(letters), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One of the three planes of a volume in view order (see ``PatientAxes.to_view``)."""

    name: str
    normal: int  # the axis that it is perpendicular to
    sides: tuple[str, str, str, str]  # the patient's, at the left edge, the right edge, the top and the bottom

    @property
    def axes(self) -> tuple[int, int]:
        """The axes that run to the right and down in the picture."""
        right, down = (axis for axis in range(3) if axis != self.normal)
        return right, down

    def cut(self, volume: NDArray[Any], index: int) -> NDArray[Any]:
        """Return one slice of a volume ``(X, Y, Z)`` in view order as rows and columns."""
        picture = volume[(slice(None),) * self.normal + (index,)]  # a view: np.take would copy the whole volume first
        return np.swapaxes(picture, 0, 1)


PLANES = AXIAL, CORONAL, SAGITTAL = (
    Plane(name="axial", normal=2, sides=("R", "L", "A", "P")),
    Plane(name="coronal", normal=1, sides=("R", "L", "S", "I")),
    Plane(name="sagittal", normal=0, sides=("A", "P", "S", "I")),
)


def telling_slices(shape: Shape3d, labels: Sequence[Ids]) -> Shape3d:
    """Return the index of the most informative slice along each axis.

    The first label with any foreground is used, so that pictures of one case stay comparable while its prediction
    changes between epochs. In it, each class votes for a slice with the slice's share of the class's largest
    cross-section, so that a small lesion has the same weight as the organ around it. Without any foreground, the middle
    of the volume is chosen.
    """
    for label in labels:
        places = np.nonzero(label)
        if places[0].size:
            classes, which = _numbered(label[places])
            first, second, third = (
                _best(place, which, length, classes) for place, length in zip(places, shape, strict=True)
            )
            return first, second, third
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _numbered(ids: Ids) -> tuple[int, NDArray[np.intp]]:
    """Number the classes from 0: return their number, and the index of each element's class."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 65_536:  # a lookup table is much faster than sorting millions of voxels
        seen = np.bincount(ids.astype(np.intp) - low) > 0
        return int(seen.sum()), (np.cumsum(seen) - 1)[ids.astype(np.intp) - low]
    present, which = np.unique(ids, return_inverse=True)
    return len(present), which


def _best(place: NDArray[np.intp], which: NDArray[np.intp], length: int, classes: int) -> int:
    counts = np.bincount(which * length + place, minlength=classes * length).reshape(classes, length)
    votes = (counts / counts.max(axis=1, keepdims=True)).sum(axis=0)
    best = np.flatnonzero(votes >= votes.max() - 1e-9)
    return int(best[len(best) // 2])
