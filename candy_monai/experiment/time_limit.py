"""Estimate from the past epochs and steps how much of a run fits into a time limit."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence

RECENT_EPOCHS = 4
"""Number of recent epochs for estimating the present speed; several, since one may be slow by chance."""
RECENT_STEPS = 20
FEWEST_STEPS = 3
"""Minimum number of timed steps for estimating the pace, since the first ones are slow."""
LEAST_SHARE = 0.15
"""Minimum share of an epoch's training that must fit for an epoch to be started and cut short."""


def epochs_in_time(
    durations_s: Sequence[float],
    *,
    elapsed_s: float,
    num_epochs: int,
    limit_s: float | None,
    closing_s: float | None = None,
) -> int:
    """Return the number of planned epochs that a run will have started within its time limit.

    This is a function of recorded times only, so that a resumed run gets the same result.

    Args:
        durations_s: Seconds that each finished epoch took.
        elapsed_s: Seconds since the run began, including saving.
        num_epochs: Epochs planned.
        limit_s: The time limit in seconds; None for no limit.
        closing_s: Seconds of an epoch that follow its training and cannot be cut short; None where an epoch cannot be
            cut short at all, so that only whole ones count.

    Returns:
        At least the number of finished epochs and 1, at most the number of planned epochs.
    """
    recent = durations_s[-RECENT_EPOCHS:]
    if limit_s is None or not any(recent):
        return num_epochs
    left_s, epoch_s = max(0.0, limit_s - elapsed_s), math.fsum(recent) / len(recent)
    whole = math.floor(left_s / epoch_s)
    begun = 0
    if closing_s is not None:
        rest_s = left_s - whole * epoch_s - closing_s
        slowest_s = max(epoch_s, recent[-1])  # where the machine has become slower, the last one says how slow
        begun = int(rest_s > LEAST_SHARE * max(0.0, slowest_s - closing_s))
    return min(num_epochs, len(durations_s) + whole + begun)


class StepPace:
    """The present duration of a step, and of the work after the last step of an epoch."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._last_s: float | None = None
        self._step_s_at_closing = 0.0
        self.closing_s: float | None = None

    @property
    def coming_closing_s(self) -> float | None:
        """Expected seconds after the last step of an epoch at the present speed; None if unknown."""
        if self.closing_s is None or not self._step_s_at_closing or len(self._steps) < FEWEST_STEPS:
            return self.closing_s
        return self.closing_s * max(1.0, statistics.median(self._steps) / self._step_s_at_closing)

    def begin_epoch(self) -> None:
        """Restart the clock of an epoch."""
        self._last_s = None

    def step_done(self, epoch_s: float, *, num_batches: int) -> None:
        """Count a step of so many batches, after which the epoch has taken so many seconds."""
        if self._last_s is not None:
            self._steps.append((epoch_s - self._last_s) / num_batches)
        self._last_s = epoch_s

    def end_epoch(self, epoch_s: float, *, validated: bool) -> None:
        """Record the time after the last step; the longest one is used, and validation only if there was one."""
        if self._last_s is not None and (validated or self.closing_s is None):
            closing_s = epoch_s - self._last_s
            if closing_s >= (self.coming_closing_s or 0.0):
                self.closing_s = closing_s
                self._step_s_at_closing = statistics.median(self._steps) if self._steps else 0.0
        self._last_s = None

    def batches_in(self, seconds: float) -> int | None:
        """Return the number of batches that fit into a time, at least 1; None if the pace is unknown."""
        if len(self._steps) < FEWEST_STEPS:
            return None
        return max(1, int(seconds / max(statistics.median(self._steps), 1e-9)))
