import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference

from candy_monai.errors import SettingsError
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.windows import WindowBlender, WindowGrid, batches_of_windows


def _axes(minimum, maximum):
    return st.integers(2, 3).flatmap(lambda ndim: st.tuples(*[st.integers(minimum, maximum)] * ndim))


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=40, deadline=None)
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
        ({"window": (16,)}, "2 or 3 sides"),
        ({"window": (16, 0)}, "at least one voxel"),
        ({"window": (16, 16), "overlap": 1.0}, "below 1"),
        ({"window": (16, 16), "overlap": (0.5, 0.5, 0.5)}, "overlaps for 3 axes.*2 spatial axes"),
    ],
)
def test_windows_that_cannot_be_used_are_refused_at_once(arguments, words):
    with pytest.raises(SettingsError, match=words):
        WindowGrid((20, 20), **arguments)


def test_a_window_of_another_number_of_axes_than_the_image_is_refused():
    with pytest.raises(SettingsError, match=r"\(16, 16\) does not fit images of spatial size \(8, 8, 8\)"):
        WindowInferer((16, 16))(torch.zeros(1, 1, 8, 8, 8), lambda windows: windows)


def test_predictions_of_another_size_than_the_window_make_no_label_map():
    with pytest.raises(ValueError, match=r"made \(1, 1, 2, 2\) of 1 windows of shape \(4, 4\)"):
        WindowInferer((4, 4)).labels(torch.zeros(1, 1, 6, 6), lambda windows: windows[..., ::2, ::2])


def test_an_overlap_of_its_own_for_each_axis_gives_a_stride_of_its_own():
    assert WindowGrid((40, 40), (16, 16), (0.25, 0.75)).stride == (12, 4)
