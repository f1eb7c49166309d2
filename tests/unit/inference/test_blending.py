import pytest
import torch

from candy_monai.inference.blending import CellLayout, blended_bricks
from candy_monai.inference.windows import WindowGrid


def _bricks(image, network, grid, **options):
    return list(blended_bricks(image, network, grid, **{"batch_size": 1, **options}))


@pytest.mark.parametrize("size", [(7, 5), (30, 17), (16, 16, 5), (20, 9, 33)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_the_bricks_fill_the_image_once(size, overlap):
    grid = WindowGrid(size=size, window=(8,) * len(size), overlap=overlap)
    times = torch.zeros(size)
    for brick in _bricks(torch.randn(1, *size), torch.clone, grid):
        times[brick.place] += 1
        assert brick.weights is not None
        assert brick.weights().shape == brick.sums.shape[1:]
        assert bool((brick.weights() > 0).all())
    assert bool((times == 1).all())


def test_the_scores_of_a_brick_are_the_mean_of_its_windows_by_their_weights():
    grid = WindowGrid(size=(1, 6), window=(1, 4), overlap=0.5)
    seen = iter([10.0, 20.0])
    bricks = _bricks(torch.zeros(1, 1, 6), lambda windows: torch.full_like(windows, next(seen)), grid)
    means = torch.cat([brick.scores() for brick in bricks], dim=-1).flatten()
    # sigma is half a voxel: the outer voxels of a window weigh 0.011 of its inner ones
    outer, inner = torch.exp(torch.tensor(-4.5)), torch.exp(torch.tensor(-0.5))
    third = (10 * inner + 20 * outer) / (inner + outer)
    assert torch.allclose(means, torch.tensor([10, 10, third, 30 - third, 20, 20]), atol=1e-4)


def test_a_brick_comes_as_soon_as_no_further_window_covers_it():
    grid = WindowGrid(size=(4, 40), window=(4, 8), overlap=0.5)
    calls = []
    bricks = blended_bricks(torch.zeros(1, 4, 40), lambda w: calls.append(1) or w, grid, batch_size=1)
    ends = [(brick.place[1].stop, len(calls)) for brick in bricks]
    assert ends[:-1] == [(4 * number, number) for number in range(1, 10)]
    assert ends[-1] == (40, 9)


def test_unfinished_cells_are_as_thick_as_a_window_s_overlap_however_long_the_image():
    window = (8, 8, 8)
    short, long = (CellLayout(WindowGrid(size=(size, 24, 24), window=window)) for size in (40, 400))
    assert long.most_voxels_held() == short.most_voxels_held()
    assert long.most_voxels_held() < 8 * 24 * 24


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
    layout, in_layers = CellLayout(grid), CellLayout(grid, in_layers=True)
    assert sorted(map(str, layout.order)) == sorted(map(str, grid.slices))
    assert [place[2].start for place in in_layers.order[-12:]] == 6 * [16] + 6 * [18]
    assert {place[2].start for place in layout.order[-4:]} == {16, 18}
    assert layout.most_voxels_held() <= _held(grid, layout.order) < 0.9 * _held(grid, in_layers.order)


def test_in_layers_a_window_s_thickness_is_held_at_most():
    grid = WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    layout = CellLayout(grid, in_layers=True)
    assert layout.most_voxels_held() == 12 * 16 * 8
    assert layout.most_voxels_held() == _held(grid, layout.order, until_planes_are_complete=True)


def test_the_longest_axis_is_the_one_along_which_the_image_is_worked_off():
    order = CellLayout(WindowGrid(size=(8, 16, 64), window=(8, 8, 8))).order
    assert [place[2].start for place in order] == sorted(place[2].start for place in order)


def test_windows_come_in_batches_and_the_last_one_may_be_smaller():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    sizes = []
    _bricks(torch.zeros(1, 8, 24), lambda windows: sizes.append(len(windows)) or windows, grid, batch_size=2)
    assert sizes == [2, 2, 1]


def test_another_resolution_is_refused_with_both_shapes():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    with pytest.raises(ValueError, match=r"made \(1, 1, 4, 4\) of 1 windows of shape \(8, 8\)"):
        _bricks(torch.zeros(1, 8, 24), lambda windows: windows[..., ::2, ::2], grid)


def test_half_precision_is_summed_in_float32():
    grid = WindowGrid(size=(8, 24), window=(8, 8), overlap=0.5)
    bricks = _bricks(torch.ones(1, 8, 24), lambda windows: windows.bfloat16(), grid)
    assert {brick.sums.dtype for brick in bricks} == {torch.float32}
