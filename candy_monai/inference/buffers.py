"""Blend overlapping windows tile by tile in one buffer, in memory or on disk, and estimate the memory needed.

A tile is yielded as soon as no further window covers it, so that the buffer holds about one window's thickness across
the image instead of the whole image.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from candy_monai.aliases import Shape
from candy_monai.allocation import freed_memory_kept, give_back_freed_memory
from candy_monai.errors import BadInputError
from candy_monai.inference.tiles import Slices, TileIndex, TileLayout, WindowGrid
from candy_monai.live_bytes import LiveBytes
from candy_monai.network import meta_copy

ScoreFunction = Callable[..., Tensor]
"""Maps windows ``(B, C, *window)`` to scores ``(B, K, *window)``."""

BufferFactory = Callable[[int, torch.device], Tensor]
"""Allocates a float32 buffer with one axis, for the given number of scores on a device."""

_FLOAT = 4
_CHANNEL_BLOCK = 16
_DECODING = 3.0  # copies of an image while it is decoded and converted to float32
_PREPROCESSING = 2.5  # copies while it is normalised and its mask is made
_RESAMPLING = 2.0  # copies of the image on the plan's grid during resampling
_WRITING = 3  # copies of probabilities while they are written
_UNDOING = 3  # copies of all scores, before and after, while MONAI's transforms invert them to the file's grid
_UNSEEN = 1.05  # factor for a call: memory of libraries besides the tensors
_PAINTED_AT_ONCE, _PAINTING = 2**22, 6  # voxels that `LabelPainter` processes at once, and their copies


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A box of an image whose scores are final.

    Attributes:
        place: Its position in the image, a slice for each spatial axis.
        sums: ``(K, *box)`` float32: the scores, each multiplied by the weight of its voxel. Their order and signs are
            those of the scores. May be modified, and is valid only until the next tile is requested (see also
            `blended_tiles`), as its memory is reused.
        weights: Returns the voxels' weights ``(*box)``, all positive; None where all are 1. Computed only on demand,
            since neither an argmax nor a sign needs them.
    """

    place: Slices
    sums: Tensor
    weights: Callable[[], Tensor] | None = None

    @classmethod
    def whole(cls, scores: Tensor) -> Tile:
        """Return all scores ``(K, *spatial)`` of an image as one tile."""
        return cls(place=tuple(slice(0, extent) for extent in scores.shape[1:]), sums=scores)

    def scores(self) -> Tensor:
        """Divide ``sums`` by the weights in place, and return the result."""
        return self.sums if self.weights is None else self.sums.div_(self.weights())


def noticing_nan(tiles: Iterable[Tile], case_id: str) -> Iterator[Tile]:
    """Yield the tiles, and warn after the last one if scores contain NaN; only then is the device synchronised."""
    holds_nan = torch.tensor(False)
    for tile in tiles:
        if tile.sums.numel():
            holds_nan = holds_nan | tile.sums.aminmax().min.isnan()
        yield tile
    if holds_nan:
        warnings.warn(
            f"{case_id}: the network's output contains NaN, where the label map is meaningless; check the weights, and "
            "try without half precision",
            stacklevel=2,
        )


def buffer_in_memory(count: int, device: torch.device) -> Tensor:
    """Return a buffer for scores in the memory of the device."""
    return torch.empty(count, device=device)


def buffer_on_disk(count: int, device: torch.device) -> Tensor:
    """Return a buffer for scores in a memory-mapped temporary file.

    The operating system caches as much of it as fits into memory. The file is unlinked as soon as it is mapped, so that
    nothing remains even after a crash. ``TMPDIR`` sets its location. Only scores on the CPU are supported.

    Raises:
        BadInputError: If the disk is too full: writing to the mapped file would then kill the process.
    """
    if device.type != "cpu":
        raise ValueError(f"scores on {device} cannot be accumulated on disk, only those on the CPU")
    folder = tempfile.gettempdir()
    if (free := shutil.disk_usage(folder).free) < _FLOAT * count:
        raise BadInputError(
            f"{folder}: has {in_units(free)} of free space, but unfinished scores take {in_units(_FLOAT * count)}: "
            "free some, raise the memory limit, or set TMPDIR to another folder"
        )
    give_back_freed_memory()  # otherwise the memory that the disk saves would stay occupied
    with tempfile.NamedTemporaryFile(prefix="candy-monai-", suffix=".scores", delete=False) as file:
        path = Path(file.name)
    try:
        return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32)
    finally:
        path.unlink()


