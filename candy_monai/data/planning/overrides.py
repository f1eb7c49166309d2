"""Read a plan's overrides, given as values or as text: names checked, types converted.

Owns which entries of a plan a user may fix and how each is written as text. Whether they fit together is checked by the
plan itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TypedDict, cast

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError, did_you_mean


class Wishes(TypedDict, total=False):
    """The entries of a plan that a user may fix; meanings are those of ``Plan``."""

    orientation: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    normalization: tuple[str, ...]
    resampling: str
    num_classes: int
    patch_shape: Shape
    batch_size: int
    filters: tuple[int, ...]
    kernel_sizes: tuple[Shape, ...]
    strides: tuple[Shape, ...]
    deep_supervision: bool
    mirror_axes: tuple[int, ...]
    foreground_share: float
    learning_rate: float
    weight_decay: float
    iterations_per_epoch: int
    num_epochs: int
    validate_every: int
    num_validation_cases: int | None


def parsed_overrides(overrides: Mapping[str, object]) -> Wishes:
    """Convert overrides to the types of a plan.

    Text is read as on a command line: numbers separated by ``,`` (or ``x`` in whole numbers), levels of nested entries
    by ``;``, ``none`` for nothing, ``true`` or ``false``.

    Raises:
        SettingsError: If a name is unknown or a value does not convert.
    """
    wishes = {}
    for name, value in overrides.items():
        if name not in _CONVERTERS:
            raise SettingsError(
                f"a plan has no entry {name!r} that can be set.{did_you_mean(name, _CONVERTERS)} "
                f"Known: {', '.join(_CONVERTERS)}"
            )
        expected, convert = _CONVERTERS[name]
        try:
            wishes[name] = convert(value)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise SettingsError(f"{name}: got {value!r}, expected {expected}") from error
    return cast("Wishes", wishes)


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


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError("not a number")
    if not math.isfinite(number := float(value)):
        raise ValueError("not finite")
    return number


def _positive_float(value: object) -> float:
    if (number := _float(value)) <= 0:
        raise ValueError("not positive")
    return number


def _not_negative(value: object) -> float:
    if (number := _float(value)) < 0:
        raise ValueError("negative")
    return number


def _share(value: object) -> float:
    if not 0 <= (number := _float(value)) <= 1:
        raise ValueError("not within 0 .. 1")
    return number


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[_word(value)]


def _optional_int(value: object) -> int | None:
    return None if value is None or (isinstance(value, str) and _word(value) in ("none", "all")) else _positive(value)


def _axes(value: object) -> tuple[int, ...]:
    if value is None or (isinstance(value, str) and _word(value) in ("none", "")):
        return ()
    return tuple(_int(part) for part in _parts(value))


def _whole(value: object) -> tuple[int, ...]:
    return tuple(_positive(part) for part in _parts(value.replace("x", ",") if isinstance(value, str) else value))


def _lengths(value: object) -> tuple[float, ...]:
    return tuple(_positive_float(part) for part in _parts(value))


def _nested(value: object) -> tuple[Shape, ...]:
    return tuple(_whole(level) for level in (value.split(";") if isinstance(value, str) else _parts(value)))


def _orientation(value: object) -> tuple[str, ...]:
    letters = value.replace(",", "").strip() if isinstance(value, str) else _parts(value)
    codes = tuple(_word(letter).upper() for letter in letters)
    if sorted("".join(codes).translate(_OPPOSITES)) != ["A", "R", "S"]:
        raise ValueError("not one code for each of three axes")
    return codes


def _schemes(value: object) -> tuple[str, ...]:
    return tuple(_word(part) for part in _parts(value))


def _resampling(value: object) -> str:
    return {name: name for name in ("extent", "stock", "none")}[_word(value)]


def _parts(value: object) -> list[object]:
    if isinstance(value, str):
        return [part.strip() for part in value.strip().strip("()[]").split(",") if part.strip()]
    if isinstance(value, Iterable):
        return list(value)
    return [value]


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not text")
    return value.strip().casefold()


_OPPOSITES = str.maketrans("LPI", "RAS")
_WHOLE_NUMBER = "a positive whole number, for example 4"
_SIZES = "positive whole numbers, for example 40,56,40"
_LEVELS = "whole numbers for each axis, levels separated by ';', for example 1,1,1;2,2,1"

_CONVERTERS: dict[str, tuple[str, Callable[[object], object]]] = {
    "orientation": ("codes of three axes, for example RAS", _orientation),
    "spacing_mm": ("positive numbers in mm, for example 0.5,0.5,3", _lengths),
    "normalization": ("names of schemes, for example ct or zscore,nonorm", _schemes),
    "resampling": ("extent, stock or none", _resampling),
    "num_classes": (_WHOLE_NUMBER, _positive),
    "patch_shape": (_SIZES, _whole),
    "batch_size": (_WHOLE_NUMBER, _positive),
    "filters": ("positive whole numbers, for example 16,32,64", _whole),
    "kernel_sizes": (_LEVELS, _nested),
    "strides": (_LEVELS, _nested),
    "deep_supervision": ("true or false", _bool),
    "mirror_axes": ("axes, for example 0,2, or none", _axes),
    "foreground_share": ("a number from 0 to 1", _share),
    "learning_rate": ("a positive number", _positive_float),
    "weight_decay": ("a number, 0 or more", _not_negative),
    "iterations_per_epoch": (_WHOLE_NUMBER, _positive),
    "num_epochs": (_WHOLE_NUMBER, _positive),
    "validate_every": (_WHOLE_NUMBER, _positive),
    "num_validation_cases": ("a positive whole number, or all", _optional_int),
}

SETTABLE = frozenset(_CONVERTERS)
"""The entries of a plan that a user may fix."""
