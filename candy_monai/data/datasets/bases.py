"""The base classes of datasets: case ids, folds and subsets, and the order in which transforms apply."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from candy_monai.aliases import Device
from candy_monai.data.datasets.folds import DEFAULT_SEED, Fold, Grouping, Strata, choose_folds, pick_fold
from candy_monai.data.images.names import stem_of
from candy_monai.data.sampling import SeededIndex
from candy_monai.data.values import repeated
from candy_monai.device import HasDevice
from candy_monai.errors import BadInputError, case_named, did_you_mean

if TYPE_CHECKING:
    from monai.data import MetaTensor

Item = TypeVar("Item", covariant=True)
Transform = Callable[[Any], Tensor]
"""Maps a tensor to a tensor."""


class PairTransform(Protocol):
    """Transforms an image and its label together, with the same random state."""

    def __call__(self, image: Any, label: Any) -> tuple[Tensor, Tensor]:
        """Return the transformed image and label."""


class CaseDataset(Dataset[Item], HasDevice, ABC, Generic[Item]):
    """Base class of datasets of cases with ids, divisible into folds and subsets.

    Args:
        case_ids: One id for each case.
        device: The device of the items.

    Raises:
        BadInputError: If an id occurs twice.
    """

    def __init__(self, case_ids: Sequence[str], *, device: Device = "cpu") -> None:
        super().__init__(device)
        if twice := repeated(case_ids):
            raise BadInputError(f"the case ids {twice} occur more than once; ids must be unique")
        self._case_ids = tuple(case_ids)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The ids of the cases, in the order of the items."""
        return self._case_ids

    def __len__(self) -> int:
        return len(self._case_ids)

    @abstractmethod
    def load(self, idx: int) -> Item:
        """Return a case without this dataset's transforms: an image ``(C, *spatial)``, or a pair with its label ids."""

    def subset(self, case_ids: Sequence[str]) -> Self:
        """Return a dataset of the same kind and options with these cases, in this order.

        Raises:
            BadInputError: If a case is not in this dataset.
        """
        position = {case_id: index for index, case_id in enumerate(self._case_ids)}
        if (missing := next((case_id for case_id in case_ids if case_id not in position), None)) is not None:
            raise BadInputError(f"there is no case {missing!r} in this dataset.{did_you_mean(missing, position)}")
        chosen = self._select([position[case_id] for case_id in case_ids])
        chosen._case_ids = tuple(case_ids)
        return chosen

    def fold(
        self,
        *,
        fold: int | Literal["all"] = 0,
        k: int | None = None,
        seed: int = DEFAULT_SEED,
        groups: Grouping | None = None,
        stratify_by: Strata | None = None,
    ) -> tuple[Self, Self]:
        """Divide the cases into training and validation datasets.

        Args:
            fold: The validation fold; ``"all"`` uses all cases for both training and validation, as in nnU-Net, so that
                the score measures how well the training data are fitted.
            k: Number of folds; ``None`` for 5, or the number of cases if that is less. A single case has no validation.
            seed: Seeds the shuffle; the default gives nnU-Net's own folds.
            groups: Keep cases together: a regular expression, a mapping, or a CSV file (``resolve_groups``).
            stratify_by: Balance a property of the cases over the folds.

        Returns:
            The training and the validation dataset.

        Raises:
            SettingsError: If ``k`` or ``fold`` is out of range or options contradict each other.
        """
        if fold == "all":
            return self.subset(self._case_ids), self.subset(self._case_ids)
        folds = choose_folds(self._case_ids, k=k, seed=seed, groups=groups, stratify_by=stratify_by)
        return self.sides(folds, fold)

    def sides(self, folds: Sequence[Fold], fold: int) -> tuple[Self, Self]:
        """Return the training and validation datasets of one of some folds, limited to cases in this dataset.

        Raises:
            SettingsError: If there is no such fold.
        """
        chosen, present = pick_fold(folds, fold), set(self._case_ids)
        train, validation = (
            self.subset([case_id for case_id in side if case_id in present])
            for side in (chosen.train, chosen.validation)
        )
        return train, validation

    @abstractmethod
    def _select(self, indices: Sequence[int]) -> Self:
        """Return a dataset of the same kind with these cases; the caller sets its ids."""


