"""How the C library keeps memory that was freed, where it is GNU's: for speed, or for other programs. Allocates none.

By default it takes large blocks from the system and gives them back at once, so that a network's pass on a CPU spends
much of its time on getting zeroed pages. Smaller blocks it keeps, among which long-lived ones leave holes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in malloc.h
_LARGEST_KEPT = 1 << 25  # bytes of a block; the library allows no more
_MOST_UNUSED = 1 << 30
_LARGE_BYTES = 1 << 20
_OF_THE_USER = ("GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def keep_freed_memory() -> None:
    """Have blocks up to 32 MB used again instead of given back, unless the user chose something for the allocator.

    For processes that are ours alone: they hold up to a gigabyte that they do not use.
    """
    if not any(name in os.environ for name in _OF_THE_USER):
        give_back_freed_memory.cache_clear()
        _set({_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: _MOST_UNUSED})


@cache
def give_back_freed_memory() -> None:
    """Have blocks from 1 MB given back as soon as they are freed: a process then holds what it uses, and is slower."""
    _set({_MMAP_THRESHOLD: _LARGE_BYTES, _TRIM_THRESHOLD: _LARGE_BYTES})


def _set(options: dict[int, int]) -> None:
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in options.items():
            mallopt(option, value)