@torch.no_grad()
def blended_tiles(
    image: Tensor,
    network: ScoreFunction,
    grid: WindowGrid,
    *,
    batch_size: int,
    new_buffer: BufferFactory = buffer_in_memory,
    in_layers: bool = False,
    rounded_to: torch.dtype | None = None,
) -> Iterator[Tile]:
    """Run a network over all windows of one image and yield each part of the result as soon as it is complete.

    Args:
        image: ``(C, *grid.size)``.
        network: Returns scores at the resolution of the windows.
        grid: The windows.
        batch_size: Windows per call of the network.
        new_buffer: Allocates the buffer for incomplete scores, called once.
        in_layers: Whether the tiles are yielded layer by layer; see `TileLayout`.
        rounded_to: A type of lower precision to which sums are rounded after each window, as if stored in it.

    Yields:
        Tiles that cover the image exactly once. The scores of each are valid until the next one is requested; with
        ``in_layers``, until the next one is requested after its layer is complete.
    """
    # On a CPU, allocating memory anew for each window may take a third of a network's time.
    with freed_memory_kept() if image.device.type == "cpu" else nullcontext():
        layout = TileLayout(grid, in_layers=in_layers)
        yield from _blended(image, network, grid, layout, batch_size, new_buffer, rounded_to)


def _blended(
    image: Tensor,
    network: ScoreFunction,
    grid: WindowGrid,
    layout: TileLayout,
    batch_size: int,
    new: BufferFactory,
    rounded_to: torch.dtype | None,
) -> Iterator[Tile]:
    padded, order = grid.padded(image[None])[0], layout.order
    windows = padded.new_empty((min(batch_size, len(order)), len(padded), *grid.window))
    left: dict[TileIndex, int] = {}  # remaining windows over each incomplete tile
    buffer: Tensor | None = None
    importance = grid.importance(image.device)
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        for window, place in zip(windows, chunk, strict=False):
            window.copy_(padded[(slice(None), *place)])
        scores = network(windows[: len(chunk)])
        if (len(scores), *scores.shape[2:]) != (len(chunk), *grid.window):
            raise ValueError(
                f"the network returned shape {tuple(scores.shape)} for {len(chunk)} windows of shape {grid.window}: "
                "expected scores of the same spatial size, with one channel per class"
            )
        scores = scores.float()
        if buffer is None:
            buffer = new(scores.shape[1] * layout.num_voxels, scores.device)
            importance = importance.to(scores.device)
        for index, place in enumerate(chunk):
            for tile, inside in layout.tiles(place):
                at: tuple[int | slice, ...] = (index, slice(None), *inside)
                part, weight = scores[at], importance[inside]
                # The view must not outlive the step: small objects that stay alive would keep the C library's heap from
                # being reused.
                sums = buffer[len(part) * layout.offsets[tile] :][: part.numel()].view(part.shape)
                if tile in left:
                    sums.addcmul_(part, weight)
                else:  # the first window initialises a tile, so that no zeros are written
                    torch.mul(part, weight, out=sums)
                    left[tile] = layout.num_windows[tile]
                if rounded_to is not None:
                    sums.copy_(sums.to(rounded_to))
                left[tile] -= 1
                if not left[tile]:
                    del left[tile]
                    weights = partial(layout.weights, tile, importance)
                    if finished := _without_padding(grid, layout.place(tile), sums, weights):
                        yield finished
        del scores, part  # otherwise they stay in memory while the network computes the next ones


def _without_padding(grid: WindowGrid, place: Slices, sums: Tensor, weights: Callable[[], Tensor]) -> Tile | None:
    """Return the part of a complete tile that lies in the image; None if there is none."""
    if grid.padded_size == grid.size:
        return Tile(place=place, sums=sums, weights=weights)
    sides = [(side, before, extent) for side, (before, _), extent in zip(place, grid.margins, grid.size, strict=True)]
    kept = [slice(max(side.start, before), min(side.stop, before + extent)) for side, before, extent in sides]
    if any(side.start >= side.stop for side in kept):
        return None
    inside = tuple(slice(k.start - side.start, k.stop - side.start) for k, side in zip(kept, place, strict=True))
    return Tile(
        place=tuple(slice(k.start - before, k.stop - before) for k, (_, before, _) in zip(kept, sides, strict=True)),
        sums=sums[(slice(None), *inside)],
        weights=lambda: weights()[inside],
    )


