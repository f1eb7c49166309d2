from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.errors import BadInputError
from candy_monai.plotting.canvas.colors import class_color
from candy_monai.plotting.case.overlay import outline, overlay

SQUARE = torch.zeros(1, 9, 9, dtype=torch.long)
SQUARE[0, 2:7, 2:7] = 3


def test_the_background_is_the_image() -> None:
    drawn = overlay(torch.full((1, 9, 9), 4.0), SQUARE)
    assert drawn.shape == (3, 9, 9)
    assert drawn.dtype == torch.float32
    assert (drawn[:, SQUARE[0] == 0] == 0.5).all()


def test_without_a_contour_the_area_has_the_asked_opacity() -> None:
    drawn = overlay(torch.full((9, 9), 4.0), SQUARE, max_label_opacity=0.4, contour=False)
    wanted = 0.6 * 0.5 + 0.4 * torch.tensor(class_color(3)) / 255
    assert torch.allclose(drawn[:, 4, 4], wanted, atol=1e-6)
    assert torch.allclose(drawn[:, 2, 2], wanted, atol=1e-6)


def test_a_contour_is_opaque_and_one_pixel_wide() -> None:
    drawn = overlay(torch.full((9, 9), 4.0), SQUARE, max_label_opacity=0.0)
    color = torch.tensor(class_color(3)) / 255
    painted = (drawn - color[:, None, None]).abs().amax(dim=0) < 1e-6
    assert painted.sum() == 16  # the rim of 5 x 5


def test_an_empty_label_leaves_the_image() -> None:
    assert (overlay(torch.full((9, 9), 4.0), torch.zeros(9, 9)) == 0.5).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_drawn(channels: int) -> None:
    drawn = overlay(MetaTensor(torch.randn(channels, 9, 9)), SQUARE)
    assert type(drawn) is torch.Tensor
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.0


def test_nan_in_the_image_does_not_spread() -> None:
    image = torch.rand(1, 9, 9)
    image[0, 0, 0] = torch.nan
    assert torch.isfinite(overlay(image, SQUARE)).all()


def test_different_sizes_are_refused() -> None:
    with pytest.raises(BadInputError, match="same size"):
        overlay(torch.zeros(1, 8, 9), SQUARE)


def test_an_opacity_above_1_is_refused() -> None:
    with pytest.raises(BadInputError, match="expected 0 to 1"):
        overlay(torch.zeros(1, 9, 9), SQUARE, max_label_opacity=2.0)


def test_the_inputs_are_not_changed() -> None:
    image, label = torch.rand(1, 9, 9), SQUARE.clone()
    before = image.clone()
    overlay(image, label)
    assert torch.equal(image, before)
    assert torch.equal(label, SQUARE)


def test_the_border_of_the_picture_is_no_outline() -> None:
    assert not outline(np.ones((5, 5), dtype=int), 1).any()


def test_two_touching_classes_both_get_an_outline() -> None:
    assert outline(np.array([[1, 1, 2, 2]]), 1).tolist() == [[False, True, True, False]]
