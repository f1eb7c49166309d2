"""Overlapping windows over an image: where they lie, how they are cut, and how results are blended. Runs no network.

Windows lie where MONAI's sliding-window inference puts them, and are blended with its importance maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from torch import Tensor
from torch.nn import functional as F

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class SWMetadata:
    """What a trainer's windowed methods are told about the windows that they get some of.

    Attributes:
        kernel: The window's shape.
        stride: Steps between neighbouring windows; the last window of an axis ends with the image and may be nearer.
        ndim: Spatial axes.
        batch_size: Images that the windows come from.
        out_size: The images' spatial size, without padding.
        n: Windows of one image.
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

    A window is named by a number: those of the first image come first, then those of the second.

    Args:
        size: The images' spatial size.
        window: The window's shape, as many axes.
        overlap: Share of a window that its neighbour covers too, 0 to below 1; one number, or one for each axis.
        mode: How windows are blended: ``"gaussian"``, or ``"constant"`` for plain means.
        sigma_scale: Width of the Gaussian as a share of the window; one number, or one for each axis.
        padding_mode: How images smaller than the window are padded, as in ``torch.nn.functional.pad``.
        cval: The value of new voxels where ``padding_mode`` is ``"constant"``.

    Raises:
        SettingsError: If the window or the overlap cannot be used.
    """

    size: Shape
    window: Shape
    overlap: float | tuple[float, ...] = 0.5
    mode: str = "gaussian"
    sigma_scale: float | tuple[float, ...] = 0.125
    padding_mode: str = "constant"
    cval: float = 0.0

    def __post_init__(self) -> None:
        check_window(self.window, overlap=self.overlap)
        if len(self.window) != len(self.size):
            raise SettingsError(f"a window of shape {self.window} does not fit images of spatial size {self.size}")

    def __len__(self) -> int:
        """Return the windows of one image."""
        return len(self.slices)

    @cached_property
    def padded_size(self) -> Shape:
        """The spatial size after padding: nowhere smaller than the window."""
        return tuple(max(extent, side) for extent, side in zip(self.size, self.window, strict=True))

    @cached_property
    def stride(self) -> Shape:
        """Steps between neighbouring windows on each axis."""
        overlaps = self.overlap if isinstance(self.overlap, tuple) else (self.overlap,) * len(self.window)
        return tuple(
            side if side == extent else max(1, int(side * (1 - overlap)))
            for extent, side, overlap in zip(self.padded_size, self.window, overlaps, strict=True)
        )

    @cached_property
    def slices(self) -> tuple[Slices, ...]:
        """Where each window of one image lies in the padded image."""
        return tuple(dense_patch_slices(self.padded_size, self.window, self.stride))

    def metadata(self, batch_size: int) -> SWMetadata:
        """Describe the windows of a batch of images."""
        window, stride, size = (
            cast(tuple[int, int, int], shape) for shape in (self.window, self.stride, self.size)
        )  # or two of them: `check_window` has seen to that
        ndim: Literal[2, 3] = 2 if len(window) == 2 else 3
        return SWMetadata(kernel=window, stride=stride, ndim=ndim, batch_size=batch_size, out_size=size, n=len(self))

    def importance(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weight of each voxel of a window, all positive."""
        weights: Tensor = compute_importance_map(
            self.window, mode=self.mode, sigma_scale=self.sigma_scale, device=device, dtype=dtype
        )
        return weights

    def padded(self, images: Tensor, *, fill: float | None = None) -> Tensor:
        """Return images ``(B, C, *size)`` as ``(B, C, *padded_size)``; the very same tensor where nothing is missing.

        Args:
            images: The images, or their labels.
            fill: The value of new voxels; None to pad as the grid says.
        """
        if self.padded_size == self.size:
            return images
        widths = [width for before, after in reversed(self._widths) for width in (before, after)]
        if fill is None and self.padding_mode != "constant":
            return F.pad(images, widths, mode=self.padding_mode)
        return F.pad(images, widths, value=self.cval if fill is None else fill)

    def restored(self, padded: Tensor) -> Tensor:
        """Cut the padding off again: a view ``(B, C, *size)``."""
        for axis, (extent, (before, _)) in enumerate(zip(self.size, self._widths, strict=True), start=2):
            padded = padded.narrow(axis, before, extent)
        return padded

    def cut(self, padded: Tensor, numbers: Sequence[int]) -> Tensor:
        """Copy windows out of what `padded` returned.

        Args:
            padded: ``(B, C, *padded_size)``.
            numbers: The windows.

        Returns:
            ``(len(numbers), C, *window)``.
        """
        windows = padded.new_empty((len(numbers), padded.shape[1], *self.window))
        for window, place in zip(windows, self.places(numbers), strict=True):
            window.copy_(padded[place])
        return windows

    def places(self, numbers: Sequence[int]) -> Iterator[tuple[int | slice, ...]]:
        """Yield the index of each window into ``(B, C, *padded_size)``."""
        for number in numbers:
            image, window = divmod(number, len(self))
            yield (image, slice(None), *self.slices[window])

    @cached_property
    def _widths(self) -> tuple[tuple[int, int], ...]:
        missing = [padded - extent for padded, extent in zip(self.padded_size, self.size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in missing)


class WindowBlender:
    """Blends what a network made of windows into whole images, each window weighted less towards its edge.

    Args:
        grid: The windows.
        batch_size: Images.
    """

    def __init__(self, grid: WindowGrid, *, batch_size: int) -> None:
        self._grid = grid
        self._batch_size = batch_size
        self._sum: Tensor | None = None
        self._weights: Tensor | None = None

    def add(self, predictions: Tensor, numbers: Sequence[int]) -> None:
        """Take the predictions of some windows; each window is to be added once.

        Args:
            predictions: ``(len(numbers), K, *window)``.
            numbers: The windows.

        Raises:
            ValueError: If the shape is another.
        """
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
        """Return the weighted means ``(B, K, *size)``. To be called once, after all windows were added.

        Raises:
            ValueError: If no window was added.
        """
        if self._sum is None or self._weights is None:
            raise ValueError("no window was added, so there is nothing to blend")
        total = self._sum.new_zeros(self._grid.padded_size)
        for place in self._grid.slices:
            total[place] += self._weights
        return self._grid.restored(self._sum.div_(total))


def batches_of_windows(count: int, batch_size: int) -> Iterator[range]:
    """Divide window numbers into as few batches as possible of at most ``batch_size``, as even as possible.

    Even batches spare batch normalisation a last batch of one window.
    """
    num_batches = math.ceil(count / batch_size)
    edges = [index * count // num_batches for index in range(num_batches + 1)]
    return (range(start, stop) for start, stop in itertools.pairwise(edges))


def check_window(window: Sequence[int], *, overlap: float | Sequence[float], batch_size: int = 1) -> None:
    """Refuse windows that cannot be used.

    Raises:
        SettingsError: If the window has not 2 or 3 positive sides, the overlap is not in 0 to below 1, or the batch
            size is not positive.
    """
    if len(window) not in (2, 3) or any(side < 1 for side in window):
        raise SettingsError(f"a window has 2 or 3 sides of at least one voxel, got {tuple(window)}")
    check_overlap(overlap, num_dims=len(window))
    if batch_size < 1:
        raise SettingsError(f"the number of windows run at once must be at least 1, got {batch_size}")


def check_overlap(overlap: float | Sequence[float], *, num_dims: int | None = None) -> None:
    """Refuse an overlap that cannot be used; arguments and errors are those of `check_window`."""
    of_axes = tuple(overlap) if isinstance(overlap, Sequence) else (overlap,)
    if any(not 0 <= share < 1 for share in of_axes):
        raise SettingsError(f"the windows' overlap must be at least 0 and below 1, got {overlap}")
    if isinstance(overlap, Sequence) and num_dims not in (None, len(of_axes)):
        raise SettingsError(f"there are overlaps for {len(of_axes)} axes, {of_axes}, and {num_dims} spatial axes")
