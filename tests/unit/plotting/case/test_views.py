import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.plotting.case.views import case_view, dice_in_view


def volume(shape=(10, 12, 8)):
    """Return an image whose voxels are all different, and a label in a corner."""
    image = torch.arange(math.prod(shape), dtype=torch.float32).reshape(1, *shape)
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[0, 1:4, 2:6, 3:5] = 3
    return image, label


def test_a_volume_that_fits_is_kept_whole():
    view = case_view(*volume(), None, spacing_mm=(1, 2, 3), orientation="LPI")
    assert view.image.shape == (1, 8, 12, 10)
    assert (view.first, view.factors, view.whole) == ((0, 0, 0), (1, 1, 1), (10, 12, 8))
    assert view.spacing_mm == (1, 2, 3)
    assert view.is_oriented
    assert view.prediction is None


def test_a_volume_in_the_order_of_a_radiologist_s_view_is_only_transposed():
    _, label = volume()
    view = case_view(*volume(), label, orientation="LPI")
    assert np.array_equal(view.label, label[0].numpy().transpose(2, 1, 0))
    assert np.array_equal(view.label, view.prediction)


def test_axes_that_run_the_other_way_are_turned_in_image_and_label_alike():
    image, label = volume()
    turned = case_view(image, label, None, orientation="RAS")
    straight = case_view(image.flip(1, 2, 3), label.flip(1, 2, 3), None, orientation="LPI")
    assert np.array_equal(turned.image, straight.image)
    assert np.array_equal(turned.label, straight.label)


def test_the_affine_of_an_image_tells_how_it_lies():
    image, label = volume()
    placed = MetaTensor(image, affine=torch.diag(torch.tensor([-1.0, -2.0, -3.0, 1.0])))
    view = case_view(placed, label, None)
    assert view.is_oriented
    assert view.spacing_mm == (1, 2, 3)
    assert np.array_equal(view.label, label[0].numpy().transpose(2, 1, 0))


def test_a_case_that_is_too_large_is_cut_out_around_its_foreground():
    image, label = torch.zeros(1, 100, 100, 100), torch.zeros(1, 100, 100, 100, dtype=torch.uint8)
    label[0, 70:80, 20:30, 50:60] = 1
    view = case_view(image, label, None, orientation="LPI", most_values=50_000)
    assert view.factors == (1, 1, 1)
    assert view.first == (62, 12, 42)
    assert view.label.shape == (26, 26, 26)
    assert view.label.sum() == 1000


def test_where_the_prediction_is_wrong_far_away_the_cut_holds_that_too():
    label = torch.zeros(1, 100, 100, 100, dtype=torch.uint8)
    label[0, 40:50, 40:50, 40:50] = 1
    prediction = label.clone()
    prediction[0, 90:95, 40:50, 40:50] = 1
    view = case_view(label.float(), label, prediction, orientation="LPI", most_values=100_000)
    assert view.prediction.sum() == prediction.sum()


def test_what_is_still_too_large_is_thinned_along_its_finest_axes_and_no_id_is_invented():
    label = torch.zeros(1, 64, 64, 16, dtype=torch.int64)
    label[0, 2:30, 2:62, 1:15], label[0, 30:62, 2:62, 1:15] = 10, 200
    view = case_view(label.float(), label, None, spacing_mm=(0.5, 0.5, 3.0), orientation="LPI", most_values=20_000)
    assert view.factors == (2, 2, 1)
    assert view.spacing_mm == (1.0, 1.0, 3.0)
    assert view.image.shape[1:] == view.label.shape == (16, 32, 32)
    assert set(np.unique(view.label)) == {0, 10, 200}
    assert case_view(label.float(), None, None, orientation="LPI", most_values=20_000).image[0].size <= 20_000


def test_a_first_voxel_is_counted_along_the_axes_as_they_are_shown():
    label = torch.zeros(1, 100, 100, 100, dtype=torch.uint8)
    label[0, 70:80, 20:30, 50:60] = 1
    view = case_view(label.float(), label, None, orientation="RAS", most_values=50_000)
    assert view.first == (100 - 80 - 8, 100 - 30 - 8, 100 - 60 - 8)


def test_the_window_leaves_out_a_few_hot_voxels_and_the_limits_leave_room_around_it():
    image = torch.rand(1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    image[0, 0, 0, 0] = 1000.0
    view = case_view(image, None, None)
    (low, high), (least, most) = view.windows[0], view.limits[0]
    assert high < 1.1
    assert least <= low
    assert high <= most < 1.5
    assert view.image.max() == 255


@pytest.mark.parametrize("value", [0.0, 7.5, math.nan])
def test_a_constant_image_is_shown_in_grey(value):
    view = case_view(torch.full((1, 4, 5, 6), value), None, None)
    assert set(np.unique(view.image)) <= {0, 128}


def test_a_picture_keeps_rows_and_columns_and_its_colours():
    image = torch.zeros(3, 20, 30)
    image[0], image[1], image[2, 5, 7] = 200.0, 100.0, 50.0
    view = case_view(image, torch.zeros(1, 20, 30), torch.zeros(1, 20, 30))
    assert view.is_rgb
    assert not view.is_oriented
    assert view.image.shape == (3, 1, 20, 30)
    assert view.image[:, 0, 5, 7].tolist() == [200, 100, 50]


def test_channels_have_windows_of_their_own_and_four_are_kept():
    image = torch.stack([torch.linspace(0, 10.0**i, 1000).reshape(10, 10, 10) for i in range(6)])
    view = case_view(image, None, None)
    assert len(view.image) == len(view.limits) == len(view.windows) == 4
    assert [round(high) for _, high in view.windows] == [1, 10, 99, 995]


def test_ids_of_labels_that_are_no_whole_numbers_are_rounded_and_negative_ones_are_background():
    label = torch.tensor([[[0.0, 1.0], [2.0001, math.nan]]])
    assert case_view(torch.zeros(1, 2, 2), label, None).label.tolist() == [[[0, 1], [2, 0]]]
    assert case_view(torch.zeros(1, 2, 2), torch.full((1, 2, 2), -1), None).label.max() == 0


def test_the_dice_of_a_view_is_that_of_its_arrays():
    _, label = volume()
    view = case_view(label.float(), label, label.roll(1, 1), orientation="LPI")
    assert dice_in_view(view) == {3: pytest.approx(2 / 3)}
    assert dice_in_view(case_view(label.float(), label, None)) == {}
    assert view.present() == ({3}, {3})
