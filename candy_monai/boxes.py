"""The bounding box of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def bounding_box(mask: NDArray[np.bool_], *, margin: int = 0) -> tuple[slice, ...] | None:
    """Return the bounding box of the true voxels of a mask ``(*spatial)``; ``None`` if there are none.

    ``margin`` is the number of voxels to add on each side, within the mask's extent.
    """
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append(slice(max(0, int(hits[0]) - margin), min(mask.shape[axis], int(hits[-1]) + 1 + margin)))
    return tuple(box)
