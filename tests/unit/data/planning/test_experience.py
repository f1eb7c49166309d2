import dataclasses

import pytest

from candy_monai.data.planning.experience import Expected, Row, anisotropy, expected, experience

THICK, EVEN = (1.5, 1.5, 9.0), (1.0, 1.0, 1.2)


def _row(configuration, dice, **entries):
    defaults = {
        "dataset": "Hearts",
        "anisotropy": 6.0,
        "median_shape": (200, 200, 10),
        "num_cases": 40,
        "num_classes": 4,
        "cpu_s": 1000.0,
        "num_steps": None,
        "num_unseen": 10,
        "num_seeds": 1,
    }
    return Row(**{**defaults, "configuration": configuration, "dice": dice, **entries})


def _pair(gain, **entries):
    return [_row("2d", 0.8 + gain, **entries), _row("3d", 0.8, **entries)]


def test_the_table_that_is_shipped_can_be_read_and_knows_slices_of_thick_slices_to_be_better():
    assert {row.configuration for row in experience()} == {"2d", "3d"}
    assert all(0 < row.dice < 1 and row.anisotropy >= 1 and row.cpu_s > 0 for row in experience())
    assert expected(THICK, 40).configuration == "2d"
    assert expected(EVEN, 100).configuration == "3d"


@pytest.mark.parametrize("ratio", [3.1, 5.0, 30.0])
def test_with_experience_of_one_thick_dataset_all_thick_ones_and_only_these_are_trained_on_in_slices(ratio):
    rows = _pair(0.1)
    assert expected((1.0, 1.0, ratio), 40, rows=rows).configuration == "2d"
    assert expected((1.0, 1.0, 2.9), 40, rows=rows) == Expected(gain=None)


def test_a_configuration_that_was_run_alone_says_nothing():
    assert expected(THICK, 40, rows=[_row("2d", 0.9)]).gain is None
    assert "no earlier run on a similar dataset" in str(expected(THICK, 40, rows=[_row("2d", 0.9)]))


def test_the_nearer_dataset_counts_more():
    rows = [*_pair(0.1, anisotropy=4.0), *_pair(-0.1, dataset="Knees", anisotropy=16.0)]
    near_first, between, near_second = (expected((1.0, 1.0, ratio), 40, rows=rows).gain for ratio in (4.0, 8.0, 16.0))
    assert near_first > 0.07
    assert between == pytest.approx(0.0, abs=1e-9)
    assert near_second < -0.07
    assert expected((1.0, 1.0, 16.0), 40, rows=rows).datasets == ("Knees", "Hearts")
    rows = [*_pair(0.1, num_cases=10), *_pair(-0.1, dataset="Knees", num_cases=160)]
    assert expected(THICK, 10, rows=rows).gain > 0 > expected(THICK, 160, rows=rows).gain


def test_what_teaches_more_depends_on_the_time():
    rows = [*_pair(0.1, cpu_s=100.0), *_pair(-0.1, cpu_s=10_000.0)]
    gains = [expected(THICK, 40, cpu_s=cpu_s, rows=rows).gain for cpu_s in (10.0, 100.0, 1000.0, 10_000.0, 1e6)]
    assert gains == pytest.approx([0.1, 0.1, 0.0, -0.1, -0.1])
    assert expected(THICK, 40, rows=rows).gain == pytest.approx(-0.1)  # as after the longest time


def test_seeds_are_averaged():
    rows = [_row("2d", 0.9, num_seeds=3), _row("2d", 0.5), _row("3d", 0.7)]
    assert expected(THICK, 40, rows=rows).gain == pytest.approx(0.1)
    assert expected(THICK, 40, rows=[*rows, dataclasses.replace(rows[2], dice=0.9)]).gain == pytest.approx(0.0)


def test_what_is_expected_is_said_with_the_datasets_that_it_rests_on():
    assert str(expected(THICK, 40, rows=_pair(0.1))) == (
        "in runs on Hearts slices reached a Dice 0.100 above that of volumes"
    )
    assert "volumes reached a Dice 0.100 above that of slices" in str(expected(THICK, 40, rows=_pair(-0.1)))


def test_anisotropy_is_that_of_the_thickest_axis():
    assert anisotropy((1.5, 9.0, 3.0)) == 3.0
