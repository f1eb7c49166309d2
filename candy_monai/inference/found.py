"""Which files are an image to predict: found in a folder or taken from a list, and grouped by case and channel.

Files are told apart by their names; a case is read when it is its turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from monai.data import MetaTensor

from candy_monai.aliases import PathLike
from candy_monai.data.images.formats import READABLE
from candy_monai.data.images.names import image_suffix, split_channel, stem_of
from candy_monai.data.images.reading import geometry_of, read_channels
from candy_monai.data.values import without_metadata
from candy_monai.errors import BadInputError
from candy_monai.inference.channels import RunChannels, names_beside

_MOST_CHANNELS = 16
"""More files of one name than that are numbered cases, not the channels of one."""

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
        has_run_channels: Whether the files are the run's channels in their order, so that none is left to choose.
    """

    case_id: str
    files: tuple[Path, ...] = ()
    read: Callable[[], MetaTensor] | None = None
    problem: str | None = None
    has_run_channels: bool = False

    def load(self, channels: RunChannels, *, num_dims: int | None = None) -> MetaTensor:
        """Read the case as an image that the network takes.

        A flat scan becomes a volume of one slice for a network of three axes, and such a volume flat for one of two.

        Args:
            channels: The run's channels.
            num_dims: Spatial axes that the network expects; None if unknown.

        Returns:
            ``(C, *spatial)`` with its geometry.

        Raises:
            BadInputError: If it cannot be read, lies nowhere, or has other channels or another number of axes.
        """
        image = self.decoded()
        name = image.meta.get("filename_or_obj") or self.case_id
        geometry_of(image, name=name)
        image = image if num_dims is None else _with_axes(image, num_dims, name)
        if not image.numel():
            raise BadInputError(f"{name}: is empty (shape {tuple(image.shape)})")
        left = channels if not self.has_run_channels else dataclasses.replace(channels, numbers=None)
        chosen = left.chosen_from(image, name)
        if chosen is image:
            return image
        return MetaTensor(without_metadata(chosen), meta=dict(image.meta))

    def decoded(self) -> MetaTensor:
        """Return the case as it is, ``(C, *spatial)``, whatever the network expects.

        Raises:
            BadInputError: If it cannot be read.
        """
        if self.problem is not None:
            raise BadInputError(self.problem)
        return self.read() if self.read is not None else read_channels(self.files).tensor()


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


class CaseFiles(tuple[Path, ...]):
    """The files of one case, known to be the run's channels in their order whatever their names say."""


def find_inputs(path: PathLike, *, channels: RunChannels) -> list[InputCase]:
    """Find the cases in a folder, or take a single file.

    ``{case}_{CCCC}`` files of one case belong together, and must be the run's channels: a case that lacks some or has
    others is listed with its problem, so that the others can be predicted. A file without a number is a case of its
    own. Where a single channel is expected, ``scan_0001``, ``scan_0002`` and so on without a ``scan_0000`` are cases of
    their own, too, unless another case has files of the same numbers.

    Args:
        path: A file, or a folder of files.
        channels: The run's channels.

    Raises:
        BadInputError: If there is nothing, or a ``dataset.json`` beside it names other channels.
    """
    path = Path(path)
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if path.is_file():
        return group_files([path], channels=channels)
    try:
        files = sorted(file for file in path.iterdir() if _is_image(file))
    except OSError as error:
        raise BadInputError(f"{path}: the folder cannot be read ({error.strerror}); check its permissions") from error
    if not files:
        inner = next((path / name for name in ("imagesTs", "imagesTr") if (path / name).is_dir()), None)
        hint = "" if inner is None else f"; a dataset's images are one folder further down, for example {inner}"
        raise BadInputError(f"{path}: no image in this folder{hint}")
    return group_files(files, channels=channels)


