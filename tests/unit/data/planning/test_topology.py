from __future__ import annotations

import pytest

from candy_monai.data.planning.topology import (
    Topology,
    filters_of,
    kernels_of,
    rounded_up,
    topology_of,
    topology_with,
    training_bytes,
)


def test_even_axes_are_halved_together_until_they_are_short():
    topology = topology_of((36, 50, 35), (1.0, 1.0, 1.0), max_levels=9)
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert topology.divisor == (8, 8, 8)


def test_depth_is_bounded():
    assert len(topology_of((256, 256), (1.0, 1.0), max_levels=3).strides) == 3


def test_an_axis_joins_once_its_spacing_is_less_than_twice_the_finest():
    kernels = kernels_of(((1, 1, 1), (2, 2, 1), (2, 2, 1)), (64, 64, 16), (1.0, 1.0, 4.0))
    assert kernels == ((3, 3, 1), (3, 3, 1), (3, 3, 3))  # spacings 1:4, 2:4 and 4:4


def test_a_depth_beyond_reach_is_none():
    assert topology_with((16, 16), (1.0, 1.0), num_levels=3) is not None
    assert topology_with((16, 16), (1.0, 1.0), num_levels=8) is None


def test_shapes_are_rounded_up_to_multiples():
    assert rounded_up((36, 56, 1), (8, 8, 1)) == (40, 56, 1)


def test_filters_double_up_to_their_limit():
    assert filters_of(5, base=16, limit=100) == (16, 32, 64, 100, 100)


@pytest.mark.parametrize(
    ("width", "num_outputs", "deep_supervision", "maps", "of_coarse_outputs"),
    [(1, 2, False, 2 * 5, 0), (1, 2, True, 2 * 5, 2 * 2), (4, 1, False, 4 * 4 + 1, 0), (4, 1, True, 4 * 4 + 1, 2)],
)
def test_the_memory_model_by_hand(width, num_outputs, deep_supervision, maps, of_coarse_outputs):
    topology = Topology(kernel_sizes=((1, 1), (1, 1)), strides=((1, 1), (2, 2)))
    # Kept: the input and 10 maps of a width on 4 x 4; on 2 x 2 4 of 2 filters and 2 a class of the other output.
    # Beside these on 4 x 4, for each class 5 maps in the loss; or 4 maps of the width and the gradients of the output.
    values = 16 * (1 + 10 * width + maps) + 4 * (2 * 4 + of_coarse_outputs)
    # Weights: of level one from 1 channel, with its unit stride; of level two from the width, with its stride.
    weights = (width + 4 * width * width + width) + (2 * width + 4 + 8 * width)
    found = training_bytes(
        (4, 4),
        topology,
        (width, 2),
        batch_size=3,
        num_inputs=1,
        num_outputs=num_outputs,
        deep_supervision=deep_supervision,
    )
    assert found == values * 3 * 4 + weights * 20


def test_a_patch_too_small_to_be_halved_gets_three_levels_of_its_own_size():
    topology = topology_of((7, 6, 5), (1.0, 1.0, 1.0), max_levels=6)
    assert topology.strides == ((1, 1, 1),) * 3
    assert topology.kernel_sizes == ((3, 3, 3),) * 3
