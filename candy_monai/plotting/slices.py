"""Which slices of a volume tell most, and how they are cut out for the eye. Owns no layout and draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candy_monai.aliases import Shape3d


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One of the three planes of a volume in view order (see ``Geometry.to_view``).

    Args:
        name: What radiologists call it.
        normal: The axis that it is perpendicular to.
        sides: The letters of the patient's side at the left edge, the right edge, the top and the bottom.
    """

    name: str
    normal: int
    sides: tuple[str, str, str, str]

    @property
    def axes(self) -> tuple[int, int]:
        """The axes that run to the right and down in the picture."""
        right, down = (axis for axis in range(3) if axis != self.normal)
        return right, down

    def cut(self, volume: NDArray[np.generic], index: int) -> NDArray[np.generic]:
        """Return one slice as a picture: rows, columns, then any axes that come after the three of the volume.

        Args:
            volume: ``(X, Y, Z, ...)`` in view order.
            index: Position along the normal.
        """
        picture = volume[(slice(None),) * self.normal + (index,)]  # a view: np.take would copy the whole volume first
        return np.swapaxes(picture, 0, 1)


AXIAL = Plane(name="axial", normal=2, sides=("R", "L", "A", "P"))
CORONAL = Plane(name="coronal", normal=1, sides=("R", "L", "S", "I"))
SAGITTAL = Plane(name="sagittal", normal=0, sides=("A", "P", "S", "I"))
PLANES = (AXIAL, CORONAL, SAGITTAL)


def telling_slices(shape: Shape3d, labels: Sequence[NDArray[np.integer]]) -> Shape3d:
    """Choose one slice of each axis.

    The first label that has any foreground decides, so that pictures of one case stay comparable while its prediction
    changes from epoch to epoch. Within it, each class votes for a slice with the share that the slice has of the
    class's largest cross-section: a small lesion counts as much as the organ around it. Without any foreground, the
    middle of the volume is chosen.

    Args:
        shape: Of the volume.
        labels: Label ids of that shape, the most trusted first.
    """
    for label in labels:
        places = np.nonzero(label)
        if places[0].size:
            classes, which = _classes(label[places])
            first, second, third = (
                _best(place, which, length, classes) for place, length in zip(places, shape, strict=True)
            )
            return first, second, third
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _classes(ids: NDArray[np.integer]) -> tuple[int, NDArray[np.intp]]:
    """Number the classes from 0: how many there are, and the number of each element."""
    low, high = int(ids.min()), int(ids.max())
    if high - low < 65_536:  # a table is much faster than sorting millions of voxels
        seen = np.bincount(ids.astype(np.intp) - low) > 0
        return int(seen.sum()), (np.cumsum(seen) - 1)[ids.astype(np.intp) - low]
    present, which = np.unique(ids, return_inverse=True)
    return len(present), which


def _best(place: NDArray[np.intp], which: NDArray[np.intp], length: int, classes: int) -> int:
    counts = np.bincount(which * length + place, minlength=classes * length).reshape(classes, length)
    votes = (counts / counts.max(axis=1, keepdims=True)).sum(axis=0)
    best = np.flatnonzero(votes >= votes.max() - 1e-9)
    return int(best[len(best) // 2])
