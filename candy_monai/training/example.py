"""One training example before the first step, read without taking from the run what its loader is yet to yield."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from candy_monai.data.samples.batches import unpack
from candy_monai.data.sampling import PositionedSampler
from candy_monai.errors import BadInputError
from candy_monai.own_generators import OwnGenerators
from candy_monai.seeding import GeneratorStates
from candy_monai.training.setup import batches


class OpenedStream:
    """A loader whose first batch was read: yields it again, and the rest of the pass over the data that it belongs to.

    Args:
        loader: The loader.

    Raises:
        BadInputError: If it yields nothing.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._following = batches(loader)
        try:
            self.first_batch = next(self._following)
        except StopIteration:
            raise BadInputError("the training loader yields no batch: its stream is empty") from None

    def __iter__(self) -> Iterator[object]:
        """Yield all batches, once."""
        yield self.first_batch
        yield from self._following


def first_sample(loader: DataLoader[Any]) -> tuple[Tensor, Tensor, OpenedStream | None]:
    """Return one training example as the loader would yield it: image ``(C, *spatial)``, label ``(1, *spatial)``.

    It is read from the dataset where that can be indexed, since a loader would start its workers for it, by an index
    that the sampler names. Random generators, and the sampler, are then as they were before.

    Args:
        loader: The training loader.

    Returns:
        Image and label; and, for a stream or a sampler that may not begin again, what yields its batches from the first
        one on. That is for the first epoch of a new run.

    Raises:
        BadInputError: If the loader yields nothing.
    """
    if isinstance(loader.dataset, IterableDataset):
        return _opened(loader)
    own = OwnGenerators.of(loader=loader)
    before = GeneratorStates.capture(own)
    try:
        batch = unpack(_indexed(loader))
    except _CannotBeCopiedError:
        return _opened(loader)
    finally:
        before.restore(own)
    return batch.images[0], batch.labels[0], None


class _CannotBeCopiedError(Exception):
    """A sampler holds what can be read only once."""


def _opened(loader: DataLoader[Any]) -> tuple[Tensor, Tensor, OpenedStream]:
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(0)
    opened = OpenedStream(loader)
    batch = unpack(opened.first_batch)
    return batch.images[0], batch.labels[0], opened


def _indexed(loader: DataLoader[Any]) -> object:
    """Return the first example of a dataset with indices in a batch of its own, collated as the loader does."""
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:  # the dataset makes the batches
        return loader.collate_fn(dataset[_first_of(loader.sampler, dataset)])
    if loader.batch_size is None:
        index = next(iter(_first_of(loader.batch_sampler, dataset)))
    else:
        index = _first_of(loader.sampler, dataset)
    if getattr(dataset, "__getitems__", None):
        return loader.collate_fn(dataset.__getitems__([index]))
    return loader.collate_fn([dataset[index]])


def _first_of(sampler: Any, dataset: object) -> Any:
    """Return the first index that a sampler yields, or one of those that it will, without moving it on."""
    if isinstance(sampler, PositionedSampler):
        return sampler.indices(0)[0]
    if type(sampler) in (SequentialSampler, RandomSampler):
        return 0
    for first in _copy_of(sampler, dataset):
        return first
    raise BadInputError(f"the training loader yields no batch: its {type(sampler).__name__} yields no index")


def _copy_of(sampler: Any, dataset: object) -> Any:
    """Copy a sampler, which may count its epochs or shuffle its own list, but not the dataset that it knows."""
    try:
        return copy.deepcopy(sampler, {id(dataset): dataset})
    except Exception as error:  # it may hold anything, a generator among it
        raise _CannotBeCopiedError from error
