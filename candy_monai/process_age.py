"""Measure how long this process has been running, including its imports. Imports nothing heavy."""

from __future__ import annotations

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_age_s() -> float:
    """Return the seconds since this process was started, or since this import if the system does not tell."""
    try:
        # The name of the process, in brackets, may contain blanks; the third field follows it.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return max(age, time.monotonic() - _IMPORTED)
