"""Overlapping windows over an image, and the tiles between the faces of the windows.

The positions and the importance maps of windows are those of MONAI's sliding-window inference. A window consists of
whole tiles, whose sums of scores are kept in one buffer from the first window over a tile to the last.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Literal, cast

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError

Slices = tuple[slice, ...]
"""A box of an image, one slice per spatial axis."""

TileIndex = tuple[int, ...]
"""The index of a tile along each spatial axis."""


@dataclass(frozen=True)
class SWMetadata:
    """Information for a trainer's windowed methods about the windows that they receive in batches.

    Attributes:
        kernel: The window's shape.
        stride: Steps between neighbouring windows; the last window of an axis ends with the image and may be closer.
        ndim: The number of spatial axes.
        batch_size: The number of images that the windows are from.
        out_size: The images' spatial size, without padding.
        n: The number of windows per image.
    """

    kernel: tuple[int, int] | tuple[int, int, int]
    stride: tuple[int, int] | tuple[int, int, int]
    ndim: Literal[2, 3]
    batch_size: int
    out_size: tuple[int, int] | tuple[int, int, int]
    n: int


@dataclass(frozen=True)
class WindowGrid:
    """The windows over images of one size. Images smaller than the window are centred in padding.

    Windows are numbered: those of the first image come first, then those of the second.

    ``size`` is the images' spatial size and ``window`` the window's shape; the others are those of MONAI's
    ``SlidingWindowInferer``. An invalid window or overlap raises a SettingsError.
    """

    size: Shape
    window: Shape
    overlap: float | Sequence[float] = 0.5
    mode: str = "gaussian"
    sigma_scale: float | Sequence[float] = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0

    def __post_init__(self) -> None:
        check_window(self.window, overlap=self.overlap)
        if len(self.window) != len(self.size):
            raise SettingsError(f"a window of shape {self.window} does not fit images of spatial size {self.size}")

    def __len__(self) -> int:
        """Return the number of windows of one image."""
        return len(self.slices)

    @cached_property
    def padded_size(self) -> Shape:
        """The spatial size after padding: at least the window's on each axis."""
        return tuple(max(extent, side) for extent, side in zip(self.size, self.window, strict=True))

    @cached_property
    def stride(self) -> Shape:
        """Steps between neighbouring windows on each axis."""
        overlaps = ensure_tuple_rep(self.overlap, len(self.window))
        return tuple(
            side if side == extent else max(1, int(side * (1 - overlap)))
            for extent, side, overlap in zip(self.padded_size, self.window, overlaps, strict=True)
        )

    @cached_property
    def slices(self) -> tuple[Slices, ...]:
        """The position of each window of one image in the padded image."""
        return tuple(dense_patch_slices(self.padded_size, self.window, self.stride))

    @cached_property
    def axes(self) -> list[int]:
        """The axes, slowest first: the longest relative to the window, along which tiles are completed soonest."""
        return sorted(range(len(self.size)), key=lambda a: self.padded_size[a] / self.window[a], reverse=True)

    @cached_property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """The padding before and after the image on each axis."""
        missing = [padded - extent for padded, extent in zip(self.padded_size, self.size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in missing)

    def metadata(self, batch_size: int) -> SWMetadata:
        """Describe the windows of a batch of images."""
        window, stride, size = (
            cast(tuple[int, int, int], shape) for shape in (self.window, self.stride, self.size)
        )  # or two of them, as checked by `check_window`
        ndim: Literal[2, 3] = 2 if len(window) == 2 else 3
        return SWMetadata(kernel=window, stride=stride, ndim=ndim, batch_size=batch_size, out_size=size, n=len(self))

    def importance(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight of each voxel of a window, all positive."""
        weights: Tensor = compute_importance_map(
            self.window, mode=self.mode, sigma_scale=self.sigma_scale, device=device, dtype=dtype
        )
        return weights

    def padded(self, images: Tensor, *, fill: float | None = None) -> Tensor:
        """Return images or labels ``(B, C, *size)`` as ``(B, C, *padded_size)``, uncopied if no padding is needed.

        With ``fill`` new voxels have that value, else they are padded by the mode of the grid.
        """
        if self.padded_size == self.size:
            return images
        widths = [width for margin in reversed(self.margins) for width in margin]
        if fill is None and self.padding_mode != "constant":
            return F.pad(images, widths, mode=self.padding_mode)
        return F.pad(images, widths, value=self.cval if fill is None else fill)

    def restored(self, padded: Tensor) -> Tensor:
        """Return a view ``(B, C, *size)`` without the padding."""
        for axis, (extent, (before, _)) in enumerate(zip(self.size, self.margins, strict=True), start=2):
            padded = padded.narrow(axis, before, extent)
        return padded

    def cut(self, padded: Tensor, numbers: Sequence[int]) -> Tensor:
        """Return copies ``(len(numbers), C, *window)`` of windows of the result of `padded`."""
        windows = padded.new_empty((len(numbers), padded.shape[1], *self.window))
        for window, place in zip(windows, self.places(numbers), strict=True):
            window.copy_(padded[place])
        return windows

    def places(self, numbers: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
        """Yield the index of each window into ``(B, C, *padded_size)``."""
        for number in numbers:
            image, window = divmod(number, len(self))
            yield (image, slice(None), *self.slices[window])


class WindowBlender:
    """Blends predictions for the windows of a batch into whole images, with lower weights towards a window's edge."""

    def __init__(self, grid: WindowGrid, *, batch_size: int) -> None:
        self._grid = grid
        self._batch_size = batch_size
        self._sum: Tensor | None = None
        self._weights: Tensor | None = None

    def add(self, predictions: Tensor, numbers: Sequence[int]) -> None:
        """Add the predictions ``(len(numbers), K, *window)`` of some windows; each window must be added once."""
        expected = (len(numbers), *self._grid.window)
        if (len(predictions), *predictions.shape[2:]) != expected:
            raise ValueError(
                f"expected predictions of shape ({expected[0]}, classes, {', '.join(map(str, expected[1:]))}) for "
                f"{len(numbers)} windows, got {tuple(predictions.shape)}"
            )
        if self._sum is None or self._weights is None:
            self._sum = predictions.new_zeros((self._batch_size, predictions.shape[1], *self._grid.padded_size))
            self._weights = self._grid.importance(predictions.device, predictions.dtype)
        for prediction, place in zip(predictions, self._grid.places(numbers), strict=True):
            self._sum[place].addcmul_(prediction, self._weights)

    def result(self) -> Tensor:
        """Return the weighted means ``(B, K, *size)``. To be called once, after all windows have been added."""
        if self._sum is None or self._weights is None:
            raise ValueError("no window was added, so there is nothing to blend")
        total = self._sum.new_zeros(self._grid.padded_size)
        for place in self._grid.slices:
            total[place] += self._weights
        return self._grid.restored(self._sum.div_(total))


class TileLayout:
    """The tiles of a grid of windows, their places in a buffer, and an order of the windows that keeps it small.

    Args:
        grid: The windows.
        in_layers: Whether tiles are processed layer by layer across the slowest axis, by a consumer that keeps
            completed tiles until their layer is complete.

    Attributes:
        num_windows: The number of windows that cover each tile.
        order: All windows, in the order in which they should be run.
        offsets: The start of each tile in the buffer, in voxels. Its place is reused as soon as the window after the
            last one over the tile is run; in layers, after the last one over its layer.
        num_voxels: The size of the buffer in voxels.
    """

    def __init__(self, grid: WindowGrid, *, in_layers: bool = False) -> None:
        self._axes, self._in_layers = grid.axes, in_layers
        starts = [sorted({int(place[axis].start) for place in grid.slices}) for axis in range(len(grid.size))]
        self._edges = [
            sorted({edge for start in of_axis for edge in (start, start + side)})
            for of_axis, side in zip(starts, grid.window, strict=True)
        ]
        self._covered = [
            {start: range(edges.index(start), edges.index(start + side)) for start in of_axis}
            for of_axis, edges, side in zip(starts, self._edges, grid.window, strict=True)
        ]  # axis -> start of a window -> the intervals between edges that it covers
        self.num_windows = Counter(tile for window in grid.slices for tile, _ in self.tiles(window))
        orders = [sorted(grid.slices, key=self._starts)]
        if not in_layers:
            orders.append(self._last_layers_together(orders[0]))
        plans = [(order, *self._allocated(order)) for order in orders]
        self.order, self.offsets, self.num_voxels = min(plans, key=lambda plan: plan[2])

    def tiles(self, window: Slices) -> Iterator[tuple[TileIndex, Slices]]:
        """Yield the tiles that a window covers, each with its position inside the window."""
        by_axis = (
            [(n, slice(edges[n] - side.start, edges[n + 1] - side.start)) for n in covered[side.start]]
            for side, edges, covered in zip(window, self._edges, self._covered, strict=True)
        )
        for combination in itertools.product(*by_axis):
            yield tuple(n for n, _ in combination), tuple(inside for _, inside in combination)

    def place(self, tile: TileIndex) -> Slices:
        """Return the position of a tile in the padded image."""
        return tuple(slice(edges[n], edges[n + 1]) for edges, n in zip(self._edges, tile, strict=True))

    def weights(self, tile: TileIndex, importance: Tensor) -> Tensor:
        """Return the sum over the windows of their weights in a tile."""
        place = self.place(tile)
        starts = (
            [start for start, covered in of_axis.items() if n in covered]
            for of_axis, n in zip(self._covered, tile, strict=True)
        )
        total = importance.new_zeros([side.stop - side.start for side in place])
        for corner in itertools.product(*starts):
            total += importance[tuple(slice(s.start - c, s.stop - c) for s, c in zip(place, corner, strict=True))]
        return total

    def _starts(self, window: Slices) -> list[int]:
        return [window[axis].start for axis in self._axes]

    def _last_layers_together(self, order: list[Slices]) -> list[Slices]:
        """Return an order that interleaves the last layer with the one before, which it mostly overlaps."""
        last = self._starts(order[-1])[0]
        before = max((start for start in self._covered[self._axes[0]] if start < last), default=last)

        def key(window: Slices) -> list[int]:
            first, *others = self._starts(window)
            return [min(first, before), *others, first]

        return sorted(order, key=key)

    def _allocated(self, order: list[Slices]) -> tuple[dict[TileIndex, int], int]:
        """Return the start of each tile in a buffer for windows in this order, and the length of the buffer."""
        slowest, memory, offsets = self._axes[0], _FreeList(), dict[TileIndex, int]()
        in_layer = math.prod(len(edges) - 1 for axis, edges in enumerate(self._edges) if axis != slowest)
        left = self.num_windows.copy()
        done: dict[int, list[TileIndex]] = {}  # by layer
        for window in order:
            for tile, _ in self.tiles(window):
                if tile not in offsets:
                    offsets[tile] = memory.take(self._num_voxels(tile))
                left[tile] -= 1
                if not left[tile]:
                    done.setdefault(tile[slowest], []).append(tile)
            for layer in [layer for layer, tiles in done.items() if not self._in_layers or len(tiles) == in_layer]:
                for tile in done.pop(layer):
                    memory.give_back(offsets[tile], self._num_voxels(tile))
        return offsets, memory.length

    def _num_voxels(self, tile: TileIndex) -> int:
        return math.prod(side.stop - side.start for side in self.place(tile))


class _FreeList:
    """Allocator of pieces of memory, each from the smallest sufficient gap; grows if there is none."""

    def __init__(self) -> None:
        self.length = 0
        self._gaps: list[tuple[int, int]] = []  # begin and end of each, in order; no two are adjacent

    def take(self, size: int) -> int:
        """Return the start of a piece of this size."""
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
        """Free a piece and add it to the gaps."""
        end = begin + size
        after = bisect(self._gaps, (begin, end))
        if after < len(self._gaps) and self._gaps[after][0] == end:
            end = self._gaps.pop(after)[1]
        if after and self._gaps[after - 1][1] == begin:
            begin = self._gaps.pop(after - 1)[0]
        insort(self._gaps, (begin, end))


def batches_of_windows(count: int, batch_size: int) -> Iterator[range]:
    """Divide window numbers into as few batches as possible of at most ``batch_size``, as even as possible.

    Even batches avoid a last batch of one window, which batch normalisation cannot use well.
    """
    num_batches = math.ceil(count / batch_size)
    edges = [index * count // num_batches for index in range(num_batches + 1)]
    return (range(start, stop) for start, stop in itertools.pairwise(edges))


def check_window(window: Sequence[int], *, overlap: float | Sequence[float], batch_size: int = 1) -> None:
    """Raise SettingsError if a window does not have 2 or 3 positive sides, or overlap or batch size is invalid."""
    sides: tuple[object, ...] = tuple(window) if isinstance(window, Iterable) else (window,)
    if len(sides) not in (2, 3) or not all(isinstance(side, Integral) and int(side) >= 1 for side in sides):
        given = sides if isinstance(window, Iterable) else window
        raise SettingsError(f"the shape of a window must be 2 or 3 positive whole numbers, got {given}")
    check_overlap(overlap, num_dims=len(window))
    if batch_size < 1:
        raise SettingsError(f"the number of windows run at once must be at least 1, got {batch_size}")


def check_overlap(overlap: float | Sequence[float], *, num_dims: int | None = None) -> None:
    """Raise SettingsError if an overlap is not in 0 to below 1, or their number is not that of the axes."""
    of_axes = tuple(overlap) if isinstance(overlap, Sequence) else (overlap,)
    if any(not 0 <= share < 1 for share in of_axes):
        raise SettingsError(f"the windows' overlap must be at least 0 and below 1, got {overlap}")
    if isinstance(overlap, Sequence) and num_dims not in (None, len(of_axes)):
        raise SettingsError(f"the windows' overlap has {len(of_axes)} entries for {num_dims} spatial axes: {of_axes}")
