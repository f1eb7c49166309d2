from __future__ import annotations

from candy_monai.data.planning.grid import anisotropic_axis, axis_order


def test_the_axis_order_between_orientations_is_found():
    order, flips = axis_order(("P", "S", "R"), ("L", "A", "S"))
    assert order == (2, 0, 1)  # left-right is stored third, front-back first, up-down second
    assert flips == (0, 1)


def test_the_coarse_axis_is_the_thick_or_flat_one():
    assert anisotropic_axis((1.0, 1.0, 5.0), (10, 10, 10)) == 2
    assert anisotropic_axis((1.0, 1.0, 1.0), (8, 64, 64)) == 0
    assert anisotropic_axis((1.0, 1.0, 2.0), (32, 64, 64)) is None
    assert anisotropic_axis((1.0, 1.0), (1, 64)) is None
