"""Find everything that is wrong with an nnU-Net folder before work starts, each problem with the file at fault.

Decodes every image once, since a truncated file, a NaN or an unknown label id shows nowhere else, and measures each
case for the dataset's fingerprint by the way. Repairs nothing; writes what it found out of the cases where that is
asked for, and else nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold, choose_folds, read_splits, split_problems
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.datasets.nnunet_files import Listing, list_dataset
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.data.images.alignment import displacement, misalignment, misfit, mismatch
from candy_monai.data.images.formats import TIFFS, spacing_file
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.reading import Geometry, Scan, joined, read_scan, turned_label
from candy_monai.data.inspection.digest import Digests, case_stamp, file_digests
from candy_monai.data.inspection.findings import CaseCache, CaseFindings
from candy_monai.data.inspection.inspect import measure_case, mixed_axes, pooled_fingerprint, samples_per_case
from candy_monai.data.inspection.suspicions import (
    CaseFacts,
    content_of,
    labels_absent_from_folds,
    names_by_id,
    suspicions,
    usual_range,
)
from candy_monai.data.values import listed, named
from candy_monai.data.workers import case_pool
from candy_monai.errors import CandyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.datasets.nnunet import NNUNetDataset
    from candy_monai.data.inspection.fingerprint import Fingerprint

SPLITS = "splits_final.json"

_TAKEN_ALIKE = "voxels are taken for the same places all the same: look whether they are, and correct a wrong header"
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
class CheckedDataset:
    """What one look at an nnU-Net folder found, so that nothing has to be read again.

    Attributes:
        listing: The description and the files of training and test cases.
        report: Problems and warnings.
        folds: The folds of the folder's own split file, or else nnU-Net's; empty where there are problems with these.
        digests: Tell this state of the training cases from another; None where there are problems.
        fingerprint: What planning needs to know; None where there are problems.
    """

    listing: Listing
    report: DatasetReport
    folds: tuple[Fold, ...] = ()
    digests: Digests | None = None
    fingerprint: Fingerprint | None = None

    @cached_property
    def dataset(self) -> NNUNetDataset:
        """The training cases.

        Raises:
            DatasetError: If there are none, or their description or files have problems.
        """
        from candy_monai.data.datasets.nnunet import NNUNetDataset

        return NNUNetDataset(self.listing.folder, listing=self.listing)


def check_dataset(folder: PathLike, *, num_workers: int | None = None) -> DatasetReport:
    """Check the description, the files, every image and label, and the splits of a dataset.

    Memory stays at one case a worker. What is wrong with test cases is a warning: training does not read them.

    Args:
        folder: The dataset's folder.
        num_workers: Threads that decode; ``None`` takes one a processor. Fewer where cases would not fit into memory.
    """
    return visit_dataset(folder, num_workers=num_workers).report


def visit_dataset(
    folder: PathLike, *, store: PathLike | None = None, num_workers: int | None = None, places_per_class: int = 0
) -> CheckedDataset:
    """Look at a dataset once: check it as `check_dataset` does and measure it as `inspect` does, in one decoding.

    Args:
        folder: The dataset's folder.
        store: Where findings of cases are kept, so that only new and changed cases are decoded; None keeps none.
        num_workers: Threads that decode; ``None`` takes one a processor. Fewer where cases would not fit into memory.
        places_per_class: Voxels of each foreground id to keep for each case, which are looked for anew each time.
    """
    listing = list_dataset(Path(folder), "Tr", "Ts")
    description, problems = listing.description, [*listing.description_problems]
    if description is None:
        return CheckedDataset(listing=listing, report=DatasetReport(problems=tuple(problems), warnings=()))
    cases, test_cases = listing.cases["Tr"], listing.cases["Ts"]
    problems += listing.problems["Tr"]
    if description.num_training is not None and not listing.problems["Tr"] and description.num_training != len(cases):
        problems.append(
            f"dataset.json: numTraining is {description.num_training}, found {len(cases)} cases; add what is missing, "
            f'or write "numTraining": {len(cases)}'
        )
    case_ids = [case.case_id for case in cases]
    splits = listing.folder / SPLITS
    split_file_problems = split_problems(splits, case_ids) if splits.is_file() else []
    problems += split_file_problems
    folds = () if listing.problems["Tr"] or split_file_problems else usual_folds(listing.folder, case_ids)
    digests = _digests(listing)
    visit = _Visit(
        description=description,
        digests=digests,
        cache=None if store is None or places_per_class else CaseCache(store, description),
        num_places=places_per_class,
        num_samples=samples_per_case(max(1, len(cases)), description.num_channels),
    )
    with case_pool((*cases, *test_cases), num_workers) as pool:
        in_training = pool.map(visit.of_training, cases)
        in_test = pool.map(visit.of_test, test_cases)
        findings, test_findings = list(in_training), list(in_test)
    problems += [problem for finding in findings for problem in finding.problems]
    measured = [finding.measured for finding in findings if finding.measured is not None]
    problems += [] if problems else mixed_axes(measured)
    warnings = [warning for finding in findings for warning in finding.warnings]
    warnings += _spacing_warnings([name for finding in findings for name in finding.without_spacing])
    warnings += listing.problems["Ts"]  # no training reads the test cases
    warnings += [text for finding in test_findings for text in (*finding.problems, *finding.warnings)]
    facts, test_facts = (_facts(found) for found in (findings, test_findings))
    ids_by_case = {case.case_id: case.label_ids for case in facts if case.label_ids is not None}
    seen = frozenset[int]().union(*ids_by_case.values())
    if findings and not problems and seen <= {0, description.ignore_label}:
        problems.append("labelsTr: no training case has any foreground, so there is nothing to learn; check the labels")
    elif findings and (absent := sorted(set(description.label_ids) - seen)):
        warnings.append(f"no training case contains the label ids {absent}")
    warnings += suspicions(
        facts, test_facts, channel_names=description.channel_names, ignore_label=description.ignore_label
    )
    if not problems:  # otherwise a label may be missing because its case is
        warnings += labels_absent_from_folds(folds, ids_by_case, names_by_id(description.labels))
        visit.keep()
    warnings += patients_on_both_sides(folds)
    is_sound = digests is not None and bool(cases) and not problems
    return CheckedDataset(
        listing=listing,
        report=DatasetReport(problems=tuple(problems), warnings=tuple(warnings)),
        folds=folds,
        digests=digests if is_sound else None,
        fingerprint=pooled_fingerprint(description, digests.whole, measured) if digests and is_sound else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """Read cases, from what is kept where that is possible, and collect what is to be kept."""

    description: DatasetDescription
    digests: Digests | None
    cache: CaseCache | None
    num_places: int
    num_samples: int
    new: dict[str, CaseFindings] = field(default_factory=dict)

    def of_training(self, case: NNUNetCase) -> CaseFindings:
        content = None if self.digests is None else self.digests.cases[case.case_id]
        return self._findings(case, content, is_training=True)

    def of_test(self, case: NNUNetCase) -> CaseFindings:
        return self._findings(case, None, is_training=False)

    def keep(self) -> None:
        for key, found in self.new.items():
            if self.cache is not None:
                self.cache.save(key, found)

    def _findings(self, case: NNUNetCase, content: str | None, *, is_training: bool) -> CaseFindings:
        key = None if self.cache is None else self.cache.key(case, content, is_training=is_training)
        found = None if self.cache is None or key is None else self.cache.load(key)
        if found is None or not found.has_samples(self.num_samples):
            stamp = _stamp(case)
            found = _thinned(
                _check_case(case, self.description, self.num_places if is_training else None), self.num_samples
            )
            if key is not None and _stamp(case) == stamp:  # otherwise somebody is writing to the case
                self.new[key] = found
        return _thinned(found, self.num_samples)


def _thinned(findings: CaseFindings, num_samples: int) -> CaseFindings:
    measured = findings.measured
    return findings if measured is None else replace(findings, measured=measured.thinned(num_samples))


def _stamp(case: NNUNetCase) -> str | None:
    try:
        return case_stamp(case)
    except OSError:
        return None


def _digests(listing: Listing) -> Digests | None:
    """Return the digests of the training cases; None where a file cannot be read, which its case's check says."""
    assert listing.description is not None
    try:
        return file_digests(listing.description, listing.cases["Tr"])
    except OSError:
        return None


