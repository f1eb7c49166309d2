"""Go on within an epoch: the loader's batches from where an interrupted run was. Loads nothing itself."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from monai.data import SmartCacheDataset
from torch.utils.data import DataLoader, IterableDataset

from candy_monai.data.sampling import PositionedSampler, follows_position
from candy_monai.own_generators import OwnGenerators
from candy_monai.seeding import GeneratorStates
from candy_monai.training.setup import batches


def batches_from(
    loader: DataLoader[Any], *, epoch: int, first: int, epoch_start: GeneratorStates | None, own: OwnGenerators
) -> Iterator[object]:
    """Yield an epoch's batches, leaving out those that were trained on before an interruption.

    A sampler of ours is told where to start. With any other, the batches before are loaded again and passed over, from
    the generators' states that the epoch began with.

    Args:
        loader: The training loader.
        epoch: The epoch, counted from 0.
        first: Batches to leave out.
        epoch_start: The generators at the epoch's start; needed where ``first`` is not 0. The present states are put
            back before the first batch is yielded.
        own: The user's own generators.
    """
    sampler: object = loader.sampler
    for part in (sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
    if isinstance(loader.dataset, SmartCacheDataset):  # its cases change from epoch to epoch when it is told to
        loader.dataset.start() if epoch == 0 else loader.dataset.update_cache()
    iterator = batches(loader)
    if not first or epoch_start is None:
        yield from iterator
        return
    present = GeneratorStates.capture(own)
    epoch_start.restore(own)
    if isinstance(sampler, PositionedSampler) and loader.batch_size is not None:
        sampler.start_at(first * loader.batch_size)
        following = list(itertools.islice(iterator, 1))  # the loader draws from the generators when it starts
    else:
        following = []
        for _ in itertools.islice(iterator, first):
            pass
    present.restore(own)
    yield from following
    yield from iterator


def why_not_exact(loader: DataLoader[Any]) -> str | None:
    """Say why a resumed run could differ from an uninterrupted one with this loader; None where it will not."""
    if isinstance(loader.dataset, IterableDataset):
        return "the loader reads a stream, whose position is not known"
    if isinstance(loader.dataset, SmartCacheDataset):
        return "the cases that a SmartCacheDataset holds in an epoch depend on the epochs before"
    if isinstance(loader.sampler, PositionedSampler) and follows_position(loader.dataset):
        return None
    if loader.num_workers and loader.persistent_workers:
        return "the loader's workers live on between epochs, and their generators cannot be saved"
    return None


def stop_replacing(loader: DataLoader[Any]) -> None:
    """End the thread by which a ``SmartCacheDataset`` of MONAI's loads its next cases."""
    if isinstance(loader.dataset, SmartCacheDataset):
        loader.dataset.shutdown()
