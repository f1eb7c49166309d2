"""Read and check an nnU-Net folder's ``dataset.json``.

Both versions are supported: v2 (``channel_names``, labels by name) and v1 or Medical Segmentation Decathlon
(``modality``, labels by id, a ``training`` list).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from candy_monai.aliases import PathLike
from candy_monai.data.images.formats import READABLE
from candy_monai.data.images.names import composed, existing_path, image_suffix, split_channel, stem_of
from candy_monai.data.values import ids_of_label, join_names, join_reprs, label_id_of
from candy_monai.errors import DatasetError, did_you_mean
from candy_monai.text import read_json

Split = Literal["Tr", "Ts"]

_MOST_SHOWN = 80
_EXAMPLE = '{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}'


@dataclass(frozen=True, kw_only=True)
class NNUNetCase:
    """The files of one case.

    Attributes:
        case_id: The common name of image and label.
        images: One file per channel, or a single file with all channels.
        label: ``None`` if there is none, which is allowed only for test cases.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The images and, if there is one, the label."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True, kw_only=True)
class DatasetDescription:
    """The content of ``dataset.json``, in either version.

    Attributes:
        name: The dataset's name, or its folder's.
        channel_names: By channel number.
        labels: Name to id, or to several ids for a region; the background first, without the ignore label.
        regions_class_order: The id painted for each region, in painting order.
        ignore_label: The id of voxels without annotation.
        file_ending: With its dot, in lower case.
        num_training: The number of training cases according to the file, if stated.
        listed: Cases that the file lists by path, by split; empty if the folders are to be searched.
    """

    name: str
    channel_names: tuple[str, ...]
    labels: Mapping[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    ignore_label: int | None = None
    file_ending: str
    num_training: int | None = None
    listed: Mapping[str, tuple[NNUNetCase, ...]] = field(default_factory=dict)

    @property
    def num_channels(self) -> int:
        """The number of channels of every image."""
        return len(self.channel_names)

    @property
    def num_classes(self) -> int:
        """The number of labels, including the background but not the ignore label."""
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels in order, background first."""
        return tuple(self.labels)

    @property
    def has_regions(self) -> bool:
        """Whether a label covers several ids, so that classes overlap."""
        return any(isinstance(ids, tuple) for ids in self.labels.values())

    @property
    def label_ids(self) -> tuple[int, ...]:
        """All ids that a label file may contain, ascending, without the ignore label."""
        return tuple(sorted({label_id for label in self.labels.values() for label_id in ids_of_label(label)}))


def read_dataset_description(folder: PathLike) -> DatasetDescription:
    """Read and check ``dataset.json``.

    Raises:
        DatasetError: If the folder or the file is missing or its content is invalid; lists every problem.
    """
    description, problems = parse_description(Path(folder))
    if description is None or problems:
        raise DatasetError(folder, problems)
    return description


def misnamed_description(folder: Path) -> Path | None:
    """Return the file in a folder whose name differs from ``dataset.json`` only in case, or None."""
    try:
        return next((path for path in folder.iterdir() if path.name.lower() == "dataset.json" != path.name), None)
    except OSError:  # files in it may be readable though it cannot be listed
        return None


def parse_description(folder: Path) -> tuple[DatasetDescription | None, list[str]]:
    """Read ``dataset.json`` as far as possible and collect its problems."""
    file = folder / "dataset.json"
    if not folder.is_dir():
        return None, [f"{folder}: no such folder; give the folder that holds dataset.json"]
    if not file.exists():
        inside = sorted(path.parent.name for path in folder.glob("*/dataset.json"))
        hint = f"; did you mean the folder {inside[0]!r} inside?" if inside else ""
        if (other := misnamed_description(folder)) is not None:
            hint = f"; rename {other.name} to {file.name}"
        return None, [f"{file}: missing; an nnU-Net dataset needs it{hint}"]
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        return None, [f"{file}: not valid JSON ({error})"]
    if not isinstance(content, dict):
        return None, [f"{file}: found a {type(content).__name__}, expected an object with 'channel_names' and 'labels'"]
    problems: list[str] = []
    channels = _channel_names(content, problems)
    labels, ignore = _labels(content, problems)
    order = _region_order(content, labels, problems)
    problems += _label_problems(labels, ignore, order)
    ending = _file_ending(content, folder, problems)
    num_training = _num_training(content, problems)
    problems = [f"dataset.json: {problem}" for problem in problems]
    if not channels or not labels or not ending:
        return None, problems
    return DatasetDescription(
        name=str(content.get("name") or folder.name),
        channel_names=channels,
        labels=labels,
        regions_class_order=order,
        ignore_label=ignore,
        file_ending=ending,
        num_training=num_training,
        listed=_listed_cases(content, folder, problems),
    ), problems


def _channel_names(content: Mapping[str, Any], problems: list[str]) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    names = content.get(key)
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        problems.append(_lack_of(content, key, "channel_names", '{"0": "CT"}'))
        return ()
    numbers = [str(index) for index in range(len(names))]
    if sorted(names) != sorted(numbers):
        problems.append(f"{key!r} has the channel numbers {sorted(names)}, expected 0 to {len(names) - 1}")
        return ()
    return tuple(str(names[number]) for number in numbers)


def _lack_of(content: Mapping[str, Any], key: str, name: str, example: str) -> str:
    """Return the problem of an entry without usable content."""
    if content.get(key):
        return f"{key!r} is {repr(content[key])[:_MOST_SHOWN]}, expected for example {example}"
    hint = "" if key in content else did_you_mean(name, content)
    return f"{name!r} is missing or empty; expected for example {example}.{hint}"


def _labels(content: Mapping[str, Any], problems: list[str]) -> tuple[dict[str, int | tuple[int, ...]], int | None]:
    given = content.get("labels")
    if not isinstance(given, dict) or not given:
        problems.append(_lack_of(content, "labels", "labels", '{"background": 0, "liver": 1}'))
        return {}, None
    if all(str(key).isdecimal() for key in given) and all(isinstance(value, str) for value in given.values()):
        if len(set(given.values())) < len(given):
            problems.append(f"'labels' gives two ids the same name: {given}; names must differ")
        given = {name: int(key) for key, name in given.items()}  # v1 maps ids to names
    labels: dict[str, int | tuple[int, ...]] = {}
    for name, value in given.items():
        ids = tuple(label_id_of(entry) for entry in (value if isinstance(value, list) else [value]))
        whole = tuple(entry for entry in ids if entry is not None)
        if not whole or len(whole) < len(ids):
            problems.append(f"label {name!r} is {value!r}, expected an id or a list of ids, 0 or more")
        else:
            labels[str(name)] = whole[0] if len(whole) == 1 else whole
    ignore = next((name for name in labels if name.casefold() == "ignore"), None)
    ignored = None if ignore is None else labels.pop(ignore)
    if isinstance(ignored, tuple):
        problems.append(f"the ignore label is {list(ignored)}, expected a single id")
        ignored = None
    if any(isinstance(ids, tuple) for ids in labels.values()):  # regions are in painting order
        return dict(sorted(labels.items(), key=lambda item: item[1] != 0)), ignored
    return dict(sorted(labels.items(), key=lambda item: item[1])), ignored


def _region_order(
    content: Mapping[str, Any], labels: Mapping[str, int | tuple[int, ...]], problems: list[str]
) -> tuple[int, ...] | None:
    order = content.get("regions_class_order")
    if order is None:
        if any(isinstance(ids, tuple) for ids in labels.values()):
            problems.append("labels with several ids (regions) need 'regions_class_order': one id for each region")
        return None
    if not isinstance(order, list) or None in map(label_id_of, order):
        problems.append(f"'regions_class_order' is {order!r}, expected a list with one id for each foreground label")
        return None
    return tuple(int(entry) for entry in order)


def _label_problems(
    labels: Mapping[str, int | tuple[int, ...]], ignore: int | None, order: Sequence[int] | None
) -> list[str]:
    if not labels:
        return []
    problems = []
    plain = [ids for ids in labels.values() if isinstance(ids, int)]
    ids = sorted({label_id for label in labels.values() for label_id in ids_of_label(label)})
    background = {name: label for name, label in labels.items() if name.casefold() == "background"}
    if 0 not in plain:
        problems.append('no label has the id 0, expected "background": 0')
    elif background and 0 not in background.values():
        problems.append(f"'labels' has {background}, expected the id 0 for the background")
    elif ids != list(range(len(ids))):
        remap = ", ".join(f"{old} -> {new}" for new, old in enumerate(ids) if old != new)
        problems.append(f"label ids {ids} have gaps, expected 0 to {len(ids) - 1}; remap a copy of the labels: {remap}")
    has_regions = len(plain) < len(labels)
    problems += [
        f"the region {name!r} holds the id 0, the background, so that it would cover everything; leave 0 out"
        for name, label in labels.items()
        if isinstance(label, tuple) and 0 in label
    ]
    if not has_regions and len(set(plain)) < len(plain):
        problems.append(f"two labels have the same id: {dict(labels)}; ids must differ")
    if ignore is not None and ignore != ids[-1] + 1:
        problems.append(f"the ignore label has the id {ignore}, expected {ids[-1] + 1}, the highest other id plus 1")
    if order is None:
        return problems
    foreground = sum(value != 0 for value in labels.values())
    if ignore is not None and ignore in order:
        problems.append(f"'regions_class_order' holds the ignore label {ignore}; leave it out")
    elif len(order) != foreground:
        problems.append(
            f"'regions_class_order' has {len(order)} ids, expected {foreground}: one for each foreground label"
        )
    elif set(order) - set(ids):
        problems.append(f"'regions_class_order' holds {sorted(set(order) - set(ids))}, expected ids among {ids}")
    return problems


def region_order_problem(description: DatasetDescription) -> str | None:
    """Return the problem of a region order that changes ids of a perfect prediction; None if it has none.

    Changing an id to another one within the same regions is allowed. Models and predictions that already have such an
    order are accepted.
    """
    order = description.regions_class_order
    if order is None or not description.has_regions:
        return None
    regions = [ids_of_label(label) for label in description.labels.values() if label != 0]
    changed = []
    for label_id in sorted({label_id for region in regions for label_id in region}):
        painted = [number for region, number in zip(regions, order, strict=True) if label_id in region][-1]
        if any((label_id in region) != (painted in region) for region in regions):
            changed.append(f"{label_id} -> {painted}")
    if not changed:
        return None
    return (
        f"dataset.json: 'regions_class_order' {list(order)} would change label ids of a perfect prediction: "
        f"{', '.join(changed)}; list the regions in 'labels' from the outermost to the innermost, and for each an id "
        "that no later region contains"
    )


def _file_ending(content: Mapping[str, Any], folder: Path, problems: list[str]) -> str:
    """Return the stated ending; v1 states none, so that of the first listed or stored image."""
    ending = content.get("file_ending")
    if isinstance(ending, str) and ending.lower() in READABLE:
        return ending.lower()
    if ending is not None:
        problems.append(f"'file_ending' is {ending!r}, expected one of {', '.join(READABLE)}")
        return ""
    training = content.get("training")
    entries = training if isinstance(training, list) else []
    listed = [entry.get("image") if isinstance(entry, dict) else entry for entry in entries]
    names = [*(image for image in listed if isinstance(image, str)), *sorted(map(str, folder.glob("imagesTr/*")))]
    for name in names:
        if (suffix := image_suffix(name)) in READABLE and not Path(name).name.startswith("."):
            return suffix
    problems.append(
        "'file_ending' is missing, and there is no image to infer it from; expected for example \".nii.gz\""
    )
    return ""


def _num_training(content: Mapping[str, Any], problems: list[str]) -> int | None:
    """Return the stated number of training cases; None if it is not stated."""
    given = content.get("numTraining")
    number = label_id_of(int(given) if isinstance(given, float) and given.is_integer() else given)
    if given is not None and number is None:
        problems.append(f"'numTraining' is {given!r}, expected the number of training cases")
    return number


def _listed_cases(content: Mapping[str, Any], folder: Path, problems: list[str]) -> dict[str, tuple[NNUNetCase, ...]]:
    """Return the cases that the file lists: a v2 ``dataset`` object, or v1 ``training`` and ``test`` lists."""
    listed: dict[str, list[NNUNetCase]] = {}
    try:
        if isinstance(content.get("dataset"), dict):
            entries = content["dataset"].items()
            listed["Tr"] = [_case(folder, case_id, entry["images"], entry["label"]) for case_id, entry in entries]
            if nameless := [case_id for case_id, _ in entries if not _names_a_file(case_id)]:
                problems.append(
                    f"dataset.json: the case ids {join_reprs(nameless, limit=5)} of 'dataset' cannot be names of "
                    "files; use ids without / and \\"
                )
        elif isinstance(content.get("training"), list) and content["training"]:
            for split, key in (("Tr", "training"), ("Ts", "test")):
                listed[split] = _cases_of_list(folder, key, content.get(key) or [], problems)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        problems.append(f"dataset.json: the list of cases lacks {error}, expected image(s) and label for each case")
    if any(_is_split_by_channel(cases) for cases in listed.values()):
        return {}
    unlabelled = sorted(case.case_id for case in listed.get("Tr", ()) if case.label is None)
    if unlabelled:
        problems.append(
            f"dataset.json: the list of training cases names no label for {join_names(unlabelled, limit=5)}; expected "
            f"image and label of each, as {_EXAMPLE}"
        )
    return {split: tuple(sorted(cases, key=lambda case: case.case_id)) for split, cases in listed.items()}


def _cases_of_list(folder: Path, key: str, entries: Sequence[Any], problems: list[str]) -> list[NNUNetCase]:
    """Return the cases of a list of image files, or of ``{"image": ..., "label": ...}`` with one or more images."""
    cases, wrong = [], []
    for number, entry in enumerate(entries, start=1):
        image, label = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
        images: list[Any] = image if isinstance(image, list) and isinstance(entry, dict) else [image]
        if images and all(isinstance(path, str) and path for path in images):
            stem = stem_of(_portable(images[0]))
            case_id = split_channel(stem)[0] if isinstance(image, list) else stem
            cases.append(_case(folder, case_id, images, label))
        else:
            wrong.append(f"entry {number}, {repr(entry)[:_MOST_SHOWN]}{'...' * (len(repr(entry)) > _MOST_SHOWN)}")
    if wrong:
        problems.append(
            f"dataset.json: {len(wrong)} of {len(entries)} entries of {key!r} name no image, the first is {wrong[0]}; "
            f"expected {_EXAMPLE}"
        )
    return cases


def _case(folder: Path, case_id: str, images: str | Sequence[str], label: str | None) -> NNUNetCase:
    paths = [images] if isinstance(images, str) else images
    return NNUNetCase(
        case_id=composed(case_id),
        images=tuple(_resolved(folder, image) for image in paths),
        label=_resolved(folder, label) if label else None,
    )


def _resolved(folder: Path, path: str) -> Path:
    return existing_path(folder / Path(os.path.expandvars(_portable(path))).expanduser())


def _names_a_file(case_id: str) -> bool:
    return case_id not in ("", ".", "..") and not {"/", "\\"} & set(case_id)


def _portable(path: str) -> str:
    """Return a path that is valid on every system: Windows writes backslashes between folders."""
    return path if "/" in path else path.replace("\\", "/")


def _is_split_by_channel(cases: Sequence[NNUNetCase]) -> bool:
    """Return whether a list is of nnU-Net v1, which names ``a.nii.gz`` for ``a_0000.nii.gz``, not of the Decathlon."""
    if not cases or len(cases[0].images) != 1 or cases[0].images[0].exists():
        return False
    first = cases[0].images[0]
    return first.with_name(f"{cases[0].case_id}_0000{image_suffix(first)}").exists()
