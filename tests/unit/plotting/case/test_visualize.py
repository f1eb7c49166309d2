from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from PIL import Image

from candy_monai.plotting.canvas.colors import class_color
from candy_monai.plotting.case.visualize import visualize2d, visualize3d


def _shown(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(figure._repr_png_())).convert("RGB"))  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(20, 30), (1, 20, 30), (2, 20, 30), (3, 20, 30), (7, 20, 30)])
def test_pictures_of_any_channels_are_shown(shape: tuple[int, ...]) -> None:
    assert isinstance(visualize2d(torch.rand(shape)), Figure)


@pytest.mark.parametrize("shape", [(8, 9, 10), (1, 8, 9, 10), (3, 8, 9, 10), (1, 8, 9, 1), (1, 1, 9, 10)])
def test_volumes_of_any_channels_are_shown(shape: tuple[int, ...]) -> None:
    assert isinstance(visualize3d(torch.rand(shape)), Figure)


@pytest.mark.parametrize("shape", [(9,), (1, 1, 9, 9), (2, 2, 2, 2, 2)])
def test_a_wrong_number_of_axes_is_a_value_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        visualize2d(np.zeros(shape))


def test_a_picture_is_no_volume() -> None:
    with pytest.raises(ValueError, match="visualize2d shows pictures"):
        visualize3d(np.zeros((9, 9)))


def test_a_label_is_shown_in_its_classes_colours() -> None:
    label = np.zeros((20, 20), dtype=int)
    label[5:15, 5:15] = 7
    shown = _shown(visualize2d(label, is_label=True))
    assert (shown == class_color(7)).all(axis=2).mean() > 0.1


def test_a_colour_map_is_used() -> None:
    shown = _shown(visualize2d(np.arange(400.0).reshape(20, 20), cmap="viridis")).astype(int)
    assert np.abs(shown[..., 0] - shown[..., 1]).max() > 100


def test_an_unknown_colour_map_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="Did you mean 'viridis'"):
        visualize2d(np.zeros((4, 4)), cmap="virids")


def test_a_screenshot_is_the_figure(tmp_path: Path) -> None:
    figure = visualize3d(np.random.rand(8, 9, 10), title="a case", screenshot_as=tmp_path / "shot.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")), _shown(figure))


def test_a_volumes_proportions_come_from_its_affine() -> None:
    flat = visualize3d(MetaTensor(torch.rand(1, 20, 20, 20), affine=torch.diag(torch.tensor([1.0, 1.0, 0.2, 1.0]))))
    cube = visualize3d(torch.rand(1, 20, 20, 20))
    same = visualize3d(torch.rand(1, 20, 20, 20), spacing_mm=(1.0, 1.0, 0.2))
    assert _shown(flat).shape == _shown(same).shape
    assert _shown(flat).shape != _shown(cube).shape


def test_a_volume_without_voxels_for_its_surface_is_refused() -> None:
    with pytest.raises(ValueError, match="max_volume"):
        visualize3d(np.zeros((4, 4, 4)), max_volume=0)


def test_the_legend_of_a_label_has_the_names_that_are_given() -> None:
    label = np.zeros((12, 12, 12), dtype=int)
    label[3:9, 3:9, 3:9] = 1
    names: list[Any] = [(), ["background", "kidney"], {1: "kidney"}]
    plain, by_place, by_id = (_shown(visualize3d(label, is_label=True, class_names=each)) for each in names)
    assert not np.array_equal(plain, by_place)
    assert np.array_equal(by_place, by_id)
