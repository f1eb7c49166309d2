"""The Dice of a label map with the probabilities that it is made of, summed up tile by tile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from candy_monai.inference.buffers import Tile
from candy_monai.transforms.painting import probabilities_of

_SCORES_AT_ONCE = 1 << 20


class ExpectedOverlap:
    """Sums up how far the probabilities of a case support the label map made of them.

    Where a network is unsure, or mirror images or members of an ensemble disagree, the mean probabilities lie between
    0 and 1, and their Dice with the label map is below 1. It is the Dice to be expected if the probabilities are right.

    Args:
        paints: The id that each channel paints where classes are overlapping regions; empty where they are not.
    """

    def __init__(self, paints: Sequence[int] = ()) -> None:
        self._paints = tuple(paints)
        self._sums: Tensor | None = None
        self._peaks: Tensor | None = None

    def add(self, scores: Tensor, *, weights: Tensor | None = None, are_probabilities: bool = False) -> None:
        """Add a part of a case.

        Args:
            scores: ``(K, *box)``, which stay as they are.
            weights: ``(*box)`` positive, by which the scores are still to be divided.
            are_probabilities: Whether the scores are probabilities instead of logits.
        """
        flat = scores.flatten(1)
        divisors = None if weights is None else weights.flatten()
        step = max(1, _SCORES_AT_ONCE // len(flat))
        for first in range(0, flat.shape[1], step):
            part = flat[:, first : first + step]
            if divisors is not None:
                part = part / divisors[first : first + step]
            self._add(probabilities_of(part, paints=self._paints, are_probabilities=are_probabilities))

    def watched(self, tiles: Iterable[Tile], *, are_probabilities: bool = False) -> Iterator[Tile]:
        """Yield tiles as they come, and add each of them."""
        for tile in tiles:
            weights = None if tile.weights is None else tile.weights()
            self.add(tile.sums, weights=weights, are_probabilities=are_probabilities)
            yield tile

    @property
    def is_empty(self) -> bool:
        """Whether no voxel is of a class."""
        return self._sums is None or not bool(self._sums[1].any())

    def dice(self) -> float:
        """Return the mean expected Dice, 0 to 1, over the classes that the label map holds.

        A class that it does not hold has the Dice 0 and counts by its greatest probability, which is how likely a
        reference holds it.
        """
        if self._sums is None or self._peaks is None:
            return 0.0
        common, predicted, expected = self._sums
        dice = 2 * common / (predicted + expected).clamp_min(torch.finfo(torch.float64).tiny)
        shares = torch.where(predicted > 0, 1.0, self._peaks.double())
        total = float(shares.sum())
        return float((shares * dice).sum()) / total if total else 0.0

    def _add(self, probabilities: Tensor) -> None:
        """Add probabilities ``(K, voxels)``."""
        is_exclusive = len(probabilities) > 1 and not self._paints
        if is_exclusive:
            numbers = torch.arange(len(probabilities), device=probabilities.device)
            inside = numbers[:, None] == probabilities.argmax(0)
        else:
            inside = probabilities > 0.5
        foreground = slice(int(is_exclusive), None)
        sums = torch.stack([(probabilities * inside).sum(1), inside.float().sum(1), probabilities.sum(1)])
        sums = sums[:, foreground].cpu().double()  # not every device has double precision
        peaks = probabilities.amax(1)[foreground].cpu()
        self._sums = sums if self._sums is None else self._sums + sums
        self._peaks = peaks if self._peaks is None else torch.maximum(self._peaks, peaks)
