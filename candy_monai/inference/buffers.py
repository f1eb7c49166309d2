"""Scores that wait for further windows: blended tile by tile in one buffer, in memory or on disk, and what that takes.

A tile is handed over as soon as no further window covers it, so that the buffer holds about one window's thickness
across the image, and never the image.
"""

from __future__ import annotations

import math
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
"""From windows ``(B, C, *window)`` to scores ``(B, K, *window)``."""

BufferFactory = Callable[[int, torch.device], Tensor]
"""Makes a buffer of so many scores: float32, one axis."""

_FLOAT = 4
_CHANNEL_BLOCK = 16
_DECODING = 3.0  # copies of an image while it is decoded and turned into float32
_PREPROCESSING = 2.5  # copies while it is normalised and its mask is made
_RESAMPLING = 2.0  # copies of the image on the plan's grid while it is made
_WRITING = 3  # copies of probabilities while they are written
_UNDOING = 3  # copies of all scores, before and after, while MONAI's transforms bring them to the file's grid
_UNSEEN = 1.05  # of a call: what libraries hold beside the tensors
_PAINTED_AT_ONCE, _PAINTING = 2**22, 6  # voxels of the planes that `LabelPainter` works on, and copies of them


@dataclass(frozen=True, kw_only=True, eq=False)
class Tile:
    """A box of an image whose scores are final.

    Attributes:
        place: Where it lies in the image, one slice a spatial axis.
        sums: ``(K, *box)`` float32: the scores, each times the weight of its voxel. Their order and their signs are
            those of the scores. May be changed, and is valid until the next tile is asked for (`blended_tiles` says
            how long else): its memory is used again.
        weights: Returns the voxels' weights ``(*box)``, all positive; None where all are 1. They are worked out only
            when asked for, since neither an argmax nor a sign needs them.
    """

    place: Slices
    sums: Tensor
    weights: Callable[[], Tensor] | None = None

    @classmethod
    def whole(cls, scores: Tensor) -> Tile:
        """Return all of an image's scores ``(K, *spatial)`` as one tile."""
        return cls(place=tuple(slice(0, extent) for extent in scores.shape[1:]), sums=scores)

    def scores(self) -> Tensor:
        """Divide ``sums`` by the weights, in place, and return them."""
        return self.sums if self.weights is None else self.sums.div_(self.weights())


def noticing_nan(tiles: Iterable[Tile], case_id: str) -> Iterator[Tile]:
    """Yield tiles as they come, and warn after the last one if scores hold NaN; only that waits for the device."""
    found: list[Tensor] = []
    for tile in tiles:
        if tile.sums.numel():
            holds_nan = tile.sums.aminmax().min.isnan()
            found = [holds_nan | found[0] if found else holds_nan]
        yield tile
    if any(map(bool, found)):
        warnings.warn(
            f"{case_id}: the network's output holds NaN, so that its label map says nothing there; are the weights "
            "sound, and does it do better without half precision?",
            stacklevel=2,
        )


def buffer_in_memory(count: int, device: torch.device) -> Tensor:
    """Return a buffer for scores in the device's memory."""
    return torch.empty(count, device=device)


def buffer_on_disk(count: int, device: torch.device) -> Tensor:
    """Return a buffer for scores in a temporary file that is mapped into memory.

    The operating system keeps in memory what it has room for. The file is deleted as soon as it is mapped, so nothing
    is left behind even by a crash. ``TMPDIR`` chooses the disk. Scores of another device than the CPU are refused.
    """
    if device.type != "cpu":
        raise ValueError(f"scores on {device} cannot be summed on disk")
    give_back_freed_memory()  # or what the disk spares would be held for nothing
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
    """Run a network over all windows of one image and yield each part of the result as soon as it is final.

    Args:
        image: ``(C, *grid.size)``.
        network: Scores at the windows' own resolution.
        grid: The windows.
        batch_size: Windows in one call of the network.
        new_buffer: Makes the buffer for unfinished scores, once.
        in_layers: Whether the tiles are wanted layer by layer; see `TileLayout`.
        rounded_to: A type of less precision that sums are rounded to after each window, as if they were kept in it.

    Yields:
        Tiles that fill the image once, without any overlap. The scores of each are valid until the next one is asked
        for; with ``in_layers``, until the next one is asked for after its layer is complete.
    """
    # On a CPU a third of a network's time may go into fetching memory anew for each window.
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
    left: dict[TileIndex, int] = {}  # windows to come over each unfinished tile
    buffer: Tensor | None = None
    importance = grid.importance(image.device)
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        for window, place in zip(windows, chunk, strict=False):
            window.copy_(padded[(slice(None), *place)])
        scores = network(windows[: len(chunk)])
        if (len(scores), *scores.shape[2:]) != (len(chunk), *grid.window):
            raise ValueError(
                f"the network made {tuple(scores.shape)} of {len(chunk)} windows of shape {grid.window}: expected "
                "scores of the same size, one channel a class"
            )
        scores = scores.float()
        if buffer is None:
            buffer = new(scores.shape[1] * layout.num_voxels, scores.device)
            importance = importance.to(scores.device)
        for index, place in enumerate(chunk):
            for tile, inside in layout.tiles(place):
                at: tuple[int | slice, ...] = (index, slice(None), *inside)
                part, weight = scores[at], importance[inside]
                # The view lasts no longer than the step: small things that live on would keep the C library's heap from
                # being used again.
                sums = buffer[len(part) * layout.offsets[tile] :][: part.numel()].view(part.shape)
                if tile in left:
                    sums.addcmul_(part, weight)
                else:  # the first window of a tile sets it, so nothing is filled with zeros
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
        del scores, part  # or they would still be held while the network makes the next ones


