import math

import pytest
import torch

from candy_monai.metrics.surface import surface_metrics


def slab(first, end, shape=(20, 20)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[first:end] = True
    return mask


def test_a_slab_that_is_two_voxels_off_is_two_spacings_away():
    found = surface_metrics(slab(4, 10), slab(6, 12), spacing_mm=(3.0, 1.0), tolerance_mm=5.9)
    assert found["hd95"] == pytest.approx(6.0)
    # Of the 48 border voxels of each: 2 x 4 at the sides within one row of the other's, 2 x 6 of the row among its own.
    assert found["surface_dice"] == pytest.approx(20 / 48)
    assert surface_metrics(slab(4, 10), slab(6, 12), spacing_mm=(3.0, 1.0), tolerance_mm=6.0)["surface_dice"] == 1.0


def test_the_same_surface_is_at_no_distance():
    assert surface_metrics(slab(4, 10), slab(4, 10), spacing_mm=(1.0, 1.0)) == {
        "hd95": 0.0,
        "assd": 0.0,
        "surface_dice": 1.0,
    }


def test_a_class_in_neither_has_no_value():
    empty = slab(0, 0)
    assert all(math.isnan(value) for value in surface_metrics(empty, empty, spacing_mm=(1.0, 1.0)).values())


@pytest.mark.parametrize("missed", [True, False])
def test_a_class_in_only_one_is_infinitely_far_off(missed):
    masks = (slab(0, 0), slab(4, 10))
    found = surface_metrics(*(masks if missed else reversed(masks)), spacing_mm=(1.0, 1.0))
    assert found == {"hd95": math.inf, "assd": math.inf, "surface_dice": 0.0}


def test_only_what_was_asked_for_is_measured_in_3d_too():
    found = surface_metrics(slab(1, 3, (8, 8, 8)), slab(2, 4, (8, 8, 8)), ["hd95"], spacing_mm=(2.0, 1.0, 1.0))
    assert found == {"hd95": 2.0}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_slice_is_measured_as_the_flat_picture(axis):
    one, other = slab(4, 10), slab(6, 13)
    spacing = [2.0, 3.0]
    flat = surface_metrics(one, other, spacing_mm=spacing)
    spacing.insert(axis, 7.0)
    found = surface_metrics(one.unsqueeze(axis), other.unsqueeze(axis), spacing_mm=spacing)
    assert found == flat
    assert 0 < flat["surface_dice"] < 1


def test_an_object_at_the_border_has_its_surface_there():
    one, other = slab(0, 6), slab(0, 8)
    assert surface_metrics(one, one, spacing_mm=(1.0, 1.0))["assd"] == 0.0
    inside = [torch.nn.functional.pad(mask, (2, 2, 2, 2)) for mask in (one, other)]
    assert surface_metrics(one, other, spacing_mm=(1.0, 2.0)) == surface_metrics(*inside, spacing_mm=(1.0, 2.0))


def test_a_line_and_a_single_voxel_are_all_surface():
    line = torch.zeros(1, 9, 1, dtype=torch.bool)
    line[0, 2:5] = True
    assert surface_metrics(line, line.roll(1, 1), spacing_mm=(1.0, 2.0, 1.0))["assd"] == pytest.approx(2 * 2 / 6)
    voxel = torch.ones(1, 1, 1, dtype=torch.bool)
    assert surface_metrics(voxel, voxel, spacing_mm=(1.0, 2.0, 1.0))["hd95"] == 0.0
