"""Metadata of the fields of ``Plan``: how a value is written, the reason for it, and what depends on it.

The code that reads, shows, explains or compares the entries of a plan uses these declarations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.plan import Plan

Overrides = Mapping[str, Any]
"""The entries of a plan that a user set, by name, after conversion."""

_METADATA = "entry"


@dataclass(frozen=True, kw_only=True)
class EntryKind:
    """A type of value.

    Attributes:
        parse: Converts a value or its text; raises ``ValueError``, ``TypeError``, ``KeyError`` or ``OverflowError``.
        expected: The expected value, for messages.
        others: Placeholder for a value other than none, in the display of an option.
    """

    parse: Callable[[object], Any]
    expected: str
    others: str = "..."


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The metadata of a plan's field; its name is that of the option, as in ``--set NAME=VALUE``.

    Attributes:
        reason: The reason for the value: a sentence, or a function of the plan and its fingerprint that returns one.
        kind: The type of value that can be set; ``None`` for an entry that cannot be set.
        remedy: For an entry that cannot be set, how to change it otherwise.
        none: How ``None`` is shown, for an entry that may be ``None`` although it cannot be set to it.
        given_as: Returns what a user would give for a value.
        along_axes: Whether the value, or each level of it, has one number for each spatial axis.
        is_length: Whether it only affects the length of a run, so that a budget may set it.
        decides_others: Whether other entries depend on it, so that it cannot be changed in an existing plan.
    """

    reason: str | Callable[[Plan, Fingerprint], str]
    kind: EntryKind | None = None
    remedy: str = ""
    none: str = ""
    given_as: Callable[[Any], Any] = lambda value: value
    along_axes: bool = False
    is_length: bool = False
    decides_others: bool = False

    def parsed(self, name: str, value: object) -> Any:
        """Convert a value.

        Raises:
            SettingsError: If it cannot be converted.
        """
        assert self.kind is not None
        try:
            return self.kind.parse(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise SettingsError(f"{name}: got {value!r}, expected {self.kind.expected}") from error

    def check(self, name: str, value: object) -> None:
        """Refuse a plan's value that a user could not have set.

        Raises:
            SettingsError: With the value and what is expected.
        """
        if self.kind is None or (value is None and self.none):
            return
        given = self.given_as(value)
        if self.parsed(name, given) != given:  # text instead of a number
            raise SettingsError(f"{name}: got {given!r}, expected {self.kind.expected}")

    def shown(self, value: object) -> str:
        """Return a value as text for ``--set``."""
        return self.none if value is None and self.none else as_text(self.given_as(value))


def settable(kind: EntryKind, reason: str | Callable[[Plan, Fingerprint], str], **options: Any) -> dict[str, Entry]:
    """Return the metadata of a field that can be set; further arguments are those of `Entry`."""
    return {_METADATA: Entry(kind=kind, reason=reason, **options)}


def derived(reason: str | Callable[[Plan, Fingerprint], str], *, remedy: str) -> dict[str, Entry]:
    """Return the metadata of a field that follows from others and is explained."""
    return {_METADATA: Entry(reason=reason, remedy=remedy)}


def entries_of(plan: DataclassInstance | type[DataclassInstance]) -> dict[str, Entry]:
    """Return the declared entries of a plan, by name."""
    return {field.name: field.metadata[_METADATA] for field in fields(plan) if _METADATA in field.metadata}


def as_text(value: object) -> str:
    """Return a plan's value as text for ``--set``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        if value and all(isinstance(part, str) and len(part) == 1 for part in value):
            return "".join(value)  # axis codes
        nested = bool(value) and isinstance(value[0], tuple)
        return (";" if nested else ",").join(as_text(part) for part in value) or "none"
    return str(value)


def _int(value: object) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError("not a whole number")
    return int(value)


def _positive(value: object) -> int:
    if (number := _int(value)) < 1:
        raise ValueError("not positive")
    return number


def _number(least: float, most: float = math.inf) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TypeError("not a number")
        if not (math.isfinite(number := float(value)) and least <= number <= most):
            raise ValueError("not finite, or out of range")
        return number

    return parse


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[_word(value)]


def _optional_int(value: object) -> int | None:
    return None if value is None or (isinstance(value, str) and _word(value) in ("none", "all")) else _positive(value)


def _optional_axis(value: object) -> int | None:
    return None if value is None or (isinstance(value, str) and _word(value) == "none") else _int(value)


def _axes(value: object) -> tuple[int, ...]:
    if value is None or (isinstance(value, str) and _word(value) in ("none", "")):
        return ()
    return tuple(_int(part) for part in _parts(value))


def _whole(value: object) -> tuple[int, ...]:
    return tuple(_positive(part) for part in _some(value.replace("x", ",") if isinstance(value, str) else value))


def _levels(value: object) -> tuple[tuple[int, ...], ...]:
    return tuple(_whole(level) for level in (value.split(";") if isinstance(value, str) else _some(value)))


def _orientation(value: object) -> tuple[str, ...]:
    letters = value.replace(",", "").strip() if isinstance(value, str) else _parts(value)
    codes = tuple(_word(letter).upper() for letter in letters)
    if sorted("".join(codes).translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise ValueError("not one code for each of three axes")
    return codes


def _parts(value: object) -> list[object]:
    if isinstance(value, str):
        return [part.strip() for part in value.strip().strip("()[]").split(",") if part.strip()]
    return list(value) if isinstance(value, Iterable) else [value]


def _some(value: object) -> list[object]:
    if not (parts := _parts(value)):
        raise ValueError("empty")
    return parts


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value.strip().casefold()


_positive_number = _number(math.nextafter(0.0, 1.0))

WHOLE_NUMBER = EntryKind(parse=_positive, expected="a positive whole number, for example 4")
WHOLE_NUMBER_OR_ALL = EntryKind(parse=_optional_int, expected="a positive whole number, or all")
POSITIVE_NUMBER = EntryKind(parse=_positive_number, expected="a positive number")
NUMBER_FROM_0 = EntryKind(parse=_number(0.0), expected="a number, 0 or more")
SHARE = EntryKind(parse=_number(0.0, 1.0), expected="a number from 0 to 1")
FLAG = EntryKind(parse=_bool, expected="true or false")
AXIS_OR_NONE = EntryKind(parse=_optional_axis, expected="an axis, for example 2, or none", others="AXIS")
AXES = EntryKind(parse=_axes, expected="axes, for example 0,2, or none", others="AXIS,AXIS")
SIZES = EntryKind(parse=_whole, expected="positive whole numbers, for example 40,56,40")
WIDTHS = EntryKind(parse=_whole, expected="positive whole numbers, for example 16,32,64")
LENGTHS_MM = EntryKind(
    parse=lambda value: tuple(_positive_number(part) for part in _parts(value)),
    expected="positive numbers in mm, for example 0.5,0.5,3",
)
LEVELS = EntryKind(
    parse=_levels, expected="whole numbers for each axis, levels separated by ';', for example 1,1,1;2,2,1"
)
AXIS_CODES = EntryKind(parse=_orientation, expected="codes of three axes, for example RAS")
SCHEMES = EntryKind(
    parse=lambda value: tuple(_word(part) for part in _parts(value)),
    expected="names of schemes, for example ct or zscore,nonorm",
)


def choice(*names: str) -> EntryKind:
    """Return the type of values that are one of these words."""
    known = {name: name for name in names}
    expected = f"{', '.join(names[:-1])} or {names[-1]}"
    others = "|".join(name for name in names if name != "none")
    return EntryKind(parse=lambda value: known[_word(value)], expected=expected, others=others)
