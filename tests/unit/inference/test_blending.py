from dataclasses import replace

import pytest
import torch

from candy_monai.inference.blending import blended_bricks
from candy_monai.inference.windows import WindowGrid


def _bricks(image, network, grid, **options):
    bricks = blended_bricks(image, network, grid, **{"batch_size": 1, **options})
    return [replace(brick, sums=brick.sums.clone()) for brick in bricks]


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


def test_in_layers_a_brick_stays_as_it_is_until_its_layer_is_complete():
    torch.manual_seed(0)
    image, grid = torch.randn(2, 12, 16, 26), WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    expected = {str(brick.place): brick.sums for brick in _bricks(image, torch.sin, grid)}
    kept, planes = [], torch.zeros(26)
    for brick in blended_bricks(image, torch.sin, grid, batch_size=1, in_layers=True):
        kept.append(brick)
        along = brick.place[2]
        planes[along] += brick.sums[0, :, :, 0].numel()
        if planes[along.start] == 12 * 16:
            for part in [part for part in kept if part.place[2] == along]:
                assert torch.allclose(part.sums, expected[str(part.place)], atol=1e-6)
    assert bool((planes == 12 * 16).all())


def test_all_unfinished_scores_lie_in_one_block_that_is_made_once():
    made = []

    def new_room(count, device):
        made.append(torch.empty(count, device=device))
        return made[-1]

    grid = WindowGrid(size=(24, 40), window=(8, 8))
    for brick in blended_bricks(torch.zeros(1, 24, 40), torch.clone, grid, batch_size=1, new_room=new_room):
        assert brick.sums.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    assert len(made) == 1
