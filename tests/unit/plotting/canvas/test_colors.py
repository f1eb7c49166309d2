from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.colors import class_color, colorize

IDS = st.integers(-(2**22), 2**22)


@given(IDS, IDS)
def test_distinct_ids_have_distinct_colours(one: int, other: int) -> None:
    assert (class_color(one) == class_color(other)) == (one == other)


def test_the_first_thousands_of_ids_all_differ() -> None:
    assert len({class_color(value) for value in range(-500, 5000)}) == 5500


def test_the_first_colours_are_those_of_okabe_and_ito() -> None:
    assert class_color(1) == (86, 180, 233)
    assert class_color(2) == (230, 159, 0)


def test_the_first_twenty_colours_are_well_apart() -> None:
    colors = colorize(np.arange(1, 21)).astype(int)
    apart = np.abs(colors[:, None] - colors[None]).sum(axis=2)[~np.eye(20, dtype=bool)]
    assert apart.min() >= 64  # a quarter of the range of one channel, summed over the three


def test_the_background_is_black() -> None:
    assert class_color(0) == (0, 0, 0)


def test_an_id_beyond_the_colours_is_refused() -> None:
    with pytest.raises(BadInputError, match="has no colour"):
        class_color(2**22 + 1)


@pytest.mark.parametrize("ids", [[0, 1, 2, 1], [0, 1, 255, 4000], [-1, 0, 3, 3]])
def test_every_element_is_painted_in_its_classs_colour(ids: list[int]) -> None:
    painted = colorize(np.array(ids).reshape(2, 2))
    assert [tuple(color) for color in painted.reshape(-1, 3).tolist()] == [class_color(value) for value in ids]


def test_nothing_can_be_painted_too() -> None:
    assert colorize(np.zeros((0, 3), dtype=int)).shape == (0, 3, 3)
