import shutil
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.inference.buffers import (
    MemoryEstimate,
    blended_tiles,
    buffer_on_disk,
    estimate_memory,
    fits_on_disk_only,
    in_units,
    network_memory,
)
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.tiles import WindowGrid


def _tiles(image, network, grid, **options):
    tiles = blended_tiles(image, network, grid, **{"batch_size": 1, **options})
    return [replace(tile, sums=tile.sums.clone()) for tile in tiles]


@pytest.mark.parametrize("size", [(7, 5), (30, 17), (16, 16, 5), (20, 9, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_the_tiles_fill_the_image_once(size, overlap):
    grid = WindowGrid(size=size, window=(8,) * len(size), overlap=overlap)
    times = torch.zeros(size)
    for tile in _tiles(torch.randn(1, *size), torch.clone, grid):
        times[tile.place] += 1
        assert tile.weights is not None
        assert tile.weights().shape == tile.sums.shape[1:]
        assert bool((tile.weights() > 0).all())
    assert bool((times == 1).all())


def test_the_scores_of_a_tile_are_the_mean_of_its_windows_by_their_weights():
    grid = WindowGrid(size=(1, 6), window=(1, 4), overlap=0.5)
    seen = iter([10.0, 20.0])
    tiles = _tiles(torch.zeros(1, 1, 6), lambda windows: torch.full_like(windows, next(seen)), grid)
    means = torch.cat([tile.scores() for tile in tiles], dim=-1).flatten()
    # sigma is half a voxel: the outer voxels of a window weigh 0.011 of its inner ones
    outer, inner = torch.exp(torch.tensor(-4.5)), torch.exp(torch.tensor(-0.5))
    third = (10 * inner + 20 * outer) / (inner + outer)
    assert torch.allclose(means, torch.tensor([10, 10, third, 30 - third, 20, 20]), atol=1e-4)


def test_a_tile_comes_as_soon_as_no_further_window_covers_it():
    grid = WindowGrid(size=(4, 40), window=(4, 8), overlap=0.5)
    calls = []
    tiles = blended_tiles(torch.zeros(1, 4, 40), lambda w: calls.append(1) or w, grid, batch_size=1)
    ends = [(tile.place[1].stop, len(calls)) for tile in tiles]
    assert ends[:-1] == [(4 * number, number) for number in range(1, 10)]
    assert ends[-1] == (40, 9)


def test_windows_come_in_batches_and_the_last_one_may_be_smaller():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    sizes = []
    _tiles(torch.zeros(1, 8, 24), lambda windows: sizes.append(len(windows)) or windows, grid, batch_size=2)
    assert sizes == [2, 2, 1]


def test_another_resolution_is_refused_with_both_shapes():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    with pytest.raises(ValueError, match=r"returned shape \(1, 1, 4, 4\) for 1 windows of shape \(8, 8\)"):
        _tiles(torch.zeros(1, 8, 24), lambda windows: windows[..., ::2, ::2], grid)


def test_half_precision_is_summed_in_float32():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    tiles = _tiles(torch.ones(1, 8, 24), lambda windows: windows.bfloat16(), grid)
    assert {tile.sums.dtype for tile in tiles} == {torch.float32}


def test_in_layers_a_tile_stays_as_it_is_until_its_layer_is_complete():
    torch.manual_seed(0)
    image, grid = torch.randn(2, 12, 16, 26), WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    expected = {str(tile.place): tile.sums for tile in _tiles(image, torch.sin, grid)}
    kept, planes = [], torch.zeros(26)
    for tile in blended_tiles(image, torch.sin, grid, batch_size=1, in_layers=True):
        kept.append(tile)
        along = tile.place[2]
        planes[along] += tile.sums[0, :, :, 0].numel()
        if planes[along.start] == 12 * 16:
            for part in [part for part in kept if part.place[2] == along]:
                assert torch.allclose(part.sums, expected[str(part.place)], atol=1e-6)
    assert bool((planes == 12 * 16).all())


def test_all_unfinished_scores_lie_in_one_block_that_is_made_once():
    made = []

    def new_buffer(count, device):
        made.append(torch.empty(count, device=device))
        return made[-1]

    grid = WindowGrid(size=(24, 40), window=(8, 8))
    for tile in blended_tiles(torch.zeros(1, 24, 40), torch.clone, grid, batch_size=1, new_buffer=new_buffer):
        assert tile.sums.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    assert len(made) == 1


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_buffer_on_disk_holds_what_is_put_in_and_leaves_no_file(scratch):
    room = buffer_on_disk(24, torch.device("cpu"))
    values = torch.randn(24)
    room.copy_(values)
    assert torch.equal(room, values)
    assert list(scratch.iterdir()) == []


def test_the_label_map_is_the_same_with_buffer_on_disk(scratch):
    torch.manual_seed(0)
    network, images = torch.nn.Conv3d(1, 5, 3, padding=1), torch.randn(1, 1, 20, 17, 9)
    inferer = WindowInferer((8, 8, 8))
    on_disk = inferer.with_buffer(buffer_on_disk)
    assert torch.equal(inferer.labels(images, network), on_disk.labels(images, network))
    assert list(scratch.iterdir()) == []


def test_scores_for_which_the_disk_has_no_room_are_refused_before_it_is_full(scratch, monkeypatch):
    free = {str(scratch): 3_000_000}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    assert len(buffer_on_disk(750_000, torch.device("cpu"))) == 750_000
    with pytest.raises(BadInputError, match=f"{scratch}: has 3 MB of free space, but unfinished scores take 4 MB"):
        buffer_on_disk(1_000_000, torch.device("cpu"))


def test_scores_of_another_device_are_refused():
    with pytest.raises(ValueError, match="scores on meta cannot be accumulated on disk"):
        buffer_on_disk(1, torch.device("meta"))


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
    return estimate_memory(
        file_shape=file_shape or size,
        shape=size,
        num_channels=1,
        network=needed,
        grid=grid,
        is_resampled=file_shape is not None,
        **options,
    )


def test_unfinished_scores_do_not_grow_with_the_longest_axis():
    assert _estimate((64, 64, 640)).buffer == _estimate((64, 64, 64)).buffer


def test_unfinished_scores_grow_with_the_classes():
    assert _estimate(num_classes=16).buffer == 2 * _estimate(num_classes=8).buffer


def test_a_case_that_is_resampled_holds_whole_layers():
    assert _estimate(file_shape=(80, 64, 64)).buffer == 4 * 8 * 16 * 64 * 64


def test_probabilities_take_all_classes_at_both_sizes():
    needed = _estimate(file_shape=(80, 64, 64))
    with_probabilities = needed.with_probabilities()
    assert with_probabilities.all_scores > 4 * 8 * (80 + 64) * 64 * 64
    assert with_probabilities.total - needed.total >= with_probabilities.all_scores
    assert with_probabilities.without_buffer == with_probabilities.total - needed.buffer


def test_mirror_images_and_members_hold_their_outputs_too():
    plain, mirrored = _estimate(), _estimate(is_mirrored=True)
    assert mirrored.network - plain.network == 2 * 4 * 8 * 16**3
    assert plain.with_members(3).network - plain.network == 2 * 4 * 8 * 16**3
    assert plain.with_members(3).buffer == 3 * plain.buffer


def test_of_two_cases_the_larger_numbers_count():
    one, other = _needs(5, other=1), _needs(3, other=2)
    assert one.or_more(other) == other.or_more(one) == _needs(5, other=2)


def _needs(buffer, other=100 * _MB):
    return MemoryEstimate(preparing=0, image=other, network=0, buffer=buffer, labels=0)


def test_scores_go_to_disk_only_when_they_do_not_fit():
    assert not fits_on_disk_only(_needs(400 * _MB), 500 * _MB)
    assert fits_on_disk_only(_needs(401 * _MB), 500 * _MB)


def test_a_case_that_fits_in_no_way_is_refused_with_what_it_needs():
    with pytest.raises(BadInputError, match=r"needs about 0\.6 GB of memory even with unfinished scores on disk"):
        fits_on_disk_only(_needs(0, other=600 * _MB), 500 * _MB)


def test_sizes_are_written_for_people():
    assert [in_units(size) for size in (1_234_000_000, 140 * _MB, 3 * _MB, 1000)] == [
        "1.2 GB",
        "0.1 GB",
        "3 MB",
        "1 kB",
    ]
