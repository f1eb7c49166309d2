"""How many cases may be measured side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from candy_monai.data.images.reading import read_geometry
from candy_monai.data.workers import threads_for
from candy_monai.errors import CandyError

_BYTES_PER_VOXEL = 64
"""Peak of reading and measuring a pair of label maps: both in 8 bytes, masks, and components of lesions."""


def jobs_for(files: Sequence[Path]) -> int:
    """Return how many cases may be measured at once: one a core, fewer where the free memory holds fewer.

    Args:
        files: Of the references; the largest one stands for the largest case.
    """
    return threads_for(len(files), lambda: _largest_bytes(files))


def _largest_bytes(files: Sequence[Path]) -> float:
    """Return what the largest case takes; infinity where it cannot be read, so that there is one at a time."""
    try:
        largest = max(files, key=lambda path: path.stat().st_size)
        return _BYTES_PER_VOXEL * math.prod(read_geometry(largest).spatial_shape)
    except (OSError, CandyError):
        return math.inf
