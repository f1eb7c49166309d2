"""What can be predicted: files, folders, arrays, tensors, datasets; each case by its id. Predicts nothing.

Files are found and grouped by case without being read; a case is read when it is its turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
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

from candy_monai.aliases import PathLike
from candy_monai.data.cases import CaseDataset
from candy_monai.data.formats import READABLE
from candy_monai.data.io import load_image
from candy_monai.data.names import image_suffix, split_channel, stem_of
from candy_monai.errors import BadInputError

Input: TypeAlias = PathLike | Sequence[PathLike] | Tensor | SpatialImage | tuple[NDArray[Any], Sequence[float]]
"""One case: a file; the files of its channels; a tensor ``(C, *spatial)``, with its affine if it is a ``MetaTensor``; a
nibabel image; an array with its spacing in millimetres."""

Inputs: TypeAlias = Input | CaseDataset[Any] | Iterable[Any]
"""Cases: one, a folder, a dataset, or several of all these."""


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """One case to predict.

    Attributes:
        case_id: What the prediction is called.
        files: One file a channel, or one file that holds them all; empty for what comes from memory.
        read: Reads a case that does not come from files of its own.
        problem: Why it cannot be predicted, where the names of its files already say so.
    """

    case_id: str
    files: tuple[Path, ...] = ()
    read: Callable[[], MetaTensor] | None = None
    problem: str | None = None

    def load(self, *, num_channels: int, num_dims: int | None = None) -> MetaTensor:
        """Read the case.

        Args:
            num_channels: Channels that the network expects.
            num_dims: Spatial axes that the network expects; None if unknown.

        Returns:
            ``(C, *spatial)`` float32 with its geometry.

        Raises:
            BadInputError: If it cannot be read, or has another number of channels or axes.
        """
        if self.problem is not None:
            raise BadInputError(self.problem)
        image = self.read() if self.read is not None else load_channels(self.files)
        name = image.meta.get("filename_or_obj") or self.case_id
        if num_dims is not None and image.ndim != num_dims + 1:
            raise BadInputError(
                f"{name}: has {image.ndim - 1} spatial axes (shape {tuple(image.shape[1:])}), the network expects "
                f"{num_dims}: predict {'its slices one by one' if num_dims == 2 else 'whole volumes'}"
            )
        if len(image) != num_channels:
            raise BadInputError(
                f"{name}: has {len(image)} channels, the network expects {num_channels}: one file with all "
                "of them, or files that end in _0000, _0001 and so on beside each other"
            )
        return image


def load_channels(files: Sequence[PathLike]) -> MetaTensor:
    """Read the files of one case, a channel each, as one image.

    Raises:
        BadInputError: If a file cannot be read, or their grids differ.
    """
    channels = [load_image(file) for file in files]
    if len(channels) == 1:
        return channels[0]
    shapes = {tuple(channel.shape[1:]) for channel in channels}
    if len(shapes) > 1:
        raise BadInputError(f"{files[0]}: the channels of this case have different shapes: {sorted(shapes)}")
    return MetaTensor(torch.cat([channel.as_tensor() for channel in channels]), meta=dict(channels[0].meta))


def input_case(source: Input, *, case_id: str = "image", num_dims: int | None = None) -> InputCase:
    """Take one case of any kind.

    Args:
        source: The case.
        case_id: What to call it where it has no name of its own.
        num_dims: Spatial axes that the network expects, which tells an image of one channel from one without an axis
            for channels; None if unknown.

    Raises:
        BadInputError: If it is nothing that can be predicted.
    """
    given: object = source  # what callers pass in spite of the types gets a message, not a traceback
    if _is_path(given):
        return InputCase(case_id=stem_of(given), files=(Path(given),))
    if isinstance(given, Tensor):
        return InputCase(case_id=case_id, read=partial(_from_tensor, given, num_dims))
    if isinstance(given, SpatialImage):
        return InputCase(case_id=case_id, read=partial(_from_nibabel, given, num_dims))
    if _is_array_with_spacing(given):
        return InputCase(case_id=case_id, read=partial(image_from_array, *given, num_dims=num_dims))
    if isinstance(given, np.ndarray):
        raise BadInputError(f"an array of shape {given.shape} without its spacing: give (array, spacing_mm)")
    if isinstance(given, list | tuple) and given and all(_is_path(file) for file in given):
        stem = stem_of(given[0])
        return InputCase(case_id=split_channel(stem)[0] if len(given) > 1 else stem, files=tuple(map(Path, given)))
    raise BadInputError(
        f"cannot predict {type(given).__name__}: expected a file, the files of its channels, a tensor, a nibabel "
        "image, or (array, spacing_mm)"
    )


def input_cases(source: Inputs, *, num_channels: int, num_dims: int | None = None) -> list[InputCase]:
    """Take cases of any kind: one, a folder, a dataset, or a list. Files of a list are grouped as those of a folder.

    Args:
        source: The cases.
        num_channels: Channels that the network expects.
        num_dims: Spatial axes that the network expects; None if unknown.

    Raises:
        BadInputError: If there is nothing, or something that cannot be predicted.
    """
    if _is_path(source):
        return find_inputs(source, num_channels=num_channels)
    if isinstance(source, CaseDataset):
        found = getattr(source, "cases", ())  # a dataset of files knows them; results are written like these
        return [
            InputCase(
                case_id=case_id,
                files=tuple(found[index].images) if found else (),
                read=partial(_from_dataset, source, index),
            )
            for index, case_id in enumerate(source.case_ids)
        ]
    if not isinstance(source, Iterable) or isinstance(source, Tensor | np.ndarray) or _is_array_with_spacing(source):
        return [input_case(source, num_dims=num_dims)]
    entries = list(source)
    if entries and all(_is_path(entry) for entry in entries):
        return _grouped([Path(entry) for entry in entries], num_channels=num_channels)
    cases = [
        input_case(entry, case_id=f"image_{index:0{len(str(len(entries)))}d}", num_dims=num_dims)
        for index, entry in enumerate(entries)
    ]
    if not cases:
        raise BadInputError("nothing to predict: the list is empty")
    return cases


def find_inputs(path: PathLike, *, num_channels: int) -> list[InputCase]:
    """Find the cases in a folder, or take a single file.

    In a folder, ``{case}_{CCCC}`` files of one case belong together. A file without a channel number is a case of its
    own. A number that is no channel of the network's belongs to the case's name, so ``scan_0001`` and ``scan_0002``
    are two cases where one channel is expected, unless files of the same case show that channels are numbered. A case
    that lacks channels is listed with its problem, so that the others can be predicted.

    Args:
        path: A file, or a folder of files.
        num_channels: Channels that the network expects.

    Raises:
        BadInputError: If there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if path.is_file():
        return [_single_case(path, num_channels)]
    try:
        files = sorted(file for file in path.iterdir() if _is_image(file))
    except OSError as error:
        raise BadInputError(f"{path}: the folder cannot be read ({error.strerror}); check its permissions") from error
    if not files:
        raise BadInputError(f"{path}: no image in this folder")
    return _grouped(files, num_channels=num_channels)


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


