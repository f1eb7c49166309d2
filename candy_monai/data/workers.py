"""Thread pools for cases: as many threads as processors, if the free memory holds their cases."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from candy_monai.data.images.reading import read_geometry
from candy_monai.errors import CandyError

if TYPE_CHECKING:
    from candy_monai.data.datasets.nnunet_description import NNUNetCase

_BYTES_PER_VOXEL = 48
"""Peak of decoding, normalising and resampling one channel with its label: a few copies in 4 and 8 bytes."""

_USABLE_SHARE = 0.6


@contextmanager
def case_pool(cases: Sequence[NNUNetCase], jobs: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield threads to work on cases, which share the threads that PyTorch computes with.

    Decoding and resampling release Python's lock, and threads cost no start-up. What has not begun when the block
    raises is not begun any more. How many there are is up to `case_workers`.
    """
    workers = case_workers(cases, jobs)
    at_once = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, at_once // workers),))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(at_once)  # what a thread sets holds for threads that are started later, too


def case_workers(cases: Sequence[NNUNetCase], jobs: int | None = None) -> int:
    """Return how many threads may each hold a case: at least 1, at most ``jobs``, by default one a processor.

    The largest file stands for the largest case; where its header cannot be read, processors alone decide.
    """
    most = max(1, min(jobs or os.cpu_count() or 1, len(cases)))
    free = free_memory_bytes()
    if most == 1 or free is None:
        return most
    return max(1, min(most, int(_USABLE_SHARE * free / max(1, _largest_bytes(cases)))))


def free_memory_bytes() -> int | None:
    """Return the memory that programs may still take; ``None`` where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _largest_bytes(cases: Sequence[NNUNetCase]) -> int:
    try:
        largest = max(cases, key=lambda case: case.images[0].stat().st_size)
        geometry = read_geometry(largest.images[0])
    except (OSError, CandyError, IndexError):
        return 0
    channels = max(len(largest.images), geometry.num_channels)
    return _BYTES_PER_VOXEL * math.prod(geometry.spatial_shape) * (channels + 1) // 2
