"""Keeps two processes from training one experiment. Leaves nothing behind, not even after a crash."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from candy_monai.errors import ExperimentError

_held: set[int] = set()
"""The handles of this process's locks."""


def _let_go() -> None:
    """Close the locks' handles in a forked child: a worker that outlives a killed run must not keep its folder."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """A lock on a folder that the operating system drops with the process that holds it, however that ends.

    On Windows, which locks no folders, it does nothing.

    Args:
        folder: The experiment folder.

    Raises:
        ExperimentError: If another process, or another run of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._handle: int | None = None
        if sys.platform == "win32":
            return
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ExperimentError(
                f"{folder}: this experiment is being trained at this moment; stop that run, or let it end"
            ) from error
        except OSError:  # a file system without locks
            os.close(handle)
        else:
            self._handle = handle
            _held.add(handle)

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle in _held:  # otherwise this is a forked child, which has none
            os.close(self._handle)
            _held.discard(self._handle)
        self._handle = None
