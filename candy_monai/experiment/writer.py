"""Lets one thing at a time be written on a thread of its own. Knows neither files nor runs."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Runs work on a thread and hands its failure to whoever waits for it.

    Work that has failed is not forgotten: from then on every `wait` and `start` raises its error.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Wait for what is being written, then begin the next.

        Raises:
            BaseException: What earlier work raised.
        """
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        # Not a daemon: a process that ends waits for it.
        self._thread = threading.Thread(target=run, name="candy-writer")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            BaseException: What the work raised.
        """
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Return when nothing is being written any more, whether it failed or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
