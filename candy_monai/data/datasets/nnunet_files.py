"""Pair the files of an nnU-Net folder by case, without opening images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase, Split, parse_description
from candy_monai.data.images.formats import READABLE
from candy_monai.data.images.names import composed, image_suffix, split_channel, stem_of
from candy_monai.data.images.pictures import PICTURES, TIFFS
from candy_monai.data.values import repeated
from candy_monai.errors import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The cases of a folder according to its description and file names.

    Attributes:
        folder: The dataset's folder.
        description: The content of ``dataset.json``; None if it is invalid.
        cases: The cases of each requested split.
        description_problems: The problems of ``dataset.json``.
        problems: The problems of the files of each split.
    """

    folder: Path
    description: DatasetDescription | None
    cases: Mapping[Split, tuple[NNUNetCase, ...]]
    description_problems: tuple[str, ...]
    problems: Mapping[Split, tuple[str, ...]]


def list_dataset(folder: Path, *splits: Split) -> Listing:
    """Read a folder's description and pair the files of some splits."""
    description, problems = parse_description(folder)
    found = {} if description is None else {split: _find_cases(folder, description, split) for split in splits}
    return Listing(
        folder=folder,
        description=description,
        cases={split: cases for split, (cases, _) in found.items()},
        description_problems=tuple(problems),
        problems={split: tuple(wrong) for split, (_, wrong) in found.items()},
    )


def _find_cases(
    folder: Path, description: DatasetDescription, split: Split
) -> tuple[tuple[NNUNetCase, ...], list[str]]:
    """Return the complete cases of a split, sorted by id, and a problem for every missing or surplus file.

    Only the last ``_dddd`` of an image's name is the channel, so ids may themselves end in such. Accents in ids are
    composed, since a name may be stored in two forms. Hidden files and other file types are ignored. Several channel
    names with a single picture ``_0000`` mean that this file contains all channels, as in colour pictures.
    """
    if (listed := description.listed.get(split)) is not None:
        return listed, _listing_problems(listed)
    problems: list[str] = []
    ending = description.file_ending
    channels = _images_by_case(folder / f"images{split}", ending, problems)
    labels = _files(folder / f"labels{split}", ending, problems)
    if split == "Tr" and not channels:
        problems.append(f"imagesTr: no {ending} image found")
    cases = []
    for case_id, files in sorted(channels.items()):
        problem = _channel_problem(case_id, files, description)
        if split == "Tr" and case_id not in labels:
            problem = problem or f"{case_id}: labelsTr/{case_id}{ending} is missing; add it or remove the image"
        if problem:
            problems.append(problem)
        else:
            images = tuple(files[channel] for channel in sorted(files))
            cases.append(NNUNetCase(case_id=case_id, images=images, label=labels.get(case_id)))
    for case_id in sorted(labels.keys() - channels.keys()):
        others = _other_files(folder / f"images{split}", case_id, ending)
        hint = f" Found {others[0]}." if others else did_you_mean(case_id, channels.keys() - labels.keys())
        problems.append(f"{case_id}: images{split}/{case_id}_0000{ending} is missing, but there is a label.{hint}")
    return tuple(cases), problems


def _other_files(folder: Path, case_id: str, ending: str) -> list[str]:
    """Return a case's images that differ only in the file ending, such as uncompressed files."""
    return [
        path.name
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if image_suffix(path) in READABLE
        and not path.name.lower().endswith(ending)
        and split_channel(composed(stem_of(path)))[0] == case_id
    ]


def _listing_problems(cases: tuple[NNUNetCase, ...]) -> list[str]:
    twice = repeated(case.case_id for case in cases)
    missing = [(case.case_id, path) for case in cases for path in case.files if not path.is_file()]
    return [
        *(f"{case_id}: is listed in dataset.json more than once; remove all but one" for case_id in twice),
        *(f"{case_id}: {path} is listed in dataset.json but does not exist{_unset(path)}" for case_id, path in missing),
        *(
            f"{case.case_id}: {case.label} is listed in dataset.json as both image and label; correct one of them"
            for case in cases
            if case.label in case.images
        ),
    ]


def _unset(path: Path) -> str:
    """Return a hint at the environment variables that remain in a path because they are not set."""
    variables = sorted(set(re.findall(r"\$\{?\w+\}?", str(path))))
    return f"; set the environment variable {', '.join(variables)}" if variables else ""


def _files(folder: Path, ending: str, problems: list[str]) -> dict[str, Path]:
    """Return files with one ending by name without it; a name with two spellings of the ending is a problem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not path.name.lower().endswith(ending):
            continue
        if (shown := path.name.encode(errors="backslashreplace").decode()) != path.name:
            problems.append(f"{folder.name}/{shown}: the file name is not valid UTF-8; rename the file")
            continue
        name = composed(path.name[: -len(ending)])
        first = found.setdefault(name, path)
        if first is not path:
            alike = composed(first.name) == composed(path.name)
            why = " (the names differ only in the encoding of accents)" if alike else ""
            problems.append(f"{name}: found both {first.name} and {path.name} in {folder.name}{why}; remove one")
    return found


def _images_by_case(folder: Path, ending: str, problems: list[str]) -> dict[str, dict[int, Path]]:
    channels = defaultdict[str, dict[int, Path]](dict)
    for name, path in _files(folder, ending, problems).items():
        case_id, channel = split_channel(name)
        if channel is None:
            problems.append(f"{folder.name}/{path.name}: no channel number; rename it to {name}_0000{ending}")
        else:
            channels[case_id][channel] = path
    return channels


def _channel_problem(case_id: str, files: Mapping[int, Path], description: DatasetDescription) -> str | None:
    expected, ending = range(description.num_channels), description.file_ending
    if description.num_channels > 1 and list(files) == [0] and ending in (*PICTURES, *TIFFS):
        return None
    folder = next(iter(files.values())).parent.name
    missing = [f"{case_id}_{channel:04d}{ending}" for channel in expected if channel not in files]
    if missing:
        return f"{case_id}: {', '.join(missing)} missing in {folder}; found channels {sorted(files)}"
    extra = [path.name for channel, path in sorted(files.items()) if channel not in expected]
    if extra:
        names = list(description.channel_names)
        return f"{case_id}: found {', '.join(extra)} in {folder}, expected only the channels {names} of dataset.json"
    return None
