"""Write files atomically: after a crash, either the old or the new file exists, never a partial one."""

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
"""Error codes of file systems and sandboxes that do not support a request."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)
"""Error codes of file systems without locks."""
_SYNC_WHOLE = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER


@contextmanager
def atomic_path(path: PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` in one rename if the block succeeds.

    The temporary file keeps the suffix, since many writers choose the format by it. It is removed if the block raises.

    Args:
        path: The file to write. Its folder must exist.
        durable: Also wait until the data are on the disk, so that the file survives a power failure. Not needed for
            files that can be created again (pictures, caches).
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
        if error.filename is None:  # as when the disk is full
            error.filename = str(target)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def folder_apart(target: PathLike, *, beside: PathLike, prefix: str) -> Iterator[Path]:
    """Yield a temporary folder within ``beside``, for what becomes ``target``, the file or folder that a user knows.

    An ``OSError`` about a file in the temporary folder or about no file, as when the disk is full, then names the
    target.
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=prefix) as name:
        try:
            yield Path(name)
        except OSError as error:
            named = [Path(str(file)) for file in (error.filename, error.filename2) if file is not None]
            if not named or any(file.is_relative_to(name) for file in named):
                error.filename, error.filename2 = str(target), None
            raise


def atomic_write_text(path: PathLike, text: str, *, durable: bool = True) -> None:
    """Replace the content of a file by ``text`` (UTF-8) atomically."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def atomic_write_json(path: PathLike, content: object) -> None:
    """Replace the content of a file by plain values as JSON, atomically.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def digest_of_file(path: PathLike) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a new, empty file, and leave it open for `finish_file`; it is removed if the block raises.

    Data go to the disk during writing, so that little remains to wait for at the end. A crash leaves a partial file
    under this name: for files that are not read before something else confirms them.
    """
    path.unlink(missing_ok=True)  # never overwritten: another name may be a link to it
    file = cast(BinaryIO, io.BufferedWriter(_SteadyFile(path, "xb")))
    try:
        yield file
    except BaseException:
        with suppress(OSError):  # the disk is full
            file.close()
        path.unlink(missing_ok=True)
        raise


def finish_file(file: BinaryIO) -> None:
    """Wait until a file's data are on the disk, remove them from the system's cache, and close it.

    For large files that are not read again soon: in the cache they would displace files in use, such as a dataset.

    Raises:
        OSError: If the data cannot be written.
    """
    with file:
        file.flush()
        _flush(file.fileno())
        _forget(file.fileno())


class _SteadyFile(io.FileIO):
    """A file whose data are transferred to the disk during writing.

    Only the last two portions of the written data remain in the system's cache. New pages are expensive in a virtual
    machine, so the same few are used for the whole file.
    """

    _written = _sent = _confirmed = 0

    def write(self, data: ReadableBuffer, /) -> int:
        count = super().write(memoryview(data).cast("B")[:_BYTES_ON_THE_WAY])  # the caller continues with the rest
        self._written += count
        if self._written - self._sent >= _BYTES_ON_THE_WAY:
            _forget(self.fileno(), self._sent, self._written - self._sent)
            if self._sent > self._confirmed:
                _wait_for(self.fileno(), self._confirmed, self._sent - self._confirmed)
                _forget(self.fileno(), self._confirmed, self._sent - self._confirmed)
            self._confirmed, self._sent = self._sent, self._written
        return count


def _wait_for(handle: int, begin: int, count: int) -> None:
    """Wait until a part of a file is on the disk; the file's metadata may still have to be written.

    Raises:
        OSError: If it cannot be written: the system reports this only once.
    """
    if _sync_file_range is not None and _sync_file_range(handle, begin, count, _SYNC_WHOLE):
        code = ctypes.get_errno()
        if code not in _UNKNOWN:
            raise OSError(code, os.strerror(code))


def _forget(handle: int, begin: int = 0, count: int = 0) -> None:
    """Drop the data that are on the disk from the system's cache, and start to write the rest, without waiting."""
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
        if not is_folder:  # Windows cannot open folders
            raise


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise


def check_writable(folder: PathLike) -> None:
    """Refuse a folder that could not be created or written to, without creating it.

    Raises:
        BadInputError: If a file has its name, or the nearest existing folder above it is not writable.
    """
    folder = Path(folder)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise BadInputError(f"{folder}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK):
        raise BadInputError(f"{folder}: no permission to write to {existing}")


def check_file_writable(path: PathLike) -> None:
    """Refuse a file that could not be written, without creating it or its folder.

    Raises:
        BadInputError: If it is a folder, or its folder could not be created or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise BadInputError(f"{path}: is a folder, expected the name of a file")
    check_writable(path.parent)


def check_results_writable(results: Mapping[str, PathLike | None], read: Iterable[PathLike]) -> None:
    """Check that results can be written, and overwrite neither each other nor the input files.

    Args:
        results: The file for each option; None if the option was not given.
        read: The input files.

    Raises:
        BadInputError: As for `check_file_writable`, or if two of the files are the same or one is an input file.
    """
    inputs = {Path(path).resolve() for path in read}
    named: dict[Path, str] = {}
    for option, path in results.items():
        if path is None:
            continue
        check_file_writable(path)
        place = Path(path).resolve()
        if place in inputs:
            raise BadInputError(
                f"{option}: {path} is an input file and would be overwritten by the result; name another file"
            )
        if (other := named.setdefault(place, option)) != option:
            raise BadInputError(f"{other} and {option} name the same file, {path}; name different files")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


# It can be read only by changing it, for all threads at once: a file that another thread writes meanwhile would be
# readable by everybody. While this module is imported there are no such threads.
_UMASK = _umask()


def discard_standard_output() -> None:
    """Discard the remaining output, since its reader has closed the pipe (``python train.py | head``).

    Otherwise each further line would raise an error, and so would the final flush of the program.
    """
    with suppress(OSError, ValueError, AttributeError):  # a stream that is not a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
