"""Find everything that is wrong with an nnU-Net folder before work starts, each problem with the file at fault.

Decodes every image once, since a truncated file, a NaN or an unknown label id shows nowhere else. Repairs nothing and
writes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.alignment import POSITION_TOLERANCE, misalignment
from candy_monai.data.folds import read_splits
from candy_monai.data.io import geometry_of, load_image
from candy_monai.data.nnunet_description import DatasetDescription, NNUNetCase, parse_description
from candy_monai.data.nnunet_files import find_cases
from candy_monai.data.values import listed
from candy_monai.errors import BadInputError, CandyError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

_MOST_BINS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """What a check found.

    Attributes:
        problems: What would stop training or make it wrong.
        warnings: What is unusual and may be intended.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _CaseFindings:
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    label_ids: frozenset[int]


def check_dataset(folder: PathLike, *, num_workers: int | None = None) -> DatasetReport:
    """Check the description, the files, every image and label, and the splits of a dataset.

    Memory stays at one case a worker. What is wrong with test cases is a warning: training does not read them.

    Args:
        folder: The dataset's folder.
        num_workers: Threads that decode; ``None`` takes one a processor, at most 4.
    """
    folder = Path(folder)
    description, problems = parse_description(folder)
    if description is None:
        return DatasetReport(problems=tuple(problems), warnings=())
    cases, case_problems = find_cases(folder, description, "Tr")
    test_cases, test_problems = find_cases(folder, description, "Ts")
    problems = [*problems, *case_problems]
    if description.num_training is not None and not case_problems and description.num_training != len(cases):
        problems.append(
            f"dataset.json: numTraining is {description.num_training}, found {len(cases)} cases; correct it"
        )
    if (folder / "splits_final.json").is_file():
        problems += split_problems(folder / "splits_final.json", [case.case_id for case in cases])
    with ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 4)) as pool:
        findings = list(pool.map(lambda case: _check_case(case, description), cases))
        test_findings = list(pool.map(lambda case: _check_case(case, description), test_cases))
    warnings = [warning for finding in findings for warning in finding.warnings]
    warnings += test_problems  # no training reads the test cases
    warnings += [text for finding in test_findings for text in (*finding.problems, *finding.warnings)]
    seen = {label_id for finding in findings for label_id in finding.label_ids}
    absent = sorted(set(description.label_ids) - seen)
    problems += [problem for finding in findings for problem in finding.problems]
    if findings and not problems and seen <= {0, description.ignore_label}:
        problems.append("labelsTr: no training case has any foreground, so there is nothing to learn; check the labels")
    elif findings and absent:
        warnings.append(f"no training case contains the label ids {absent}")
    return DatasetReport(
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def split_problems(path: Path, case_ids: Sequence[str]) -> list[str]:
    """Compare a split file with the cases that exist."""
    try:
        folds = read_splits(path)
    except BadInputError as error:
        return [str(error)]
    known, problems = set(case_ids), []
    for index, fold in enumerate(folds):
        if not fold.train:
            problems.append(f'{path.name}: fold {index} has no case to train on ("train" is empty); name some')
        if not fold.validation and len(known) != 1:  # a single case trains without validation
            problems.append(
                f'{path.name}: fold {index} has no case to validate on ("val" is empty); name some, or choose '
                "the fold 'all', which trains on every case"
            )
        named = Counter((*fold.train, *fold.validation))
        unknown = sorted(set(named) - known)
        if unknown:
            problems.append(f"{path.name}: fold {index} names cases that do not exist: {', '.join(unknown)}")
        twice = sorted(case_id for case_id, count in named.items() if count > 1)
        if twice:
            problems.append(f"{path.name}: fold {index} names cases twice: {', '.join(twice)}")
    return problems


def _check_case(case: NNUNetCase, description: DatasetDescription) -> _CaseFindings:
    problems: list[str] = []
    warnings: list[str] = []
    parts = [(path, image) for path in case.images if (image := _loaded(path, problems, is_label=False)) is not None]
    for path, image in parts:
        values = image.numpy()
        if not np.isfinite(values.sum()) and not np.isfinite(values).all():  # the sum alone decides almost always
            count = int((~np.isfinite(values)).sum())
            problems.append(f"{_short(path)}: {count} values are NaN or infinite; replace them")
    channels = sum(len(image) for _, image in parts)
    if len(parts) == len(case.images) and channels != description.num_channels:
        names = ", ".join(description.channel_names)
        problems.append(f"{_short(case.images[0])}: {channels} channels, expected {description.num_channels}: {names}")
    label = None if case.label is None else _loaded(case.label, problems, is_label=True)
    if case.label is not None and label is not None:
        parts.append((case.label, label))
    for part in parts[1:]:
        _compare(parts[0], part, problems, warnings)
    ids = frozenset[int]()
    if case.label is not None and label is not None:
        ids = _ids(label.numpy())
        _check_ids(case.label, ids, description, problems, warnings)
    return _CaseFindings(problems=tuple(problems), warnings=tuple(warnings), label_ids=ids)


def _loaded(path: Path, problems: list[str], *, is_label: bool) -> MetaTensor | None:
    try:
        return load_image(path, is_label=is_label)
    except CandyError as error:
        problems.append(str(error))
        return None


def _compare(
    first: tuple[Path, MetaTensor], second: tuple[Path, MetaTensor], problems: list[str], warnings: list[str]
) -> None:
    """Compare two files of one case, whose voxels are taken for the same places; what is but inexact is a warning."""
    one, other = geometry_of(first[1]), geometry_of(second[1])
    names = f"{_short(second[0])}: "
    if problem := misalignment(other, one, against=f"the image {first[0].name} has"):
        problems.append(f"{names}{problem}")
    elif not np.allclose(one.affine, other.affine, atol=POSITION_TOLERANCE):
        distance = float(np.abs(one.affine - other.affine).max())
        warnings.append(f"{names}origin or direction differs from that of {first[0].name} by up to {distance:.3g}")


def _ids(label: NDArray[np.integer]) -> frozenset[int]:
    flat = label.ravel()
    if flat.size and flat.min() >= 0 and flat.max() < _MOST_BINS:  # counting is many times faster than sorting
        return frozenset(np.flatnonzero(np.bincount(flat)).tolist())
    return frozenset(np.unique(flat).tolist())


def _check_ids(
    path: Path, ids: frozenset[int], description: DatasetDescription, problems: list[str], warnings: list[str]
) -> None:
    expected = {*description.label_ids, *(() if description.ignore_label is None else (description.ignore_label,))}
    unknown = sorted(ids - expected)
    if unknown:
        remap = ""
        if len(ids) == len(expected):
            pairs = zip(sorted(ids), sorted(expected), strict=True)
            remap = "; remap a copy: " + ", ".join(f"{old} -> {new}" for old, new in pairs if old != new)
        problems.append(
            f"{_short(path)}: unknown label ids {listed(unknown)}; found {listed(sorted(ids))}, "
            f"expected {listed(sorted(expected))} (dataset.json){remap}"
        )
    elif not ids - {0}:
        warnings.append(f"{_short(path)}: no foreground")


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
