"""Ready-made datasets: files, tensors in memory, and wrappers that combine or relabel other datasets.

A tensor that was given is never changed; a wrapper takes the wrapped dataset's items, so its transforms apply.
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
    """Image files; with ``labels`` given, calling it makes a ``SupervisedDataset`` of pairs instead.

    Args:
        images: A folder, or the files themselves.
        labels: A folder whose files have the same names (suffixes may differ) as the images', or the files, one for
            each image in the same order. ``None`` for images alone.
        is_label: Images alone only: the files hold label ids and items are int64.
        transform: For images alone it takes an image, for pairs an image and a label.
        device: Where items live.

    Raises:
        DatasetError: If names in the two folders do not match; every one is listed.
    """

    def __new__(cls, images: PathLike | Sequence[PathLike] = (), labels: Any = None, **options: Any) -> Any:
        """Return a dataset of images alone or of pairs; arguments have defaults because copying calls without any."""
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
        return _image(self._images[idx], self._device)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return _label(self._labels[idx], self._images[idx].ndim, self._device)


class DatasetFromMemory(UnsupervisedDataset):
    """Tensors; with ``labels`` given, calling it makes a ``SupervisedDataset`` of pairs instead.

    Items are copies: what a transform does to one never reaches the tensors given here.

    Args:
        images: ``(C, *spatial)`` each, of any type; items are float32.
        labels: ``(1, *spatial)`` or ``(*spatial)`` each, whole numbers; items are ``(1, *spatial)`` int64.
        transform: For images alone it takes an image, for pairs an image and a label.
        device: Where items live.
        case_ids: One id for each case; ``None`` numbers them.
    """

    def __new__(cls, images: Sequence[Tensor] = (), labels: Sequence[Tensor] | None = None, **options: Any) -> Any:
        """Return a dataset of images alone or of pairs; arguments have defaults because copying calls without any."""
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
        return _image(self._images[idx], self._device)


class MergedDataset(SupervisedDataset):
    """Two datasets as one: the items of the first are images, those of the second their labels, paired by case id.

    Each dataset applies its own transforms by itself; a random transform that must act on both alike belongs into
    ``transform``.

    Args:
        images: Yields the images.
        labels: Yields the labels, ``(1, *spatial)``, whole numbers.
        transform: Applied to image and label in step, after their own.
        device: Where items live.

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
        return _image(self._images[idx], self._device)

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return _label(self._labels[idx], None, self._device)

    @override
    def _select(self, indices: Sequence[int]) -> Self:
        case_ids = [self._case_ids[index] for index in indices]
        return self.construct_new(self._images.subset(case_ids), self._labels.subset(case_ids))  # type: ignore[attr-defined]


class _Wrapper(SupervisedDataset):
    """Items made from other datasets' items, so loading image or label alone still takes both."""

    @override
    def load_image(self, idx: int) -> MetaTensor:
        return self.load(idx)[0]

    @override
    def load_label(self, idx: int) -> MetaTensor:
        return self.load(idx)[1]


class ComposeDataset(_Wrapper):
    """Several datasets, one after the other. Each applies its own transforms.

    Args:
        bases: The datasets. Where two have a case id in common, all ids get the dataset's number in front: ``1:case``.
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
    """Items made from those of one other dataset, whose transforms apply first and whose folds these are.

    ``transform`` is applied to image and label in step, after what the subclass does.
    """

    def __init__(self, base: SupervisedDataset, *, transform: PairTransform | None = None) -> None:
        if not isinstance(base, SupervisedDataset):
            raise BadInputError(f"expected a dataset of images with labels first, got a {type(base).__name__}")
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
    """A dataset whose labels say only whether a voxel belongs to the classes of interest.

    An ignore label counts as background here unless it is listed.

    Args:
        base: The dataset to relabel; its transforms apply first, and its tensors stay as they are.
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
    """Return a folder's images by name, or the files as given."""
    return image_files(source) if isinstance(source, str | os.PathLike) else [Path(entry) for entry in source]


def image_files(folder: PathLike) -> list[Path]:
    """Return the images of a folder, sorted by name.

    Raises:
        BadInputError: If it is no folder, or holds none.
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
    """Return the label of each image, found by the file's name without suffix."""
    check_same_ids(ids_of(images), ids_of(labels), where)
    label_of = {composed(stem_of(label)): label for label in labels}
    return [label_of[composed(stem_of(image))] for image in images]


def check_same_ids(
    first: Sequence[str], second: Sequence[str], where: object, *, names: tuple[str, str] = ("image", "label")
) -> None:
    """Check that two lists of case ids pair up, whatever form their accents are in.

    Raises:
        DatasetError: About ``where``, with every id that is missing or there twice; ``names`` are what has the ids.
    """
    one, other = names
    first, second = ([composed(case_id) for case_id in ids] for ids in (first, second))
    problems = [f"{case_id}: {one} without {other}" for case_id in sorted(set(first) - set(second))]
    problems += [f"{case_id}: {other} without {one}" for case_id in sorted(set(second) - set(first))]
    for what, ids in ((one, first), (other, second)):
        problems += [f"{case_id}: {count} {what}s of that name" for case_id, count in Counter(ids).items() if count > 1]
    if problems:
        raise DatasetError(where, problems)


def _copied(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> MetaTensor:
    values = plain_tensor(tensor).detach().to(device=device, dtype=dtype, copy=True)
    return (
        _with_meta(values, tensor) if isinstance(tensor, MetaTensor) else MetaTensor(values, meta={HAS_NO_GRID: True})
    )


def _with_meta(values: Tensor, like: MetaTensor) -> MetaTensor:
    return MetaTensor(values, meta=copy.deepcopy(like.meta))


def _image(tensor: Tensor, device: torch.device) -> MetaTensor:
    return _copied(tensor, torch.float32, device)


def _label(tensor: Tensor, image_ndim: int | None, device: torch.device) -> MetaTensor:
    """Return label ids with a channel axis, which they lack when they have one axis less than the image."""
    if not holds_whole_numbers(tensor):
        raise BadInputError("found label values that are not whole numbers, expected ids of classes")
    return _copied(tensor[None] if tensor.ndim + 1 == image_ndim else tensor, torch.int64, device)
