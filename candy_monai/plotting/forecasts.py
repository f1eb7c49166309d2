"""A forecast as a picture: the curve so far, what is expected of it, and how sure that is. Computes no forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from candy_monai.columns import SCORE
from candy_monai.plotting.figures import FAINT, RULE, new_figure, prepare_axes, show_epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOR = "#009e73"
_CURVE_COLOR = "#d55e00"


class ScoreForecast(Protocol):
    """What is expected of a run: the best score of all of it, when, and between which values."""

    @property
    def epoch(self) -> int:
        """When the best score is expected, counted from 1."""

    @property
    def score(self) -> float:
        """The best score expected."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """Between which values it lies; ``None`` if there is no forecast."""

    @property
    def reason(self) -> str | None:
        """Why there is no forecast; ``None`` if there is one."""


def draw_forecast(axes: Axes, forecast: ScoreForecast, *, now: int, best: float, horizon: int) -> None:
    """Draw into a panel how the best score is expected to move from now to the end of the run.

    Args:
        axes: The panel of the score.
        forecast: What is expected; its interval must be there.
        now: Epochs over.
        best: The best score so far.
        horizon: Epochs planned.
    """
    assert forecast.interval is not None
    low, high = forecast.interval
    target = min(max(forecast.epoch, now + 1), max(horizon, now + 1))
    epochs = [now, target, max(horizon, target)]
    axes.fill_between(epochs, [best, low, low], [best, high, high], color=COLOR, alpha=0.16, linewidth=0)
    axes.plot(epochs, [best, *[forecast.score] * 2], color=COLOR, linewidth=1.4, linestyle=(0, (4, 2)))
    axes.errorbar(
        [target],
        [forecast.score],
        yerr=[[max(0.0, forecast.score - low)], [max(0.0, high - forecast.score)]],
        fmt="D",
        color=COLOR,
        markersize=5,
        capsize=3,
        linewidth=1.2,
        zorder=4,
    )
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
        color=COLOR,
    )


def forecast_figure(
    scores: Sequence[float], forecast: ScoreForecast, horizon: int, *, name: str = SCORE, first_epoch: int = 1
) -> Figure:
    """Draw the scores so far, the forecast of the best, its 80 % interval and its epoch; or why there is none.

    Args:
        scores: One for each epoch so far; a NaN leaves a gap.
        forecast: What is expected of them.
        horizon: Epochs planned.
        name: What the score is.
        first_epoch: The number that the tool which trained gives to the first epoch.
    """
    values = np.asarray(scores, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    figure = new_figure(7.5, 4.2)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.74))
    shift = first_epoch - 1
    epochs = np.arange(1, len(values) + 1) + shift
    axes.plot(epochs, values, color=_CURVE_COLOR, linewidth=1.6, marker="o", markersize=2.5)
    known = np.isfinite(values)
    if known.any():
        best = int(np.nanargmax(values))
        axes.plot(epochs[best], values[best], "o", color=_CURVE_COLOR, markersize=7, markeredgecolor="white", zorder=3)
        if forecast.interval is not None:
            shifted = _Shifted(forecast, shift)
            draw_forecast(axes, shifted, now=int(epochs[-1]), best=float(values[best]), horizon=horizon + shift)
    if forecast.reason is not None:
        axes.text(0.98, 0.05, f"no forecast: {forecast.reason}", transform=axes.transAxes, ha="right", color=FAINT)
    prepare_axes(axes, " ".join(name.split()))
    show_epochs(axes, first_epoch, horizon + shift)
    axes.set_xlabel("epoch", color=FAINT, fontsize=9)
    if forecast.interval is not None:
        low, high = forecast.interval
        says = f"best {forecast.score:.4f} at epoch {forecast.epoch + shift}, {low:.4f} to {high:.4f} (80 %)"
        axes.set_title(says, loc="right", fontsize=9, color=COLOR)
    return figure


class _Shifted:
    """A forecast whose epochs are counted as the source counts them."""

    def __init__(self, forecast: ScoreForecast, shift: int) -> None:
        self.epoch = forecast.epoch + shift
        self.score = forecast.score
        self.interval = forecast.interval
        self.reason = forecast.reason
