"""Charts of methods on the same cases: box plots of the values, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.plotting.canvas.figures import FAINT, INK, new_figure, prepare_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _ROW, _AROUND = 11.6, 0.34, 0.85
_LONGEST_NAME = 28
_MOST_TICKS = 6
_DOTS, _BOX, _MEAN = "#0072b2", "#dbe9f4", "#d55e00"


@dataclass(frozen=True, kw_only=True)
class PairedDifferences:
    """The differences of two methods, case by case."""

    name: str  # the names of the methods
    values: Sequence[float] = field(repr=False)  # one for each case
    mean: float  # of the finite ones
    interval: tuple[float, float] | None  # of the mean; None if undefined


@dataclass(frozen=True, kw_only=True)
class ComparedMetric:
    """One metric of several methods."""

    title: str
    values: Mapping[str, Sequence[float]] = field(repr=False)  # of the cases, by method
    pairs: Sequence[PairedDifferences]


def comparison_figure(metrics: Sequence[ComparedMetric]) -> Figure:
    """Draw a row for each metric: the methods' values on the left, their paired differences on the right.

    Every case is a dot. Infinite values are not drawn; titles count them.
    """
    heights = [_AROUND + _ROW * max(len(metric.values), len(metric.pairs), 2) for metric in metrics]
    total = sum(heights)
    figure = new_figure(_WIDTH, total)
    top = total
    for metric, height in zip(metrics, heights, strict=True):
        bottom, tall = (top - height + 0.45) / total, (height - _AROUND) / total
        _draw_values(figure.add_axes((0.19, bottom, 0.29, tall)), metric)
        _draw_differences(figure.add_axes((0.7, bottom, 0.29, tall)), metric.pairs)
        top -= height
    return figure


def _draw_values(axes: Axes, metric: ComparedMetric) -> None:
    rows = [_finite(values) for values in metric.values.values()]
    prepare_axes(axes, metric.title + _left_out(metric.values.values()))
    places = _places(axes, list(metric.values))
    known = [(place, row) for place, row in zip(places, rows, strict=True) if len(row)]
    if known:
        axes.boxplot(
            [row for _, row in known],
            positions=[place for place, _ in known],
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": _BOX, "edgecolor": FAINT},
            medianprops={"color": INK},
            whiskerprops={"color": FAINT},
            capprops={"color": FAINT},
        )
    for place, row in known:
        _draw_dots(axes, place, row)


def _draw_differences(axes: Axes, pairs: Sequence[PairedDifferences]) -> None:
    prepare_axes(axes, "paired differences, and their mean" + _left_out([pair.values for pair in pairs]))
    axes.axvline(0.0, color=FAINT, linewidth=1.0)
    for place, pair in zip(_places(axes, [pair.name for pair in pairs]), pairs, strict=True):
        row = _finite(pair.values)
        if not len(row):
            continue
        _draw_dots(axes, place, row)
        low, high = pair.interval or (pair.mean, pair.mean)
        errors = [[max(0.0, pair.mean - low)], [max(0.0, high - pair.mean)]]
        axes.errorbar([pair.mean], [place], xerr=errors, fmt="D", color=_MEAN, markersize=5, capsize=4, zorder=4)


def _places(axes: Axes, names: Sequence[str]) -> list[int]:
    """Set the names below each other, the first on top, and return the position of each."""
    places = list(range(len(names)))[::-1]
    shown = [name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}" for name in names]
    axes.set_yticks(places, shown, color=INK, parse_math=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.locator_params(axis="x", nbins=_MOST_TICKS)  # more would overlap where numbers have many digits
    return places


def _draw_dots(axes: Axes, place: int, values: Sequence[float]) -> None:
    shift = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
    axes.plot(values, place + shift, "o", color=_DOTS, markersize=3, alpha=0.5, markeredgewidth=0, zorder=3)


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _left_out(rows: Iterable[Sequence[float]]) -> str:
    infinite = sum(len(row) - len(_finite(row)) for row in rows)
    return f", {infinite} infinite" if infinite else ""
