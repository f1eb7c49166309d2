"""A loader's samples shared out among the processes of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, Sampler
from typing_extensions import override

from candy_monai.data.sampling import PositionedSampler
from candy_monai.errors import BadInputError
from candy_monai.processes import Processes


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