@dataclass(frozen=True, kw_only=True)
class NetworkMemory:
    """The peak memory of one call of a network without its weights, and its output's channels and bytes."""

    num_bytes: int
    num_channels: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """The memory for predicting one case, in addition to that of the process before, in bytes.

    Attributes:
        preparing: While the case is read and preprocessed.
        image: The preprocessed case.
        network: One call of the network.
        output: The part of the call's memory that is its output.
        buffer: Incomplete scores.
        labels: The label map and data derived from it.
        all_scores: All classes at full size, if held: for probabilities, and for postprocessing that needs all scores
            at once.
        on_demand: The value of ``all_scores`` if probabilities are requested.
    """

    preparing: int
    image: int
    network: int
    buffer: int
    labels: int
    output: int = 0
    all_scores: int = 0
    on_demand: int = 0

    @property
    def total(self) -> int:
        """The peak memory."""
        return max(self.preparing, self._predicting + self.buffer)

    @property
    def without_buffer(self) -> int:
        """The peak memory with incomplete scores on disk."""
        return max(self.preparing, self._predicting)

    @property
    def _predicting(self) -> int:
        return self.image + self.network + self.labels + self.all_scores

    def with_probabilities(self) -> MemoryEstimate:
        """Return the estimate for predicting probabilities, too."""
        return replace(self, all_scores=self.on_demand)

    def with_members(self, count: int) -> MemoryEstimate:
        """Return the estimate for an ensemble whose members process the image in parallel."""
        return replace(self, buffer=count * self.buffer, network=self.network + (count - 1) * self.output)

    def or_more(self, other: MemoryEstimate) -> MemoryEstimate:
        """Return the elementwise maximum of the estimates of two cases."""
        mine, its = asdict(self), asdict(other)
        return MemoryEstimate(**{name: max(mine[name], its[name]) for name in mine})


def network_memory(network: nn.Module, input_shape: Sequence[int]) -> NetworkMemory | None:
    """Compute the memory of one call on PyTorch's meta device, without running it; None if that is impossible."""
    try:
        copied = meta_copy(network)
        with torch.no_grad(), LiveBytes(besides=_held_by_onednn) as live:
            output = copied(torch.empty(*input_shape, device="meta"))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        scores = tensors[0]
        return NetworkMemory(num_bytes=live.most, num_channels=scores.shape[1], output_bytes=scores.nbytes)
    except Exception:  # a network may use operations that meta tensors do not support
        return None


def estimate_memory(
    *,
    file_shape: Shape,
    shape: Shape,
    num_channels: int,
    network: NetworkMemory,
    grid: WindowGrid | None,
    is_resampled: bool,
    is_mirrored: bool = False,
    in_parts: bool = True,
) -> MemoryEstimate:
    """Compute the memory for predicting one case, whose file and whose preprocessed image have these spatial shapes.

    ``network`` is one call, for a batch of windows; ``grid`` the windows, None where the image is run whole;
    ``is_resampled`` whether scores are resampled to the file's grid; ``in_parts`` whether ids are computed from parts
    of the scores: custom postprocessing needs all at once.
    """
    raw, image = (num_channels * math.prod(size) * _FLOAT for size in (file_shape, shape))
    buffer = 0
    if grid is not None:
        buffer = network.num_channels * TileLayout(grid, in_layers=is_resampled).num_voxels * _FLOAT
    whole, restored = (network.num_channels * math.prod(size) * _FLOAT for size in (shape, file_shape))
    painting = _PAINTING * _FLOAT * min(_PAINTED_AT_ONCE, math.prod(file_shape))
    at_once = max(2 * whole, whole + restored, _WRITING * restored) + restored
    if not in_parts:
        at_once = max(at_once, _UNDOING * (whole + restored))
    id_bytes = 1 if network.num_channels <= 256 else 2
    return MemoryEstimate(
        preparing=int(max(_DECODING * raw, _PREPROCESSING * raw + (_RESAMPLING * image if is_resampled else 0))),
        image=image,
        network=int(_UNSEEN * network.num_bytes) + (2 * network.output_bytes if is_mirrored else 0),
        output=network.output_bytes,
        buffer=buffer,
        labels=2 * id_bytes * math.prod(file_shape) + (painting if is_resampled else 0),
        all_scores=0 if in_parts else at_once,
        on_demand=at_once,
    )


def fits_on_disk_only(needed: MemoryEstimate, memory: int) -> bool:
    """Return whether incomplete scores must be on disk to fit into memory; raise if even then they do not fit."""
    if needed.total <= memory:
        return False
    if needed.without_buffer > memory:
        raise BadInputError(
            f"needs about {in_units(needed.without_buffer)} of memory even with unfinished scores on disk, but only "
            f"{in_units(memory)} may be used: raise this limit, --memory (in Python memory=...)"
        )
    return True


def in_units(num_bytes: float) -> str:
    """Format a number of bytes: ``0.5 GB``, ``12 MB``, ``3 kB``."""
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def _held_by_onednn(operation: object, arguments: Sequence[Any], results: Sequence[Tensor]) -> int:
    """Return a convolution's extra memory: blocked copies of both tensors, the input's until the result is complete."""
    if operation is not torch.ops.aten.convolution.default:
        return 0
    before, after = (
        tensor[:, 0].numel() * -(-tensor.shape[1] // _CHANNEL_BLOCK) * _CHANNEL_BLOCK * _FLOAT
        for tensor in (arguments[0], results[0])
    )
    return max(before + after - results[0].nbytes, after)
