"""Datasets of files, of tensors in memory, and wrappers that combine or relabel other datasets.

Given tensors are never changed; a wrapper uses the wrapped dataset's items, so its transforms apply.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from monai.data import MetaTensor
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Device, PathLike
from candy_monai.data.datasets.bases import PairTransform, SupervisedDataset, Transform, UnsupervisedDataset, ids_of
from candy_monai.data.images.alignment import HAS_NO_GRID
from candy_monai.data.images.formats import CODECS, KNOWN
from candy_monai.data.images.names import composed, image_suffix, stem_of
from candy_monai.data.images.reading import load_image
from candy_monai.data.sampling import at
from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError, DatasetError
from candy_monai.label_ids import holds_whole_numbers


class _LabelledFiles(SupervisedDataset):
    @override
    def load_image(self, idx: int) -> MetaTensor:
        return load_image(self._images[idx], device=self._device)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return load_image(self._labels[idx], is_label=True, device=self._device)


class SimpleDataset(UnsupervisedDataset):
    """Image files; with ``labels``, calling the class returns a ``SupervisedDataset`` of pairs instead.

    Args:
        images: A folder, or the files.
        labels: A folder with files of the same names as the images (suffixes may differ), or the files, one for each
            image in the same order. ``None`` for images alone.
        is_label: For images alone: the files contain label ids and items are int64.
        transform: For images alone it takes an image, for pairs an image and a label.
        device: The device of the items.

    Raises:
        DatasetError: If the names in the two folders do not match; lists all of them.
    """

    def __new__(cls, images: PathLike | Sequence[PathLike] = (), labels: Any = None, **options: Any) -> Any:
        """Return a dataset of images or of pairs; arguments have defaults since copying passes none."""
        if labels is None:
            return super().__new__(cls)
        image_files, label_files = _files(images), _files(labels)
        if isinstance(labels, str | os.PathLike):
            label_files = _paired(image_files, label_files, images)
        return _LabelledFiles(image_files, label_files, **options)

    def __init__(
        self,
        images: PathLike | Sequence[PathLike],
        labels: None = None,
        *,
        is_label: bool = False,
        transform: Transform | None = None,
        device: Device = "cpu",
    ) -> None:
        super().__init__(_files(images), transform=transform, device=device)
        self._is_label = is_label

    @override
    def load(self, idx: int) -> MetaTensor:
        return load_image(self._images[idx], is_label=self._is_label, device=self._device)


class _LabelledTensors(SupervisedDataset):
    @override
    def load_image(self, idx: int) -> MetaTensor:
        return _copied(self._images[idx], self._device)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return _label(self._labels[idx], self._images[idx].ndim, self._device)


class DatasetFromMemory(UnsupervisedDataset):
    """Tensors; with ``labels``, calling the class returns a ``SupervisedDataset`` of pairs instead.

    Items are copies, so that transforms never change the given tensors.

    Args:
        images: ``(C, *spatial)`` each, of any type; items are float32.
        labels: ``(1, *spatial)`` or ``(*spatial)`` each, whole numbers; items are ``(1, *spatial)`` int64.
        transform: For images alone it takes an image, for pairs an image and a label.
        device: The device of the items.
        case_ids: One id for each case; ``None`` numbers them.
    """

    def __new__(cls, images: Sequence[Tensor] = (), labels: Sequence[Tensor] | None = None, **options: Any) -> Any:
        """Return a dataset of images or of pairs; arguments have defaults since copying passes none."""
        return super().__new__(cls) if labels is None else _LabelledTensors(images, labels, **options)

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: None = None,
        *,
        transform: Transform | None = None,
        device: Device = "cpu",
        case_ids: Sequence[str] | None = None,
    ) -> None:
        super().__init__(images, transform=transform, device=device, case_ids=case_ids)

    @override
    def load(self, idx: int) -> MetaTensor:
        return _copied(self._images[idx], self._device)


class MergedDataset(SupervisedDataset):
    """Combines a dataset of images with a dataset of their labels, paired by case id.

    Each dataset applies its own transforms separately; a random transform for both must be given as ``transform``.

    Args:
        images: The dataset of the images.
        labels: The dataset of the labels, ``(1, *spatial)``, whole numbers.
        transform: Applied to image and label together, after their own.
        device: The device of the items.

    Raises:
        DatasetError: If the case ids differ.
    """

    def __init__(
        self,
        images: UnsupervisedDataset,
        labels: UnsupervisedDataset,
        *,
        transform: PairTransform | None = None,
        device: Device = "cpu",
    ) -> None:
        check_same_ids(images.case_ids, labels.case_ids, "the datasets to merge")
        paired = labels.subset(images.case_ids)
        super().__init__(images, paired, transform=transform, device=device)  # type: ignore[arg-type]  # map-style

    @override
    def load_image(self, idx: int) -> MetaTensor:
        return _copied(self._images[idx], self._device)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return _label(self._labels[idx], None, self._device)

    @override
    def _select(self, indices: Sequence[int]) -> Self:
        case_ids = [self._case_ids[index] for index in indices]
        return self.construct_new(self._images.subset(case_ids), self._labels.subset(case_ids))  # type: ignore[attr-defined]


class _Wrapper(SupervisedDataset):
    """Base class for items made from other datasets' items; loading an image or label alone loads both."""

    @override
    def load_image(self, idx: int) -> MetaTensor:
        return self.load(idx)[0]

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return self.load(idx)[1]


