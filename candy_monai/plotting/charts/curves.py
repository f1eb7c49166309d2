"""Figures of the metrics of a run over its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from candy_monai.columns import EPOCH, EPOCH_DURATION, LEARNING_RATE, SCORE, VALIDATION, better_of
from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.figures import FAINT, INK, new_figure, prepare_axes, show_epochs
from candy_monai.plotting.charts.forecasts import draw_forecast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from candy_monai.forecasting.best_score import Forecast

Numbers = NDArray[np.float64]

_MOST_PANELS = 12
_MOST_CLASSES, _NUM_WORST = 8, 5
_TRAINING_COLOR, _VALIDATION_COLOR = "#0072b2", "#d55e00"
_CLASS_COLORS = ("#56a5d8", "#d98e00", "#009e73", "#cc79a7", "#b3a400", "#d55e00", "#0059a0", "#7a5195")
"""The colours of the first class ids (`class_color`), darkened if they are too pale on white."""


def curve_figure(name: str, values: Sequence[float], *, x: Sequence[float] | None = None) -> Figure:
    """Draw one metric over the epochs, or over ``x``, with its best value marked if its name implies a direction.

    Names with "loss" or "distance" are better when lower, those with "score" or "dice" when higher; for others no best
    value is marked. NaN or infinity leaves a gap.
    """
    numbers = _numbers(values)
    epochs = np.arange(1, len(numbers) + 1, dtype=float) if x is None else np.asarray(x, dtype=float)
    if epochs.shape != numbers.shape:
        raise BadInputError(f"{len(epochs)} positions were given for {len(numbers)} values of {name!r}")
    figure = new_figure(7.0, 3.6)
    axes = figure.add_axes((0.11, 0.15, 0.86, 0.73))
    prepare_axes(axes, _plain(name) + (" (s)" if name == EPOCH_DURATION else ""))
    _draw(axes, epochs, numbers, color=_color_of(name))
    _mark_best(axes, name, epochs, numbers)
    _finish(axes, name, epochs, [numbers])
    axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    return figure


def class_figure(name: str, curves: Mapping[str, Sequence[float]]) -> Figure:
    """Draw a metric of each class over the epochs; NaN or infinity leaves a gap.

    For more than eight classes the median, the middle half and the whole range are drawn, and separately the five that
    are worst in the last epoch.
    """
    figure = new_figure(8.6, 4.2)
    axes = figure.add_axes((0.085, 0.13, 0.66, 0.76))
    prepare_axes(axes, f"{_plain(name)} by class")
    epochs, drawn = _draw_classes(axes, name, curves)
    _finish(axes, name, epochs, drawn)
    axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    _list_classes(axes, size=8.5)
    return figure


def progress_figure(
    metrics: Mapping[str, Sequence[float]],
    *,
    classes: Mapping[str, Mapping[str, str]] | None = None,
    forecast: Forecast | None = None,
    num_epochs: int = 0,
) -> Figure:
    """Draw an overview of a run: the score, training and validation metrics, the learning rate, the time.

    Training and validation of the same metric share a panel, as do the classes of one; all panels share the epochs.

    Args:
        metrics: Each metric's values over the epochs, as in ``metrics.csv``. At most twelve panels are drawn.
        classes: The columns with metrics of classes, with the name of each class, from `columns.by_class`.
        forecast: Drawn into the panel of the score, up to ``num_epochs``, if it has an interval.
        num_epochs: The planned number.
    """
    classes = classes or {}
    shared = {column for members in classes.values() for column in members}
    panels = _panels([name for name in metrics if name not in shared], [list(members) for members in classes.values()])
    columns = 1 if len(panels) < 2 else 2 if len(panels) < 7 else 3
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(5.6 * columns, 2.5 * rows + 0.5)
    if not panels:
        figure.text(0.5, 0.5, "no epoch has finished yet", ha="center", va="center", color=FAINT, fontsize=11)
        return figure
    longest = max(1, *(len(values) for values in metrics.values()))
    expected = forecast is not None and forecast.interval is not None and SCORE in metrics
    last = max(longest, forecast.epoch, num_epochs) if forecast is not None and expected else longest
    # Placed manually, since matplotlib's own layouts take longer than all the drawing.
    width, height = figure.get_size_inches()
    left, right, top, bottom, across, between = 0.75, 0.2, 0.4, 0.5, 0.75, 0.55
    wide = (width - left - right - across * (columns - 1)) / columns
    high = (height - top - bottom - between * (rows - 1)) / rows
    for number, names in enumerate(panels):
        row, column = divmod(number, columns)
        start = (left + column * (wide + across), height - top - (row + 1) * high - row * between)
        axes = figure.add_axes((start[0] / width, start[1] / height, wide / width, high / height))
        of_classes = next(((name, members) for name, members in classes.items() if names[0] in members), None)
        if of_classes is not None:
            name, members = of_classes
            prepare_axes(axes, f"{_plain(name)} by class")
            _, drawn = _draw_classes(axes, name, {members[column]: metrics[column] for column in names})
            _finish(axes, name, np.array([1.0, float(last)]), drawn)
            _list_classes(axes, size=7)
        else:
            _panel(axes, names, metrics, (longest, last), forecast if expected and SCORE in names else None)
        if number + columns >= len(panels):
            axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    return figure


def _panels(names: Sequence[str], classes: Sequence[list[str]] = ()) -> list[list[str]]:
    """Group the metrics: score, losses, other metrics with their validation, classes, the learning rate, the time."""
    plain = [name for name in names if name not in (SCORE, LEARNING_RATE, EPOCH_DURATION, EPOCH)]
    grouped: dict[str, list[str]] = {}
    for name in sorted(plain, key=lambda name: name.startswith(VALIDATION)):  # training before its validation
        grouped.setdefault(name.removeprefix(VALIDATION), []).append(name)
    order = sorted(grouped, key=lambda base: (base != "loss", "loss" not in base.lower()))
    panels = [[SCORE]] if SCORE in names else []
    last = [[name] for name in (LEARNING_RATE, EPOCH_DURATION) if name in names]
    others = [grouped[base] for base in order]
    return panels + [*others, *classes][: _MOST_PANELS - len(panels) - len(last)] + last


def _draw_classes(axes: Axes, name: str, curves: Mapping[str, Sequence[float]]) -> tuple[Numbers, list[Numbers]]:
    """Draw the curves of classes, and return the epochs and the drawn values."""
    longest = max(map(len, curves.values()))
    values = np.full((len(curves), longest), np.nan)
    for row, numbers in zip(values, curves.values(), strict=True):
        row[: len(numbers)] = _numbers(numbers)
    epochs = np.arange(1, longest + 1, dtype=float)
    known = np.isfinite(values)
    named = list(curves)
    if len(curves) > _MOST_CLASSES:
        columns = known.any(axis=0)  # quantiles without values are undefined
        spread = np.full((5, longest), np.nan)
        spread[:, columns] = np.nanquantile(values[:, columns], (0, 0.25, 0.5, 0.75, 1), axis=0)
        at = epochs[columns]
        for low, high, opacity in ((0, 4, 0.10), (1, 3, 0.18)):
            axes.fill_between(at, spread[low, columns], spread[high, columns], color=INK, alpha=opacity, linewidth=0)
        _draw(axes, epochs, spread[2], color=INK, label=f"median of {len(curves)}")
        named = _worst(name, named, values)
    for color, class_name in zip(_CLASS_COLORS, named, strict=False):
        _draw(axes, epochs, values[list(curves).index(class_name)], color=color, label=f" {_plain(class_name, 24)}")
    return epochs, list(values)


def _worst(name: str, class_names: Sequence[str], values: Numbers) -> list[str]:
    """Return the classes with the worst newest values."""
    newest = [row[np.isfinite(row)][-1:] for row in values]
    better = _direction(name) or 1
    measured = [(better * float(last[0]), index) for index, last in enumerate(newest) if last.size]
    return [class_names[index] for _, index in sorted(measured)[:_NUM_WORST]]


def _list_classes(axes: Axes, *, size: float) -> None:
    style: dict[str, Any] = {"frameon": False, "fontsize": size, "borderaxespad": 0.0, "handlelength": 1.2}
    if size > 8:  # a separate figure has room beside the axes
        style |= {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0)}
    else:
        style |= {"loc": "lower right", "ncols": 2, "columnspacing": 1.0}
    legend = axes.legend(labelcolor=INK, **style)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _panel(
    axes: Axes,
    names: Sequence[str],
    metrics: Mapping[str, Sequence[float]],
    epochs_done_and_shown: tuple[int, int],
    forecast: Forecast | None,
) -> None:
    title = names[0].removeprefix(VALIDATION) if len(names) > 1 else names[0]
    unit = " (s)" if title == EPOCH_DURATION else ""
    longest, last = epochs_done_and_shown
    prepare_axes(axes, _plain(title) + unit)
    epochs = np.arange(1, longest + 1, dtype=float)
    drawn = []
    for name in names:
        numbers = np.full(longest, np.nan)
        numbers[: len(metrics[name])] = _numbers(metrics[name])
        label = "validation" if name.startswith(VALIDATION) else "training"
        _draw(axes, epochs, numbers, color=_color_of(name), label=label if len(names) > 1 else None)
        drawn.append(numbers)
    if names[0] == SCORE:
        _mark_best(axes, SCORE, epochs, drawn[0])
    if forecast is not None and forecast.interval is not None and np.isfinite(drawn[0]).any():
        now, best = len(metrics[SCORE]), float(np.nanmax(drawn[0]))
        draw_forecast(axes, forecast, now=now, best=best, horizon=last)
        drawn.append(np.array([*forecast.interval, forecast.score]))
    _finish(axes, title, np.array([1.0, float(last)]), drawn)
    if len(names) > 1:
        style: dict[str, Any] = {"ncols": 2, "frameon": False, "fontsize": 8, "borderaxespad": 0.0, "handlelength": 1.2}
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), labelcolor=INK, **style)


def _draw(axes: Axes, epochs: Numbers, numbers: Numbers, *, color: str, label: str | None = None) -> None:
    axes.plot(epochs, numbers, color=color, linewidth=1.6, label=label, solid_capstyle="round")
    # A value between two gaps has no line, so that it needs a dot to be visible.
    known = np.isfinite(numbers)
    around = np.pad(known, 1)
    alone = known & ~around[:-2] & ~around[2:]
    if alone.any():
        axes.plot(epochs[known], numbers[known], color=color, linewidth=0.8, alpha=0.3)
        axes.plot(epochs[alone], numbers[alone], "o", color=color, markersize=3.5)


def _mark_best(axes: Axes, name: str, epochs: Numbers, numbers: Numbers) -> None:
    better = _direction(name)
    if better == 0 or not np.isfinite(numbers).any():
        return
    best = int(np.nanargmax(better * numbers))
    axes.plot(epochs[best], numbers[best], "o", color=_color_of(name), markersize=6, markeredgecolor="white", zorder=3)
    axes.set_title(f"best {_short(numbers[best])} at epoch {epochs[best]:g}", loc="right", fontsize=8.5, color=FAINT)


def _finish(axes: Axes, name: str, epochs: Numbers, drawn: Sequence[Numbers]) -> None:
    first, last = (float(epochs.min()), float(epochs.max())) if epochs.size else (1.0, 1.0)
    show_epochs(axes, first, last)
    numbers = np.concatenate(drawn) if drawn else np.empty(0)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        axes.set_ylim(0.0, 1.0)
        style: dict[str, Any] = {"ha": "center", "va": "center", "color": FAINT, "fontsize": 9}
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, **style)
        return
    low, high = float(numbers.min()), float(numbers.max())
    if LEARNING_RATE in name.lower() and low > 0 and high / low > 30:
        axes.set_yscale("log")
        return
    # An extreme value at the start must not flatten the rest.
    if _direction(name) < 0 and numbers.size > 20:
        usual = float(np.percentile(numbers, 97))
        if high - usual > 4 * (usual - low) > 0:
            high = usual + 0.25 * (usual - low)
    if name == EPOCH_DURATION:
        low = min(low, 0.0)
    slack = max(0.06 * (high - low), 1e-9 * max(abs(low), abs(high))) if high > low else 0.06 * abs(high) or 0.5
    axes.set_ylim(low - (0 if low == 0 and name == EPOCH_DURATION else slack), high + slack)


def _numbers(values: Sequence[float]) -> Numbers:
    numbers = np.array([float(value) for value in values], dtype=np.float64)
    numbers[np.abs(numbers) < 1e-100] = 0.0
    # Larger values have diverged, and matplotlib cannot place ticks for them.
    return np.where(np.abs(numbers) < 1e100, numbers, np.nan)


def _direction(name: str) -> int:
    """Return 1 if higher is better, -1 if lower is, 0 if the name does not imply a direction."""
    return {"higher": 1, "lower": -1, None: 0}[better_of(name)]


def _color_of(name: str) -> str:
    return _VALIDATION_COLOR if name.startswith(VALIDATION) else _TRAINING_COLOR


def _plain(text: str, longest: int = 60) -> str:
    """Return a text shortened to fit on one line."""
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _short(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
