"""The loaders of a run: their lengths, their first sample, and the batches of an epoch from any position."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Generator, Iterator, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from monai.data import SmartCacheDataset
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from candy_monai.data.samples.batches import Batch, different_grids, unpack
from candy_monai.data.sampling import PositionedSampler, follows_position, shared_loader
from candy_monai.errors import WARNING, BadInputError, CandyError
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates


class Loaders(NamedTuple):
    """A training loader, and a validation loader or None."""

    training: DataLoader[Any]
    validation: DataLoader[Any] | None = None

    def check(self) -> None:
        """Raise if a loader yields nothing.

        Raises:
            BadInputError: If the training loader is empty, a validation loader is given and empty, or one is not a
                ``DataLoader``.
        """
        training, validation = self
        given: tuple[tuple[str, object], ...] = (("training", training), ("validation", validation))
        for what, loader in given:
            if loader is not None and not isinstance(loader, DataLoader):
                found = type(loader).__name__
                raise BadInputError(
                    f"the {what} loader is a {found}, expected a torch.utils.data.DataLoader: DataLoader(dataset, "
                    "batch_size=...) makes one from a dataset"
                )
        if length(training) == 0:
            raise BadInputError(
                f"the training loader yields no batch: its dataset has {length(training.dataset)} samples, batch_size "
                f"is {training.batch_size} and drop_last is {training.drop_last}"
            )
        if validation is not None and length(validation) == 0:
            raise BadInputError("the validation loader yields no case: give it cases, or pass None to train without")

    def shared(self, processes: Processes) -> Loaders:
        """Return the loaders of one process's share of the samples."""
        training, validation = self
        return Loaders(
            shared_loader(training, processes, evenly=True),
            None if validation is None else shared_loader(validation, processes, evenly=False),
        )


def length(sized: object) -> int | None:
    """Return ``len(sized)``, or None if it has no length, such as a loader over a stream."""
    try:
        return len(sized) if isinstance(sized, Sized) else None
    except TypeError:  # a DataLoader over an iterable dataset has __len__ but no length
        return None


def num_cases(loader: DataLoader[Any]) -> int | None:
    """Return the total number of samples that a loader yields, or None if it is not known."""
    if loader.batch_size is None:  # the user's own sampler or dataset chooses the batch size
        return None
    return length(loader.sampler) if length(loader) is not None else None


def batches(loader: DataLoader[Any], started: Iterator[object] | None = None) -> Iterator[object]:
    """Yield the loader's batches.

    Args:
        loader: The loader.
        started: The iterator that ``iter`` returned for it; None to start a new one.

    An error in a worker gets a note with its cause, which PyTorch puts at the end of the worker's traceback.

    Raises:
        BadInputError: If samples of different sizes cannot be stacked into a batch; the message says what to do.
    """
    with _failures_explained(loader):
        yield from loader if started is None else started


@contextmanager
def _failures_explained(loader: DataLoader[Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and "equal size" in str(error):
            what = next(line for line in str(error).splitlines() if "equal size" in line)  # MONAI appends hints
            raise BadInputError(
                f"the loader cannot stack samples of different sizes into a batch of {loader.batch_size} ({what}): "
                "bring them to one size with a transform, cut patches from them, or use batch_size=1"
            ) from error
        if in_worker := _said_in_worker(str(error)):
            if isinstance(error, CandyError):  # made for its message alone
                kind = type(error)
                raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]) from error
            error.add_note("\n".join(["In the worker:", *in_worker]))
        raise


def _said_in_worker(text: str) -> list[str]:
    """Return the exceptions in the message of an error from a worker, the cause first; none from elsewhere."""
    lines = text.splitlines()
    if len(lines) < 2 or not lines[1].startswith("Original Traceback"):
        return []
    others = (" ", "Traceback", "The above exception", "During handling")
    return [line for line in lines[2:] if line.strip() and not line.startswith(others)]


