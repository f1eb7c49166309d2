import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

from candy_monai.errors import BadInputError
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


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, ">u2", np.int64, np.float32, np.float16])
def test_arrays_of_any_number_type_and_byte_order_are_measured_as_tensors_are(dtype):
    one, other = slab(4, 10), slab(6, 12)
    arrays = [mask.numpy().astype(dtype)[::-1] for mask in (one, other)]
    arrays[0].flags.writeable = False
    expected = surface_metrics(one.flip(0), other.flip(0), spacing_mm=(3.0, 1.0))
    assert surface_metrics(*arrays, spacing_mm=(3.0, 1.0)) == expected


@pytest.mark.parametrize(
    ("value", "found"), [([[True]], "a list"), (np.array([["a"]]), "an array of <U1"), (None, "a NoneType")]
)
def test_what_is_neither_tensor_nor_array_is_refused_by_name(value, found):
    with pytest.raises(BadInputError, match=f"the reference is {found}, expected a tensor or a NumPy array of numbers"):
        surface_metrics(slab(4, 10), value, spacing_mm=(1.0, 1.0))


def test_the_same_surface_is_at_no_distance():
    assert surface_metrics(slab(4, 10), slab(4, 10), spacing_mm=(1.0, 1.0)) == {
        "hd95": 0.0,
        "hd100": 0.0,
        "assd": 0.0,
        "masd": 0.0,
        "surface_dice": 1.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing_mm": (1.0, 1.0, 1.0)}, r"spacing_mm is \(1.0, 1.0, 1.0\) for masks of shape \(20, 20\)"),
        ({"spacing_mm": (1.0, -1.0)}, "a positive number for each axis"),
        ({"spacing_mm": (math.nan, 1.0)}, "a positive number for each axis"),
        ({"tolerance_mm": -1.0}, "tolerance_mm must be 0 or more, got -1.0"),
        ({"names": ["hd99"]}, "unknown surface metric 'hd99'; expected any of hd95"),
        ({"prediction": slab(4, 10) * 0.3}, "the prediction holds fractions, expected a mask"),
        (
            {"reference": slab(4, 10) + slab(6, 8).byte()},
            "the reference holds 2 ids, such as 1 and 2, expected the mask of one class: reference == 1",
        ),
        ({"reference": slab(4, 10, (20, 19))}, "differ in shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    given = {"prediction": slab(4, 10), "reference": slab(5, 11), "spacing_mm": (1.0, 1.0), **changes}
    with pytest.raises(BadInputError, match=message):
        surface_metrics(**given)


def test_a_mask_may_say_yes_by_any_number():
    masks = slab(4, 10), slab(5, 11)
    found = surface_metrics(*(mask * 255 for mask in masks), spacing_mm=(1.0, 1.0))
    assert found == surface_metrics(*masks, spacing_mm=(1.0, 1.0))


def test_a_class_in_neither_has_no_value():
    empty = slab(0, 0)
    assert all(math.isnan(value) for value in surface_metrics(empty, empty, spacing_mm=(1.0, 1.0)).values())


@pytest.mark.parametrize("missed", [True, False])
def test_a_class_in_only_one_is_infinitely_far_off(missed):
    masks = (slab(0, 0), slab(4, 10))
    found = surface_metrics(*(masks if missed else reversed(masks)), spacing_mm=(1.0, 1.0))
    assert found == {**dict.fromkeys(["hd95", "hd100", "assd", "masd"], math.inf), "surface_dice": 0.0}


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


def blobs(seed, shape=(22, 20, 14)):
    """Return two maps of overlapping boxes, some at the border and some a single voxel."""
    draw = np.random.RandomState(seed)
    masks = np.zeros((2, *shape), bool)
    for _ in range(5):
        at, size = draw.randint(0, 14, 3), draw.randint(1, 9, 3)
        for mask in masks:
            mask[tuple(slice(a, a + s) for a, s in zip(at + draw.randint(0, 3, 3), size, strict=True))] = True
    return torch.from_numpy(masks)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.3)])
def test_the_numbers_are_monai_s(seed, spacing):
    one, other = blobs(seed)
    found = surface_metrics(one, other, spacing_mm=spacing, tolerance_mm=1.4)
    masks = one[None, None], other[None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an argument that MONAI passes to itself
        expected = {
            "hd95": compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing),
            "hd100": compute_hausdorff_distance(*masks, include_background=True, spacing=spacing),
            "assd": compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing),
            "surface_dice": compute_surface_dice(*masks, [1.4], include_background=True, spacing=spacing),
        }
        there = compute_average_surface_distance(*masks, include_background=True, spacing=spacing)
        back = compute_average_surface_distance(*reversed(masks), include_background=True, spacing=spacing)
    expected["masd"] = (there + back) / 2
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 3.3)])
def test_of_subvoxel_surfaces_the_numbers_are_deepmind_s(seed, spacing):
    surface_distance = pytest.importorskip("surface_distance")
    one, other = blobs(seed)
    found = surface_metrics(one, other, spacing_mm=spacing, tolerance_mm=2.0, subvoxels=True)
    theirs = surface_distance.compute_surface_distances(other.numpy(), one.numpy(), spacing)
    assert found["hd95"] == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), rel=1e-5)
    assert found["hd100"] == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 100), rel=1e-5)
    assert found["masd"] == pytest.approx(sum(surface_distance.compute_average_surface_distance(theirs)) / 2, rel=1e-5)
    dice = surface_distance.compute_surface_dice_at_tolerance(theirs, 2.0)
    assert found["surface_dice"] == pytest.approx(dice, rel=1e-5)
    voxels = surface_metrics(one, other, spacing_mm=spacing, tolerance_mm=2.0)
    assert voxels["masd"] != pytest.approx(found["masd"], rel=1e-3)


def test_subvoxel_surfaces_of_a_picture_and_of_a_volume_of_one_slice_are_the_same():
    one, other = slab(4, 10), slab(6, 13)
    flat = surface_metrics(one, other, spacing_mm=(2.0, 3.0), subvoxels=True)
    assert surface_metrics(one[None], other[None], spacing_mm=(7.0, 2.0, 3.0), subvoxels=True) == flat
    voxel = torch.ones(1, 1, 1, dtype=torch.bool)
    assert surface_metrics(voxel, voxel, spacing_mm=(1.0, 2.0, 1.0), subvoxels=True)["surface_dice"] == 1.0


def test_a_distance_of_just_the_tolerance_is_within_it_whatever_the_spacing():
    for spacing in (0.1, 0.3, 0.7, 1.1, 20.7):
        one, other = slab(4, 10, (20, 1)), slab(6, 12, (20, 1))
        found = surface_metrics(one, other, spacing_mm=(spacing, 1.0), tolerance_mm=2 * spacing)
        assert found["surface_dice"] == 1.0


def test_the_mean_of_means_is_not_the_mean_of_all_distances():
    one, other = slab(0, 1, (20, 1)), slab(0, 9, (20, 1))
    found = surface_metrics(one, other, ["assd", "masd"], spacing_mm=(1.0, 1.0))
    assert found == {"assd": pytest.approx(36 / 10), "masd": pytest.approx((0 + 4) / 2)}
