import torch

from candy_monai.inference.components import keep_largest_components


def test_only_the_largest_part_of_each_class_stays():
    labels = torch.tensor(
        [
            [1, 1, 0, 2, 0, 1],
            [1, 0, 0, 2, 0, 0],
            [0, 0, 0, 0, 0, 2],
        ],
        dtype=torch.uint8,
    )
    keep_largest_components(labels)
    assert labels.tolist() == [[1, 1, 0, 2, 0, 0], [1, 0, 0, 2, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_voxels_that_touch_by_a_corner_are_one_part():
    labels = torch.eye(4, dtype=torch.uint8)
    keep_largest_components(labels)
    assert torch.equal(labels, torch.eye(4, dtype=torch.uint8))


def test_a_class_within_another_s_box_is_left_alone():
    labels = torch.tensor([[3, 3, 3], [3, 7, 3], [3, 3, 3]], dtype=torch.int16)
    keep_largest_components(labels)
    assert labels.tolist() == [[3, 3, 3], [3, 7, 3], [3, 3, 3]]
