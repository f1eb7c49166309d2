"""Figures without pyplot: Matplotlib's global state is neither read nor changed, except for the user's defaults."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from candy_monai.aliases import PathLike
from candy_monai.plotting.canvas.arrays import Pixels
from candy_monai.plotting.canvas.drawing import save_png

INK, FAINT, RULE = "#262626", "#787878", "#dddddd"
_DPI = 120.0


class NotebookFigure(Figure):
    """A figure on Agg that Jupyter displays when a cell returns it, whether or not pyplot is imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.canvas.print_figure(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> NotebookFigure:
    """Return an empty white figure of a width and height in inches."""
    figure = NotebookFigure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_of(pixels: Pixels) -> NotebookFigure:
    """Return a figure that displays a picture pixel by pixel."""
    figure = new_figure(pixels.shape[1] / _DPI, pixels.shape[0] / _DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    return figure


def prepare_axes(axes: Axes, title: str) -> None:
    """Set a left-aligned title without mathematical notation, faint grid lines, and remove two spines."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=3, color=RULE)
    axes.grid(visible=True, color=RULE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def show_epochs(axes: Axes, first: float, last: float) -> None:
    """Set the horizontal axis to these epochs, with integer ticks."""
    axes.set_xlim(first - 0.5, last + max(0.5, 0.02 * (last - first)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def pixels_of(figure: Figure) -> Pixels:
    """Return a figure as ``(H, W, 3)`` pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def save_figure(figure: Figure, path: PathLike) -> Path:
    """Write a figure as PNG, as ``save_png`` does, and return the path."""
    return save_png(pixels_of(figure), path)
