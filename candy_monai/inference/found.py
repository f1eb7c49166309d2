"""Which files are an image to predict: found in a folder or taken from a list, and grouped by case and channel.

Files are told apart by their names; a case is read when it is its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.data import MetaTensor

from candy_monai.aliases import PathLike
from candy_monai.data.formats import READABLE
from candy_monai.data.io import load_image
from candy_monai.data.names import image_suffix, split_channel, stem_of
from candy_monai.errors import BadInputError

GIVEN_SHAPE = "given_shape"
"""In the metadata of an image that got an axis more or less for the network: the spatial shape that its result has."""


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
        """Read the case as an image that the network takes.

        A flat scan becomes a volume of one slice for a network of three axes, and such a volume flat for one of two.

        Args:
            num_channels: Channels that the network expects.
            num_dims: Spatial axes that the network expects; None if unknown.

        Returns:
            ``(C, *spatial)`` with its geometry.

        Raises:
            BadInputError: If it cannot be read, or has another number of channels or axes.
        """
        image = self.decoded()
        name = image.meta.get("filename_or_obj") or self.case_id
        image = image if num_dims is None else _with_axes(image, num_dims, name)
        if not image.numel():
            raise BadInputError(f"{name}: is empty (shape {tuple(image.shape)})")
        if len(image) != num_channels:
            raise BadInputError(
                f"{name}: has {len(image)} channels, the network expects {num_channels}: one file with all "
                "of them, or files that end in _0000, _0001 and so on beside each other"
            )
        return image

    def decoded(self) -> MetaTensor:
        """Return the case as it is, ``(C, *spatial)``, whatever the network expects.

        Raises:
            BadInputError: If it cannot be read.
        """
        if self.problem is not None:
            raise BadInputError(self.problem)
        return self.read() if self.read is not None else load_channels(self.files)


def _with_axes(image: MetaTensor, num_dims: int, name: str) -> MetaTensor:
    """Return an image with as many spatial axes as the network expects; one slice is a matter of how it is stored."""
    if image.ndim == num_dims + 1:
        return image
    values, meta = image.as_tensor(), {**image.meta, GIVEN_SHAPE: tuple(image.shape[1:])}
    if num_dims == 3 and image.ndim == 3 and image.meta.get("is_picture") is False:  # it lies in space
        return MetaTensor(values[..., None], meta=meta)
    if num_dims == 2 and image.ndim == 4 and image.shape[-1] == 1:
        return MetaTensor(values[..., 0], meta=meta)
    raise BadInputError(
        f"{name}: has {image.ndim - 1} spatial axes (shape {tuple(image.shape[1:])}), the network expects "
        f"{num_dims}: predict {'its slices one by one' if num_dims == 2 else 'whole volumes'}"
    )


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
        return [single_case(path, num_channels)]
    try:
        files = sorted(file for file in path.iterdir() if _is_image(file))
    except OSError as error:
        raise BadInputError(f"{path}: the folder cannot be read ({error.strerror}); check its permissions") from error
    if not files:
        raise BadInputError(f"{path}: no image in this folder")
    return group_files(files, num_channels=num_channels)


def group_files(files: Sequence[Path], *, num_channels: int) -> list[InputCase]:
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


def single_case(path: Path, num_channels: int) -> InputCase:
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
