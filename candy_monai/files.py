"""Write files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_BYTES_ON_THE_WAY = 16 << 20
_UNKNOWN = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM, errno.ESPIPE)
"""What file systems and sandboxes say that do not know a request."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""What file systems say that have no locks."""
_SYNC_WHOLE = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER


@contextmanager
def atomic_path(path: PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it takes the place of ``path`` in one rename.

    The temporary file keeps the suffix, since many writers choose the format by it. It is removed if the block raises.

    Args:
        path: The file to write. Its folder must exist.
        durable: Also wait until the data are on the disk, so that the file survives a power failure. What can be made
            again (pictures, caches) does not need it.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix="".join(target.suffixes))
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # mkstemp makes private files; the result is an ordinary one
        if durable:
            flush_to_disk(temporary)
        temporary.replace(target)
        if durable:
            flush_to_disk(target.parent)
    except OSError as error:
        if error.filename is None:  # so it is where the disk is full
            error.filename = str(target)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def atomic_write_text(path: PathLike, text: str, *, durable: bool = True) -> None:
    """Replace the file's content by ``text`` (UTF-8) in one step."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_json(path: PathLike, content: object) -> None:
    """Write plain values as JSON in place of the file's content, in one step.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest_of_file(path: PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new, empty file, and leave it open for `finish_file`; it is removed if the block raises.

    The disk takes in what is written while more is written, so that little is left to wait for in the end. A crash
    leaves half of it under this name: for files that are not looked at before something else confirms them.
    """
    path.unlink(missing_ok=True)  # never written over: another name may be a link to it
    file = cast(BinaryIO, io.BufferedWriter(_SteadyFile(path, "xb")))
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # the disk is full
            file.close()
        path.unlink(missing_ok=True)
        raise


def finish_file(file: BinaryIO) -> None:
    """Wait until a file's data are on the disk, take them out of the system's cache, and close it.

    For what is large and not read again soon: in the cache it would take the place of what is, such as a dataset.

    Raises:
        OSError: If the data cannot be written.
    """
    with file:
        file.flush()
        _flush(file.fileno())
        _forget(file.fileno())


class _SteadyFile(io.FileIO):
    """A file that is on its way to the disk while more is written to it.

    Of what was written, the system's cache holds the last two portions only. New pages are dear in a virtual machine,
    and so the same few are used for all of a file.
    """

    _written = _sent = _confirmed = 0

    def write(self, data: ReadableBuffer, /) -> int:
        count = super().write(memoryview(data).cast("B")[:_BYTES_ON_THE_WAY])  # whoever calls goes on with the rest
        self._written += count
        if self._written - self._sent >= _BYTES_ON_THE_WAY:
            _forget(self.fileno(), self._sent, self._written - self._sent)
            if self._sent > self._confirmed:
                _wait_for(self.fileno(), self._confirmed, self._sent - self._confirmed)
                _forget(self.fileno(), self._confirmed, self._sent - self._confirmed)
            self._confirmed, self._sent = self._sent, self._written
        return count


def _wait_for(handle: int, begin: int, count: int) -> None:
    """Return when a part of a file is on the disk; how to find it there may yet have to be written.

    Raises:
        OSError: If it cannot be written: nobody else is told.
    """
    if _sync_file_range is not None and _sync_file_range(handle, begin, count, _SYNC_WHOLE):
        code = ctypes.get_errno()
        if code not in _UNKNOWN:
            raise OSError(code, os.strerror(code))


def _forget(handle: int, begin: int = 0, count: int = 0) -> None:
    """Drop what is on the disk from the system's cache, and start to write the rest, without waiting for it."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.posix_fadvise(handle, begin, count, os.POSIX_FADV_DONTNEED)


def _find_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function


_sync_file_range = _find_sync_file_range()


def flush_to_disk(path: Path) -> None:
    """Wait until a file's data, or a folder's entries, are on the disk.

    Raises:
        OSError: If a file's data cannot be written.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
        try:
            _flush(handle)
        finally:
            os.close(handle)
    except OSError:
        if not is_folder:  # Windows opens no folder
            raise


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


def check_writable(folder: PathLike) -> None:
    """Refuse a folder that could not be made or written to, without making it.

    Raises:
        BadInputError: If a file stands in its way, or the nearest folder above it may not be written to.
    """
    folder = Path(folder)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BadInputError(f"{folder}: {existing} is a file, and a folder is needed")
    if not os.access(existing, os.W_OK):
        raise BadInputError(f"{folder}: {existing} may not be written to")


def check_file_writable(path: PathLike) -> None:
    """Refuse a file that could not be written, without making it or its folder.

    Raises:
        BadInputError: If it is a folder, or its folder could not be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder, and the name of a file is needed")
    check_writable(path.parent)


def check_results_writable(results: Mapping[str, PathLike | None], read: Iterable[PathLike]) -> None:
    """Check that results can be written, and replace neither each other nor what they are made of.

    Args:
        results: The option that names a file, and the file; None where it was not given.
        read: The files that are read.

    Raises:
        BadInputError: As for `check_file_writable`, or if two are one file or one is among those that are read.
    """
    inputs = {Path(path).resolve() for path in read}
    named: dict[Path, str] = {}
    for option, path in results.items():
        if path is None:
            continue
        check_file_writable(path)
        place = Path(path).resolve()
        if place in inputs:
            raise BadInputError(f"{option}: {path} is read, and would be replaced by the result; name another file")
        if (other := named.setdefault(place, option)) != option:
            raise BadInputError(f"{other} and {option} name one file, {path}; give each its own")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# It can be read only by changing it, for all threads at once: a file that another one writes meanwhile would be open to
# everybody. While this module is imported there are none that write.
_UMASK = _umask()


def discard_standard_output() -> None:
    """Discard what is still to be printed, since nobody reads it any more (``python train.py | head``).

    Otherwise each further line would be an error, and so would the end of the program, which flushes the output.
    """
    with suppress(OSError, ValueError, AttributeError):  # a stream that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
