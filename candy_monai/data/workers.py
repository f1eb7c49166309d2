"""Work on many cases, in bounded memory: by threads of one process, and by processes that share the cases."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from filelock import FileLock

from candy_monai import launched
from candy_monai.data.images.reading import read_geometry
from candy_monai.errors import CandyError
from candy_monai.files import NO_LOCKS

if TYPE_CHECKING:
    from candy_monai.data.datasets.nnunet_description import NNUNetCase
    from candy_monai.processes import Processes

T = TypeVar("T")

_BYTES_PER_VOXEL = 48
"""Peak of decoding, normalising and resampling one channel with its label: a few copies in 4 and 8 bytes."""

_BYTES_PER_MEASURED_VOXEL = 64
"""Peak of reading and measuring a pair of label maps: both in 8 bytes, masks, and components of lesions."""

_USABLE_SHARE = 0.6

AHEAD = 32
"""Results that may wait behind a case that takes long, where they are small: no thread is idle meanwhile."""


def in_order(tasks: Iterable[Callable[[], T]], jobs: int, *, ahead: int = 0) -> Iterator[T]:
    """Yield what tasks return, in their order; ``jobs`` of them at once, each in a thread.

    Decoding, resampling, distances and counting release Python's lock, and threads cost no start-up; they share those
    that PyTorch computes with. A task is taken from ``tasks`` when there is a thread for it and no more than ``jobs``
    results wait, so that no more cases than these are in memory. What has not begun when one raises is not begun.

    Args:
        tasks: Called without arguments.
        jobs: Threads; 1 for this one.
        ahead: So many more tasks may be begun before the first result is taken, where results are small.
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
            if len(waiting) >= jobs + ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(at_once)  # what a thread sets holds for threads that are started later, too


def shares(items: Sequence[T], processes: Processes | None, folder: Path) -> Iterator[Sequence[T]]:
    """Yield the items that a process works on: its own share, then the others', each once its process has ended.

    A share is locked while it is worked on, and a system unlocks what a killed process had locked. So each item is done
    by one process, and what a process leaves undone is done by another, if whoever works on a share passes over what is
    done. On a file system without locks nobody waits, and some items are done twice. One process has all items in its
    share, and locks nothing.

    Args:
        items: The same in all processes.
        processes: Those that work on them; None for this one alone.
        folder: Where the locks are, on a file system that all processes see; made when missing.
    """
    if processes is None or processes.world_size == 1:
        yield items
        return
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(processes.world_size):
        number = (processes.rank + step) % processes.world_size
        lock = folder / f".share-{number + 1}-of-{processes.world_size}.lock"
        with _locked(lock):
            yield items[number :: processes.world_size]
            with suppress(OSError):  # whoever waits for it finds everything done
                lock.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock within a block, if the file system has any."""
    lock = FileLock(path, fallback_to_soft=False)  # a marker in place of a lock would outlive a killed process
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def usable_cores() -> int:
    """Return how many cores this process may compute on: those of its job, where the system tells.

    Processes that were started together on a machine, and bound to no cores of their own, share all of them.
    """
    cores = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return own if own < cores else max(1, cores // launched.local_world_size())


def case_workers(cases: Sequence[NNUNetCase], jobs: int | None = None) -> int:
    """Return how many threads may each hold a case: at least 1, at most ``jobs``, by default one a core.

    The largest file stands for the largest case; where its header cannot be read, cores alone decide.
    """

    def largest_bytes() -> float:
        largest = max(cases, key=lambda case: case.images[0].stat().st_size)
        geometry = read_geometry(largest.images[0])
        channels = max(len(largest.images), geometry.num_channels)
        return _BYTES_PER_VOXEL * math.prod(geometry.spatial_shape) * (channels + 1) / 2

    return _threads_for(len(cases), largest_bytes, jobs=jobs, unknown_bytes=0)


def measuring_workers(references: Sequence[Path]) -> int:
    """Return how many threads may each measure a prediction: one a core, fewer where memory is short.

    The largest file stands for the largest case; where its header cannot be read, there is one at a time.
    """

    def largest_bytes() -> float:
        largest = max(references, key=lambda path: path.stat().st_size)
        return _BYTES_PER_MEASURED_VOXEL * math.prod(read_geometry(largest).spatial_shape)

    return _threads_for(len(references), largest_bytes, jobs=None, unknown_bytes=math.inf)


def _threads_for(num_cases: int, largest_bytes: Callable[[], float], *, jobs: int | None, unknown_bytes: float) -> int:
    """Return how many threads may each hold a case; what the largest one takes is asked only where it matters.

    Processes that were started together on a machine share its free memory.
    """
    most = max(1, min(jobs or usable_cores(), num_cases))
    free = free_memory_bytes()
    if most == 1 or free is None:
        return most
    try:
        needed = largest_bytes()
    except (OSError, CandyError, IndexError):
        needed = unknown_bytes
    usable = _USABLE_SHARE * free / launched.local_world_size()
    return max(1, min(most, int(usable / max(1, needed))))


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
