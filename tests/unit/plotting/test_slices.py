from __future__ import annotations

import numpy as np

from candy_monai.plotting.slices import AXIAL, CORONAL, SAGITTAL, telling_slices


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
