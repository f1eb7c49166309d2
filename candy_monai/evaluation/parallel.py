"""Work on cases side by side, in bounded memory: results come in order, and only so many cases are begun."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

from candy_monai.data.images.reading import read_geometry
from candy_monai.data.workers import free_memory_bytes
from candy_monai.errors import CandyError

T = TypeVar("T")

_BYTES_PER_VOXEL = 64
"""Peak of reading and measuring a pair of label maps: both in 8 bytes, masks, and components of lesions."""

_USABLE_SHARE = 0.6


def in_order(tasks: Iterable[Callable[[], T]], jobs: int) -> Iterator[T]:
    """Yield what tasks return, in their order; ``jobs`` of them at once, each in a thread.

    Decoding, distances and counting release Python's lock. A task is taken from ``tasks`` when there is a thread for it
    and no more than ``jobs`` results wait, so that no more cases than these are in memory.
    """
    if jobs == 1:
        for task in tasks:
            yield task()
        return
    at_once = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(max(1, at_once // jobs),))
    waiting: deque[Future[T]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(at_once)  # what a thread sets holds for threads that are started later, too


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
