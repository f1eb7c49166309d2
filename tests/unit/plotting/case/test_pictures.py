from __future__ import annotations

import numpy as np
import pytest
import torch

from candy_monai.errors import BadInputError
from candy_monai.plotting.case import pictures
from candy_monai.plotting.case.pictures import CasePictures, dice_by_class


def test_a_masked_image_is_cut_to_what_is_there() -> None:
    image = np.zeros((64, 64, 64))
    image[20:30, 20:30, 20:30] = 1.0
    label = (image > 0).astype(int)
    case = CasePictures(image, [label], num_spatial=3)
    assert case.ids[0].shape == (14, 14, 14)  # 10 and a rim of 2 on each side
    assert case.ids[0].sum() == 1000


def test_nothing_of_a_label_is_ever_cut_off() -> None:
    image = np.zeros((64, 64, 64))
    image[20:30, 20:30, 20:30] = 1.0
    label = np.zeros((64, 64, 64), dtype=int)
    label[63, 0, 63] = 4
    assert CasePictures(image, [np.zeros_like(label), label], num_spatial=3).ids[1].sum() == 4


def test_one_slice_is_shown_alone() -> None:
    case = CasePictures(np.zeros((1, 20, 1, 30)), [np.zeros((1, 20, 1, 30))], num_spatial=3)
    assert [plane.name for plane in case.planes] == ["coronal"]
    assert not case.has_surface


def test_a_picture_keeps_its_rows_and_columns() -> None:
    image = np.zeros((20, 30))
    image[:5] = 1.0  # the top is bright
    drawn = CasePictures(image, [], num_spatial=2).panel(image=True)
    assert drawn.shape == (26 * 20, 26 * 30, 3)  # 768 / 30 is about 26
    assert drawn[10].mean() == 255
    assert drawn[-10].mean() == 0


def test_colours_take_one_row_and_modalities_one_each() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (3, 8, 8), dtype=np.uint8)
    assert CasePictures(rgb, [], num_spatial=2).num_rows == 1
    assert CasePictures(rgb, [], num_spatial=2, rgb=False).num_rows == 3
    assert CasePictures(np.zeros((9, 8, 8)), [], num_spatial=2).num_rows == 4


@pytest.mark.parametrize(("shape", "planes"), [((1, 5, 5), 1), ((1, 5, 5, 5), 3)])
def test_a_label_tells_the_number_of_axes(shape: tuple[int, ...], planes: int) -> None:
    assert len(CasePictures(torch.zeros(shape), [torch.zeros(shape)]).planes) == planes


def test_a_label_without_a_channel_does_not() -> None:
    with pytest.raises(BadInputError, match="expected"):
        CasePictures(np.zeros((5, 5, 5)), [np.zeros((5, 5, 5))])


def test_slice_numbers_count_from_1_along_the_files_axis() -> None:
    label = np.zeros((10, 10, 10), dtype=int)
    label[2, 3, 4] = 1
    for orientation in ("RAS", "LPI"):
        case = CasePictures(
            np.random.default_rng(0).random((10, 10, 10)), [label], num_spatial=3, orientation=orientation
        )
        captions = [case._caption(plane, None) for plane in case.planes]
        assert captions == ["axial  5 / 10", "coronal  4 / 10", "sagittal  3 / 10"]


def test_dice_of_each_class_is_twice_the_shared_over_the_sum() -> None:
    assert dice_by_class(np.array([0, 1, 1, 2]), np.array([1, 1, 0, 2])) == {1: 0.5, 2: 1.0}


def test_a_class_that_only_one_holds_scores_0() -> None:
    assert dice_by_class(np.array([0, 3]), np.array([4, 0])) == {3: 0.0, 4: 0.0}


def test_two_empty_labels_have_no_score() -> None:
    assert dice_by_class(np.zeros(4, dtype=int), np.zeros(4, dtype=int)) == {}


def test_an_ignored_region_does_not_count() -> None:
    assert dice_by_class(np.array([1, 255, -1, 0]), np.array([1, 1, 1, 0]), num_classes=2) == {1: 1.0}


def test_a_class_that_was_missed_is_in_the_legend_and_outlined(monkeypatch: pytest.MonkeyPatch) -> None:
    label = np.zeros((1, 32, 32), dtype=np.int64)
    label[0, 8:20, 8:20] = 2
    case = CasePictures(np.zeros((1, 32, 32)), [label, np.zeros_like(label)], class_names={2: "tumor"})
    listed: list[str] = []
    original = pictures.drawing.legend
    monkeypatch.setattr(
        pictures.drawing,
        "legend",
        lambda entries, width: listed.extend(text for text, _ in entries) or original(entries, width),
    )
    panel = case.panel(layer=1, reference=0)
    case.page(panel, None, layer=1, dice=dice_by_class(case.ids[0], case.ids[1]))
    assert "tumor (missed)" in listed
    assert "outline of the reference" in listed
    assert (panel == 255).any()