def usual_folds(folder: Path, case_ids: Sequence[str]) -> tuple[Fold, ...]:
    """Return the folds that a check looks at: those of the folder's own split file, or else nnU-Net's."""
    if (folder / SPLITS).is_file():
        return read_splits(folder / SPLITS, case_ids=case_ids)
    return choose_folds(case_ids) if case_ids else ()


def _check_case(case: NNUNetCase, description: DatasetDescription, num_places: int | None) -> CaseFindings:
    """Decode a case once, and say what is wrong with it or what it is; it is measured unless ``num_places`` is None."""
    problems: list[str] = []
    warnings: list[str] = []
    parts = [(path, image) for path in case.images if (image := _loaded(path, problems, is_label=False)) is not None]
    arrays = [image.values.numpy() for _, image in parts]
    for (path, _), values in zip(parts, arrays, strict=True):
        if not np.isfinite(values.sum()) and not np.isfinite(values).all():  # the sum alone decides almost always
            count = int((~np.isfinite(values)).sum())
            problems.append(f"{_short(path)}: {count} values are NaN or infinite; replace them")
    channels = sum(len(image.values) for _, image in parts)
    if len(parts) == len(case.images) and channels != description.num_channels:
        names = ", ".join(description.channel_names)
        problems.append(f"{_short(case.images[0])}: {channels} channels, expected {description.num_channels}: {names}")
    label = None if case.label is None else _loaded(case.label, problems, is_label=True)
    ids = None
    compared = list(parts)
    if case.label is not None and label is not None:
        compared.append((case.label, label))
        ids = _ids(label.values.numpy())
        _check_ids(case.label, ids, description, problems)
    without_spacing = [path for path, part in compared if _lacks_spacing(path, part, is_label=path == case.label)]
    for part in compared[1:]:
        _compare(
            compared[0],
            part,
            problems,
            warnings,
            shape_alone=bool({part[0], compared[0][0]} & {*without_spacing}),
            is_label=part[0] == case.label,
        )
    facts, measured = None, None
    if parts and not problems:
        facts = _facts_of(case.case_id, parts[0][1].geometry, arrays, ids)
        if label is not None and num_places is not None:
            try:
                image = joined([part for _, part in parts])
                label = turned_label(label, image.geometry)
                measured = measure_case(case.case_id, image, label, description, num_places=num_places)
            except CandyError as error:
                problems.append(f"{case.case_id}: {error}")
    return CaseFindings(
        problems=tuple(problems),
        warnings=tuple(warnings),
        without_spacing=tuple(_short(path) for path in without_spacing),
        facts=facts,
        measured=measured,
    )


