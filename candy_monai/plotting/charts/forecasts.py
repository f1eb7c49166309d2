"""Draw a forecast: the curve so far, the expected best score, and its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from candy_monai.columns import SCORE
from candy_monai.plotting.canvas.figures import FAINT, RULE, new_figure, prepare_axes, show_epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from candy_monai.forecasting.best_score import Forecast

_COLOR, _CURVE_COLOR = "#009e73", "#d55e00"


def draw_forecast(axes: Axes, forecast: Forecast, *, now: int, best: float, horizon: int) -> None:
    """Draw the expected best score from epoch ``now`` to ``horizon``, with its interval, into a panel."""
    assert forecast.interval is not None
    low, high = forecast.interval
    target = min(max(forecast.epoch, now + 1), max(horizon, now + 1))
    epochs = [now, target, max(horizon, target)]
    axes.fill_between(epochs, [best, low, low], [best, high, high], color=_COLOR, alpha=0.16, linewidth=0)
    axes.plot(epochs, [best, *[forecast.score] * 2], color=_COLOR, linewidth=1.4, linestyle=(0, (4, 2)))
    errors = [[max(0.0, forecast.score - low)], [max(0.0, high - forecast.score)]]
    style: dict[str, Any] = {"markersize": 5, "capsize": 3, "linewidth": 1.2, "zorder": 4}
    axes.errorbar([target], [forecast.score], yerr=errors, fmt="D", color=_COLOR, **style)
    axes.axvline(now, color=RULE, linewidth=1.0, zorder=1)
    beyond_middle = target > 0.6 * max(horizon, now)
    axes.annotate(
        f"forecast {forecast.score:.3f}",
        (target, low),
        xytext=(-8 if beyond_middle else 8, -6),
        textcoords="offset points",
        ha="right" if beyond_middle else "left",
        va="top",
        fontsize=8,
        color=_COLOR,
    )


def forecast_figure(
    scores: Sequence[float], forecast: Forecast, horizon: int, *, name: str = SCORE, first_epoch: int = 1
) -> Figure:
    """Draw the scores so far, the forecast of the best, its 80 % interval and its epoch; or why there is none.

    ``horizon`` is the planned number of epochs, ``first_epoch`` the number of the first in the tool that trained.
    """
    values = np.asarray(scores, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    shift = first_epoch - 1
    forecast, last = replace(forecast, epoch=forecast.epoch + shift), horizon + shift
    figure = new_figure(7.5, 4.2)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.74))
    epochs = np.arange(len(values)) + first_epoch
    axes.plot(epochs, values, color=_CURVE_COLOR, linewidth=1.6, marker="o", markersize=2.5)
    if np.isfinite(values).any():
        best = int(np.nanargmax(values))
        axes.plot(epochs[best], values[best], "o", color=_CURVE_COLOR, markersize=7, markeredgecolor="white", zorder=3)
        if forecast.interval is not None:
            draw_forecast(axes, forecast, now=int(epochs[-1]), best=float(values[best]), horizon=last)
    if forecast.reason is not None:
        axes.text(0.98, 0.05, f"no forecast: {forecast.reason}", transform=axes.transAxes, ha="right", color=FAINT)
    prepare_axes(axes, " ".join(name.split()))
    show_epochs(axes, first_epoch, last)
    axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    if forecast.interval is not None:
        low, high = forecast.interval
        says = f"best {forecast.score:.4f} at epoch {forecast.epoch}, {low:.4f} to {high:.4f} (80 %)"
        axes.set_title(says, loc="right", fontsize=9, color=_COLOR)
    return figure
