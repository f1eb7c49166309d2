import pytest
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.inference.memory import MemoryEstimate, estimate, fits_on_disk_only, in_units, network_memory
from candy_monai.inference.windows import WindowGrid

_MB = 10**6


def test_a_call_of_a_network_takes_what_is_alive_at_its_worst_moment():
    network = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), nn.AvgPool2d(4))
    needed = network_memory(network, (1, 3, 8, 8))
    # input 3 x 64, ReLU 3 x 64 and upsampled 3 x 256 floats at once: the pooled ones come when the ReLU's are gone
    assert needed.num_bytes == 4 * 3 * (64 + 64 + 256)
    assert needed.num_channels == 3


def test_in_place_work_and_views_take_nothing_more():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(2), nn.Unflatten(2, (8, 8)))
    assert network_memory(network, (1, 3, 8, 8)).num_bytes == 4 * 3 * 64


def test_a_convolution_takes_copies_with_channels_in_blocks_of_sixteen():
    assert network_memory(nn.Conv2d(16, 20, 1), (1, 16, 8, 8)).num_bytes == 4 * 64 * (16 + 20 + 32)
    assert network_memory(nn.Conv2d(16, 2, 1), (1, 16, 8, 8)).num_bytes == 4 * 64 * (16 + 16 + 16)


def test_a_network_that_needs_values_has_no_estimate():
    class Curious(nn.Module):
        def forward(self, images):
            return images * float(images.max())

    assert network_memory(Curious(), (1, 1, 4, 4)) is None


def _estimate(size=(64, 64, 64), file_shape=None, num_classes=8, **options):
    needed = network_memory(nn.Conv3d(1, num_classes, 1), (1, 1, 16, 16, 16))
    grid = WindowGrid(size=size, window=(16, 16, 16))
    return estimate(
        file_shape=file_shape or size,
        shape=size,
        num_channels=1,
        network=needed,
        grid=grid,
        is_resampled=file_shape is not None,
        **options,
    )


def test_unfinished_scores_do_not_grow_with_the_longest_axis():
    assert _estimate((64, 64, 640)).cells == _estimate((64, 64, 64)).cells


def test_unfinished_scores_grow_with_the_classes():
    assert _estimate(num_classes=16).cells == 2 * _estimate(num_classes=8).cells


def test_a_case_that_is_resampled_holds_whole_layers():
    assert _estimate(file_shape=(80, 64, 64)).cells == 4 * 8 * 16 * 64 * 64


def test_probabilities_take_all_classes_at_both_sizes():
    needed = _estimate(file_shape=(80, 64, 64))
    with_probabilities = needed.with_probabilities()
    assert with_probabilities.all_scores > 4 * 8 * (80 + 64) * 64 * 64
    assert with_probabilities.total - needed.total >= with_probabilities.all_scores
    assert with_probabilities.without_cells == with_probabilities.total - needed.cells


def test_mirror_images_and_members_hold_their_outputs_too():
    plain, mirrored = _estimate(), _estimate(is_mirrored=True)
    assert mirrored.network - plain.network == 2 * 4 * 8 * 16**3
    assert plain.with_members(3).network - plain.network == 2 * 4 * 8 * 16**3
    assert plain.with_members(3).cells == 3 * plain.cells


def test_of_two_cases_the_larger_numbers_count():
    one, other = _needs(5, other=1), _needs(3, other=2)
    assert one.or_more(other) == other.or_more(one) == _needs(5, other=2)


def _needs(cells, other=100 * _MB):
    return MemoryEstimate(preparing=0, image=other, network=0, cells=cells, labels=0)


def test_scores_go_to_disk_only_when_they_do_not_fit():
    assert not fits_on_disk_only(_needs(400 * _MB), 500 * _MB)
    assert fits_on_disk_only(_needs(401 * _MB), 500 * _MB)


def test_a_case_that_fits_in_no_way_is_refused_with_what_it_needs():
    with pytest.raises(BadInputError, match=r"needs about 0\.6 GB even with unfinished scores on disk"):
        fits_on_disk_only(_needs(0, other=600 * _MB), 500 * _MB)


def test_sizes_are_written_for_people():
    assert [in_units(size) for size in (1_234_000_000, 140 * _MB, 3 * _MB, 1000)] == [
        "1.2 GB",
        "0.1 GB",
        "3 MB",
        "1 kB",
    ]
