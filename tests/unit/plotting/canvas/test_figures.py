from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from candy_monai.plotting.canvas.figures import figure_of, new_figure, save_figure, show_epochs


def test_a_figure_of_a_picture_shows_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (37, 53, 3), dtype=np.uint8)
    shown = np.asarray(Image.open(BytesIO(figure_of(pixels)._repr_png_())).convert("RGB"))
    assert np.array_equal(shown, pixels)


def test_a_saved_figure_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = save_figure(new_figure(2.0, 1.0), tmp_path / "a" / "b.png")
    assert Image.open(path).size == (240, 120)
    assert [entry.name for entry in path.parent.iterdir()] == ["b.png"]


def test_a_figure_of_the_user_is_saved_too(tmp_path: Path) -> None:
    assert Image.open(save_figure(Figure(figsize=(1, 1), dpi=50), tmp_path / "b.png")).size == (50, 50)


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, candy_monai.plotting.case.previews, candy_monai.plotting.case.visualize\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import candy_monai.plotting.charts.curves as c\n"
        "c.curve_figure('loss', [1.0, 2.0])._repr_png_()\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_epochs_are_shown_with_room_on_both_sides_and_whole_numbers_below() -> None:
    axes = new_figure(4.0, 3.0).add_axes((0.1, 0.1, 0.8, 0.8))
    show_epochs(axes, 1, 3)
    assert axes.get_xlim() == (0.5, 3.5)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
