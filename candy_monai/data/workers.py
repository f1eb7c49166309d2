"""Process many cases in bounded memory: by threads of one process, and by processes that share the cases."""

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
"""Peak of decoding, normalising and resampling one channel with its label: several copies in 4 and 8 bytes."""

_BYTES_PER_MEASURED_VOXEL = 64
"""Peak of reading and measuring a pair of label maps: both in 8 bytes, masks, and components of lesions."""

_USABLE_SHARE = 0.6

AHEAD = 32
"""Number of small results that may wait for a slow case, so that no thread is idle."""


def in_order(tasks: Iterable[Callable[[], T]], jobs: int, *, ahead: int = 0) -> Iterator[T]:
    """Yield the results of tasks in their order; ``jobs`` of them run at once, each in a thread.

    Decoding, resampling, distances and counting release Python's lock, and threads have no start-up cost; they share
    PyTorch's threads. A task is taken from ``tasks`` when a thread is free and at most ``jobs`` results are waiting, to
    limit the number of cases in memory; with small results, ``ahead`` more may wait. A single job runs in the current
    thread. After an exception no further tasks are started.
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
        torch.set_num_threads(at_once)  # the number set in a thread also applies to threads started later


def shares(items: Sequence[T], processes: Processes | None, folder: Path) -> Iterator[Sequence[T]]:
    """Yield the items for a process: its own share, then those of the others, each once its process has ended.

    A share is locked during its processing by a file in ``folder``, which is on a file system that all processes share
    and is created if missing; the system releases the locks of a killed process. So each item is processed by one
    process, and the unfinished items of a process by another, if the caller skips finished items. On a file system
    without locks there is no waiting, and some items are processed twice. A single process has all items in its share,
    and locks nothing.
    """
    if processes is None or processes.world_size == 1:
        yield items
        return
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(processes.world_size):
        number = (processes.rank + step) % processes.world_size
        lock = folder / f".share-{number + 1}-of-{processes.world_size}.lock"
        with locked(lock):
            yield items[number :: processes.world_size]
            with suppress(OSError):  # processes that wait for it find everything done
                lock.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file within a block, if the file system supports locks; a killed process loses it."""
    lock = FileLock(path, fallback_to_soft=False)  # a marker file as a lock would outlive a killed process
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
    """Return the number of cores available to this process: those of its job, if the system tells.

    Processes that were started together on a machine, without cores of their own, share all of them.
    """
    cores = os.cpu_count() or 1
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return own if own < cores else max(1, cores // launched.local_world_size())


def case_workers(cases: Sequence[NNUNetCase], jobs: int | None = None) -> int:
    """Return how many threads may each hold a case: at least 1, at most ``jobs``, by default one per core.

    The largest file represents the largest case; if its header cannot be read, only cores count.
    """

    def largest_bytes() -> float:
        largest = max(cases, key=lambda case: case.images[0].stat().st_size)
        geometry = read_geometry(largest.images[0])
        channels = max(len(largest.images), geometry.num_channels)
        return _BYTES_PER_VOXEL * math.prod(geometry.spatial_shape) * (channels + 1) / 2

    return _threads_for(len(cases), largest_bytes, jobs=jobs, unknown_bytes=0)


def measuring_workers(references: Sequence[Path]) -> int:
    """Return how many threads may each measure a prediction: one per core, fewer if memory is short.

    The largest file represents the largest case; if its header cannot be read, there is one thread.
    """

    def largest_bytes() -> float:
        largest = max(references, key=lambda path: path.stat().st_size)
        return _BYTES_PER_MEASURED_VOXEL * math.prod(read_geometry(largest).spatial_shape)

    return _threads_for(len(references), largest_bytes, jobs=None, unknown_bytes=math.inf)


def _threads_for(num_cases: int, largest_bytes: Callable[[], float], *, jobs: int | None, unknown_bytes: float) -> int:
    """Return how many threads may each hold a case; the size of the largest one is computed only if it matters.

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
    """Return the memory that is available to programs; ``None`` if the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None
