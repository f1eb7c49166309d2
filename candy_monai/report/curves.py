"""The metrics of a run as figures of a page: related metrics share a figure, and many classes are summarised."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, LOSS, SCORE, VALIDATION, better_of, class_at_end
from candy_monai.plotting.canvas.colors import class_color

MOST_POINTS = 600
"""Maximum number of points of a curve; with more epochs, the smallest and the largest value of each stretch are
kept."""
MOST_CLASSES = 8
"""Maximum number of classes with separate curves; more are summarised by quantiles."""
WORST = 5
"""Number of summarised classes that are drawn and named, those with the worst final values."""

_CLASS = re.compile(r"(.+) (\d+)")
_TITLES = {SCORE: "Validation score", LOSS: "Loss", LEARNING_RATE: "Learning rate", EPOCH_DURATION: "Seconds per epoch"}
_LOOKS = {
    SCORE: ("score", "validation"),
    LEARNING_RATE: (_TITLES[LEARNING_RATE], "plain"),
    EPOCH_DURATION: (_TITLES[EPOCH_DURATION], "plain"),
}
"""Name and colour of curves that are neither of training nor of validation alone."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve."""

    name: str  # in the legend
    color: str  # ``training``, ``validation``, ``plain``, or a colour as ``#rrggbb``
    x: Sequence[int]  # epochs, counted from 1
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Band:
    """An area between two curves."""

    name: str  # in the legend
    x: Sequence[int]  # epochs
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Curves that share a scale."""

    key: str  # identifies it, also on the page of another run
    title: str
    better: str | None  # ``higher``, ``lower``, or None if unknown
    series: Sequence[Series]
    bands: Sequence[Band] = ()  # behind the curves
    note: str = ""  # a sentence below


def figures(metrics: Mapping[str, Sequence[float]], class_names: Mapping[int, str]) -> list[Figure]:
    """Return the figures of a run: score, loss, classes, other metrics, learning rate and time."""
    groups: dict[str, list[str]] = {}
    for name in metrics:
        groups.setdefault(_group(name, class_names), []).append(name)
    drawn = [_figure(key, names, metrics, class_names) for key, names in groups.items()]
    return sorted((figure for figure in drawn if figure.series), key=_place)


def class_of_metric(name: str, class_names: Mapping[int, str]) -> tuple[str, int] | None:
    """Return the metric and the class of a metric of one class, named by id or by name; None for other metrics."""
    if label := class_at_end(name, class_names.values()):
        return name.removesuffix(f" {label}"), next(i for i, known in class_names.items() if known == label)
    match = _CLASS.fullmatch(name)
    return None if match is None else (match[1], int(match[2]))


def kept_points(values: Numbers, most: int = MOST_POINTS) -> NDArray[np.intp]:
    """Return the positions of the finite values; if too many, only of the extremes of each stretch."""
    places = np.flatnonzero(np.isfinite(values))
    if len(places) <= most:
        return places
    length = -(-len(places) // (most // 2 - 1))
    padded = np.pad(places, (0, -len(places) % length), mode="edge").reshape(-1, length)
    rows, found = np.arange(len(padded)), values[padded]
    ends = [padded[rows, found.argmin(axis=1)], padded[rows, found.argmax(axis=1)], places[[0, -1]]]
    return np.unique(np.concatenate(ends))


def rounded(values: Numbers, digits: int = 5) -> list[float]:
    """Return values rounded to a number of significant digits."""
    size = np.abs(values)
    decimals = digits - 1 - np.floor(np.log10(np.where(size > 0, size, 1.0)))
    with np.errstate(over="ignore", invalid="ignore"):  # at the ends of the range of floats, which stay as they are
        scale = 10.0 ** np.abs(decimals)
        # Numbers are divided by powers of ten, which are exact: the result is the nearest to what is to be written.
        found = np.where(decimals >= 0, np.round(values * scale) / scale, np.round(values / scale) * scale)
    kept: list[float] = np.where(np.isfinite(found), found, values).tolist()
    return kept


def hex_color(class_id: int) -> str:
    """Return the colour of a class, the same as in pictures, as ``#rrggbb``."""
    if class_id == 0:  # black in pictures, and not to be seen on a dark page
        return "#8a94a0"
    red, green, blue = class_color(class_id)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _place(figure: Figure) -> int:
    order = [SCORE, LOSS, "classes", "", LEARNING_RATE, EPOCH_DURATION]
    key = "classes" if figure.key.startswith("classes:") else figure.key
    return order.index(key if key in order else "")


