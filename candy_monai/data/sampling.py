"""Samplers whose order, and whose samples' randomness, are functions of seed, epoch and position. Reads no data.

With them a run gives the same samples for any number of workers, and an interrupted one goes on where it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from typing import Self

import numpy as np
from torch.utils.data import Sampler
from typing_extensions import override

from candy_monai.errors import BadInputError


class PositionedSampler(Sampler[int]):
    """A sampler that can be told the epoch, and where in it to start.

    Args:
        num_samples: Samples in an epoch.

    Raises:
        BadInputError: If an epoch would be empty.
    """

    def __init__(self, num_samples: int) -> None:
        if num_samples < 1:
            raise BadInputError(f"an epoch needs at least one sample, got {num_samples}")
        self._num_samples = num_samples
        self._epoch = 0
        self._start = 0
        self._rank, self._count = 0, 1

    def share(self, rank: int, count: int) -> None:
        """Take only every ``count``-th sample from ``rank`` on, as many as every other process takes."""
        self._rank, self._count = rank, count

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration names, from 0."""
        self._epoch = epoch

    def start_at(self, position: int) -> None:
        """Let the next iteration, and only that, leave out the samples before this position."""
        self._start = position

    def __len__(self) -> int:
        """Return the samples of a whole epoch, of this process's share."""
        return self._num_samples // self._count

    @override
    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        stop = len(self) * self._count
        return iter(self.indices(self._epoch)[self._rank : stop : self._count][start:])

    @abstractmethod
    def indices(self, epoch: int) -> Sequence[int]:
        """Return the indices of an epoch's samples in order, those of all processes."""


class SeededIndex(int):
    """An index that brings its sample's seed along, to workers too.

    Attributes:
        seed: 0 to 2**32 - 1.
    """

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> Self:
        """Make an index of a plain number."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made


class SeededSampler(PositionedSampler):
    """Shuffles a dataset anew for every epoch and seeds each sample's transforms.

    For our datasets with MONAI's random transforms in a `JointTransform`:
    ``DataLoader(dataset, batch_size=2, sampler=SeededSampler(dataset, seed=0))``. The samples are then the same for any
    number of workers, and a resumed run repeats them exactly.

    Args:
        dataset: What to sample from.
        seed: Decides the orders and every sample's seed.
        shuffle: False to keep the dataset's order.
    """

    def __init__(self, dataset: Sized, *, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(len(dataset))
        self._seed = seed
        self._shuffle = shuffle

    @override
    def indices(self, epoch: int) -> Sequence[int]:
        generator = np.random.default_rng([self._seed, epoch])
        count = self._num_samples
        order = generator.permutation(count) if self._shuffle else np.arange(count)
        seeds = generator.integers(1 << 32, size=count)
        return [SeededIndex(int(index), int(seed)) for index, seed in zip(order, seeds, strict=True)]


def follows_position(dataset: object) -> bool:
    """Say whether a dataset's samples are functions of the index alone, the index's seed included."""
    return bool(getattr(dataset, "follows_position", False))


def at(index: int, like: int) -> int:
    """Return a plain index with the seed of another, where that has one."""
    return SeededIndex(index, like.seed) if isinstance(like, SeededIndex) else index
