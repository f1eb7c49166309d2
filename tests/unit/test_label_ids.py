from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.errors import BadInputError
from candy_monai.label_ids import highest_id, holding, holds_whole_numbers, ids_in, widened

WHOLE_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 3.0], True), ([0.0, 0.5], False), ([0.0, math.nan], False), ([0, 7], True), ([True], True), ([1j], False)],
)
def test_whole_numbers_are_told_from_fractions_whatever_their_type(values, expected):
    tensor = torch.tensor(values)
    assert holds_whole_numbers(tensor) is expected
    assert holds_whole_numbers(MetaTensor(tensor)) is expected


@pytest.mark.parametrize("dtype", [*WHOLE_TYPES, torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ids_of_every_type_have_a_highest(dtype):
    labels = torch.tensor([[0, 3, 7]]).to(dtype)
    assert highest_id(labels, what="a") == 7
    assert highest_id(labels, what="a", ignore_index=7) == 3
    assert ids_in(labels) == [0, 3, 7]


def test_masks_and_empty_tensors_are_label_maps_too():
    assert highest_id(torch.tensor([True, False]), what="a") == 1
    assert highest_id(torch.zeros(0, 3), what="a") == 0
    assert ids_in(torch.zeros(0)) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            torch.tensor([0, 1, 2]) / 255,
            r"case_3 holds fractions such as 0\.003922, 0\.007843.*multiply by 255 and round",
        ),
        (torch.tensor([0, 0.5, 1]), r"case_3 holds fractions such as 0\.5,.*nearest-neighbour"),
        (torch.tensor([0, 1.0000001, 0.9999999]), r"such as 0\.99999988, 1\.0000001, .*rounding errors.*round\(\)"),
        (torch.tensor([0, math.nan, 1]), r"case_3 holds NaN in 1 of 3 voxels.*to 0, the background"),
        (torch.tensor([-math.inf, math.inf]), r"case_3 holds infinity in 2 of 2 voxels"),
        (torch.tensor([0, -1, -3]), r"case_3 holds -3, -1, expected.*ignore_index"),
        (torch.tensor([1j]), r"case_3 holds complex numbers"),
        (torch.linspace(0.01, 0.09, 9), r"fractions such as 0\.01, 0\.02, 0\.03, 0\.04 and 5 more"),
    ],
)
def test_what_is_no_id_is_refused_with_the_values_found_and_what_to_do(labels, message):
    with pytest.raises(BadInputError, match=message):
        highest_id(labels, what="case_3")


def test_a_negative_id_that_is_ignored_is_allowed_and_no_other():
    assert highest_id(torch.tensor([0, 2, -1]), what="a", ignore_index=-1) == 2
    with pytest.raises(BadInputError, match="holds -2,"):
        highest_id(torch.tensor([0, -2, -1]), what="a", ignore_index=-1)


def test_255_in_a_byte_is_not_minus_1():
    assert highest_id(torch.tensor([255], dtype=torch.uint8), what="a", ignore_index=-1) == 255
    assert widened(torch.tensor([255], dtype=torch.uint8)).tolist() == [255]


@pytest.mark.parametrize(
    ("dtype", "label_id", "expected"),
    [
        (torch.uint8, 255, torch.uint8),
        (torch.uint8, -1, torch.int64),
        (torch.bool, 2, torch.int64),
        (torch.int8, 200, torch.int64),
        (torch.float32, -1, torch.float32),
    ],
)
def test_labels_are_widened_only_where_an_id_does_not_fit(dtype, label_id, expected):
    assert holding(torch.zeros(2).to(dtype), label_id).dtype == expected


def test_ids_far_apart_are_listed_without_counting_up_to_them():
    assert ids_in(torch.tensor([2**40, 0, -5])) == [-5, 0, 2**40]