class UnsupervisedDataset(CaseDataset[Tensor]):
    """Images without labels. Subclasses define how to load one.

    Args:
        images: One entry for each case, as expected by ``load``.
        transform: Applied to each item.
        device: The device of the items.
        case_ids: One id for each case; ``None`` for the file's name without suffix, or its number.
    """

    def __init__(
        self,
        images: Sequence[Any],
        *,
        transform: Transform | None = None,
        device: Device = "cpu",
        case_ids: Sequence[str] | None = None,
    ) -> None:
        super().__init__(ids_of(images) if case_ids is None else case_ids, device=device)
        self._images = images
        self._transform = transform
        _same_length(len(images), len(self._case_ids), "images", "case ids")

    @override
    def __getitem__(self, idx: int) -> Tensor:
        case_id = self._case_ids[idx]
        with case_named(case_id):
            image = _with_case_id(self.load(idx), case_id)
            return image if self._transform is None else _with_case_id(self._transform(image), case_id)

    def construct_new(self, images: Sequence[Any]) -> Self:
        """Return a dataset with the same options and other images."""
        new = copy.copy(self)
        new._images, new._case_ids = images, ids_of(images)
        return new

    @override
    def _select(self, indices: Sequence[int]) -> Self:
        return self.construct_new([self._images[index] for index in indices])


class SupervisedDataset(CaseDataset[tuple[Tensor, Tensor]]):
    """Images with label maps. Subclasses define how to load them.

    Args:
        images: One entry for each case, as expected by ``load_image``.
        labels: One entry for each case, as expected by ``load_label``.
        transform: Applied to image and label together.
        device: The device of the items.
        case_ids: One id for each case; ``None`` for the image file's name without suffix, or its number.
    """

    def __init__(
        self,
        images: Sequence[Any],
        labels: Sequence[Any],
        *,
        transform: PairTransform | None = None,
        device: Device = "cpu",
        case_ids: Sequence[str] | None = None,
    ) -> None:
        super().__init__(ids_of(images) if case_ids is None else case_ids, device=device)
        _same_length(len(images), len(labels), "images", "labels")
        _same_length(len(images), len(self._case_ids), "images", "case ids")
        self._images = images
        self._labels = labels
        self._transform = transform

    @abstractmethod
    def load_image(self, idx: int) -> MetaTensor:
        """Return the image of a case, ``(C, *spatial)`` float32, without this dataset's transforms."""

    @abstractmethod
    def load_label(self, idx: int) -> MetaTensor:
        """Return the label ids of a case, ``(1, *spatial)`` int64, without this dataset's transforms."""

    @override
    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        """Return the image ``(C, *spatial)`` and the label ids ``(1, *spatial)`` of a case without transforms."""
        return self.load_image(idx), self.load_label(idx)

    @override
    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        case_id = self._case_ids[idx]
        seed_transform = getattr(self._transform, "set_random_state", None)
        with case_named(case_id):
            case = [_with_case_id(tensor, case_id) for tensor in self.load(idx)]
            if isinstance(idx, SeededIndex) and seed_transform is not None:
                seed_transform(idx.seed)
            image, label = self._transformed(*case)
        return _with_case_id(image, case_id), _with_case_id(label, case_id)

    @property
    def follows_position(self) -> bool:
        """Whether a sample depends only on its index, including the seed from a `SeededSampler`."""
        return self._transform is None or hasattr(self._transform, "set_random_state")

    def construct_new(self, images: Sequence[Any], labels: Sequence[Any]) -> Self:
        """Return a dataset with the same options and other cases, as for folds and subsets."""
        new = copy.copy(self)
        new._images, new._labels, new._case_ids = images, labels, ids_of(images)
        return new

    @override
    def _select(self, indices: Sequence[int]) -> Self:
        return self.construct_new(
            [self._images[index] for index in indices], [self._labels[index] for index in indices]
        )

    def _transformed(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return (image, label) if self._transform is None else self._transform(image, label)


def ids_of(entries: Sequence[Any]) -> tuple[str, ...]:
    """Return the ids of cases: a dataset's own, file names without suffix, or else numbers."""
    if isinstance(entries, CaseDataset):
        return entries.case_ids
    if len(entries) and all(isinstance(entry, str | os.PathLike) for entry in entries):
        return tuple(stem_of(entry) for entry in entries)
    return tuple(f"case_{index:04d}" for index in range(len(entries)))


def _with_case_id(tensor: Tensor, case_id: str) -> Tensor:
    """Return the tensor with the id in its metadata for ``collate_cases``; a plain tensor unchanged."""
    from monai.data import MetaTensor

    if isinstance(tensor, MetaTensor):
        tensor.meta["case_id"] = case_id
    return tensor


def _same_length(first: int, second: int, what: str, other: str) -> None:
    if first != second:
        raise BadInputError(f"there are {first} {what} and {second} {other}; expected one for each case")
