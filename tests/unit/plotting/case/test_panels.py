from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.plotting.canvas.drawing import contact_sheet
from candy_monai.plotting.case.panels import case_panel, case_tile


def _label(*spatial: int) -> torch.Tensor:
    label = torch.zeros(1, *spatial, dtype=torch.long)
    label[(0, *(slice(length // 4, length // 2 + 1) for length in spatial))] = 1
    return label


def test_a_picture_has_three_tiles_and_a_volume_two_surfaces_more() -> None:
    picture = case_panel(torch.rand(1, 20, 20), _label(20, 20), _label(20, 20))
    assert picture.shape == (344, 3 * 320 + 2 * 10, 3)
    volume = case_panel(torch.rand(1, 20, 20, 20), _label(20, 20, 20), _label(20, 20, 20))
    assert volume.shape == (344, 5 * 320 + 4 * 10, 3)


def test_the_plane_with_the_smallest_pixels_is_shown() -> None:
    image = MetaTensor(torch.rand(1, 20, 20, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 5.0, 1.0])))
    panel = case_panel(image, _label(20, 20, 4), _label(20, 20, 4))
    assert panel.shape[1] == 5 * 320 + 4 * 10  # 20 mm x 20 mm: the plane of the slices


def test_the_reference_and_an_equal_prediction_look_the_same() -> None:
    panel = case_panel(torch.rand(1, 20, 20), _label(20, 20), _label(20, 20))[24:]
    assert np.array_equal(panel[:, 330:650], panel[:, 660:980])
    assert not np.array_equal(panel[:, :320], panel[:, 330:650])


@pytest.mark.parametrize("spatial", [(20, 30), (12, 12, 1), (12, 14, 16)])
def test_rows_of_cases_make_a_sheet(spatial: tuple[int, ...]) -> None:
    rows = [case_panel(torch.rand(2, *spatial), _label(*spatial), torch.zeros(1, *spatial)) for _ in range(2)]
    assert contact_sheet(rows, captions=["one", "two"], columns=1).ndim == 3


def test_a_tile_is_a_square_with_the_case_in_its_middle() -> None:
    tile = case_tile(torch.ones(1, 10, 20), _label(10, 20), size=100)
    assert tile.shape == (100, 100, 3)
    assert not tile[:25].any()
    assert tile[25:75].any(axis=2).all()
