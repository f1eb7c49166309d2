"""Set whether the GNU C library keeps freed memory, for speed, or returns it. Allocates nothing.

By default it requests large blocks from the system and returns them at once, so that a forward pass on a CPU spends
much of its time on zeroed pages. It keeps smaller blocks, and long-lived ones among them cause fragmentation.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # constants of mallopt in malloc.h
_LARGEST_KEPT = 1 << 25  # bytes of a block, the library's maximum
_MOST_UNUSED = 1 << 29
_LARGE_BYTES = 1 << 20
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


class _Process:
    """The state of this process.

    Attributes:
        is_settled: Whether the user configured the allocator, or freed memory is to be returned at once.
        num_keeping: Number of contexts that keep freed memory.
        lock: Held while one of these is changed.
    """

    is_settled = any(name in os.environ for name in _OF_THE_USER)
    num_keeping = 0
    lock = threading.Lock()


@cache
def give_back_freed_memory() -> None:
    """Return freed blocks from 1 MB to the system at once, so that the process holds only what it uses, but is slower.

    Blocks that fit into a gap between smaller blocks still go there.
    """
    with _Process.lock:
        _Process.is_settled = True
        _call("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)
        _call("mallopt", _TRIM_THRESHOLD, _LARGE_BYTES)
        _call("malloc_trim", 0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory up to 32 MB per block for reuse within the context, and return unused memory at its end.

    For many passes of a network; the process then holds up to half a gigabyte of unused memory. Changes nothing if the
    user configured the allocator, or freed memory is to be returned at once. Afterwards the library has the thresholds
    that it sets by itself once a block of 32 MB has been freed.
    """
    with _Process.lock:
        _Process.num_keeping += 1
        if _Process.num_keeping == 1 and not _Process.is_settled:
            _call("mallopt", _MMAP_THRESHOLD, _LARGEST_KEPT)
            _call("mallopt", _TRIM_THRESHOLD, _MOST_UNUSED)
    try:
        yield
    finally:
        with _Process.lock:
            _Process.num_keeping -= 1
            if not _Process.num_keeping and not _Process.is_settled:
                _call("mallopt", _TRIM_THRESHOLD, 2 * _LARGEST_KEPT)
                _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    """Call a function of the GNU C library; do nothing with other libraries."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)
