from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from candy_monai.errors import SettingsError
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.tiles import TileLayout, WindowBlender, WindowGrid, batches_of_windows


def _axes(minimum, maximum):
    return st.integers(2, 3).flatmap(lambda ndim: st.tuples(*[st.integers(minimum, maximum)] * ndim))


@settings(max_examples=60)
@given(st.data(), st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_the_windows_cover_every_voxel_and_never_leave_the_image(data, overlap):
    size = data.draw(_axes(1, 20))
    window = data.draw(st.tuples(*[st.integers(1, 9)] * len(size)))
    grid = WindowGrid(size, window, overlap)
    covered = torch.zeros(grid.padded_size)
    for place in grid.slices:
        assert covered[place].shape == window
        covered[place] += 1
    assert covered.min() >= 1


@settings(max_examples=40)
@given(st.data(), st.sampled_from([0.25, 0.5, 0.75]))
def test_blending_what_was_cut_gives_the_images_back(data, overlap):
    size = data.draw(_axes(1, 18))
    window = data.draw(st.tuples(*[st.integers(1, 9)] * len(size)))
    images = torch.rand(2, 3, *size)
    grid = WindowGrid(size, window, overlap)
    blender = WindowBlender(grid, batch_size=2)
    for numbers in batches_of_windows(2 * len(grid), 3):
        blender.add(grid.cut(grid.padded(images), numbers), numbers)
    assert torch.allclose(blender.result(), images, atol=1e-5)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [(5, 21), (16, 16), (33, 18), (7, 20, 31), (16, 16, 16), (17, 9, 40)])
def test_the_inferer_agrees_with_monai_s_own_sliding_windows(size, overlap):
    window = (16,) * len(size)
    network = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(1, 3, 3, padding=1)
    images = torch.randn(2, 1, *size)
    with torch.no_grad():
        ours = WindowInferer(window, overlap=overlap, sw_batch_size=3)(images, network)
        monai = sliding_window_inference(images, window, 3, network, overlap=overlap, mode="gaussian")
    assert torch.allclose(ours, monai, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (17, 31), (40, 70), (64, 64)])
def test_a_constant_network_gives_that_constant_in_every_corner(size):
    result = WindowInferer((16, 16))(torch.randn(1, 2, *size), lambda windows: torch.full_like(windows[:, :1], 3.25))
    assert result.shape == (1, 1, *size)
    assert torch.allclose(result, torch.tensor(3.25), atol=1e-5)


def test_a_grid_describes_its_windows_as_a_trainer_s_methods_are_told():
    metadata = WindowGrid((40, 10), (16, 16), 0.5).metadata(3)
    assert (metadata.kernel, metadata.stride) == ((16, 16), (8, 16))  # one window covers the padded second axis
    assert (metadata.ndim, metadata.batch_size, metadata.out_size, metadata.n) == (2, 3, (40, 10), 4)


def test_small_images_are_centred_in_their_padding_and_labels_padded_by_the_value_asked_for():
    grid = WindowGrid((2, 3), (4, 4))
    label = torch.ones(1, 1, 2, 3, dtype=torch.int64)
    padded = grid.padded(label, fill=9)
    assert padded[0, 0].tolist() == [[9, 9, 9, 9], [1, 1, 1, 9], [1, 1, 1, 9], [9, 9, 9, 9]]
    assert torch.equal(grid.restored(padded), label)


def test_windows_of_the_second_image_follow_those_of_the_first():
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    grid = WindowGrid((4, 4), (2, 2), 0.0)
    assert grid.cut(images, range(8)).amax((1, 2, 3)).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@given(st.integers(1, 50), st.integers(1, 9))
def test_batches_of_windows_name_each_once_and_differ_by_one_in_size_at_most(count, batch_size):
    batches = list(batches_of_windows(count, batch_size))
    sizes = [len(numbers) for numbers in batches]
    assert [number for numbers in batches for number in numbers] == list(range(count))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": (16,)}, "2 or 3 positive"),
        ({"window": (16, 0)}, "positive whole numbers"),
        ({"window": (16, 16), "overlap": 1.0}, "below 1"),
        ({"window": (16, 16), "overlap": (0.5, 0.5, 0.5)}, "overlap has 3 entries for 2 spatial axes"),
    ],
)
def test_windows_that_cannot_be_used_are_refused_at_once(arguments, words):
    with pytest.raises(SettingsError, match=words):
        WindowGrid((20, 20), **arguments)


def test_a_window_of_another_number_of_axes_than_the_image_is_refused():
    with pytest.raises(SettingsError, match=r"\(16, 16\) does not fit images of spatial size \(8, 8, 8\)"):
        WindowInferer((16, 16))(torch.zeros(1, 1, 8, 8, 8), lambda windows: windows)


