"""``logs.txt``: every message of a run, verbatim, with its time. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path


class RunLog:
    """Appends messages to a file, one flush a message, so that a crash loses none.

    Args:
        path: The file; it is made when it is missing.
        clock: Tells the time of a message.
    """

    def __init__(self, path: Path, *, clock: Callable[[], datetime] = datetime.now) -> None:
        self._path = path
        self._clock = clock

    def write(self, message: str) -> str:
        """Append the message and return the line as written, without its line break."""
        line = f"[{self._clock():%Y-%m-%d %H:%M:%S}] {message}"
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{line}\n")
        return line
