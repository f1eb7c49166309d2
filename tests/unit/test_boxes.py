import numpy as np

from candy_monai.boxes import bounding_box


def test_a_bounding_box_is_as_tight_as_can_be():
    mask = np.zeros((4, 5), dtype=bool)
    mask[1, 2] = mask[3, 3] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 4))
    assert bounding_box(np.zeros((2, 2), dtype=bool)) is None
    volume = np.zeros((5, 6, 7), dtype=bool)
    volume[1, 2, 3] = volume[3, 2, 6] = True
    assert bounding_box(volume) == (slice(1, 4), slice(2, 3), slice(3, 7))


def test_a_margin_ends_with_the_mask():
    mask = np.zeros((5, 9), dtype=bool)
    mask[1, 4] = True
    assert bounding_box(mask, margin=2) == (slice(0, 4), slice(2, 7))
