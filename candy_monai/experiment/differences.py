"""What differs between the run that was saved and the one that is to go on, in words. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping

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
        before, now = saved.get(name), _as_json(present.get(name))
        path = f"{where}.{name}" if where else name
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += differences(before, now, where=path)
        elif before != now:
            found.append(f"{path}: {_short(before)} -> {_short(now)}")
    return found


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
