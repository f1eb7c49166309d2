"""The order of samples, and of their cases, as functions of seed, epoch and position.

Thus a run yields the same samples for any number of workers, a resumed run continues at its position, and several
processes share one order.
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

_ORDER_STREAM = 1  # separates the order of cases from the samples' own random numbers
_PHASE_STREAM = 2


class PositionedSampler(Sampler[int]):
    """Base class of samplers with an epoch and a start position.

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
        """Return a sampler of every ``count``-th sample from ``rank`` on; each process gets the same number."""
        share = copy.copy(self)
        share._rank, share._count = rank, count
        return share

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, from 0."""
        self._epoch = epoch

    def start_at(self, position: int) -> None:
        """Skip the samples before this position in the next iteration only."""
        self._start = position

    def __len__(self) -> int:
        """Return the number of samples in a whole epoch, for this process."""
        return self._num_samples // self._count

    @override
    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        stop = len(self) * self._count
        return iter(self.indices(self._epoch)[self._rank : stop : self._count][start:])

    @abstractmethod
    def indices(self, epoch: int) -> Sequence[int]:
        """Return the indices of an epoch's samples in order, for all processes."""


class SeededIndex(int):
    """An index that also carries its sample's seed, 0 to 2**32 - 1, into workers."""

    seed: int

    def __new__(cls, index: int, seed: int = 0) -> Self:
        """Return the index for a plain number."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made


class SeededSampler(PositionedSampler):
    """Shuffles a dataset in every epoch and seeds each sample's transforms.

    For our datasets with MONAI's random transforms in a `JointTransform`:
    ``DataLoader(dataset, batch_size=2, sampler=SeededSampler(dataset, seed=0))``. The samples are then the same for any
    number of workers, and a resumed run repeats them exactly.

    Args:
        dataset: The dataset to sample from.
        seed: Determines the orders and every sample's seed.
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
    """Return a loader of this process's share of the samples; the loader itself for one process.

    Shares are disjoint: each process takes every n-th sample in the order of the first process's sampler. Batches have
    the size of the loader's. With ``evenly``, for training, the last few samples are left out so that all shares have
    the same number; else, as for validation, each sample is in some share.

    Raises:
        BadInputError: If the loader cannot be shared, or there are fewer samples than processes.
    """
    if processes.world_size == 1:
        return loader
    if isinstance(loader.dataset, IterableDataset) or loader.batch_size is None:
        raise BadInputError(
            "a loader over an IterableDataset, or with a batch_sampler, cannot be split among processes: pass a "
            "map-style dataset, batch_size and, if needed, sampler"
        )
    sampler = loader.sampler
    if evenly and isinstance(sampler, Sized) and len(sampler) < processes.world_size:
        raise BadInputError(f"{len(sampler)} training samples cannot be split among {processes.world_size} processes")
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
    """Every n-th index of another sampler's order, which the first process determines."""

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
    """Return whether a dataset's samples are functions of the index alone, including its seed."""
    return bool(getattr(dataset, "follows_position", False))


def at(index: int, like: int) -> int:
    """Return a plain index with the seed of another one, if that has a seed."""
    return SeededIndex(index, like.seed) if isinstance(like, SeededIndex) else index


@dataclass(frozen=True, kw_only=True)
class PatchDraw:
    """The meaning of a sample's index: its case, and whether it is centred on a labelled voxel."""

    case_id: str
    on_foreground: bool


class DrawOrder:
    """The order of cases: each pass visits every case once, in a new order.

    A share of the visits is on foreground. It is spread evenly: it holds for any range of indices, and for the visits
    to each case with foreground.

    Args:
        case_ids: The cases.
        has_foreground: For each case, whether it has foreground.
        foreground_share: Share of visits on foreground, 0 to 1; cases with foreground compensate for those without.
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
        """Return the case of a sample, and whether it is centred on foreground.

        Raises:
            IndexError: If the index is negative; there is no upper limit.
        """
        if index < 0:
            raise IndexError(f"a sample's index is 0 or more, got {index}")
        number, position = divmod(index, len(self._case_ids))
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, *self._ordered(number))
        _, order, on_foreground = self._pass
        return PatchDraw(case_id=self._case_ids[order[position]], on_foreground=bool(on_foreground[position]))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what a worker can recompute."""
        return self.__dict__ | {"_pass": None}

    def _ordered(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return a pass: its cases in order, and which of them are centred on foreground."""
        rng = np.random.default_rng([self._seed, number, _ORDER_STREAM])
        # A case is chosen whenever its cumulative share reaches a whole number; the phases differ between cases.
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
