"""What Windows does not have and does not allow, on Linux: so that what would fail there fails here."""

from __future__ import annotations

import errno
import os
from pathlib import Path

LACKING = ("fork", "getloadavg", "getpgid", "killpg", "sched_getaffinity", "setsid", "sysconf")
"""Functions of ``os`` that Windows lacks."""


def behave_like_windows(monkeypatch, *, but_for=()):
    """Take away functions that Windows lacks, and refuse to move, replace or remove files that this process holds open.

    Args:
        monkeypatch: Pytest's.
        but_for: Names of files that may be removed while they are open.
    """
    for name in LACKING:
        monkeypatch.delattr(os, name, raising=False)
    for name in ("replace", "rename"):
        really = getattr(os, name)

        def move(source, target, *, really=really, **at):
            _refuse_open(source, at, but_for)
            _refuse_open(target, at, but_for)
            really(source, target, **at)

        monkeypatch.setattr(os, name, move)
    for name in ("unlink", "remove"):
        really = getattr(os, name)

        def remove(path, *, really=really, **at):
            _refuse_open(path, at, but_for)
            really(path, **at)

        monkeypatch.setattr(os, name, remove)


def _refuse_open(path, at, but_for):
    """Raise what Windows raises if the file, or one in the folder, is open or mapped into memory."""
    if at.get("dir_fd") is not None:  # shutil.rmtree: Windows has no such call
        path = Path(os.readlink(f"/proc/self/fd/{at['dir_fd']}"), os.fsdecode(path))
    own = os.path.realpath(os.fsdecode(path))
    held = [file for file in _held() if file == own or file.startswith(f"{own}/")]
    if held and Path(own).name not in but_for:
        raise PermissionError(errno.EACCES, "this process holds it open, which Windows does not allow", held[0])


def _held():
    """Yield the files that this process has open or mapped."""
    for handle in os.listdir("/proc/self/fd"):
        try:
            file = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:  # closed meanwhile
            continue
        if os.path.isfile(file):
            yield file
    for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
        if (fields := line.split(maxsplit=5))[5:]:
            yield fields[5]