def first_sample(
    loader: DataLoader[Any], look: Callable[[object], None] = lambda _: None
) -> tuple[Tensor, Tensor, Iterator[object] | None]:
    """Return one training example as the loader would yield it: image ``(C, *spatial)``, label ``(1, *spatial)``.

    It is read as `first_case` reads a validation case, if it can be.

    Returns:
        Image and label; and, for a stream or a sampler that may not be restartable, its batches from the first one on,
        which are those of the first epoch of a new run.

    Raises:
        BadInputError: If the loader yields nothing, or its first samples cannot be stacked.
    """
    if (batch := first_case(loader, look)) is not None:
        return batch.images[0], batch.labels[0], None
    if isinstance(loader.dataset, IterableDataset):
        return _opened(loader, look)
    own = OwnGenerators.of(loader=loader)
    before = GeneratorStates.capture(own)
    opened = _opened(loader, look)
    before.restore(own)  # from which a resumed run replays the epoch that is begun
    return opened


def first_case(loader: DataLoader[Any], look: Callable[[object], None] = lambda _: None) -> Batch | None:
    """Return the first case of a loader as a batch of one, or None if it cannot be read without advancing the loader.

    If the dataset can be indexed, the case is read from it by an index of the sampler, since a loader would start its
    workers; and a second one, to find out whether samples can be stacked into a batch. The states of random generators
    and sampler are left unchanged.

    Args:
        loader: The loader.
        look: Called with the batch, as collated, with its metadata.

    Raises:
        BadInputError: If the loader's first samples cannot be stacked.
    """
    if isinstance(loader.dataset, IterableDataset) or length(loader) == 0:  # a process may have no share of the cases
        return None
    own = OwnGenerators.of(loader=loader)
    before = GeneratorStates.capture(own)
    try:
        images, labels, case_ids = _unpacked(_indexed(loader), look)
        return Batch(images[:1], labels[:1], case_ids[:1])
    except _CannotBeCopiedError:
        return None
    finally:
        before.restore(own)


class _CannotBeCopiedError(Exception):
    """A sampler contains something that can be read only once."""


def _unpacked(batch: object, look: Callable[[object], None]) -> Batch:
    unpacked = unpack(batch)
    look(batch)
    return unpacked


def _opened(loader: DataLoader[Any], look: Callable[[object], None]) -> tuple[Tensor, Tensor, Iterator[object]]:
    _set_epoch(loader, 0)
    following = batches(loader)
    for first in following:
        batch = _unpacked(first, look)
        return batch.images[0], batch.labels[0], itertools.chain([first], following)
    raise BadInputError("the training loader yields no batch: its stream is empty")


def _indexed(loader: DataLoader[Any]) -> object:
    """Return the first examples of an indexed dataset, two if the loader stacks several, collated as by the loader."""
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:  # the dataset returns batches
        return loader.collate_fn(dataset[_first_of(loader.sampler, dataset, 1)[0]])
    if loader.batch_size is None:
        indices = list(itertools.islice(_first_of(loader.batch_sampler, dataset, 1)[0], 2))
    else:
        indices = _first_of(loader.sampler, dataset, min(2, loader.batch_size))
    with _failures_explained(loader):
        if getattr(dataset, "__getitems__", None):
            return loader.collate_fn(dataset.__getitems__(indices))
        return loader.collate_fn([dataset[index] for index in indices])


def _first_of(sampler: Any, dataset: Any, count: int) -> list[Any]:
    """Return the first indices that a sampler yields, or any that it will yield, without advancing it."""
    if isinstance(sampler, PositionedSampler):
        return list(sampler.indices(0)[:count])
    if type(sampler) in (SequentialSampler, RandomSampler):
        return list(range(min(count, len(dataset))))
    try:  # a sampler may count its epochs or shuffle its own list; its reference to the dataset is not copied
        copied = copy.deepcopy(sampler, {id(dataset): dataset})
    except Exception as error:  # it may contain anything, such as a generator
        raise _CannotBeCopiedError from error
    if first := list(itertools.islice(copied, count)):
        return first
    raise BadInputError(f"a loader yields no batch: its {type(sampler).__name__} yields no index")


