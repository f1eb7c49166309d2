"""Run MONAI's transforms without metadata in one thread, whatever other threads do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from monai.data import get_track_meta, set_track_meta


class _Tracking(threading.local):
    """Stands in MONAI's global switch, which it only asks for its truth, and answers for the thread that asks."""

    def __init__(self, otherwise: bool) -> None:
        self._otherwise = otherwise
        self.is_off = False

    def __bool__(self) -> bool:
        return self._otherwise and not self.is_off


_lock = threading.Lock()
_users = 0


@contextmanager
def untracked() -> Iterator[None]:
    """Make MONAI's transforms return plain tensors within this block, in this thread alone.

    MONAI's own switch, ``set_track_meta``, holds for the whole process: a transform in another thread would lose its
    affine and what its inverse needs. A patch takes a third less time without metadata, which nobody reads.
    """
    global _users
    with _lock:
        switch = get_track_meta()
        if not isinstance(switch, _Tracking):
            switch = _Tracking(bool(switch))
            set_track_meta(switch)
            _users = 0
        _users += 1
    was_off, switch.is_off = switch.is_off, True
    try:
        yield
    finally:
        switch.is_off = was_off
        with _lock:
            _users -= 1
            if _users == 0 and get_track_meta() is switch:
                set_track_meta(switch._otherwise)
