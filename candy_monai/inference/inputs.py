"""Inputs of predictors: files, folders, arrays, tensors and datasets, as cases with ids and the run's channels.

Files are classified by their names; a case is read only when it is processed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from typing_extensions import TypeIs

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import CaseDataset
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images import dicom
from candy_monai.data.images.alignment import HAS_NO_GRID
from candy_monai.data.images.formats import READABLE, VOLUMES
from candy_monai.data.images.geometry import Geometry, UnusableFileError, in_ras
from candy_monai.data.images.names import image_suffix, split_channel, stem_of
from candy_monai.data.images.reading import Scan, geometry_of, joined, read_channels, read_geometry, scan_of_nibabel
from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError, CandyError, ImageReadError
from candy_monai.inference.channels import CHANNEL_LIMIT, RunChannels
from candy_monai.text import read_json

Input: TypeAlias = (
    PathLike
    | Sequence[PathLike]
    | Tensor
    | SpatialImage
    | tuple[NDArray[Any], Sequence[float]]
    | list[Tensor]
    | list[SpatialImage]
)
"""One case: a file, or the folder of a DICOM series; the files of its channels; a tensor ``(C, *spatial)``, with its
affine if it is a ``MetaTensor``; a nibabel image; an array with its spacing in millimetres; a list of tensors or
nibabel images, one per channel."""

Inputs: TypeAlias = Input | Dataset[Any] | Iterable[Any]
"""Cases: one, a folder, a dataset, or several of these. An item of a MONAI or PyTorch dataset is an image, a pair of
image and label, or a dictionary with an ``image``."""

_MOST_LOOKED_AT = 1000  # files checked in a folder without an image, for a message that says where there are some

GIVEN_SHAPE = "given_shape"
"""Metadata key of an image whose number of axes was changed for the network: the spatial shape of its result."""


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """One case to predict.

    Attributes:
        case_id: The name of the prediction.
        files: One file per channel, or one file with all channels; empty for cases in memory.
        read: Reads a case that is not read from files of its own.
        problem: Why it cannot be predicted, if that is known from the names of its files.
        has_run_channels: Whether the files are the run's channels in their order, so that none need be selected.
    """

    case_id: str
    files: tuple[Path, ...] = ()
    read: Callable[[], MetaTensor] | None = None
    problem: str | None = None
    has_run_channels: bool = False

    def geometry(self) -> Geometry | None:
        """Return the grid from the header of its first file; None if there is no file, or it cannot be read."""
        try:
            return read_geometry(self.files[0]) if self.files and self.problem is None else None
        except CandyError:  # reported when the case is processed
            return None

    def load(self, channels: RunChannels, *, num_dims: int | None = None) -> MetaTensor:
        """Read the case as an image ``(C, *spatial)`` with the channels and spatial axes that the network expects.

        For a network with three axes a 2-D scan becomes a volume of one slice, and the reverse for one with two.

        Raises:
            BadInputError: If it cannot be read, has no position, or has other channels or another number of axes.
        """
        image = in_ras(self.decoded().detach())
        name = image.meta.get("filename_or_obj") or self.case_id
        geometry_of(image, name=name)
        image = image if num_dims is None else _with_axes(image, num_dims, name)
        if not image.numel():
            raise BadInputError(f"{name}: is empty (shape {tuple(image.shape)})")
        if image.is_complex():
            raise BadInputError(f"{name}: holds complex numbers ({image.dtype}); use their magnitude")
        left = channels if not self.has_run_channels else dataclasses.replace(channels, numbers=None)
        chosen = left.chosen_from(image, name)
        return image if chosen is image else MetaTensor(plain_tensor(chosen), meta=dict(image.meta))

    def decoded(self) -> MetaTensor:
        """Read the case unchanged, ``(C, *spatial)``, without regard to the network."""
        if self.problem is not None:
            raise BadInputError(self.problem)
        return self.read() if self.read is not None else read_channels(self.files).tensor()


def _with_axes(image: MetaTensor, num_dims: int, name: str) -> MetaTensor:
    """Return an image with the network's number of spatial axes; a single slice can be stored with two or three."""
    if image.ndim == num_dims + 1:
        return image
    values, meta = image.as_tensor(), {**image.meta, GIVEN_SHAPE: tuple(image.shape[1:])}
    if num_dims == 3 and image.ndim == 3 and image.meta.get("is_picture") is False:  # it has a position in space
        return MetaTensor(values[..., None], meta=meta)
    if num_dims == 2 and image.ndim == 4 and image.shape[-1] == 1:
        return MetaTensor(values[..., 0], meta=meta)
    raise BadInputError(
        f"{name}: has {image.ndim - 1} spatial axes (shape {tuple(image.shape[1:])}), the network expects "
        f"{num_dims}: predict {'its slices one by one' if num_dims == 2 else 'whole volumes'}"
    )


