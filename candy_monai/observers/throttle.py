"""Do something at most so often, and never miss the last time. Owns no thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted
from candy_monai.observers.base import Observer

MAX_SHARE = 0.02


class ThrottledObserver(Observer):
    """Calls ``draw`` at most once in ``interval_s``, and for the last epoch in any case.

    What takes long is done less often: drawing takes at most one fiftieth of the time, since on a small machine it
    takes it from the training.

    Args:
        interval_s: Seconds between two calls at least, and before the first.
        clock: Tells seconds.
    """

    def __init__(self, *, interval_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._not_before = clock() + interval_s
        self._waiting: EpochFinished | None = None

    def draw(self, event: EpochFinished) -> None:
        """Draw the state after this epoch."""
        raise NotImplementedError

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._waiting = event
        if self._clock() >= self._not_before:
            self._draw_waiting()

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        self._draw_waiting()

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        self._draw_waiting()

    def _draw_waiting(self) -> None:
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            started = self._clock()
            try:
                self.draw(event)
            finally:
                duration = self._clock() - started
                self._not_before = started + max(self._interval_s, duration / MAX_SHARE)
