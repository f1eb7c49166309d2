"""Figures without pyplot: one that a notebook shows by itself, and how to write it. Owns no content.

Nothing of matplotlib's global state is read or changed beyond the user's own defaults.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from candy_monai.aliases import PathLike
from candy_monai.files import atomic_path
from candy_monai.plotting.display import Pixels

INK, FAINT, RULE = "#262626", "#787878", "#dddddd"


class NotebookFigure(Figure):
    """A figure on Agg that Jupyter shows when a cell returns it, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.canvas.print_figure(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def new_figure(width: float, height: float, *, dpi: float = 120.0) -> NotebookFigure:
    """Return an empty white figure.

    Args:
        width: In inches.
        height: In inches.
        dpi: Pixels per inch.
    """
    figure = NotebookFigure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def figure_of(pixels: Pixels) -> NotebookFigure:
    """Return a figure that shows a picture pixel by pixel.

    Args:
        pixels: ``(H, W, 3)``.
    """
    dpi = 120.0
    figure = new_figure(pixels.shape[1] / dpi, pixels.shape[0] / dpi, dpi=dpi)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.imshow(pixels, interpolation="nearest", aspect="auto")
    return figure


def prepare_axes(axes: Axes, title: str) -> None:
    """Give axes a title at the left, faint rules, and no frame at the top and the right.

    Args:
        axes: Changed.
        title: Plain text: nothing in it is read as a formula.
    """
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold", parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=3, color=RULE)
    axes.grid(visible=True, color=RULE, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)


def show_epochs(axes: Axes, first: float, last: float) -> None:
    """Let the horizontal axis show these epochs, with whole numbers below it.

    Args:
        axes: Changed.
        first: The first epoch.
        last: The last one.
    """
    axes.set_xlim(first - 0.5, last + max(0.5, 0.02 * (last - first)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def pixels_of(figure: Figure) -> Pixels:
    """Return a figure as ``(H, W, 3)`` pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def save_figure(figure: Figure, path: PathLike) -> Path:
    """Write a figure as PNG; readers see the old file or the new one, never half of it.

    Args:
        figure: Any matplotlib figure; one without a canvas of its own is drawn on Agg.
        path: The file to write. Its folder is made if need be.

    Returns:
        The path.
    """
    canvas = figure.canvas if isinstance(figure.canvas, FigureCanvasAgg) else FigureCanvasAgg(figure)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=False) as temporary:
        canvas.print_figure(temporary, format="png", dpi=figure.dpi, pil_kwargs={"compress_level": 1})
    return path
