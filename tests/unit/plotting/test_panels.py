from __future__ import annotations

import numpy as np
import pytest
import torch

from candy_monai.plotting.drawing import contact_sheet
from candy_monai.plotting.panels import case_panel


def _label(*spatial: int) -> torch.Tensor:
    label = torch.zeros(1, *spatial, dtype=torch.long)
    label[(0, *(slice(length // 4, length // 2 + 1) for length in spatial))] = 1
    return label


def test_a_picture_has_three_tiles() -> None:
    panel = case_panel(torch.rand(1, 20, 20), _label(20, 20), _label(20, 20), height=100, captions=False)
    assert panel.shape == (100, 3 * 100 + 2 * 10, 3)


def test_a_volume_has_two_surfaces_more() -> None:
    panel = case_panel(torch.rand(1, 20, 20, 20), _label(20, 20, 20), _label(20, 20, 20), height=100)
    assert panel.shape == (124, 5 * 100 + 4 * 10, 3)
    assert case_panel(
        torch.rand(1, 20, 20, 20), _label(20, 20, 20), _label(20, 20, 20), height=100, surfaces=False
    ).shape == (124, 320, 3)


def test_the_plane_with_the_smallest_pixels_is_shown() -> None:
    panel = case_panel(
        torch.rand(1, 20, 20, 4), _label(20, 20, 4), _label(20, 20, 4), height=100, spacing_mm=(1, 1, 5), surfaces=False
    )
    assert panel.shape[1] == 320  # 20 mm x 20 mm: the plane of the slices


def test_the_reference_and_an_equal_prediction_look_the_same() -> None:
    panel = case_panel(torch.rand(1, 20, 20), _label(20, 20), _label(20, 20), height=100, captions=False)
    assert np.array_equal(panel[:, 110:210], panel[:, 220:320])
    assert not np.array_equal(panel[:, :100], panel[:, 110:210])


@pytest.mark.parametrize("spatial", [(20, 30), (12, 12, 1), (12, 14, 16)])
def test_rows_of_cases_make_a_sheet(spatial: tuple[int, ...]) -> None:
    rows = [case_panel(torch.rand(2, *spatial), _label(*spatial), torch.zeros(1, *spatial)) for _ in range(2)]
    assert contact_sheet(rows, captions=["one", "two"], columns=1).ndim == 3