class CaseFiles(tuple[Path, ...]):
    """The files of one case, known to be the run's channels in their order regardless of their names."""


def find_inputs(path: PathLike, *, channels: RunChannels) -> list[InputCase]:
    """Find the cases in a folder, or take a single file.

    ``{case}_{CCCC}`` files of one case belong together, and must be the run's channels: a case with missing or extra
    channels is listed with its problem, so that the others can be predicted. A file without a number is a case of its
    own. If a single channel is expected, ``scan_0001``, ``scan_0002`` and so on without a ``scan_0000`` are also
    separate cases, unless another case has files of the same numbers.

    A folder of DICOM files is one case, and so is each such subfolder. For a case with several channels the subfolders
    are ``{case}_{CCCC}`` or ``{case}/{CCCC}``.

    Raises:
        BadInputError: If there are no images, or a ``dataset.json`` beside them names other channels.
    """
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if path.is_file():
        return group_files([path], channels=channels)
    try:
        files = _images_in(path)
    except OSError as error:
        raise BadInputError(f"{path}: the folder cannot be read ({error.strerror}); check its permissions") from error
    if not files:
        inner = next((path / name for name in ("imagesTs", "imagesTr") if (path / name).is_dir()), None)
        hint = "" if inner is None else f"; a dataset's images are one folder further down, for example {inner}"
        below = itertools.islice(path.rglob("*"), _MOST_LOOKED_AT)
        deeper = (file.parent for file in below if file.is_file() and dicom.is_dicom(file))
        if inner is None and (series := next(deeper, None)) is not None:
            hint = f"; a DICOM series is further down, in {series}: name that folder, or its parent"
        raise BadInputError(f"{path}: no image in this folder{hint}")
    return group_files(files, channels=channels)


def group_files(files: Sequence[Path], *, channels: RunChannels) -> list[InputCase]:
    """Group files by case, in the order of their first files; the other channels of a case are found beside them.

    Raises:
        BadInputError: If a ``dataset.json`` beside them names other channels.
    """
    folders = dict.fromkeys(file.parent for file in files)
    for folder in folders:
        _check_dataset_beside(folder, channels)
    there: dict[str, dict[int, list[Path]]] = {}
    for file in dict.fromkeys([*files, *_numbered_beside(files, folders)]):
        case_id, number = _case_and_channel(file)
        if number is not None:
            there.setdefault(case_id, {}).setdefault(number, []).append(file)
    given, cases = set(files), dict[str, InputCase]()
    twice: dict[str, list[str]] = {}
    for file in files:
        case_id, number = _case_and_channel(file)
        if number is None or not _are_channels(case_id, there, channels):
            case = InputCase(case_id=_stem_of(file), files=(file,))
        else:
            case = _numbered_case(case_id, there[case_id], channels, given)
        known = cases.setdefault(case.case_id, case)
        if known.files != case.files and file not in known.files:
            twice.setdefault(case.case_id, []).append(
                f"{file}: the case {case.case_id} is also in {known.files[0].name}; move one of them away"
            )
    return [
        dataclasses.replace(case, problem=_joined([*twice.get(case_id, ()), case.problem]))
        for case_id, case in cases.items()
    ]


def _joined(problems: Iterable[str | None]) -> str | None:
    return "; ".join(filter(None, problems)) or None


def _check_dataset_beside(folder: Path, channels: RunChannels) -> None:
    """Raise if the ``dataset.json`` of images, in their folder or beside it as in nnU-Net, names other channels."""
    for file in (folder / "dataset.json", folder.absolute().parent / "dataset.json"):
        try:
            content = read_json(file)
        except (OSError, ValueError):  # it is not an input here; training reports its errors
            continue
        names = content.get("channel_names", content.get("modality")) if isinstance(content, dict) else None
        if isinstance(names, Mapping) and names and all(str(key).isdecimal() for key in names):
            channels.refuse_other_names([str(names[key]) for key in sorted(names, key=int)], file)
            return


