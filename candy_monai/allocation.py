"""How the C library keeps memory that was freed, where it is GNU's: for speed, or for other programs. Allocates none.

By default it takes large blocks from the system and gives them back at once, so that a network's pass on a CPU spends
much of its time on getting zeroed pages. Smaller blocks it keeps, among which long-lived ones leave holes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in malloc.h
_LARGEST_KEPT = 1 << 25  # bytes of a block; the library allows no more
_MOST_UNUSED = 1 << 29
_LARGE_BYTES = 1 << 20
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


class _Process:
    """What holds for this process.

    Attributes:
        is_settled: Whether the user chose, or freed memory is to be given back at once.
        num_keeping: How many keep freed memory meanwhile.
        lock: To be held while one of these is changed.
    """

    is_settled = any(name in os.environ for name in _OF_THE_USER)
    num_keeping = 0
    lock = threading.Lock()


@cache
def give_back_freed_memory() -> None:
    """Return blocks from 1 MB to the system once they are freed: a process then holds what it uses, and is slower.

    What fits into a hole that smaller blocks have left by then still goes there.
    """
    with _Process.lock:
        _Process.is_settled = True
        _set({_MMAP_THRESHOLD: _LARGE_BYTES, _TRIM_THRESHOLD: _LARGE_BYTES})
        _call("malloc_trim", 0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory up to 32 MB a piece for reuse within a block, and return in the end what is unused.

    For many passes of a network: the process then holds up to half a gigabyte that it does not use. Changes nothing
    where the user chose something for the allocator, or memory is to be given back at once. Afterwards the library
    stands where it gets to by itself once a block of 32 MB has been freed.
    """
    with _Process.lock:
        _Process.num_keeping += 1
        if _Process.num_keeping == 1 and not _Process.is_settled:
            _set({_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: _MOST_UNUSED})
    try:
        yield
    finally:
        with _Process.lock:
            _Process.num_keeping -= 1
            if not _Process.num_keeping and not _Process.is_settled:
                _set({_TRIM_THRESHOLD: 2 * _LARGEST_KEPT})
                _call("malloc_trim", 0)


def _set(options: dict[int, int]) -> None:
    for option, value in options.items():
        _call("mallopt", option, value)


def _call(name: str, *arguments: int) -> None:
    """Call a function of GNU's C library; do nothing where there is another."""
    if sys.platform == "linux" and (function := getattr(ctypes.CDLL(None), name, None)):
        function(*arguments)
