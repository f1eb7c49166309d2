from __future__ import annotations

import math

import numpy as np
import torch

from candy_monai.data.warping import source_box


def test_the_source_box_of_an_elastic_deformation_holds_its_largest_displacement():
    displacement = torch.zeros(2, 4, 4)
    displacement[0, 1, 2], displacement[1, 0, 0] = 3.0, -2.0
    start, shape = source_box(np.eye(2), np.array([10.0, 10.0]), (5, 5), coarse_axis=None, displacement=displacement)
    assert (start.tolist(), shape) == ([5, 6], (11, 9))


def test_the_source_box_holds_every_sampled_position():
    angle = math.radians(30)
    matrix = 1.3 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre, shape = np.array([10.2, 7.0]), (8, 6)
    start, size = source_box(matrix, centre, shape, coarse_axis=None)
    corners = np.array([[a, b] for a in (-3.5, 3.5) for b in (-2.5, 2.5)]) @ matrix.T + centre
    assert (corners >= start).all()
    assert (corners <= start + np.array(size) - 1).all()
