"""What differs between the run that was saved and the one that is to go on, in words. Decides nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np
from torch import Tensor

_LONGEST = 80


def differences(saved: Mapping[str, object], present: Mapping[str, object], *, where: str = "") -> list[str]:
    """List the entries of two nested mappings that differ, each as ``name: saved -> present``.

    Args:
        saved: As it was, of plain values.
        present: As it is now; tuples count as lists, since JSON knows only these.
        where: The name of the mappings themselves.
    """
    found = []
    for name in dict.fromkeys([*saved, *present]):
        before, now = saved.get(name), as_json(present.get(name))
        path = f"{where}.{name}" if where else name
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, where=path)
        elif before != now:
            found.append(f"{path}: {_short(before)} -> {_short(now)}")
    return found


def as_json(value: object) -> object:
    """Return a value in the types that JSON knows: numbers of NumPy and of tensors, arrays, sets and paths as well.

    What has no such form is shown as ``repr`` shows it, without where it is in memory.
    """
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(as_json, value), key=repr)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return as_json(value.tolist())
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