def batches_from(
    loader: DataLoader[Any], *, epoch: int, first: int, epoch_start: GeneratorStates | None, own: OwnGenerators
) -> Iterator[object]:
    """Yield the batches of an epoch, without those that were trained on before an interruption.

    A `PositionedSampler` starts at the given position. With any other sampler, the earlier batches are loaded again and
    skipped, from the states of the generators at the start of the epoch.

    Args:
        loader: The training loader.
        epoch: The epoch, counted from 0.
        first: Number of batches to skip.
        epoch_start: The generators at the epoch's start; required if ``first`` is not 0. The present states are
            restored before the first batch is yielded.
        own: The user's own generators.
    """
    _set_epoch(loader, epoch)
    if isinstance(loader.dataset, SmartCacheDataset):  # replaces some of its cases in each epoch, on request
        loader.dataset.start() if epoch == 0 else loader.dataset.update_cache()
    if not first or epoch_start is None:
        yield from batches(loader)
        return
    present = GeneratorStates.capture(own)
    epoch_start.restore(own)
    following: list[object] = []
    if isinstance(loader.sampler, PositionedSampler) and loader.batch_size is not None:
        loader.sampler.start_at(first * loader.batch_size)
        started = iter(loader)  # draws from the generators; its samples draw after the present states are restored
        if isinstance(started, Generator):  # MONAI's ThreadDataLoader starts at its first batch
            following = list(itertools.islice(started, 1))
        iterator = batches(loader, started)
    else:
        iterator = batches(loader)
        for _ in itertools.islice(iterator, first):
            pass
    present.restore(own)
    yield from following
    yield from iterator


class RunBatches:
    """The batches of a run, epoch by epoch, and the random generators that they depend on.

    Attributes:
        own: The user's own generators.
        epoch_start: The generators' states at the start of the epoch; None between two epochs.
        caveats: Log messages about the first training sample and the first validation case.
    """

    def __init__(self, loaders: Loaders) -> None:
        self._loader, self._validation = loaders
        self._stream: Iterator[object] | None = None
        self.own = OwnGenerators()
        self.epoch_start: GeneratorStates | None = None
        self.caveats: list[str] = []

    def first_sample(self) -> tuple[Tensor, Tensor]:
        """Return image and label of one training example, which remains part of the first epoch.

        Raises:
            BadInputError: If the loader yields nothing.
        """
        image, label, self._stream = first_sample(self._loader, partial(self._look, "training sample"))
        return image, label

    def first_case(self) -> Batch | None:
        """Return one validation case; None without validation, or if it cannot be read separately."""
        look = partial(self._look, "validation case")
        return None if self._validation is None else first_case(self._validation, look)

    def _look(self, what: str, batch: object) -> None:
        if difference := different_grids(batch):
            self.caveats.append(
                f"{WARNING}the label of the first {what} is not on the grid of its image: {difference}, or give each "
                "transform that moves voxels the keys of both"
            )

    def of_epoch(self, epoch: int, *, first: int) -> Iterator[object]:
        """Return the batches of an epoch, counted from 0, without the ``first`` ones, which were trained on already."""
        if not first:
            self.epoch_start = self.captured()
        stream, self._stream = self._stream, None
        if stream is not None:
            return stream
        return batches_from(self._loader, epoch=epoch, first=first, epoch_start=self.epoch_start, own=self.own)

    def captured(self) -> GeneratorStates:
        """Return the present states of all generators."""
        return GeneratorStates.capture(self.own)

    def resume(self, epoch_start: GeneratorStates | None) -> None:
        """Resume an epoch that started with these generator states; a stream opened for a new run is discarded."""
        self.epoch_start, self._stream = epoch_start, None

    def close(self) -> None:
        """Release the user's generators and stream."""
        self.own, self._stream = OwnGenerators(), None


def _set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    for part in (loader.sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def why_not_exact(loader: DataLoader[Any]) -> str | None:
    """Return why a resumed run could differ from an uninterrupted one with this loader; None if it will not."""
    if isinstance(loader.dataset, IterableDataset):
        return "the loader reads an IterableDataset, whose position is not known"
    if isinstance(loader.dataset, SmartCacheDataset):
        return "the cases that a SmartCacheDataset holds in an epoch depend on the epochs before"
    if isinstance(loader.sampler, PositionedSampler) and follows_position(loader.dataset):
        return None
    if loader.num_workers and loader.persistent_workers:
        return "the loader's workers are persistent, and their random generators cannot be saved"
    return None