def _are_channels(case_id: str, there: dict[str, dict[int, list[Path]]], channels: RunChannels) -> bool:
    """Return whether the numbers at the ends of a case's files are channels, and not parts of the names of cases."""
    numbers = set(there[case_id])
    if channels.numbers is not None:
        return bool(channels.numbers)
    if len(channels) > 1:
        return bool(numbers & set(channels.expected))
    if len(numbers) > CHANNEL_LIMIT:
        return False
    if 0 in numbers or len(numbers) == 1:
        return True
    return any(set(other) == numbers for name, other in there.items() if name != case_id)


def _numbered_case(case_id: str, there: dict[int, list[Path]], channels: RunChannels, given: set[Path]) -> InputCase:
    """Return the case of numbered files, with its problem if they do not match the run's channels."""
    problems: list[str | None] = []
    for number, files in there.items():
        first, *others = [file for file in files if file in given] or files[:1]
        problems += [
            f"{other}: channel {number:04d} of case {case_id} is also in {first.name}; move one of them away"
            for other in others
        ]
    if set(there) == {0} and len(channels) > 1:
        # All channels may be in one file: RGB, or 4-D; its content is checked when it is read.
        return InputCase(case_id=case_id, files=tuple(there[0][:1]), problem=_joined(problems))
    found = [there[number] for number in channels.expected if number in there] or there.values()
    return InputCase(
        case_id=case_id,
        files=tuple(files[0] for files in found),
        problem=_joined([channels.problem(case_id, there), *problems]),
        has_run_channels=True,
    )


