from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.inference.cells import CellLayout
from candy_monai.inference.windows import WindowGrid


def test_unfinished_cells_are_as_thick_as_a_window_s_overlap_however_long_the_image():
    window = (8, 8, 8)
    short, long = (CellLayout(WindowGrid(size=(size, 24, 24), window=window)) for size in (40, 400))
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
    layout, in_layers = CellLayout(grid), CellLayout(grid, in_layers=True)
    assert sorted(map(str, layout.order)) == sorted(map(str, grid.slices))
    assert [place[2].start for place in in_layers.order[-12:]] == 6 * [16] + 6 * [18]
    assert {place[2].start for place in layout.order[-4:]} == {16, 18}
    assert layout.num_voxels <= _held(grid, layout.order) < 0.9 * _held(grid, in_layers.order)


def test_in_layers_a_window_s_thickness_is_held_at_most():
    grid = WindowGrid(size=(12, 16, 26), window=(8, 8, 8))
    layout = CellLayout(grid, in_layers=True)
    assert layout.num_voxels == 12 * 16 * 8
    assert layout.num_voxels == _held(grid, layout.order, until_planes_are_complete=True)


def test_the_longest_axis_is_the_one_along_which_the_image_is_worked_off():
    order = CellLayout(WindowGrid(size=(8, 16, 64), window=(8, 8, 8))).order
    assert [place[2].start for place in order] == sorted(place[2].start for place in order)


@pytest.mark.parametrize("in_layers", [False, True])
@given(size=st.lists(st.integers(1, 40), min_size=2, max_size=3), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
@settings(max_examples=40, deadline=None)
def test_cells_that_live_at_the_same_time_never_share_memory(in_layers, size, overlap):
    layout = CellLayout(WindowGrid(size=size, window=(8,) * len(size), overlap=overlap), in_layers=in_layers)
    first, last = {}, {}
    for step, window in enumerate(layout.order):
        for cell, _ in layout.cells(window):
            first.setdefault(cell, step)
            last[cell] = step
    if in_layers:  # all of a layer are kept until the last one is done
        slowest = layout.axes[0]
        ends = {
            layer: max(last[cell] for cell in last if cell[slowest] == layer) for layer in {c[slowest] for c in last}
        }
        last = {cell: ends[cell[slowest]] for cell in last}
    begins = {cell: layout.offset(cell) for cell in first}
    ends = {cell: begins[cell] + _num_voxels(layout.place(cell)) for cell in first}
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
def test_the_block_is_hardly_larger_than_the_cells_that_live_in_it(size):
    window = (96, 96, 96) if len(size) == 3 else (512, 512)
    layout = CellLayout(WindowGrid(size=size, window=window))
    living, most = {}, 0
    left = {}
    for place in layout.order:
        for cell, _ in layout.cells(place):
            living[cell] = _num_voxels(layout.place(cell))
            left[cell] = left.get(cell, layout.num_windows(cell)) - 1
        most = max(most, sum(living.values()))
        living = {cell: voxels for cell, voxels in living.items() if left[cell]}
    assert most <= layout.num_voxels <= 1.15 * most
