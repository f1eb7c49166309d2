"""Durations as users write them. Imports nothing heavy: the command line reads them before it does anything."""

from __future__ import annotations

import math
import re

from candy_monai.errors import SettingsError

_DURATION = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m(?:in)?)?(?:([0-9.]+)s)?")
_LONGEST = 12  # of a number that is repeated
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as ``90s``, ``10m`` or ``1h30m``, each number with its unit.

    Raises:
        SettingsError: If it cannot be read, has no unit, or is no time at all.
    """
    plain = text.strip().lower().replace(" ", "")
    if len(plain) <= _LONGEST and _NUMBER.fullmatch(plain) and float(plain) > 0:
        raise SettingsError(f"{text!r} has no unit: give {plain}s, {plain}m or {plain}h for seconds, minutes or hours")
    match = _DURATION.fullmatch(plain)
    try:
        hours, minutes, seconds = (float(part or 0) for part in match.groups()) if match else (0.0,) * 3
    except ValueError:  # 1.2.3
        hours = minutes = seconds = 0.0
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < math.inf:
        raise SettingsError(f"expected a duration above 0 such as 90s, 10m or 1h30m, got {text!r}")
    return total