def _without_padding(grid: WindowGrid, place: Slices, sums: Tensor, weights: Callable[[], Tensor]) -> Tile | None:
    """Return what of a finished tile lies in the image; None where nothing does."""
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
    """One call of a network: the most that is held at a time without the weights, its output's channels and bytes."""

    num_bytes: int
    num_channels: int
    output_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """What predicting one case takes above what the process held before, in bytes.

    Attributes:
        preparing: While the case is read and preprocessed.
        image: The preprocessed case.
        network: One call of the network.
        output: The part of that which it returns.
        buffer: Unfinished scores.
        labels: The label map and what is made of it.
        all_scores: All classes at full size, where they are held: for probabilities, and where postprocessing takes
            them at once.
        on_demand: What ``all_scores`` would be if probabilities were asked for.
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
        """The most that is held at a time."""
        return max(self.preparing, self._predicting + self.buffer)

    @property
    def without_buffer(self) -> int:
        """The same with the unfinished scores on disk."""
        return max(self.preparing, self._predicting)

    @property
    def _predicting(self) -> int:
        return self.image + self.network + self.labels + self.all_scores

    def with_probabilities(self) -> MemoryEstimate:
        """Return what it takes to predict probabilities, too."""
        return replace(self, all_scores=self.on_demand)

    def with_members(self, count: int) -> MemoryEstimate:
        """Return what an ensemble takes whose members go through the image side by side."""
        return replace(self, buffer=count * self.buffer, network=self.network + (count - 1) * self.output)

    def or_more(self, other: MemoryEstimate) -> MemoryEstimate:
        """Return the larger of each of two cases' numbers."""
        mine, its = asdict(self), asdict(other)
        return MemoryEstimate(**{name: max(mine[name], its[name]) for name in mine})


def network_memory(network: nn.Module, input_shape: Sequence[int]) -> NetworkMemory | None:
    """Compute what one call takes, on PyTorch's meta device and without making it; None where that cannot be done."""
    try:
        copied = meta_copy(network)
        with torch.no_grad(), LiveBytes(besides=_held_by_onednn) as live:
            output = copied(torch.empty(*input_shape, device="meta"))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        scores = tensors[0]
        return NetworkMemory(num_bytes=live.most, num_channels=scores.shape[1], output_bytes=scores.nbytes)
    except Exception:  # any network may do what meta tensors cannot
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
    """Compute what predicting one case takes, whose file and whose preprocessed image have these spatial shapes.

    ``network`` is one call, for as many windows as are run at once; ``grid`` the windows, None where the image is run
    whole; ``is_resampled`` whether scores are brought to the file's grid by resampling; ``in_parts`` whether ids are
    made of parts of the scores: a postprocessing of the user's own takes all at once.
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
    """Return whether unfinished scores must go to disk to keep to so many bytes; raise if even then they do not fit."""
    if needed.total <= memory:
        return False
    if needed.without_buffer > memory:
        raise BadInputError(
            f"needs about {in_units(needed.without_buffer)} even with unfinished scores on disk, and "
            f"{in_units(memory)} may be used: allow more memory"
        )
    return True


def in_units(num_bytes: float) -> str:
    """Write a number of bytes for people: ``0.5 GB``, ``12 MB``, ``3 kB``."""
    if num_bytes >= 1e8:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.0f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} kB"


def _held_by_onednn(operation: object, arguments: Sequence[Any], results: Sequence[Tensor]) -> int:
    return _convolution_bytes(arguments[0], results[0]) if operation is torch.ops.aten.convolution.default else 0


def _convolution_bytes(image: Tensor, result: Tensor) -> int:
    """Return what oneDNN adds: copies of both sides with channels in blocks, the image's until the result is made."""
    before, after = (
        tensor[:, 0].numel() * -(-tensor.shape[1] // _CHANNEL_BLOCK) * _CHANNEL_BLOCK * _FLOAT
        for tensor in (image, result)
    )
    return max(before + after - result.nbytes, after)
