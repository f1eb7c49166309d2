"""Helpers for values: plain tensors, label ids, what JSON stored, lists in messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def without_metadata(tensor: Tensor) -> Tensor:
    """Return a plain tensor, which shares its memory with the one given."""
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)  # knows MONAI's type without importing it


def as_ids(label: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the ids of a label: the one that it is, or those that a region unites."""
    return label if isinstance(label, tuple) else (label,)


def frozen(value: object) -> object:
    """Return a value with tuples in place of lists at any depth, as it was before JSON stored it."""
    if isinstance(value, Mapping):
        return {key: frozen(entry) for key, entry in value.items()}
    return tuple(frozen(entry) for entry in value) if isinstance(value, list | tuple) else value


def listed(entries: Sequence[object], *, limit: int = 12) -> str:
    """Return the ``repr`` of the first few for a message, and how many more there are."""
    return named([repr(entry) for entry in entries], limit=limit)


def named(names: Sequence[str], *, limit: int = 20) -> str:
    """Return the first few for a message, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
