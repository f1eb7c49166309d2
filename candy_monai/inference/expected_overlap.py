"""The expected overlap of a label map with the truth, computed tile by tile from the predicted probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from candy_monai.inference.buffers import Tile
from candy_monai.transforms.painting import probabilities_of

_SCORES_AT_ONCE = 1 << 20


class ExpectedOverlap:
    """Accumulates the expected precision and recall of a label map, assuming that its probabilities are calibrated.

    Both are below 1 where the mean probabilities lie between 0 and 1: where a network is uncertain, or where mirror
    images or members of an ensemble disagree.

    Args:
        paints: The id of each channel if classes are overlapping regions, else empty.
        thresholds: The probability that each region, or a single foreground class, must exceed; empty for 0.5.
    """

    def __init__(self, paints: Sequence[int] = (), *, thresholds: Sequence[float] = ()) -> None:
        self._paints = tuple(paints)
        self._thresholds = tuple(thresholds) or (0.5,)
        self._parts: list[Tensor] = []

    def add(self, scores: Tensor, *, weights: Tensor | None = None, are_probabilities: bool = False) -> None:
        """Add the scores ``(K, *box)`` of a part of a case, not yet divided by weights ``(*box)``."""
        flat = scores.flatten(1)
        divisors = None if weights is None else weights.flatten()
        step = max(1, _SCORES_AT_ONCE // len(flat))
        for first in range(0, flat.shape[1], step):
            part = flat[:, first : first + step]
            if divisors is not None:
                part = part / divisors[first : first + step]
            self._add(probabilities_of(part, paints=self._paints, are_probabilities=are_probabilities))

    def watched(self, tiles: Iterable[Tile], *, are_probabilities: bool = False) -> Iterator[Tile]:
        """Yield the tiles and add each of them."""
        for tile in tiles:
            weights = None if tile.weights is None else tile.weights()
            self.add(tile.sums, weights=weights, are_probabilities=are_probabilities)
            yield tile

    @property
    def is_empty(self) -> bool:
        """Whether no voxel belongs to a class."""
        return not self._parts or not bool(self._totals[1].any())

    @property
    def precision(self) -> float:
        """The mean probability of the voxels of a class, 0 to 1, averaged over classes.

        A class absent from the label map has precision 0. It is weighted by its greatest probability, which is how
        likely a reference contains it.
        """
        return self._mean_ratio(1)

    @property
    def recall(self) -> float:
        """The share of a class's probability that lies in its voxels, 0 to 1, averaged over classes in the same way."""
        return self._mean_ratio(2)

    def _mean_ratio(self, row: int) -> float:
        if not self._parts:
            return 0.0
        totals = common, predicted, _, peaks = self._totals
        ratios = common / totals[row].clamp_min(torch.finfo(torch.float64).tiny)
        shares = torch.where(predicted > 0, 1.0, peaks)
        total = float(shares.sum())
        return float((shares * ratios).sum()) / total if total else 0.0

    def _add(self, probabilities: Tensor) -> None:
        """Add probabilities ``(K, voxels)``."""
        is_exclusive = len(probabilities) > 1 and not self._paints
        if is_exclusive:
            numbers = torch.arange(len(probabilities), device=probabilities.device)
            inside = numbers[:, None] == probabilities.argmax(0)
        else:
            thresholds = repeat(self._thresholds[0]) if len(self._thresholds) == 1 else self._thresholds
            inside = torch.stack([own > least for own, least in zip(probabilities, thresholds, strict=False)])
        foreground = slice(int(is_exclusive), None)
        sums = ((probabilities * inside).sum(1), inside.float().sum(1), probabilities.sum(1))
        # Added up at the end: copying each part to the CPU, for double precision, would wait for the device.
        self._parts.append(torch.stack([*sums, probabilities.amax(1)])[:, foreground])

    @property
    def _totals(self) -> tuple[Tensor, ...]:
        """For each class the probability in its voxels, their number, the probability everywhere and its maximum."""
        parts = torch.stack(self._parts).cpu().double()
        return *parts[:, :3].sum(0), parts[:, 3].amax(0)
