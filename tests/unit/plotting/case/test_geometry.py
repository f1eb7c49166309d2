from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.errors import BadInputError
from candy_monai.plotting.case.geometry import AXIAL, CORONAL, SAGITTAL, patient_axes, telling_slices


def test_without_a_label_the_middle_is_shown() -> None:
    assert telling_slices((5, 6, 7), []) == (2, 3, 3)
    assert telling_slices((5, 6, 7), [np.zeros((5, 6, 7), dtype=int)]) == (2, 3, 3)


def test_the_largest_cross_section_is_shown() -> None:
    label = np.zeros((8, 8, 8), dtype=int)
    label[1, 2, 3] = 1
    label[5, 4:7, 2:7] = 1
    assert telling_slices(label.shape, [label])[0] == 5


def test_a_small_class_counts_as_much_as_a_large_one() -> None:
    label = np.zeros((10, 10, 10), dtype=int)
    label[:, :, 2:5] = 1
    label[0, 0, 4] = 2  # only here both classes can be seen
    assert telling_slices(label.shape, [label])[2] == 4


def test_the_prediction_chooses_only_if_the_label_is_empty() -> None:
    label, prediction = np.zeros((2, 9, 9, 9), dtype=int)
    prediction[7, 7, 7] = 1
    assert telling_slices(label.shape, [label, prediction]) == (7, 7, 7)
    label[1, 1, 1] = 1
    assert telling_slices(label.shape, [label, prediction]) == (1, 1, 1)


def test_of_equal_slices_the_middle_one_is_shown() -> None:
    label = np.zeros((9, 9, 9), dtype=int)
    label[2:7, 2:7, 2:7] = 1
    assert telling_slices(label.shape, [label]) == (4, 4, 4)


def test_far_apart_and_negative_ids_work() -> None:
    label = np.zeros((4, 4, 4), dtype=np.int64)
    label[1, 1, 1], label[1, 2, 3] = -1, 10**9
    assert telling_slices(label.shape, [label])[0] == 1


def test_a_cut_has_the_first_axis_to_the_right_and_the_second_down() -> None:
    volume = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(AXIAL.cut(volume, 1), volume[:, :, 1].T)
    assert np.array_equal(CORONAL.cut(volume, 1), volume[:, 1].T)
    assert np.array_equal(SAGITTAL.cut(volume, 1), volume[1].T)
    assert AXIAL.axes == (0, 1)
    assert CORONAL.axes == (0, 2)
    assert SAGITTAL.axes == (1, 2)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_any_orientation_is_turned_to_left_back_feet(codes: str) -> None:
    directions = nib.orientations.axcodes2ornt(codes)
    affine = nib.orientations.inv_ornt_aff(directions, (2, 3, 4)) @ np.diag([1.0, 1.0, 1.0, 1.0])
    volume = np.arange(24).reshape(2, 3, 4)
    wanted = nib.orientations.apply_orientation(
        volume, nib.orientations.ornt_transform(directions, nib.orientations.axcodes2ornt("LPI"))
    )
    by_affine = patient_axes(MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.from_numpy(np.linalg.inv(affine))))
    assert np.array_equal(patient_axes(volume, orientation=codes).to_view(volume), wanted)
    assert by_affine.known


def test_the_affine_of_a_metatensor_gives_spacing_and_order() -> None:
    affine = np.array([[0, 0, 3, 0], [-2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=float)
    geometry = patient_axes(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.from_numpy(affine)))
    assert geometry.spacing_mm == (2.0, 1.0, 3.0)
    assert geometry.view_spacing_mm == (3.0, 2.0, 1.0)
    assert geometry.flipped == (True, False, True)


def test_spacing_overrides_the_affine() -> None:
    image = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4))
    assert patient_axes(image, spacing_mm=(1, 2, 3)).spacing_mm == (1.0, 2.0, 3.0)


def test_a_singular_affine_tells_nothing() -> None:
    class Image:
        affine = np.zeros((4, 4))

    assert not patient_axes(Image()).known  # type: ignore[arg-type]


@pytest.mark.parametrize("spacing", [(1, 2), (1, 2, 0), (1, 2, float("nan"))])
def test_an_impossible_spacing_is_refused(spacing: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError, match="three positive numbers"):
        patient_axes(np.zeros((2, 2, 2)), spacing_mm=spacing)


@pytest.mark.parametrize("codes", ["RAR", "RA", "XYZ", ""])
def test_an_impossible_orientation_is_refused(codes: str) -> None:
    with pytest.raises(BadInputError, match="axis codes"):
        patient_axes(np.zeros((2, 2, 2)), orientation=codes)