class ComposeDataset(_Wrapper):
    """The concatenation of several datasets. Each applies its own transforms.

    Args:
        bases: The datasets. If two share a case id, all ids are prefixed with the dataset's number: ``1:case``.
    """

    def __init__(self, bases: Sequence[SupervisedDataset]) -> None:
        if not bases:
            raise BadInputError("found no dataset to compose, expected one or more")
        members = [(base, idx) for base in bases for idx in range(len(base))]
        case_ids = [case_id for base in bases for case_id in base.case_ids]
        if max(Counter(case_ids).values(), default=1) > 1:
            case_ids = [f"{number}:{case_id}" for number, base in enumerate(bases) for case_id in base.case_ids]
        super().__init__(members, members, case_ids=case_ids, device=bases[0].device())

    @override
    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        base, index = self._images[idx]
        return base[at(index, idx)]  # type: ignore[no-any-return]

    @property
    @override
    def follows_position(self) -> bool:
        return all(base.follows_position for base, _ in self._images)


class DerivedDataset(_Wrapper):
    """Base class for items made from those of another dataset, whose transforms apply first and whose folds are used.

    ``transform`` is applied to image and label together, after the subclass.
    """

    def __init__(self, base: SupervisedDataset, *, transform: PairTransform | None = None) -> None:
        if not isinstance(base, SupervisedDataset):
            raise BadInputError(
                f"expected a dataset of images with labels as the first argument, got a {type(base).__name__}"
            )
        ids = base.case_ids
        super().__init__(ids, ids, case_ids=ids, transform=transform, device=base.device())
        self._base = base

    @property
    @override
    def follows_position(self) -> bool:
        return super().follows_position and self._base.follows_position

    @override
    def construct_new(self, images: Sequence[Any], labels: Sequence[Any]) -> Self:
        return self._around(self._base.construct_new(images, labels))

    @override
    def _select(self, indices: Sequence[int]) -> Self:
        return self._around(self._base.subset([self._case_ids[index] for index in indices]))

    def _around(self, base: SupervisedDataset) -> Self:
        new = copy.copy(self)
        new._base, new._images, new._labels, new._case_ids = base, base.case_ids, base.case_ids, base.case_ids
        return new


class BinarizedDataset(DerivedDataset):
    """A dataset with binary labels: whether a voxel belongs to the classes of interest.

    An ignore label counts as background unless it is listed.

    Args:
        base: The dataset to relabel; its transforms apply first, and its tensors are not changed.
        positive_ids: The label ids that become 1; every other id becomes 0.
    """

    def __init__(self, base: SupervisedDataset, positive_ids: Sequence[int]) -> None:
        if not positive_ids:
            raise BadInputError("found no positive ids, expected one or more label ids that become 1")
        super().__init__(base)
        self._positive_ids = tuple(positive_ids)

    @override
    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        image, label = self._base[idx]
        positive = torch.isin(plain_tensor(label), torch.tensor(self._positive_ids, device=label.device)).long()
        return image, positive if not isinstance(label, MetaTensor) else _with_meta(positive, label)


def _files(source: PathLike | Sequence[PathLike]) -> list[Path]:
    """Return the images of a folder by name, or the given files."""
    return image_files(source) if isinstance(source, str | os.PathLike) else [Path(entry) for entry in source]


def image_files(folder: PathLike) -> list[Path]:
    """Return the images of a folder, sorted by name.

    Raises:
        BadInputError: If it is not a folder, or contains none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "" if folder.exists() else "no such file or folder; "
        raise BadInputError(f"{folder}: {found}expected a folder of images, or a list of files")
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and image_suffix(file) in CODECS]
    if not files:
        raise BadInputError(f"{folder}: no images found; {KNOWN}")
    return sorted(files)


def _paired(images: Sequence[Path], labels: Sequence[Path], where: object) -> list[Path]:
    """Return the label of each image, matched by the file name without suffix."""
    check_same_ids(ids_of(images), ids_of(labels), where)
    label_of = {composed(stem_of(label)): label for label in labels}
    return [label_of[composed(stem_of(image))] for image in images]


def check_same_ids(
    first: Sequence[str], second: Sequence[str], where: object, *, names: tuple[str, str] = ("image", "label")
) -> None:
    """Check that two lists of case ids match, regardless of the form of their accents.

    Raises:
        DatasetError: For ``where``, with every missing or repeated id; ``names`` describe the lists.
    """
    one, other = names
    first, second = ([composed(case_id) for case_id in ids] for ids in (first, second))
    problems = [f"{case_id}: {one} without {other}" for case_id in sorted(set(first) - set(second))]
    problems += [f"{case_id}: {other} without {one}" for case_id in sorted(set(second) - set(first))]
    for what, ids in ((one, first), (other, second)):
        problems += [f"{case_id}: {count} {what}s of this name" for case_id, count in Counter(ids).items() if count > 1]
    if problems:
        raise DatasetError(where, problems)


def _copied(tensor: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> MetaTensor:
    values = plain_tensor(tensor).detach().to(device=device, dtype=dtype, copy=True)
    return (
        _with_meta(values, tensor) if isinstance(tensor, MetaTensor) else MetaTensor(values, meta={HAS_NO_GRID: True})
    )


def _with_meta(values: Tensor, like: MetaTensor) -> MetaTensor:
    return MetaTensor(values, meta=copy.deepcopy(like.meta))


def _label(tensor: Tensor, image_ndim: int | None, device: torch.device) -> MetaTensor:
    """Return label ids with a channel axis, which is added if they have one axis less than the image."""
    if not holds_whole_numbers(tensor):
        raise BadInputError("found label values that are not whole numbers, expected class ids")
    return _copied(tensor[None] if tensor.ndim + 1 == image_ndim else tensor, device, torch.int64)
