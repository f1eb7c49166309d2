"""How the windows over an image cut it into cells, and where unfinished cells are kept. Holds no scores itself.

The faces of all windows cut an image into cells, so that each window is made of whole cells. A cell lives from the
first window that covers it to the last. All of this is known before the first window is run, and so the cells share
one block of memory, which those that are done leave to those to come.
"""

from __future__ import annotations

import math
from bisect import bisect, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from torch import Tensor

from candy_monai.inference.windows import Slices, WindowGrid

CellIndex = tuple[int, ...]
"""A cell's number along each spatial axis."""


class CellLayout:
    """Which cells a grid's windows cover, and in which order to run them so that few cells are unfinished at a time.

    Args:
        grid: The windows.
        in_layers: Whether cells are wanted layer by layer across the slowest axis, by a consumer that keeps what is
            finished until a layer is complete.
    """

    def __init__(self, grid: WindowGrid, *, in_layers: bool = False) -> None:
        self._grid = grid
        self._in_layers = in_layers
        axes = range(len(grid.size))
        starts = [sorted({int(place[axis].start) for place in grid.slices}) for axis in axes]
        self._cuts = [sorted({cut for start in starts[a] for cut in (start, start + grid.window[a])}) for a in axes]
        self._covered = [
            {start: self._segments(axis, start) for start in starts[axis]} for axis in axes
        ]  # axis -> start of a window -> the segments that it covers
        self._num_covering = [
            [sum(segment in segments for segments in covered.values()) for segment in range(len(cuts) - 1)]
            for covered, cuts in zip(self._covered, self._cuts, strict=True)
        ]

    def _segments(self, axis: int, start: int) -> range:
        cuts = self._cuts[axis]
        return range(cuts.index(start), cuts.index(start + self._grid.window[axis]))

    @cached_property
    def axes(self) -> list[int]:
        """The axes, the slowest first: the one that is longest for its window, along which cells end soonest."""
        grid = self._grid
        return sorted(range(len(grid.size)), key=lambda a: grid.padded_size[a] / grid.window[a], reverse=True)

    @property
    def order(self) -> list[Slices]:
        """All windows, in the order in which they are to be run."""
        return self._plan.order

    @property
    def num_voxels(self) -> int:
        """The voxels of the block that holds all cells."""
        return self._plan.num_voxels

    def offset(self, cell: CellIndex) -> int:
        """Return where a cell begins in the block, in voxels.

        Its place is another's as soon as the window is run that comes after the last over the cell; if cells are wanted
        in layers, after the last over its layer.
        """
        return self._plan.offsets[cell]

    @cached_property
    def _plan(self) -> _Plan:
        layers = sorted(self._grid.slices, key=self._starts)
        if self._in_layers:
            return self._planned(layers)
        orders = layers, self._last_layers_together(layers)
        return min(map(self._planned, orders), key=lambda plan: plan.num_voxels)

    def _starts(self, place: Slices) -> list[int]:
        return [place[axis].start for axis in self.axes]

    def _last_layers_together(self, layers: list[Slices]) -> list[Slices]:
        """Run the last layer, which ends with the image and mostly overlaps the one before, side by side with that."""
        last = layers[-1][self.axes[0]].start
        before = max((place[self.axes[0]].start for place in layers if place[self.axes[0]].start < last), default=last)

        def key(place: Slices) -> list[int]:
            first, *others = self._starts(place)
            return [min(first, before), *others, first]

        return sorted(layers, key=key)

    def cells(self, window: Slices) -> Iterator[tuple[CellIndex, Slices]]:
        """Yield the cells that a window covers, each with its place inside the window."""
        by_axis = (
            [
                (segment, slice(cuts[segment] - side.start, cuts[segment + 1] - side.start))
                for segment in covered[side.start]
            ]
            for side, cuts, covered in zip(window, self._cuts, self._covered, strict=True)
        )
        for combination in product(*by_axis):
            yield tuple(segment for segment, _ in combination), tuple(inside for _, inside in combination)

    def num_windows(self, cell: CellIndex) -> int:
        """Return how many windows cover a cell."""
        return math.prod(counts[segment] for counts, segment in zip(self._num_covering, cell, strict=True))

    def place(self, cell: CellIndex) -> Slices:
        """Return where a cell lies in the padded image."""
        return tuple(slice(cuts[s], cuts[s + 1]) for cuts, s in zip(self._cuts, cell, strict=True))

    def weights(self, cell: CellIndex, importance: Tensor) -> Tensor:
        """Return the sum of the weights that the windows over a cell have there."""
        place = self.place(cell)
        starts = (
            [start for start, segments in covered.items() if segment in segments]
            for covered, segment in zip(self._covered, cell, strict=True)
        )
        total = importance.new_zeros([side.stop - side.start for side in place])
        for corner in product(*starts):
            total += importance[tuple(slice(s.start - c, s.stop - c) for s, c in zip(place, corner, strict=True))]
        return total

    def _planned(self, order: list[Slices]) -> _Plan:
        """Give each cell its place in the block, as its windows come."""
        slowest = self.axes[0]
        num_in_layer = math.prod(len(cuts) - 1 for axis, cuts in enumerate(self._cuts) if axis != slowest)
        block, offsets = _Block(), dict[CellIndex, int]()
        left: dict[CellIndex, int] = {}
        done: dict[int, list[CellIndex]] = {}  # by layer
        for window in order:
            for cell, _ in self.cells(window):
                if cell not in left:
                    offsets[cell] = block.take(self._num_voxels(cell))
                    left[cell] = self.num_windows(cell)
                left[cell] -= 1
                if not left[cell]:
                    done.setdefault(cell[slowest], []).append(cell)
            for layer in [layer for layer, cells in done.items() if not self._in_layers or len(cells) == num_in_layer]:
                for cell in done.pop(layer):
                    block.give_back(offsets[cell], self._num_voxels(cell))
        return _Plan(order=order, offsets=offsets, num_voxels=block.length)

    def _num_voxels(self, cell: CellIndex) -> int:
        return math.prod(cuts[s + 1] - cuts[s] for cuts, s in zip(self._cuts, cell, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The order of the windows, where each cell begins in the block, and how long that is."""

    order: list[Slices]
    offsets: dict[CellIndex, int]
    num_voxels: int


class _Block:
    """A stretch that is taken in pieces, each from the smallest gap that holds it, and grows where none does."""

    def __init__(self) -> None:
        self.length = 0
        self._gaps: list[tuple[int, int]] = []  # begin and end of each, in order; no two touch

    def take(self, size: int) -> int:
        """Return where a piece of this size begins."""
        fitting = [(end - begin, begin) for begin, end in self._gaps if end - begin >= size]
        if fitting:
            width, begin = min(fitting)
            self._gaps.remove((begin, begin + width))
            if width > size:
                insort(self._gaps, (begin + size, begin + width))
            return begin
        begin = self._gaps.pop()[0] if self._gaps and self._gaps[-1][1] == self.length else self.length
        self.length = begin + size
        return begin

    def give_back(self, begin: int, size: int) -> None:
        """Leave a piece to others."""
        end = begin + size
        after = bisect(self._gaps, (begin, end))
        if after < len(self._gaps) and self._gaps[after][0] == end:
            end = self._gaps.pop(after)[1]
        if after and self._gaps[after - 1][1] == begin:
            begin = self._gaps.pop(after - 1)[0]
        insort(self._gaps, (begin, end))
