"""What can be predicted, found on disk: one file, or a folder whose channels are grouped by case. Reads no voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.data.formats import READABLE
from candy_monai.data.names import image_suffix, split_channel, stem_of
from candy_monai.errors import BadInputError


@dataclass(frozen=True, kw_only=True)
class InputCase:
    """One case to predict.

    Attributes:
        case_id: What the prediction is called.
        files: One file a channel, or one file that holds them all.
    """

    case_id: str
    files: tuple[Path, ...]


def find_inputs(path: PathLike, *, num_channels: int) -> list[InputCase]:
    """Find the cases in a folder, or take a single file.

    In a folder, ``{case}_{CCCC}`` files of one case belong together. A file without a channel number is a case of its
    own. A number that is no channel of the network's belongs to the case's name, so ``scan_0001`` and ``scan_0002``
    are two cases where one channel is expected, unless files of the same case show that channels are numbered.

    Args:
        path: A file, or a folder of files.
        num_channels: Channels that the network expects.

    Raises:
        BadInputError: If there is nothing, or cases lack channels; every such case is named.
    """
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if path.is_file():
        return [_single_case(path, num_channels)]
    files = sorted(file for file in path.iterdir() if _is_image(file))
    if not files:
        raise BadInputError(f"{path}: no image in this folder")
    cases: dict[str, dict[int, Path]] = {}
    problems = []
    numbered = {case_id for case_id, channel in map(_case_and_channel, files) if channel in range(num_channels)}
    for file in files:
        case_id, channel = _case_and_channel(file)
        if channel is None or case_id not in numbered:
            case_id, channel = stem_of(file), 0
        if channel in cases.setdefault(case_id, {}):
            problems.append(f"{file.name}: channel {channel:04d} of case {case_id} is there twice")
        cases[case_id][channel] = file
    for case_id, channels in cases.items():
        if len(channels) > 1 or num_channels > 1:
            problems += _channel_problems(case_id, set(channels), num_channels)
    if problems:
        raise BadInputError(f"{path}: " + "\n  - ".join(["cannot be predicted as it is:", *problems]))
    return [
        InputCase(case_id=case_id, files=tuple(channels[index] for index in sorted(channels)))
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
    return path.is_file() and not path.name.startswith(".") and image_suffix(path) in READABLE


def _case_and_channel(path: Path) -> tuple[str, int | None]:
    return split_channel(stem_of(path))
