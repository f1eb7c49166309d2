"""The order of samples, and of the cases that they are cut from, as functions of seed, epoch and position.

With them a run gives the same samples for any number of workers, an interrupted one goes on where it was, and several
processes take shares of one order.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, Sampler
from typing_extensions import override

from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.processes import Processes

_ORDER_STREAM = 1  # keeps the order of cases apart from the samples' own numbers
_PHASE_STREAM = 2


class PositionedSampler(Sampler[int]):
    """A sampler that can be told the epoch, and where in it to start.

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

    def shared(self, rank: int, count: int) -> Self:
        """Return a sampler of every ``count``-th sample from ``rank`` on, as many as every other process takes."""
        share = copy.copy(self)
        share._rank, share._count = rank, count
        return share

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration names, from 0."""
        self._epoch = epoch

    def start_at(self, position: int) -> None:
        """Set that the next iteration, and only that, leaves out the samples before this position."""
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
    """An index that brings its sample's seed along, 0 to 2**32 - 1, to workers too."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> Self:
        """Return the index that a plain number means."""
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


def shared_loader(loader: DataLoader[Any], processes: Processes, *, evenly: bool) -> DataLoader[Any]:
    """Return a loader of this process's share of the samples; the very same loader for one process.

    Shares are disjoint: each process takes every n-th sample of the order that the first one's sampler gives.

    Args:
        loader: The loader of all samples; its batch size is that of one process.
        processes: The processes.
        evenly: Leave out the last few samples where not every process would get as many, for training; without, for
            validation, each sample is in some share.

    Raises:
        BadInputError: If the loader cannot be shared out, or there are fewer samples than processes.
    """
    if processes.world_size == 1:
        return loader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        raise BadInputError(
            "a loader over a stream, or with a batch sampler of its own, cannot be shared out among processes: pass a "
            "dataset with a length, batch_size and, if need be, sampler"
        )
    sampler = loader.sampler
    if evenly and isinstance(sampler, Sized) and len(sampler) < processes.world_size:
        raise BadInputError(
            f"{len(sampler)} training samples cannot be shared out among {processes.world_size} processes"
        )
    share: Sampler[int] = _Share(sampler, processes, evenly=evenly)
    if evenly and isinstance(sampler, PositionedSampler):
        share = sampler.shared(processes.rank, processes.world_size)
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=share,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _Share(Sampler[int]):
    """Every n-th index of another sampler's order, which the first process draws."""

    def __init__(self, whole: Any, processes: Processes, *, evenly: bool) -> None:
        self._whole = whole
        self._processes = processes
        self._evenly = evenly

    def __len__(self) -> int:
        count, total = self._processes.world_size, len(self._whole)
        return total // count if self._evenly else len(range(self._processes.rank, total, count))

    @override
    def __iter__(self) -> Iterator[int]:
        processes = self._processes
        order = processes.broadcast(list(self._whole) if processes.is_main else None)
        assert order is not None
        stop = len(order) // processes.world_size * processes.world_size if self._evenly else len(order)
        return iter(order[processes.rank : stop : processes.world_size])


def follows_position(dataset: object) -> bool:
    """Return whether a dataset's samples are functions of the index alone, the index's seed included."""
    return bool(getattr(dataset, "follows_position", False))


def at(index: int, like: int) -> int:
    """Return a plain index with the seed of another, where that has one."""
    return SeededIndex(index, like.seed) if isinstance(like, SeededIndex) else index


@dataclass(frozen=True, kw_only=True)
class PatchDraw:
    """What a sample's index stands for: the case that it is cut from, and whether around a labelled voxel."""

    case_id: str
    on_foreground: bool


class DrawOrder:
    """Cases in passes: each pass visits every case once, in an order of its own.

    A share of the visits is on foreground. It is spread evenly: it holds over any stretch of indices, and over the
    visits to each case that has foreground.

    Args:
        case_ids: The cases.
        has_foreground: For each of them, whether it can be centred on foreground.
        foreground_share: Share of visits on foreground, 0 to 1; cases with foreground make up for those without.
        seed: Seeds the orders.
    """

    def __init__(
        self, case_ids: Sequence[str], has_foreground: Sequence[bool], *, foreground_share: float, seed: int
    ) -> None:
        self._case_ids = tuple(case_ids)
        self._seed = seed
        labelled = np.array(has_foreground, dtype=bool)
        share = min(1.0, foreground_share * len(labelled) / max(1, labelled.sum()))
        self._shares = np.where(labelled, share, 0.0)
        self._phases = np.zeros(len(labelled))
        ranks = np.random.default_rng([seed, 0, _PHASE_STREAM]).permutation(int(labelled.sum()))
        self._phases[labelled] = ranks / max(1, len(ranks))
        self._pass: tuple[int, NDArray[np.int64], NDArray[np.bool_]] | None = None

    def draw(self, index: int) -> PatchDraw:
        """Return which case a sample comes from and how.

        Raises:
            IndexError: If the index is negative; there is no largest one.
        """
        if index < 0:
            raise IndexError(f"a sample's index is 0 or more, got {index}")
        number, position = divmod(index, len(self._case_ids))
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, *self._ordered(number))
        _, order, on_foreground = self._pass
        return PatchDraw(case_id=self._case_ids[order[position]], on_foreground=bool(on_foreground[position]))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what a worker can compute again."""
        return self.__dict__ | {"_pass": None}

    def _ordered(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return a pass: its cases in order, and which of them are centred on foreground."""
        rng = np.random.default_rng([self._seed, number, _ORDER_STREAM])
        # A case's turn comes whenever its own running share passes a whole number; phases differ from case to case.
        turns = np.floor((number + 1) * self._shares + self._phases) > np.floor(number * self._shares + self._phases)
        count, positions = int(turns.sum()), np.arange(len(turns))
        offset = rng.random()
        chosen = np.floor((positions + 1) * count / len(turns) + offset) > np.floor(
            positions * count / len(turns) + offset
        )
        order = np.empty(len(turns), dtype=np.int64)
        order[chosen] = rng.permutation(np.flatnonzero(turns))
        order[~chosen] = rng.permutation(np.flatnonzero(~turns))
        return order, chosen
