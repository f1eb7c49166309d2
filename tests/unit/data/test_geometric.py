import pytest
import torch

from candy_monai.data.geometric import crop, ensure_num_dimensions
from candy_monai.errors import BadInputError


def test_a_box_is_cut_out_whatever_stands_before_the_spatial_axes():
    x = torch.arange(24).reshape(1, 2, 3, 4)
    assert crop(x, (1, 3, 0, 2))[0, 0].tolist() == [[4, 5], [8, 9]]
    assert crop(x[0, 0], (2, 3, 1, 4)).tolist() == [[9, 10, 11]]
    assert crop(x, (0, 2, 1, 2, 0, 4)).shape == (1, 2, 1, 4)


@pytest.mark.parametrize("bbox", [(0, 4, 0, 4), (-1, 2, 0, 2), (2, 2, 0, 1), (0, 1), (0, 1, 0, 1, 0)])
def test_a_box_beyond_the_tensor_or_without_content_is_refused(bbox):
    with pytest.raises(BadInputError, match="box"):
        crop(torch.zeros(1, 3, 4), bbox)


def test_axes_of_length_1_come_and_go_in_front():
    x = torch.zeros(1, 1, 3, 4)
    assert ensure_num_dimensions(x, 2).shape == (3, 4)
    assert ensure_num_dimensions(x[0, 0], 4).shape == (1, 1, 3, 4)
    assert ensure_num_dimensions(x, 4).shape == x.shape


def test_an_axis_that_holds_entries_is_not_taken_away():
    with pytest.raises(BadInputError, match=r"\(2, 3, 4\) cannot be reduced to 2 axes"):
        ensure_num_dimensions(torch.zeros(2, 3, 4), 2)
