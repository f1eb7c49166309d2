"""Run a network window by window and give back finished parts of the blended whole. Keeps only what is unfinished.

The windows are made of cells (`candy_monai.inference.cells`), which are handed over as soon as no further window covers
them: memory holds those of about one window's thickness across the image, and never the image. The first window of a
cell sets it, so nothing is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from candy_monai.allocation import freed_memory_kept
from candy_monai.inference.cells import CellIndex, CellLayout
from candy_monai.inference.windows import Slices, WindowGrid

Network = Callable[..., Tensor]
"""From windows ``(B, C, *window)`` to scores ``(B, K, *window)``."""

RoomFactory = Callable[[int, torch.device], Tensor]
"""Makes room for so many unfinished scores: float32, one axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Brick:
    """A box of an image whose scores are final.

    Attributes:
        place: Where it lies in the image, one slice a spatial axis.
        sums: ``(K, *box)`` float32: the scores, each times the weight of its voxel. Their order and their signs are
            those of the scores. May be changed, and is valid until the next brick is asked for (`blended_bricks` says
            how long else): its memory is used again.
        weights: Returns the voxels' weights ``(*box)``, all positive; None where all are 1. They are worked out only
            when asked for, since neither an argmax nor a sign needs them.
    """

    place: Slices
    sums: Tensor
    weights: Callable[[], Tensor] | None = None

    def scores(self) -> Tensor:
        """Divide ``sums`` by the weights, in place, and return them."""
        return self.sums if self.weights is None else self.sums.div_(self.weights())


def room_in_memory(count: int, device: torch.device) -> Tensor:
    """Make room for unfinished scores in the device's memory."""
    return torch.empty(count, device=device)


@torch.no_grad()
def blended_bricks(
    image: Tensor,
    network: Network,
    grid: WindowGrid,
    *,
    batch_size: int,
    new_room: RoomFactory = room_in_memory,
    in_layers: bool = False,
) -> Iterator[Brick]:
    """Run a network over all windows of one image and yield each part of the result as soon as it is final.

    Args:
        image: ``(C, *grid.size)``.
        network: Scores at the windows' own resolution.
        grid: The windows.
        batch_size: Windows in one call of the network.
        new_room: Makes room for unfinished scores, all of them at once.
        in_layers: Whether the bricks are wanted layer by layer; see `CellLayout`.

    Yields:
        Bricks that fill the image once, without any overlap. The scores of each are valid until the next one is asked
        for; with ``in_layers``, until the next one is asked for after its layer is complete.

    Raises:
        ValueError: If the network returns another resolution.
    """
    # On a CPU a third of a network's time may go into fetching memory anew for each window.
    with freed_memory_kept() if image.device.type == "cpu" else nullcontext():
        yield from _blended(image, network, grid, CellLayout(grid, in_layers=in_layers), batch_size, new_room)


def _blended(
    image: Tensor, network: Network, grid: WindowGrid, layout: CellLayout, batch_size: int, new_room: RoomFactory
) -> Iterator[Brick]:
    padded = grid.padded(image[None])[0]
    order = layout.order
    windows = padded.new_empty((min(batch_size, len(order)), len(padded), *grid.window))
    unfinished: dict[CellIndex, int] = {}  # by how many windows still cover each
    block: Tensor | None = None
    importance = grid.importance(image.device)
    for first in range(0, len(order), batch_size):
        chunk = order[first : first + batch_size]
        for window, place in zip(windows, chunk, strict=False):
            window.copy_(padded[(slice(None), *place)])
        scores = _checked(network(windows[: len(chunk)]), grid, len(chunk))
        if block is None:
            block = new_room(scores.shape[1] * layout.num_voxels, scores.device)
            importance = importance.to(scores.device)
        for index, place in enumerate(chunk):
            for cell, inside in layout.cells(place):
                at: tuple[int | slice, ...] = (index, slice(None), *inside)
                part, weight = scores[at], importance[inside]
                # The view lasts no longer than the step: small things that live on would keep the C library's heap from
                # being used again.
                sums = block[len(part) * layout.offset(cell) :][: part.numel()].view(part.shape)
                left = unfinished.pop(cell, None)
                if left is None:
                    torch.mul(part, weight, out=sums)
                    left = layout.num_windows(cell)
                else:
                    sums.addcmul_(part, weight)
                if left > 1:
                    unfinished[cell] = left - 1
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