def _plain(name: str) -> str:
    return name.removeprefix(VALIDATION) if name != SCORE else name


def _group(name: str, class_names: Mapping[int, str]) -> str:
    if name in _TITLES:
        return name
    plain = _plain(name)
    # "loss 2" of a training is no class, but some loss of the user's own.
    is_of_class = name.startswith(VALIDATION) or class_at_end(plain, class_names.values())
    base = class_of_metric(plain, class_names) if is_of_class else None
    return plain if base is None else f"classes:{VALIDATION * name.startswith(VALIDATION)}{base[0]}"


def _figure(
    key: str, names: Sequence[str], metrics: Mapping[str, Sequence[float]], class_names: Mapping[int, str]
) -> Figure:
    columns = {name: np.asarray(metrics[name], dtype=np.float64) for name in names}
    if not key.startswith("classes:"):
        series = [_series(*_look(name), values) for name, values in columns.items()]
        curves = [curve for curve in series if curve.x]
        return Figure(key=key, title=_TITLES.get(key, key), better=better_of(key), series=curves)
    base = key.removeprefix("classes:")
    better = better_of(base)
    title = f"{_plain(base)} by class"
    by_class = {}
    for name, values in columns.items():
        found = class_of_metric(_plain(name), class_names)
        assert found is not None  # as when the groups were made
        by_class[found[1]] = values
    if len(by_class) <= MOST_CLASSES:
        series = [_series(class_names.get(i, f"class {i}"), hex_color(i), v) for i, v in by_class.items()]
        return Figure(key=key, title=title, better=better, series=[curve for curve in series if curve.x])
    return _folded(key, title, better, by_class, class_names)


def _folded(
    key: str, title: str, better: str | None, by_class: Mapping[int, Numbers], class_names: Mapping[int, str]
) -> Figure:
    """Return the figure of many classes: their median, quantile ranges, and the classes with the worst final values."""
    foreground = {index: values for index, values in by_class.items() if index} or dict(by_class)
    table = np.stack(list(foreground.values()))
    is_known = np.isfinite(table)
    measured = np.flatnonzero(is_known.any(axis=0))  # the epochs that were validated
    if not len(measured):
        return Figure(key=key, title=title, better=better, series=[])
    means = np.full(table.shape[1], np.nan)
    means[measured] = np.where(is_known, table, 0.0)[:, measured].sum(axis=0) / is_known[:, measured].sum(axis=0)
    places = kept_points(means)
    shown = np.where(is_known, table, np.nan)[:, places]
    # The general way takes a hundred times as long.
    quantile = np.quantile if is_known[:, places].all() else np.nanquantile
    low, first, median, third, high = map(rounded, quantile(shown, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0))
    epochs = [int(place) + 1 for place in places]
    bands = [
        Band(name="5 to 95 % of the classes", x=epochs, low=low, high=high),
        Band(name="25 to 75 %", x=epochs, low=first, high=third),
    ]
    last = {index: _last(values) for index, values in foreground.items()}
    known = sorted(
        (index for index in last if math.isfinite(last[index])), key=lambda i: last[i], reverse=better == "lower"
    )
    series = [Series(name="median", color="plain", x=epochs, y=median)]
    series += [_series(class_names.get(i, f"class {i}"), hex_color(i), foreground[i]) for i in known[:WORST]]
    note = f"{len(foreground)} classes: their median and quantiles, and by name the {min(WORST, len(known))} worst now."
    return Figure(key=key, title=title, better=better, series=series, bands=bands, note=note)


def _last(values: Numbers) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else math.nan


def _series(name: str, color: str, values: Numbers) -> Series:
    places = kept_points(values)
    return Series(name=name, color=color, x=[int(place) + 1 for place in places], y=rounded(values[places]))


def _look(name: str) -> tuple[str, str]:
    """Return the name and the colour of a metric's curve."""
    side = "validation" if name.startswith(VALIDATION) else "training"
    return _LOOKS.get(name, (side, side))
