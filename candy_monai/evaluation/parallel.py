"""How many cases may be measured side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from candy_monai.data.images.reading import read_geometry
from candy_monai.data.workers import free_memory_bytes
from candy_monai.errors import CandyError

_BYTES_PER_VOXEL = 64
"""Peak of reading and measuring a pair of label maps: both in 8 bytes, masks, and components of lesions."""

_USABLE_SHARE = 0.6


def jobs_for(files: Sequence[Path]) -> int:
    """Return how many cases may be measured at once: one a processor, fewer where the free memory holds fewer.

    Args:
        files: Of the references; the largest one stands for the largest case.
    """
    most, free = max(1, min(os.cpu_count() or 1, len(files))), free_memory_bytes()
    if most == 1 or free is None:
        return most
    try:
        largest = max(files, key=lambda path: path.stat().st_size)
        bytes_of_case = _BYTES_PER_VOXEL * math.prod(read_geometry(largest).spatial_shape)
    except (OSError, CandyError):
        return 1
    return max(1, min(most, int(_USABLE_SHARE * free / max(1, bytes_of_case))))