def group_files(files: Sequence[Path], *, channels: RunChannels) -> list[InputCase]:
    """Group files by case, in the order of their first files; one file of a case brings the others beside it.

    Args:
        files: The files.
        channels: The run's channels.

    Raises:
        BadInputError: If a ``dataset.json`` beside them names other channels.
    """
    folders = dict.fromkeys(file.parent for file in files)
    for folder in folders:
        if (beside := names_beside(folder)) is not None:
            channels.refuse_other_names(*beside)
    there: dict[str, dict[int, list[Path]]] = {}
    for file in [*files, *_numbered_beside(files, folders)]:
        case_id, number = split_channel(stem_of(file))
        if number is not None and file not in (same := there.setdefault(case_id, {}).setdefault(number, [])):
            same.append(file)
    given = set(files)
    cases: dict[str, InputCase] = {}
    twice: dict[str, list[str]] = {}
    for file in files:
        case_id, number = split_channel(stem_of(file))
        if number is None or not _are_channels(case_id, there, channels):
            case = InputCase(case_id=stem_of(file), files=(file,))
        else:
            case = _numbered_case(case_id, there[case_id], channels, given)
        known = cases.setdefault(case.case_id, case)
        if known.files != case.files and file not in known.files:
            twice.setdefault(case.case_id, []).append(
                f"{file}: the case {case.case_id} is also in {known.files[0].name}; move one of them away"
            )
    return [
        dataclasses.replace(case, problem="; ".join(filter(None, [*twice.get(case_id, ()), case.problem])) or None)
        for case_id, case in cases.items()
    ]


def _are_channels(case_id: str, there: dict[str, dict[int, list[Path]]], channels: RunChannels) -> bool:
    """Return whether the numbers at the ends of a case's files are channels; else they belong to the names of cases."""
    numbers = set(there[case_id])
    if channels.numbers is not None:
        return channels.are_numbered
    if len(channels) > 1:
        return bool(numbers & set(channels.expected))
    if len(numbers) > _MOST_CHANNELS:
        return False
    if 0 in numbers or len(numbers) == 1:
        return True
    return any(set(other) == numbers for name, other in there.items() if name != case_id)


def _numbered_case(case_id: str, there: dict[int, list[Path]], channels: RunChannels, given: set[Path]) -> InputCase:
    """Return the case of numbered files, with its problem where they are not the run's channels."""
    if set(there) == {0} and len(channels) > 1:
        # All channels may be in one file: RGB, or 4-D; its content is checked when it is read.
        return InputCase(case_id=case_id, files=tuple(there[0][:1]), problem=_ambiguous(case_id, there, given))
    problems = [channels.problem(case_id, there), _ambiguous(case_id, there, given)]
    expected = [number for number in channels.expected if number in there]
    files = tuple(there[number][0] for number in expected) or tuple(files[0] for files in there.values())
    problem = "; ".join(filter(None, problems)) or None
    return InputCase(case_id=case_id, files=files, problem=problem, has_run_channels=True)


def _ambiguous(case_id: str, there: dict[int, list[Path]], given: set[Path]) -> str | None:
    """Return which channels are in several of the given files."""
    problems = []
    for number, files in there.items():
        first, *others = [file for file in files if file in given] or files[:1]
        problems += [
            f"{other}: channel {number:04d} of case {case_id} is also in {first.name}; move one of them away"
            for other in others
        ]
    return "; ".join(problems) or None


def _numbered_beside(files: Sequence[Path], folders: Iterable[Path]) -> Iterator[Path]:
    """Yield the images beside some files that are further channels of their cases; those of the same format first."""
    cases = {case_id for case_id, number in (split_channel(stem_of(file)) for file in files) if number is not None}
    if not cases:
        return
    suffixes = {image_suffix(file) for file in files}
    for folder in folders:
        try:
            found = sorted(folder.iterdir(), key=lambda file: (image_suffix(file) not in suffixes, file.name))
        except OSError:  # files can be readable where their folder is not
            continue
        for file in found:
            case_id, number = split_channel(stem_of(file))
            if number is not None and case_id in cases and _is_image(file):
                yield file


def _is_image(path: Path) -> bool:
    is_file = path.is_file() or path.is_symlink()  # to read a link that leads nowhere says so
    return is_file and not path.name.startswith(".") and image_suffix(path) in READABLE