def _from_nibabel(image: SpatialImage, num_dims: int | None) -> MetaTensor:
    values = _channel_first(torch.from_numpy(np.asarray(image.get_fdata(dtype=np.float32)).copy()), num_dims)
    return MetaTensor(values, affine=torch.from_numpy(np.asarray(image.affine, dtype=np.float64)))


def _from_dataset(dataset: CaseDataset[Any], index: int) -> MetaTensor:
    load_one = getattr(dataset, "load_image", dataset.load)  # labels are not read where they can be left out
    image = load_one(index)
    return image if isinstance(image, MetaTensor) else MetaTensor(image)


def _channel_first(image: Tensor, num_dims: int | None) -> Tensor:
    return image[None] if image.ndim == num_dims else image


def _is_path(source: object) -> TypeGuard[PathLike]:
    return isinstance(source, str | os.PathLike)


def _is_array_with_spacing(source: object) -> TypeGuard[tuple[NDArray[Any], Sequence[float]]]:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray)


def _grouped(files: Sequence[Path], *, num_channels: int) -> list[InputCase]:
    """Group files by case, in the order of their first files."""
    cases: dict[str, dict[int, Path]] = {}
    problems: dict[str, list[str]] = {}
    numbered = {case_id for case_id, channel in map(_case_and_channel, files) if channel in range(num_channels)}
    for file in files:
        case_id, channel = _case_and_channel(file)
        if channel is None or case_id not in numbered:
            case_id, channel = stem_of(file), 0
        if channel in cases.setdefault(case_id, {}):
            problems.setdefault(case_id, []).append(
                f"{file}: channel {channel:04d} of case {case_id} is also in {cases[case_id][channel].name}; "
                "move one of them away"
            )
        cases[case_id][channel] = file
    for case_id, channels in cases.items():
        if len(channels) > 1 or num_channels > 1:
            problems.setdefault(case_id, []).extend(_channel_problems(case_id, set(channels), num_channels))
    return [
        InputCase(
            case_id=case_id,
            files=tuple(channels[index] for index in sorted(channels)),
            problem="; ".join(problems.get(case_id, ())) or None,
        )
        for case_id, channels in cases.items()
    ]


def _channel_problems(case_id: str, found: set[int], num_channels: int) -> list[str]:
    if found == {0}:  # all channels may be in one file: RGB, or 4-D; its content is checked when it is read
        return []
    missing = sorted(set(range(num_channels)) - found)
    extra = sorted(found - set(range(num_channels)))
    problems = [f"case {case_id}: channel file _{index:04d} is missing" for index in missing]
    return problems + [f"case {case_id}: channel file _{index:04d} is one too many" for index in extra]


def _single_case(path: Path, num_channels: int) -> InputCase:
    """Return the case that a file belongs to: with the files beside it that hold its other channels, or by itself."""
    case_id, channel = _case_and_channel(path)
    if channel not in range(num_channels):
        return InputCase(case_id=stem_of(path), files=(path,))
    suffix = path.name[len(stem_of(path)) :]
    files = tuple(path.with_name(f"{case_id}_{index:04d}{suffix}") for index in range(num_channels))
    whole = all(file.exists() for file in files)
    return InputCase(case_id=case_id, files=files if whole else (path,))


def _is_image(path: Path) -> bool:
    is_file = path.is_file() or path.is_symlink()  # to read a link that leads nowhere says so
    return is_file and not path.name.startswith(".") and image_suffix(path) in READABLE


def _case_and_channel(path: Path) -> tuple[str, int | None]:
    return split_channel(stem_of(path))
