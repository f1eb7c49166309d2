"""Keeps two processes from training one experiment, also after a crash of either."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from candy_monai.errors import ExperimentError

LOCK = ".lock"
"""The file in a run's folder that is locked while it is trained; a killed run leaves it, unlocked."""


class FolderLock:
    """A lock on a folder that the operating system drops with the process that holds it, however that ends.

    Forked children, such as the workers of a loader, do not hold it: one that outlives a killed run does not keep the
    folder. File systems without locks (some of NFS) are not locked.

    Args:
        folder: The experiment folder.

    Raises:
        ExperimentError: If another process, or another run of this one, holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        # Any thread may release it. A marker in place of a lock would outlive a killed process.
        self._lock = FileLock(self._path, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ExperimentError(
                f"{folder}: this experiment is being trained at this moment; stop that run, or let it end"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def release(self) -> None:
        """Let others have the folder."""
        if not self._lock.is_locked:  # a file system without locks, or a forked child, which has none
            return
        if os.name == "posix":  # still locked: whoever waits for this file looks again; Windows removes it by itself
            with suppress(OSError):
                self._path.unlink()
        self._lock.release()


_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