def _numbered_beside(files: Sequence[Path], folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the files beside some files that are further channels of their cases; those of the same format first."""
    cases = {case_id for case_id, number in (_case_and_channel(file) for file in files) if number is not None}
    suffixes = {image_suffix(file) for file in files}
    for folder in folders if cases else ():
        try:
            found = sorted(folder.iterdir(), key=lambda file: (image_suffix(file) not in suffixes, file.name))
        except OSError:  # files can be readable although their folder is not
            continue
        for file in found:
            case_id, number = _case_and_channel(file)
            if number is not None and case_id in cases and _is_image_file(file):
                yield file


def _images_in(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted: files and folders of DICOM series; or the folder itself, if it is one."""
    try:
        own = dicom.images_in(folder) if dicom.is_dicom(folder) else []
    except UnusableFileError as error:
        raise ImageReadError(f"{folder}: {error}") from error
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if not own:
        found = {entry: _images_at(entry) for entry in entries}
        without = [entry.name for entry, images in found.items() if entry.is_dir() and not images]
        if without and any(image.is_dir() for images in found.values() for image in images):
            warnings.warn(f"{folder}: left out folders without DICOM files: {', '.join(without)}", stacklevel=2)
        return [image for images in found.values() for image in images]
    if others := [entry.name for entry in entries if image_suffix(entry) in VOLUMES and entry.is_file()]:
        raise BadInputError(
            f"{folder}: found DICOM files and other images ({others[0]}), expected one kind; move one of them away"
        )
    return own


def _images_at(entry: Path) -> list[Path]:
    """Return the images for an entry of a folder: itself, the DICOM series of its channels, or none."""
    if not entry.is_dir():
        return [entry] if image_suffix(entry) in READABLE and _is_image_file(entry) else []
    try:
        return [entry] if dicom.is_dicom(entry) else sorted(filter(dicom.is_channel_folder, entry.iterdir()))
    except OSError:  # no permission
        return []


def _is_image_file(path: Path) -> bool:
    """Return whether a path is an image: a file of a known format, or the folder or a file of a DICOM series."""
    if path.name.startswith("."):
        return False
    is_file = path.is_file() or path.is_symlink()  # reading a broken link raises an error that says so
    return (is_file and image_suffix(path) in READABLE) or dicom.is_dicom(path)


def _case_and_channel(path: Path) -> tuple[str, int | None]:
    """Return the case and the channel in a path: ``CASE_0001``, and for a DICOM series also ``CASE/0001``."""
    stem = _stem_of(path)
    is_slice = image_suffix(path) not in READABLE and not path.is_dir()  # scanners number slices
    return (stem, None) if is_slice else split_channel(stem)


def _stem_of(path: Path) -> str:
    if path.is_dir():
        name = path.absolute().name
        return f"{path.absolute().parent.name}_{name}" if dicom.is_channel_folder(path) else name
    return stem_of(path) if image_suffix(path) in (*READABLE, *dicom.SUFFIXES) else path.name


def input_case(
    source: Input, *, case_id: str = "image", channels: RunChannels, num_dims: int | None = None
) -> InputCase:
    """Return any input as one case, which ``case_id`` names if it has no name of its own.

    ``channels`` are those of the run; ``num_dims`` are the spatial axes that the network expects, to recognise an image
    without a channel axis.

    Raises:
        BadInputError: If it cannot be predicted, or its files are of other channels.
    """
    given: object = source  # arguments of wrong types get a message, not a traceback
    if is_path(given):
        if Path(given).is_dir():
            images = _images_in(Path(given))
            cases = group_files(images, channels=channels) if images and all(map(dicom.is_dicom, images)) else []
            if len(cases) != 1:
                raise BadInputError(
                    f"{given}: found a folder, expected one image; stream(...) and predict_to_files(...) predict all "
                    "images of a folder (for a DICOM series, name the folder that contains its files)"
                )
            return cases[0]
        return group_files([Path(given)], channels=channels)[0]
    if _is_image(given):
        return InputCase(case_id=case_id, read=partial(_from_memory, given, num_dims))
    if isinstance(given, np.ndarray):
        raise BadInputError(f"an array of shape {given.shape} without its spacing: give (array, spacing_mm)")
    if isinstance(given, CaseFiles):
        return InputCase(case_id=_case_and_channel(given[0])[0], files=given, has_run_channels=True)
    if isinstance(given, list | tuple) and given and all(map(is_path, given)):
        return _case_of_files([Path(file) for file in given], channels)
    if isinstance(given, list) and given and all(map(_is_image, given)):
        return InputCase(case_id=case_id, read=partial(_from_parts, given, case_id, num_dims), has_run_channels=True)
    raise BadInputError(
        f"cannot predict {type(given).__name__}: expected a file, the files of its channels, a tensor, a nibabel "
        "image, (array, spacing_mm), or a list of these, one for each channel"
    )


def input_cases(source: Inputs, *, channels: RunChannels, num_dims: int | None = None) -> Iterator[InputCase]:
    """Yield the cases of any input: one, a folder, a dataset, or a list. Files of a list are grouped as in a folder.

    Items of a generator, except files, are requested one at a time. See `input_case`.
    """
    if is_path(source):
        return iter(find_inputs(source, channels=channels))
    if isinstance(source, CaseDataset):
        return _cases_of_dataset(source, channels)
    take = partial(input_case, channels=channels, num_dims=num_dims)
    if isinstance(source, Dataset) and not isinstance(source, Iterable):
        count = len(source)  # type: ignore[arg-type]  # such a dataset has a length, although its type lacks it
        return (
            InputCase(case_id=_numbered_id(index, count), read=partial(_from_item, source, index, take))
            for index in range(count)
        )
    if not isinstance(source, Iterable) or isinstance(source, Tensor | np.ndarray) or _is_array_with_spacing(source):
        return iter([take(source)])
    entries = map(_image_of, source)
    first = next(entries, None)
    if first is None:
        raise BadInputError("nothing to predict: the list is empty")
    coming: Iterable[Any] = itertools.chain([first], entries)
    if not isinstance(source, Iterator) or is_path(first):
        listed = list(coming)
        if all(map(is_path, listed)):
            return iter(group_files([Path(entry) for entry in listed], channels=channels))
        # All are checked before the first one is predicted.
        return iter([take(entry, case_id=_numbered_id(index, len(listed))) for index, entry in enumerate(listed)])
    return (take(entry, case_id=_numbered_id(index, 1)) for index, entry in enumerate(coming))


def _case_of_files(files: Sequence[Path], channels: RunChannels) -> InputCase:
    """Return the case of some files, in the order of the channels in their names, else as given."""
    cases = group_files(files, channels=channels)
    if len(cases) == 1:
        return cases[0]
    case_ids, numbers = zip(*(_case_and_channel(file) for file in files), strict=True)
    named = {number: file for number, file in zip(numbers, files, strict=True) if number is not None}
    if channels.numbers == () or not len(named) == len(files) == len(channels):
        return InputCase(case_id=case_ids[0], files=tuple(files), has_run_channels=True)
    return InputCase(
        case_id=cases[0].case_id,
        files=tuple(named[number] for number in channels.expected if number in named),
        problem=channels.problem(files[0].name, named),
        has_run_channels=True,
    )


def _cases_of_dataset(dataset: CaseDataset[Any], channels: RunChannels) -> Iterator[InputCase]:
    if isinstance(dataset, NNUNetDataset):
        channels.refuse_other_names(dataset.description.channel_names, f"{dataset.folder / 'dataset.json'}")
    found = getattr(dataset, "cases", ())  # a dataset of files has them; results use their formats
    for index, case_id in enumerate(dataset.case_ids):
        files = tuple(found[index].images) if found else ()
        yield InputCase(case_id=case_id, files=files, read=partial(_from_dataset, dataset, index))


def _numbered_id(index: int, count: int) -> str:
    return f"image_{index:0{len(str(count))}d}"


def _image_of(item: Any) -> Any:
    """Return the image of a dictionary item as used by MONAI's transforms, and any other item unchanged."""
    if not isinstance(item, Mapping):
        return item
    if "image" not in item:
        raise BadInputError(f"found a dictionary with the keys {', '.join(map(repr, item))}, expected the key 'image'")
    return item["image"]


def _from_item(dataset: Any, index: int, take: Callable[[Any], InputCase]) -> MetaTensor:
    whole = dataset[index]
    item = _image_of(whole)
    if item is whole and isinstance(item, tuple | list) and item and isinstance(item[0], Tensor):
        item = item[0]  # a pair of image and label
    return take(item).decoded()


def _from_dataset(dataset: CaseDataset[Any], index: int) -> MetaTensor:
    load_one = getattr(dataset, "load_image", dataset.load)  # labels are not read if that can be avoided
    image = load_one(index)
    return image if isinstance(image, MetaTensor) else MetaTensor(image)


def _from_parts(parts: Sequence[Any], case_id: str, num_dims: int | None) -> MetaTensor:
    """Return images of one channel each as one image."""
    images = [_from_memory(part, num_dims) for part in parts]
    names = [f"channel {number} of {case_id}" for number in range(len(images))]
    for image, name in zip(images, names, strict=True):
        if len(image) != 1:
            raise BadInputError(
                f"{name}: has shape {tuple(image.shape)}, expected one channel and the spatial axes, since each image "
                "of a list is a channel; for several cases use stream(...) or predict_to_files(...)"
            )
    scans = [Scan.of(image, name=name) for image, name in zip(images, names, strict=True)]
    whole = joined(scans, names=names).tensor()
    whole.meta[HAS_NO_GRID] = images[0].meta.get(HAS_NO_GRID, False)
    return whole


def _from_memory(given: Any, num_dims: int | None) -> MetaTensor:
    """Return a tensor, a nibabel image, or an array with its spacing, as an image with its geometry."""
    if isinstance(given, MetaTensor):
        return given
    if isinstance(given, SpatialImage):
        return scan_of_nibabel(given).tensor()
    values, spacing_mm = (given, None) if isinstance(given, Tensor) else given
    if spacing_mm is not None and not np.iscomplexobj(values):
        values = np.ascontiguousarray(values, dtype=np.float32)
    image = values if spacing_mm is None else torch.from_numpy(values)
    if image.ndim == num_dims:
        image = image[None]
    if spacing_mm is None:
        return MetaTensor(image, meta={HAS_NO_GRID: True})
    spacing = tuple(float(distance) for distance in spacing_mm)
    if len(spacing) != image.ndim - 1 or not all(distance > 0 for distance in spacing):
        raise BadInputError(
            f"spacing_mm {spacing} for an array of shape {values.shape}: expected {image.ndim - 1} positive numbers"
        )
    affine = torch.diag(torch.tensor([*spacing, *[1.0] * (4 - len(spacing))], dtype=torch.float64))
    return MetaTensor(image, affine=affine)  # axis-aligned: to the right, anterior and superior


def is_path(source: object) -> TypeIs[PathLike]:
    """Return whether an object is a path of a file or folder."""
    return isinstance(source, str | os.PathLike)


def _is_image(source: object) -> bool:
    return isinstance(source, Tensor | SpatialImage) or _is_array_with_spacing(source)


def _is_array_with_spacing(source: object) -> TypeGuard[tuple[NDArray[Any], Sequence[float]]]:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray)
