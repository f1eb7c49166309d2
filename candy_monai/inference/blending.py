"""Run a network window by window and give back finished parts of the blended whole. Keeps only what is unfinished.

The faces of all windows cut an image into cells, so that each window is made of whole cells. A cell lives from the
first window that covers it to the last, and is handed over then: memory holds the cells of about one window's thickness
across the image, and never the image. The first window of a cell sets it, so nothing is filled with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor

from candy_monai.aliases import Shape
from candy_monai.inference.windows import Slices, WindowGrid

Network = Callable[[Tensor], Tensor]
"""From windows ``(B, C, *window)`` to scores ``(B, K, *window)``."""

CellFactory = Callable[[Shape, torch.device], Tensor]
"""Makes room for a cell ``(K, *cell)``, float32."""

_CellIndex = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Brick:
    """A box of an image whose scores are final.

    Attributes:
        place: Where it lies in the image, one slice a spatial axis.
        sums: ``(K, *box)`` float32: the scores, each times the weight of its voxel. Their order and their signs are
            those of the scores. Belongs to whoever takes the brick.
        weights: Returns the voxels' weights ``(*box)``, all positive; None where all are 1. They are worked out only
            when asked for, since neither an argmax nor a sign needs them.
    """

    place: Slices
    sums: Tensor
    weights: Callable[[], Tensor] | None = None

    def scores(self) -> Tensor:
        """Divide ``sums`` by the weights, in place, and return them."""
        return self.sums if self.weights is None else self.sums.div_(self.weights())


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

    @cached_property
    def order(self) -> list[Slices]:
        """All windows, in the order in which they are to be run."""
        layers = sorted(self._grid.slices, key=self._starts)
        if self._in_layers:
            return layers
        return min(layers, self._last_layers_together(layers), key=self._most_unfinished_voxels)

    def most_voxels_held(self) -> int:
        """Return the voxels of all cells that are held at the same time, at the worst moment."""
        if not self._in_layers:
            return self._most_unfinished_voxels(self.order)
        grid, slowest = self._grid, self.axes[0]
        return math.prod(grid.padded_size) // grid.padded_size[slowest] * grid.window[slowest]

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

    def cells(self, window: Slices) -> Iterator[tuple[_CellIndex, Slices]]:
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

    def num_windows(self, cell: _CellIndex) -> int:
        """Return how many windows cover a cell."""
        return math.prod(counts[segment] for counts, segment in zip(self._num_covering, cell, strict=True))

    def place(self, cell: _CellIndex) -> Slices:
        """Return where a cell lies in the padded image."""
        return tuple(slice(cuts[s], cuts[s + 1]) for cuts, s in zip(self._cuts, cell, strict=True))

    def weights(self, cell: _CellIndex, importance: Tensor) -> Tensor:
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

    def _most_unfinished_voxels(self, order: list[Slices]) -> int:
        unfinished: dict[_CellIndex, int] = {}
        held = most = 0
        for window in order:
            for cell, inside in self.cells(window):
                voxels = math.prod(int(side.stop - side.start) for side in inside)
                left = unfinished.pop(cell, None)
                held += voxels if left is None else 0
                most = max(most, held)
                left = (self.num_windows(cell) if left is None else left) - 1
                if left:
                    unfinished[cell] = left
                else:
                    held -= voxels
        return most


def memory_cell(shape: Shape, device: torch.device) -> Tensor:
    """Make room for a cell in the device's memory."""
    return torch.empty(shape, device=device)


@torch.no_grad()
def blended_bricks(
    image: Tensor,
    network: Network,
    grid: WindowGrid,
    *,
    batch_size: int,
    new_cell: CellFactory = memory_cell,
    in_layers: bool = False,
) -> Iterator[Brick]:
    """Run a network over all windows of one image and yield each part of the result as soon as it is final.

    Args:
        image: ``(C, *grid.size)``.
        network: Scores at the windows' own resolution.
        grid: The windows.
        batch_size: Windows in one call of the network.
        new_cell: Makes room for unfinished scores.
        in_layers: Whether the bricks are wanted layer by layer; see `CellLayout`.

    Yields:
        Bricks that fill the image once, without any overlap.

    Raises:
        ValueError: If the network returns another resolution.
    """
    layout, padded = CellLayout(grid, in_layers=in_layers), grid.padded(image[None])[0]
    importance = compute_importance_map(grid.window, mode="gaussian", device=image.device)
    order = layout.order
    room = padded.new_empty((min(batch_size, len(order)), len(padded), *grid.window))
    unfinished: dict[_CellIndex, tuple[Tensor, int]] = {}
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        for window, place in zip(room, chunk, strict=False):
            window.copy_(padded[(slice(None), *place)])
        scores = _checked(network(room[: len(chunk)]), grid, len(chunk))
        for index, place in enumerate(chunk):
            for cell, inside in layout.cells(place):
                at: tuple[int | slice, ...] = (index, slice(None), *inside)
                part, weight = scores[at], importance[inside]
                sums, left = unfinished.pop(cell, (None, layout.num_windows(cell)))
                if sums is None:
                    sums = torch.mul(part, weight, out=new_cell(tuple(part.shape), part.device))
                else:
                    sums.addcmul_(part, weight)
                if left > 1:
                    unfinished[cell] = sums, left - 1
                elif brick := _brick(grid, layout.place(cell), sums, partial(layout.weights, cell, importance)):
                    yield brick
        del scores, part  # or they would still be held while the network makes the next ones


def _brick(grid: WindowGrid, place: Slices, sums: Tensor, weights: Callable[[], Tensor]) -> Brick | None:
    """Return a finished cell without what lies in the padding; None where nothing of it lies in the image."""
    if grid.padded_size == grid.size:
        return Brick(place=place, sums=sums, weights=weights)
    before = [(padded - extent) // 2 for padded, extent in zip(grid.padded_size, grid.size, strict=True)]
    sides = list(zip(place, before, grid.size, strict=True))
    kept = tuple(slice(max(side.start, b), min(side.stop, b + extent)) for side, b, extent in sides)
    if any(side.start >= side.stop for side in kept):
        return None
    inside = tuple(slice(k.start - side.start, k.stop - side.start) for k, side in zip(kept, place, strict=True))
    return Brick(
        place=tuple(slice(k.start - b, k.stop - b) for k, b in zip(kept, before, strict=True)),
        sums=sums[(slice(None), *inside)],
        weights=lambda: weights()[inside],
    )


def _checked(scores: Tensor, grid: WindowGrid, count: int) -> Tensor:
    if (len(scores), *scores.shape[2:]) != (count, *grid.window):
        raise ValueError(
            f"the network made {tuple(scores.shape)} of {count} windows of shape {grid.window}: expected scores of the "
            "same size, one channel a class"
        )
    return scores.float()
