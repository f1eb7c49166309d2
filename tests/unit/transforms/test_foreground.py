from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd

from candy_monai.transforms import (
    CropForegroundIfAny,
    CropForegroundIfAnyd,
    KeepLargestComponent,
    KeepLargestComponentd,
    RemoveSmallComponents,
)

LABELS = torch.tensor(
    [
        [
            [1, 1, 0, 2, 0, 1],
            [1, 0, 0, 2, 0, 0],
            [0, 0, 0, 0, 0, 2],
        ]
    ],
    dtype=torch.uint8,
)


def test_only_the_largest_part_of_each_class_stays_and_the_input_as_it_was():
    before = LABELS.clone()
    kept = KeepLargestComponent()(LABELS)
    assert kept.tolist() == [[[1, 1, 0, 2, 0, 0], [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]]]
    assert kept.dtype == torch.uint8
    assert torch.equal(LABELS, before)


def test_only_the_named_classes_are_looked_at():
    kept = KeepLargestComponent(applied_labels=[2])(LABELS)
    assert kept.tolist() == [[[1, 1, 0, 2, 0, 1], [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]]]


@pytest.mark.parametrize(("connectivity", "kept"), [(None, 4), (2, 4), (1, 1)])
def test_voxels_that_touch_by_a_corner_are_one_part_unless_told_otherwise(connectivity, kept):
    labels = torch.eye(4, dtype=torch.uint8)[None]
    assert int(KeepLargestComponent(connectivity=connectivity)(labels).sum()) == kept


def test_a_class_within_another_s_box_is_left_alone():
    labels = torch.tensor([[[3, 3, 3], [3, 7, 3], [3, 3, 3]]], dtype=torch.int16)
    assert torch.equal(KeepLargestComponent()(labels).as_tensor(), labels)


def test_the_dictionary_form_keeps_the_metadata_and_other_items():
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    kept = KeepLargestComponentd("pred")({"pred": MetaTensor(LABELS, affine=affine), "other": 1})
    assert torch.equal(kept["pred"].affine, affine)
    assert kept["other"] == 1


def not_zero(image):
    return image != 0


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5)])
def test_an_image_of_zeros_is_kept_whole_and_comes_back(shape):
    crop = CropForegroundIfAny(select_fn=not_zero)
    cropped = crop(MetaTensor(torch.zeros(1, *shape)))
    assert cropped.shape == (1, *shape)
    assert crop.inverse(cropped).shape == (1, *shape)


def test_any_other_image_is_cropped_as_monai_crops_it():
    image = torch.zeros(1, 6, 7, 8)
    image[0, 2:4, 1:6, 3:5] = -1.0
    data = {"image": MetaTensor(image), "label": MetaTensor(image.long())}
    arguments = {"keys": ["image", "label"], "source_key": "image", "select_fn": not_zero}
    ours, monais = CropForegroundIfAnyd(**arguments), CropForegroundd(**arguments)
    found, expected = ours(data), monais(data)
    assert found["label"].shape == expected["label"].shape == (1, 2, 5, 2)
    assert torch.equal(found["label"].affine, expected["label"].affine)
    assert torch.equal(ours.inverse(found)["image"], image)


def test_classes_together_have_one_largest_part():
    labels = torch.tensor([[[1, 2, 0, 2, 0, 0], [1, 0, 0, 2, 0, 3], [0, 0, 0, 2, 0, 0]]], dtype=torch.uint8)
    kept = KeepLargestComponent(applied_labels=[1, 2], independent=False)(labels)
    assert kept.tolist() == [[[1, 2, 0, 0, 0, 0], [1, 0, 0, 0, 0, 3], [0, 0, 0, 0, 0, 0]]]  # the first of equal ones
    assert KeepLargestComponent(independent=False)(labels).tolist() == [
        [[1, 2, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    ]


def test_parts_below_a_size_are_removed_and_those_of_just_that_size_stay():
    kept = RemoveSmallComponents(2)(LABELS)
    assert kept.tolist() == [[[1, 1, 0, 2, 0, 0], [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]]]
    assert RemoveSmallComponents(3, applied_labels=[2])(LABELS).unique().tolist() == [0, 1]
    assert RemoveSmallComponents(4)(LABELS).sum() == 0


def test_sizes_may_be_those_of_the_spacing():
    affine = torch.diag(torch.tensor([0.5, 1.0, 3.0, 1.0], dtype=torch.float64))  # a voxel has 1.5 mm³
    labels = MetaTensor(LABELS[..., None], affine=affine)
    assert torch.equal(RemoveSmallComponents(3.0, by_measure=True)(labels), RemoveSmallComponents(2)(labels))
    assert torch.equal(RemoveSmallComponents(3.1, by_measure=True)(labels), RemoveSmallComponents(3)(labels))
    assert torch.equal(labels.as_tensor(), LABELS[..., None])


def test_classes_together_have_parts_of_their_union():
    labels = torch.tensor([[[1, 2, 0, 2], [0, 0, 0, 0]]], dtype=torch.int16)
    kept = RemoveSmallComponents(2, independent=False)(labels)
    assert kept.tolist() == [[[1, 2, 0, 0], [0, 0, 0, 0]]]
    assert kept.dtype == torch.int16
