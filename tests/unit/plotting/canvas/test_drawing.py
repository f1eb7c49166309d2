from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from candy_monai.plotting.canvas.drawing import (
    contact_sheet,
    legend,
    line_of_text,
    save_png,
    shortened,
    stacked,
    text_width,
)


def _plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_a_sheet_of_four_is_two_by_two() -> None:
    sheet = contact_sheet([_plain(20, 30, value) for value in (10, 20, 30, 40)], [""] * 4, columns=2)
    assert sheet[22, 22, 0] == 10
    assert sheet[22, 22 + 30 + 12, 0] == 20
    assert sheet[22 + 20 + 12 + 18, 22, 0] == 30


def test_smaller_pictures_are_centred() -> None:
    sheet = contact_sheet([_plain(10, 10, 7), _plain(4, 4, 9)], ["", ""], columns=2)
    left, top = 12 + 10 + 12, 12
    assert (sheet[top + 3 : top + 7, left + 3 : left + 7] == 9).all()
    assert (sheet[top : top + 3, left:] == 255).all()


def test_captions_stand_below_each_picture() -> None:
    sheet = contact_sheet([_plain(50, 90, 0)], ["a case"], columns=6)
    assert (sheet[63:] < 200).any()


def test_text_that_does_not_fit_ends_in_an_ellipsis() -> None:
    short = shortened("hippocampus_001 " * 20, 200, 16)
    assert short.endswith("…")
    assert text_width(short, 16) <= 200


@pytest.mark.parametrize("text", ["", "[bold]x[/bold]", "Leber ü 肝臓", "two\nlines", "$x_1$"])
def test_any_text_is_drawn(text: str) -> None:
    assert line_of_text(text, 300, 16).shape == (24, 300, 3)


def test_a_legend_shows_each_colour() -> None:
    drawn = legend([("a", (255, 0, 0)), ("b", (0, 0, 255))], 300)
    assert (drawn == (255, 0, 0)).all(axis=2).any()
    assert (drawn == (0, 0, 255)).all(axis=2).any()


def test_a_long_legend_stays_within_its_rows() -> None:
    entries = [(f"class {number}", (9, 9, 9)) for number in range(200)]
    assert len(legend(entries, 400)) == 3 * len(legend(entries[:1], 400))


def test_stacked_pictures_keep_their_order() -> None:
    tower = stacked([_plain(2, 4, 1), _plain(3, 2, 2)], gap=1)
    assert tower.shape == (6, 4, 3)
    assert (tower[3:, :2] == 2).all()
    assert (tower[3:, 2:] == 255).all()


def test_a_margin_is_white() -> None:
    assert (stacked([_plain(2, 4, 1)], gap=1, margin=3)[[0, -1]] == 255).all()


def test_a_png_holds_the_pixels_and_nothing_else_is_left(tmp_path: Path) -> None:
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    path = save_png(pixels, str(tmp_path / "new" / "a (b).png"))
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    assert [entry.name for entry in path.parent.iterdir()] == ["a (b).png"]
