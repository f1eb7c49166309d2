from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd

from candy_monai.transforms import CropForegroundIfAny, CropForegroundIfAnyd


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
