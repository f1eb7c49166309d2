"""Clean up label maps: keep the largest connected part of each class. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from torch import Tensor


def keep_largest_components(labels: Tensor) -> None:
    """Make everything background but each class's largest connected part, in place.

    Voxels that touch by a corner are connected. Of equally large parts the first one is kept.

    Args:
        labels: Ids ``(*spatial)`` on the CPU; 0 is background.
    """
    ids = np.asarray(labels.numpy())
    touching = np.ones((3,) * ids.ndim, dtype=bool)
    boxes: Sequence[tuple[slice, ...] | None] = scipy.ndimage.find_objects(ids.astype(np.int32))
    for index, box in enumerate(boxes, start=1):
        if box is None:
            continue
        inside = ids[box]
        parts, count = scipy.ndimage.label(inside == index, structure=touching)
        if count > 1:
            largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
            inside[(parts > 0) & (parts != largest)] = 0
