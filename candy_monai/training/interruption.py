"""Ctrl-C and SIGTERM during a run: the first asks for an orderly end, the second Ctrl-C does not wait for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was asked to end, has finished its step and is saved. Its text is the signal's name."""


class StopRequest:
    """Remembers that a signal asked the run to end.

    Signals are received by the main thread only; in any other, a run is not stopped by them.
    """

    def __init__(self) -> None:
        self._received: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals; whoever received them before does so again afterwards."""
        self._received = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def is_pending(self) -> bool:
        """Whether the run should end at the next good moment."""
        return self._received is not None

    def ask(self, reason: str) -> None:
        """Ask the run to end, as a signal would."""
        self._received = reason

    def obey(self) -> None:
        """End the run.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(self._received)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.is_pending and number == signal.SIGINT:
            raise KeyboardInterrupt("a second Ctrl-C; the last saved state is whole")
        self.ask(signal.Signals(number).name)
