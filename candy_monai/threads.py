"""A thread that can still be joined after a Ctrl-C."""

from __future__ import annotations

import threading
from typing import Any

from typing_extensions import override


class SteadyThread(threading.Thread):
    """A thread that does not count as ended after a Ctrl-C during `join`.

    Until Python 3.12, an interrupted ``threading.Thread.join`` takes the lock of the running thread for its own and
    marks the thread as ended: it is not joined again, not even at the end of the process.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._is_over = threading.Event()

    @override
    def run(self) -> None:
        try:
            super().run()
        finally:
            self._is_over.set()

    @override
    def join(self, timeout: float | None = None) -> None:
        """Return when the thread's work is done, or after a time-out in seconds."""
        self._is_over.wait(timeout)

    @override
    def is_alive(self) -> bool:
        """Return whether the thread's work is unfinished, also if it was not started."""
        return not self._is_over.is_set()
