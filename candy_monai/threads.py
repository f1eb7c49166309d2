"""A thread that can still be waited for after a Ctrl-C."""

from __future__ import annotations

import threading
from typing import Any

from typing_extensions import override


class SteadyThread(threading.Thread):
    """A thread of which a Ctrl-C during `join` does not make believe that it has ended.

    Until Python 3.12, ``threading.Thread.join`` that is interrupted takes the lock that the running thread holds for
    its own, and counts the thread as ended: it is not waited for again, not even at the end of the process.
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
        """Return when the thread's work is done, or after so many seconds."""
        self._is_over.wait(timeout)

    @override
    def is_alive(self) -> bool:
        """Return whether the thread's work goes on; a thread that was not started counts, too."""
        return not self._is_over.is_set()