def test_predictions_of_another_size_than_the_window_make_no_label_map():
    with pytest.raises(ValueError, match=r"returned shape \(1, 1, 2, 2\) for 1 windows of shape \(4, 4\)"):
        WindowInferer((4, 4)).labels(torch.zeros(1, 1, 6, 6), lambda windows: windows[..., ::2, ::2])


def test_an_overlap_of_its_own_for_each_axis_gives_a_stride_of_its_own():
    assert WindowGrid((40, 40), (16, 16), (0.25, 0.75)).stride == (12, 4)


def test_unfinished_tiles_are_as_thick_as_a_window_s_overlap_however_long_the_image():
    window = (8, 8, 8)
    short, long = (TileLayout(WindowGrid(size=(size, 24, 24), window=window)) for size in (40, 400))
    assert long.num_voxels == short.num_voxels
    assert long.num_voxels < 8 * 24 * 24


def _held(grid, order, *, until_planes_are_complete=False):
    """Count the voxels that a window has covered and that are not yet done, at the worst moment."""
    most, run, left = 0, torch.zeros(grid.size), torch.zeros(grid.size)
    for place in order:
        left[place] += 1
    for place in order:
        run[place] = 1
        undone = left > 0
        if until_planes_are_complete:
            undone |= undone.any(0).any(0)
        most = max(most, int((run * undone).count_nonzero()))
        left[place] -= 1
    return most


def test_the_last_layer_is_run_beside_the_one_that_it_mostly_overlaps():
    grid = WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    layout, in_layers = TileLayout(grid), TileLayout(grid, in_layers=True)
    assert sorted(map(str, layout.order)) == sorted(map(str, grid.slices))
    assert [place[2].start for place in in_layers.order[-12:]] == 6 * [16] + 6 * [18]
    assert {place[2].start for place in layout.order[-4:]} == {16, 18}
    assert layout.num_voxels <= _held(grid, layout.order) < 0.9 * _held(grid, in_layers.order)


def test_in_layers_a_window_s_thickness_is_held_at_most():
    grid = WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    layout = TileLayout(grid, in_layers=True)
    assert layout.num_voxels == 12 * 16 * 8
    assert layout.num_voxels == _held(grid, layout.order, until_planes_are_complete=True)


def test_the_longest_axis_is_the_one_along_which_the_image_is_worked_off():
    order = TileLayout(WindowGrid(size=(8, 16, 64), window=(8, 8, 8))).order
    assert [place[2].start for place in order] == sorted(place[2].start for place in order)


@pytest.mark.slow
@pytest.mark.parametrize("in_layers", [False, True])
@given(size=st.lists(st.integers(1, 40), min_size=2, max_size=3), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
@settings(max_examples=40)
def test_tiles_that_live_at_the_same_time_never_share_memory(in_layers, size, overlap):
    grid = WindowGrid(size=size, window=(8,) * len(size), overlap=overlap)
    layout = TileLayout(grid, in_layers=in_layers)
    first, last = {}, {}
    for step, window in enumerate(layout.order):
        for tile, _ in layout.tiles(window):
            first.setdefault(tile, step)
            last[tile] = step
    if in_layers:  # all of a layer are kept until the last one is done
        slowest = grid.axes[0]
        ends = {
            layer: max(last[tile] for tile in last if tile[slowest] == layer) for layer in {c[slowest] for c in last}
        }
        last = {tile: ends[tile[slowest]] for tile in last}
    begins = {tile: layout.offsets[tile] for tile in first}
    ends = {tile: begins[tile] + _num_voxels(layout.place(tile)) for tile in first}
    assert max(ends.values()) == layout.num_voxels
    for one, other in combinations(first, 2):
        if first[one] <= last[other] and first[other] <= last[one]:
            assert ends[one] <= begins[other] or ends[other] <= begins[one]


def _num_voxels(place):
    voxels = 1
    for side in place:
        voxels *= side.stop - side.start
    return voxels


@pytest.mark.parametrize("size", [(256, 256, 256), (300, 280, 133), (512, 512, 96), (2000, 1500)])
def test_the_block_is_hardly_larger_than_the_tiles_that_live_in_it(size):
    window = (96, 96, 96) if len(size) == 3 else (512, 512)
    layout = TileLayout(WindowGrid(size=size, window=window))
    living, most = {}, 0
    left = {}
    for place in layout.order:
        for tile, _ in layout.tiles(place):
            living[tile] = _num_voxels(layout.place(tile))
            left[tile] = left.get(tile, layout.num_windows[tile]) - 1
        most = max(most, sum(living.values()))
        living = {tile: voxels for tile, voxels in living.items() if left[tile]}
    assert most <= layout.num_voxels <= 1.15 * most
