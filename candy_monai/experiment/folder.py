"""The folder of one experiment: its name, its atomic creation, its lock and its log."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from candy_monai.aliases import PathLike
from candy_monai.errors import ExperimentError, RunFailedError
from candy_monai.files import NO_LOCKS

LOCK = ".lock"
"""The file in a run's folder that is locked during training; after a kill it remains, unlocked."""
LOGS = "logs.txt"
METRICS = "metrics.csv"
STATE = "state.pt"
QUALITY = "quality.json"
"""The file with the data for estimating the quality of predictions, fitted at the end of a planned run."""
VALIDATION_SCORES = "validation.json"
"""The file with the scores of the best weights on whole cases, written last in a planned run."""

_PROBE_S = 0.5
"""How long to wait for a lock: ``candy-monai report`` takes it for a moment, to see whether a run is being trained."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def publish_folder(
    parent: PathLike,
    fill: Callable[[Path, str], None],
    *,
    clock: Callable[[], datetime] = datetime.now,
    draw: Callable[[], str] = lambda: secrets.token_hex(2),
) -> Path:
    """Create a new experiment folder atomically.

    It is filled under a hidden name and then renamed; the rename never replaces the folder of another run. Its name,
    which is the id of the experiment, is ``YYYYMMDD-HH-xxxx``.

    Args:
        parent: The folder of this trainer's experiments; created if missing.
        fill: Writes the first files, given the hidden folder and the experiment's id.
        clock: Returns the time for the beginning of the id.
        draw: Draws the four characters at its end.

    Returns:
        The published folder.

    Raises:
        ExperimentError: If the parent cannot be written to, or no free id is found.
        RunFailedError: If the disk is full or fails.
    """
    parent = Path(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(error, f"{parent}: the folder for experiments cannot be created") from error
    for _ in range(100):
        experiment_id = f"{clock():%Y%m%d-%H}-{draw()}"  # the hour, and what tells runs of that hour apart
        target, staging = parent / experiment_id, parent / f".{experiment_id}-{os.getpid()}"
        if target.exists() or staging.exists():
            continue
        try:
            staging.mkdir()
            fill(staging, experiment_id)
            staging.rename(target)
        except FileExistsError:  # another process took the name in between
            continue
        except (OSError, RunFailedError) as error:
            reason = error.__cause__ if isinstance(error, RunFailedError) else error
            if target.exists():
                continue
            if not isinstance(reason, OSError):
                raise
            raise _not_made(reason, f"{parent}: the experiment's folder cannot be created") from reason
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target
    raise ExperimentError(f"{parent}: found no free experiment id in 100 draws")


def _not_made(reason: OSError, what: str) -> ExperimentError | RunFailedError:
    """Return the error for a folder that cannot be created: a failing disk, or an unsuitable path."""
    kind = RunFailedError if reason.errno in (*_NO_ROOM, errno.EFBIG, errno.EIO) else ExperimentError
    return kind(f"{what} ({reason.strerror})")


@contextmanager
def disk_failures_of(folder: Path) -> Iterator[None]:
    """Raise `RunFailedError`, with the run and a remedy, if the disk fails while a block writes.

    Raises:
        RunFailedError: Instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        what, then = "it cannot be written to", "fix this"
        if error.errno == errno.EFBIG:
            what, then = "a file would exceed the size limit", "raise the limit, or move it to another disk"
        elif error.errno in _NO_ROOM:
            what, then = "the disk is full", "free some space"
        reason = error.strerror or error
        raise RunFailedError(
            f"{folder}: {what} ({reason}). The last saved state is intact: {then}, then continue this run"
        ) from error


class FolderLock:
    """A lock on a folder, which the operating system releases when the process ends, however it ends.

    Forked children, such as the workers of a loader, do not hold it, so a worker that outlives a killed run does not
    keep the folder locked. On file systems without locks (some NFS) there is no lock.

    Raises:
        ExperimentError: If another process, or another run of this process, holds it; ``taken`` is its message.
    """

    def __init__(
        self, folder: Path, taken: str = "this experiment is being trained at this moment; stop that run, or let it end"
    ) -> None:
        self._path = folder / LOCK
        # Any thread may release it. A marker in place of a lock would outlive a killed process.
        self._lock = FileLock(self._path, timeout=_PROBE_S, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ExperimentError(f"{folder}: {taken}") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def release(self) -> None:
        """Release the folder to others."""
        if not self._lock.is_locked:  # a file system without locks, or a forked child, which has none
            return
        if os.name == "posix":  # still locked: whoever waits for this file looks again; Windows removes it by itself
            with suppress(OSError):
                self._path.unlink()
        self._lock.release()


@contextmanager
def held(folder: Path, taken: str) -> Iterator[None]:
    """Lock a folder, which is created if necessary, during a block.

    Raises:
        ExperimentError: If another process holds it; ``taken`` is its message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder, taken)
    try:
        yield
    finally:
        lock.release()


def log_line(folder: Path, message: str, *, clock: Callable[[], datetime] = datetime.now) -> str:
    """Append a message with its time to ``logs.txt``, safely against crashes, and return the line."""
    line = f"[{clock():%Y-%m-%d %H:%M:%S}] {message}"
    with (folder / LOGS).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")
    return line
