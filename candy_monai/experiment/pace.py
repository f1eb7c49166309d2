"""How many epochs a time limit leaves room for, going by those that were made. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

RECENT_EPOCHS = 4
"""Epochs that say how fast the machine is now: a few, since one may be long by chance."""


def epochs_in_time(durations_s: Sequence[float], *, elapsed_s: float, num_epochs: int, limit_s: float | None) -> int:
    """Return how many of the planned epochs a run will have trained when its time is up.

    A function of recorded times alone, so that a resumed run comes to the same end.

    Args:
        durations_s: Seconds that each finished epoch took.
        elapsed_s: Seconds since the run began, those included that saving took.
        num_epochs: Epochs planned.
        limit_s: Seconds for all of them; None for no limit.

    Returns:
        At least the finished epochs, and one at least; at most those planned.
    """
    recent = durations_s[-RECENT_EPOCHS:]
    if limit_s is None or not any(recent):
        return num_epochs
    left_s = max(0.0, limit_s - elapsed_s)
    return min(num_epochs, len(durations_s) + math.floor(left_s * len(recent) / math.fsum(recent)))
