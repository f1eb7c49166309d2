"""What can be predicted: files, folders, arrays, tensors, datasets; each case by its id. Predicts nothing.

Files are found and grouped by case without being read; a case is read when it is its turn.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import CaseDataset
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.names import split_channel, stem_of
from candy_monai.data.images.reading import Scan, joined, scan_of_nibabel
from candy_monai.errors import BadInputError
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.found import CaseFiles, InputCase, find_inputs, group_files

Input: TypeAlias = (
    PathLike
    | Sequence[PathLike]
    | Tensor
    | SpatialImage
    | tuple[NDArray[Any], Sequence[float]]
    | list[Tensor]
    | list[SpatialImage]
)
"""One case: a file; the files of its channels; a tensor ``(C, *spatial)``, with its affine if it is a ``MetaTensor``; a
nibabel image; an array with its spacing in millimetres; a list of tensors or nibabel images, a channel each."""

Inputs: TypeAlias = Input | Dataset[Any] | Iterable[Any]
"""Cases: one, a folder, a dataset, or several of all these. An item of MONAI's or PyTorch's datasets is an image, a
pair of image and label, or a dictionary with an ``image``."""


def input_case(
    source: Input, *, case_id: str = "image", channels: RunChannels, num_dims: int | None = None
) -> InputCase:
    """Take one case of any kind.

    Args:
        source: The case.
        case_id: What to call it where it has no name of its own.
        channels: The run's channels, which tell whether files are theirs.
        num_dims: Spatial axes that the network expects, which tells an image of one channel from one without an axis
            for channels; None if unknown.

    Raises:
        BadInputError: If it is nothing that can be predicted, or its files are of other channels.
    """
    given: object = source  # what callers pass in spite of the types gets a message, not a traceback
    if _is_path(given):
        if Path(given).is_dir():
            raise BadInputError(
                f"{given}: found a folder, expected one image; stream(...) and predict_to_files(...) predict all "
                "images of a folder (convert a DICOM series to NIfTI first)"
            )
        return group_files([Path(given)], channels=channels)[0]
    if isinstance(given, Tensor):
        return InputCase(case_id=case_id, read=partial(_from_tensor, given, num_dims))
    if isinstance(given, SpatialImage):
        return InputCase(case_id=case_id, read=lambda: scan_of_nibabel(given).tensor())
    if _is_array_with_spacing(given):
        return InputCase(case_id=case_id, read=partial(image_from_array, *given, num_dims=num_dims))
    if isinstance(given, np.ndarray):
        raise BadInputError(f"an array of shape {given.shape} without its spacing: give (array, spacing_mm)")
    if isinstance(given, CaseFiles):
        return InputCase(case_id=split_channel(stem_of(given[0]))[0], files=given, has_run_channels=True)
    if isinstance(given, list | tuple) and given and all(_is_path(file) for file in given):
        return _case_of_files([Path(file) for file in given], channels)
    if isinstance(given, list) and given and all(_is_image(part) for part in given):
        return InputCase(case_id=case_id, read=partial(_from_parts, given, case_id, num_dims), has_run_channels=True)
    raise BadInputError(
        f"cannot predict {type(given).__name__}: expected a file, the files of its channels, a tensor, a nibabel "
        "image, (array, spacing_mm), or a list of these, a channel each"
    )


def input_cases(source: Inputs, *, channels: RunChannels, num_dims: int | None = None) -> Iterator[InputCase]:
    """Take cases of any kind: one, a folder, a dataset, or a list. Files of a list are grouped as those of a folder.

    What a generator yields, other than files, is asked for when it is its turn.

    Args:
        source: The cases.
        channels: The run's channels.
        num_dims: Spatial axes that the network expects; None if unknown.

    Raises:
        BadInputError: If there is nothing, or something that cannot be predicted.
    """
    if _is_path(source):
        return iter(find_inputs(source, channels=channels))
    if isinstance(source, CaseDataset):
        return _cases_of_dataset(source, channels)
    take = partial(_numbered, channels=channels, num_dims=num_dims)
    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        count = len(source)  # type: ignore[arg-type]  # such a dataset has a length, though its type does not say so
        return (
            InputCase(case_id=_id(index, count), read=partial(_from_item, source, index, channels, num_dims))
            for index in range(count)
        )
    if not isinstance(source, Iterable) or isinstance(source, Tensor | np.ndarray) or _is_array_with_spacing(source):
        return iter([input_case(source, channels=channels, num_dims=num_dims)])
    entries = map(_image_of, source)
    first = next(entries, None)
    if first is None:
        raise BadInputError("nothing to predict: the list is empty")
    coming = itertools.chain([first], entries)
    if not isinstance(source, Iterator) or _is_path(first):
        listed = list(coming)
        if all(_is_path(entry) for entry in listed):
            return iter(group_files([Path(entry) for entry in listed], channels=channels))
        return iter([take(entry, index, len(listed)) for index, entry in enumerate(listed)])
    return (take(entry, index, 1) for index, entry in enumerate(coming))


def image_from_array(array: NDArray[Any], spacing_mm: Sequence[float], *, num_dims: int | None = None) -> MetaTensor:
    """Return an array as an image that lies straight in space.

    Args:
        array: ``(C, *spatial)``, or ``(*spatial)`` where ``num_dims`` says so. The axes run to the right, to the front
            and to the head.
        spacing_mm: Distance of voxels along each spatial axis.
        num_dims: Spatial axes; None for all but the first.

    Raises:
        BadInputError: If the spacing has another number of axes, or is not positive.
    """
    image = _channel_first(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), num_dims)
    spacing = tuple(float(distance) for distance in spacing_mm)
    if len(spacing) != image.ndim - 1 or not all(distance > 0 for distance in spacing):
        raise BadInputError(
            f"spacing_mm {spacing} for an array of shape {array.shape}: expected {image.ndim - 1} positive numbers"
        )
    affine = torch.diag(torch.tensor([*spacing, *[1.0] * (4 - len(spacing))], dtype=torch.float64))
    return MetaTensor(image, affine=affine)


def _from_tensor(image: Tensor, num_dims: int | None) -> MetaTensor:
    if isinstance(image, MetaTensor):
        return image
    return MetaTensor(_channel_first(image, num_dims))


def _from_parts(parts: Sequence[Any], case_id: str, num_dims: int | None) -> MetaTensor:
    """Return images of one channel each as one."""
    channels = RunChannels.unnamed(1)
    images = [input_case(part, channels=channels, num_dims=num_dims).decoded() for part in parts]
    names = [f"channel {number} of {case_id}" for number in range(len(images))]
    for image, name in zip(images, names, strict=True):
        if len(image) != 1:
            raise BadInputError(
                f"{name}: has shape {tuple(image.shape)}, expected one channel and the spatial axes, as of each image "
                "in a list; several cases are predicted by stream(...) and predict_to_files(...)"
            )
    scans = [Scan.of(image, name=name) for image, name in zip(images, names, strict=True)]
    return joined(scans, names=names).tensor()


def _case_of_files(files: Sequence[Path], channels: RunChannels) -> InputCase:
    """Return the case that files belong to, in the order of the channels that their names state, else as given."""
    cases = group_files(files, channels=channels)
    if len(cases) == 1:
        return cases[0]
    numbers = [split_channel(stem_of(file))[1] for file in files]
    if channels.are_numbered and None not in numbers and len(set(numbers)) == len(numbers) == len(channels):
        named = dict(zip(numbers, files, strict=True))
        problem = channels.problem(files[0].name, (number for number in numbers if number is not None))
        ordered = tuple(named[number] for number in channels.expected if number in named)
        return InputCase(case_id=cases[0].case_id, files=ordered, problem=problem, has_run_channels=True)
    return InputCase(case_id=split_channel(stem_of(files[0]))[0], files=tuple(files), has_run_channels=True)


def _cases_of_dataset(dataset: CaseDataset[Any], channels: RunChannels) -> Iterator[InputCase]:
    if isinstance(dataset, NNUNetDataset):
        channels.refuse_other_names(dataset.description.channel_names, f"{dataset.folder / 'dataset.json'}")
    found = getattr(dataset, "cases", ())  # a dataset of files knows them; results are written like these
    for index, case_id in enumerate(dataset.case_ids):
        files = tuple(found[index].images) if found else ()
        yield InputCase(case_id=case_id, files=files, read=partial(_from_dataset, dataset, index))


def _id(index: int, count: int) -> str:
    return f"image_{index:0{len(str(count))}d}"


def _numbered(entry: Any, index: int, count: int, *, channels: RunChannels, num_dims: int | None) -> InputCase:
    return input_case(entry, case_id=_id(index, count), channels=channels, num_dims=num_dims)


def _from_item(dataset: Any, index: int, channels: RunChannels, num_dims: int | None) -> MetaTensor:
    whole = dataset[index]
    item = _image_of(whole)
    if item is whole and isinstance(item, tuple | list) and item and isinstance(item[0], Tensor):
        item = item[0]  # a pair of image and label
    return input_case(item, channels=channels, num_dims=num_dims).decoded()


def _image_of(item: Any) -> Any:
    """Return the image of an item as MONAI's dictionary transforms have it, and any other item as it is."""
    if not isinstance(item, Mapping):
        return item
    if "image" not in item:
        raise BadInputError(f"found a dictionary of {', '.join(map(repr, item))}, expected one with an 'image'")
    return item["image"]


def _from_dataset(dataset: CaseDataset[Any], index: int) -> MetaTensor:
    load_one = getattr(dataset, "load_image", dataset.load)  # labels are not read where they can be left out
    image = load_one(index)
    return image if isinstance(image, MetaTensor) else MetaTensor(image)


def _channel_first(image: Tensor, num_dims: int | None) -> Tensor:
    return image[None] if image.ndim == num_dims else image


def _is_path(source: object) -> TypeGuard[PathLike]:
    return isinstance(source, str | os.PathLike)


def _is_image(source: object) -> bool:
    return isinstance(source, Tensor | SpatialImage) or _is_array_with_spacing(source)


def _is_array_with_spacing(source: object) -> TypeGuard[tuple[NDArray[Any], Sequence[float]]]:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray)
