"""Helpers for values: plain tensors, label ids, values from JSON, lists in messages."""

from __future__ import annotations

import dataclasses
import math
import types
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

T = TypeVar("T", str, Path)


def plain_tensor(tensor: Tensor) -> Tensor:
    """Return a plain tensor that shares the memory of the given one."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)  # for MONAI's type without importing it


def ids_of_label(label: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the ids of a label: its own, or those that a region unites."""
    return label if isinstance(label, tuple) else (label,)


def label_id_of(value: object) -> int | None:
    """Return a whole number from 0, which may be text, as in JSON's names; None for anything else."""
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):  # NumPy's integers are Integral, too
        return None
    return int(value) if int(value) >= 0 else None


def frozen(value: object) -> object:
    """Return a value with lists converted to tuples at any depth, as before it was stored as JSON."""
    if isinstance(value, Mapping):
        return {key: frozen(entry) for key, entry in value.items()}
    return tuple(frozen(entry) for entry in value) if isinstance(value, list | tuple) else value


def is_of_kind(value: object, kind: Any) -> bool:
    """Return whether a value from a file has an annotated type; numbers must be finite, and ``True`` is not one."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(is_of_kind(value, part) for part in parts)
    if origin is tuple:  # of any length
        return isinstance(value, tuple) and all(is_of_kind(entry, parts[0]) for entry in value)
    if kind in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind).items()
        return isinstance(value, kind) and all(is_of_kind(getattr(value, name), hint) for name, hint in hints)
    return isinstance(value, kind)


def repeated(values: Iterable[T]) -> list[T]:
    """Return the values that occur more than once, sorted."""
    return sorted(value for value, count in Counter(values).items() if count > 1)


def join_reprs(entries: Sequence[object], *, limit: int = 12) -> str:
    """Return the ``repr`` of the first values, and the number of further ones, for a message."""
    return join_names([repr(entry) for entry in entries], limit=limit)


def join_names(names: Sequence[str], *, limit: int = 20) -> str:
    """Return the first names, joined by commas, and the number of further ones, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
