from __future__ import annotations

import numpy as np
import pytest

from candy_monai.errors import BadInputError
from candy_monai.plotting.drawing import (
    LegendEntry,
    contact_sheet,
    legend,
    line_of_text,
    shortened,
    stacked,
    text_width,
)


def _plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_a_sheet_of_four_is_two_by_two() -> None:
    sheet = contact_sheet([_plain(20, 30, value) for value in (10, 20, 30, 40)], gap=5)
    assert sheet.shape == (2 * 20 + 3 * 5, 2 * 30 + 3 * 5, 3)
    assert sheet[10, 10, 0] == 10
    assert sheet[10, 50, 0] == 20
    assert sheet[40, 10, 0] == 30


def test_smaller_pictures_are_centred() -> None:
    sheet = contact_sheet([_plain(10, 10, 7), _plain(4, 4, 9)], columns=2, gap=0)
    assert (sheet[3:7, 13:17] == 9).all()
    assert (sheet[:3, 10:] == 255).all()


def test_captions_take_room_below_each_row() -> None:
    bare = contact_sheet([_plain(50, 90, 0)])
    named = contact_sheet([_plain(50, 90, 0)], captions=["a case"])
    assert len(named) > len(bare)
    assert (named[len(bare) - 6 :] < 200).any()


def test_float_pictures_are_taken_as_0_to_1() -> None:
    assert contact_sheet([np.ones((4, 4, 3)) * 0.2], gap=0)[0, 0].tolist() == [51, 51, 51]


@pytest.mark.parametrize(
    ("images", "options", "complaint"),
    [
        ([], {}, "at least one"),
        ([np.zeros((4, 4))], {}, r"expected \(H, W, 3\)"),
        ([_plain(4, 4, 0)], {"captions": []}, "expected one each"),
        ([_plain(4, 4, 0)], {"columns": 0}, "at least 1"),
    ],
)
def test_impossible_sheets_are_refused(images: list[np.ndarray], options: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        contact_sheet(images, **options)


def test_text_that_does_not_fit_ends_in_an_ellipsis() -> None:
    short = shortened("hippocampus_001 " * 20, 200, 16)
    assert short.endswith("…")
    assert text_width(short, 16) <= 200


@pytest.mark.parametrize("text", ["", "[bold]x[/bold]", "Leber ü 肝臓", "two\nlines", "$x_1$"])
def test_any_text_is_drawn(text: str) -> None:
    assert line_of_text(text, 300, 16).shape == (24, 300, 3)


def test_a_legend_shows_each_colour() -> None:
    drawn = legend([LegendEntry(text="a", color=(255, 0, 0)), LegendEntry(text="b", color=(0, 0, 255))], 300, 16)
    assert (drawn == (255, 0, 0)).all(axis=2).any()
    assert (drawn == (0, 0, 255)).all(axis=2).any()


def test_a_long_legend_stays_within_its_rows() -> None:
    entries = [LegendEntry(text=f"class {number}", color=(9, 9, 9)) for number in range(200)]
    assert len(legend(entries, 400, 16, max_rows=3)) == 3 * len(legend(entries[:1], 400, 16))


def test_stacked_pictures_keep_their_order() -> None:
    tower = stacked([_plain(2, 4, 1), _plain(3, 2, 2)], gap=1)
    assert tower.shape == (6, 4, 3)
    assert (tower[3:, :2] == 2).all()
    assert (tower[3:, 2:] == 255).all()