def _facts_of(
    case_id: str, geometry: Geometry, arrays: Sequence[NDArray[np.floating]], label_ids: frozenset[int] | None
) -> CaseFacts:
    in_space = not geometry.is_picture and len(geometry.spatial_shape) == 3
    order = np.argsort(nibabel.io_orientation(geometry.affine)[:, 0]) if in_space else (0, 1)
    return CaseFacts(
        case_id=case_id,
        content=content_of(arrays),
        spacing_mm=None if geometry.is_picture else tuple(geometry.spacing_mm[int(axis)] for axis in order),
        is_mirrored=bool(np.linalg.det(geometry.affine[:3, :3]) < 0) if in_space else None,
        ranges=tuple(usual_range(channel) for array in arrays for channel in array),
        label_ids=label_ids,
    )


def _lacks_spacing(path: Path, image: Scan, *, is_label: bool) -> bool:
    """Return whether a file says nothing of its own about space, so that the shape is all that can be compared."""
    return image_suffix(path) in TIFFS and image.values.ndim == 4 and spacing_file(path, is_label=is_label) is None


def _spacing_warnings(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    return [
        f"{named(files)}: TIFF volumes without spacing, so 1 x 1 x 1 mm is taken; write "
        '{"spacing": [...]} in the order of the axes to <case>.json beside them'
    ]


def _facts(findings: Sequence[CaseFindings]) -> list[CaseFacts]:
    return [finding.facts for finding in findings if finding.facts is not None]


def _loaded(path: Path, problems: list[str], *, is_label: bool) -> Scan | None:
    try:
        return read_scan(path, is_label=is_label)
    except CandyError as error:
        problems.append(str(error))
        return None


def _compare(
    first: tuple[Path, Scan],
    second: tuple[Path, Scan],
    problems: list[str],
    warnings: list[str],
    *,
    shape_alone: bool,
    is_label: bool,
) -> None:
    """Compare two files of one case, which are brought onto one grid as far as swapping and flipping axes does it.

    A channel that lies elsewhere is a problem. A label is a warning, since nnU-Net takes its voxels for the image's.
    """
    one, other = first[1].geometry, second[1].geometry
    names = f"{_short(second[0])}: "
    against = f"the image {first[0].name} has"
    if shape_alone:
        if other.spatial_shape != one.spatial_shape:
            problems.append(f"{names}{misfit(other, one, against=against)}")
    elif problem := mismatch(other, one, against=against):
        if is_label and misfit(other, one, against=against) is None:
            warnings.append(f"{names}{displacement(other, one, against=against)}; {_TAKEN_ALIKE}")
        else:
            problems.append(f"{names}{problem}")
    elif misalignment(other, one, against=against):
        warnings.append(
            f"{names}{misfit(other, one, against=against) or displacement(other, one, against=against)}; its axes are "
            "swapped and flipped to those of the image: correct the header where that is wrong"
        )
    elif warning := displacement(other, one, against=against):
        warnings.append(f"{names}{warning}; {_TAKEN_ALIKE}")


def _ids(label: NDArray[np.integer]) -> frozenset[int]:
    flat = label.ravel()
    if flat.size and flat.min() >= 0 and flat.max() < _MOST_BINS:  # counting is many times faster than sorting
        return frozenset(np.flatnonzero(np.bincount(flat)).tolist())
    return frozenset(np.unique(flat).tolist())


def _check_ids(path: Path, ids: frozenset[int], description: DatasetDescription, problems: list[str]) -> None:
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


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
