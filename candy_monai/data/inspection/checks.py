"""Find all problems of an nnU-Net folder before work starts, each with its file.

Every image is decoded once, since a truncated file, a NaN or an unknown label id cannot be detected otherwise, and each
case is measured for the dataset's fingerprint at the same time. The dataset's own folder is never written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold, checked_splits, choose_folds
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase, region_order_problem
from candy_monai.data.datasets.nnunet_files import Listing, list_dataset
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.data.images.alignment import displacement, misalignment, misfit, mismatch
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.pictures import TIFFS, palette_of, spacing_file
from candy_monai.data.images.reading import Scan, joined, read_scan, turned_label
from candy_monai.data.inspection.consistency import (
    different_palettes,
    inconsistencies,
    labels_absent_from_folds,
    names_by_id,
    shared_labels,
    sides_among_labels,
)
from candy_monai.data.inspection.digest import Digests, case_stamp, file_digests
from candy_monai.data.inspection.findings import CaseCache, CaseFindings
from candy_monai.data.inspection.inspect import (
    MeasuredCase,
    measure_case,
    mixed_axes,
    pooled_fingerprint,
    samples_per_case,
)
from candy_monai.data.values import join_names, join_reprs
from candy_monai.data.workers import AHEAD, case_workers, in_order, shares
from candy_monai.errors import CandyError
from candy_monai.label_ids import ids_in

if TYPE_CHECKING:
    from candy_monai.data.datasets.nnunet import NNUNetDataset
    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.processes import Processes

SPLITS = "splits_final.json"
"""The folds of a dataset or a run, in nnU-Net's format: in the dataset, the experiment folder and the store."""
_TAKEN_ALIKE = (
    "this difference is ignored, and voxels are matched by index: check that the two overlay correctly, and correct "
    "the header that is wrong"
)


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The result of a check: problems that prevent or invalidate training, and warnings about unusual properties."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CheckedDataset:
    """The results of checking an nnU-Net folder, so that nothing has to be read again.

    Attributes:
        listing: The description and the files of training and test cases.
        report: Problems and warnings.
        folds: The folds of the folder's own split file, or else nnU-Net's; empty if these have problems.
        digests: Identify the content of the training cases; None if there are problems.
        fingerprint: The input of planning; None if there are problems.
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

    def warnings_for(self, folds: Sequence[Fold], *, first: int = 0) -> tuple[str, ...]:
        """Return the warnings of the report, with those about other folds in place of those about ``self.folds``.

        ``first`` is the number of the first of these folds.
        """
        about_own = self._about(self.folds, first=0)
        return (
            *(warning for warning in self.report.warnings if warning not in about_own),
            *self._about(folds, first=first),
        )

    def _about(self, folds: Sequence[Fold], *, first: int) -> list[str]:
        cases = () if self.fingerprint is None else self.fingerprint.cases
        names = {} if self.fingerprint is None else names_by_id(self.fingerprint.labels)
        ids_by_case = {case.case_id: frozenset(case.class_voxels) for case in cases}
        return [
            *labels_absent_from_folds(folds, ids_by_case, names, first=first),
            *patients_on_both_sides(folds, first=first),
        ]


def check_dataset(folder: PathLike, *, num_workers: int | None = None) -> DatasetReport:
    """Check the description, the files, every image and label, and the splits of a dataset.

    At most one case per worker is in memory. Problems of test cases are warnings, since training does not read them.

    Args:
        folder: The dataset's folder.
        num_workers: Decoding threads; ``None`` for one per processor. Fewer if cases would not fit into memory.
    """
    return visit_dataset(folder, num_workers=num_workers).report


def visit_dataset(
    folder: PathLike,
    *,
    store: PathLike | None = None,
    num_workers: int | None = None,
    places_per_class: int = 0,
    processes: Processes | None = None,
) -> CheckedDataset:
    """Check a dataset as `check_dataset` does and measure it as `inspect` does, in one decoding.

    Args:
        folder: The dataset's folder.
        store: Where the findings of valid cases are stored at once, so that only new and changed cases are decoded;
            None stores none. It is removed again if it was created for a dataset with problems.
        num_workers: Decoding threads; ``None`` for one per processor. Fewer if cases would not fit into memory.
        places_per_class: Voxels of each foreground id to sample in each case, anew in each call.
        processes: The processes that call this together and share the cases through ``store``; None for this one alone.
    """
    listing = list_dataset(Path(folder), "Tr", "Ts")
    description, problems = listing.description, [*listing.description_problems]
    if description is None:
        return CheckedDataset(listing=listing, report=DatasetReport(problems=tuple(problems), warnings=()))
    cases, test_cases, listing_problems = listing.cases["Tr"], listing.cases["Ts"], listing.problems["Tr"]
    if not problems and (problem := region_order_problem(description)):
        problems.append(problem)
    problems += listing_problems
    if description.num_training not in (None, len(cases)) and not listing_problems:
        problems.append(
            f"dataset.json: numTraining is {description.num_training}, found {len(cases)} cases; add what is missing, "
            f'or write "numTraining": {len(cases)}'
        )
    case_ids, splits = [case.case_id for case in cases], listing.folder / SPLITS
    folds, split_problems = checked_splits(splits, case_ids) if splits.is_file() else ((), [])
    problems += split_problems
    if listing_problems or split_problems:
        folds = ()
    elif cases and not folds:
        folds = choose_folds(case_ids)
    digests = _digests(description, cases)
    cache = CaseCache(store, description) if store is not None and cases and not places_per_class else None
    look = partial(
        _findings,
        description=description,
        cache=cache,
        num_places=places_per_class,
        num_samples=samples_per_case(len(cases), description.num_channels),
    )
    tasks = [partial(look, case, None if digests is None else digests.cases[case.case_id]) for case in cases]
    tasks += [partial(look, case, None) for case in test_cases]
    jobs, found_of = case_workers((*cases, *test_cases), num_workers), dict[int, CaseFindings]()
    order = range(len(tasks))
    for share in (order,) if cache is None else shares(order, processes, cache.folder):
        found_of.update(zip(share, in_order((tasks[index] for index in share), jobs, ahead=AHEAD), strict=True))
    everything = [found_of[index] for index in order]
    findings, test_findings = everything[: len(cases)], everything[len(cases) :]
    measured = _measured(findings)
    problems += [problem for finding in findings for problem in finding.problems]
    problems += [] if problems else mixed_axes(measured)
    seen = frozenset[int]().union(*(case.fingerprint.class_voxels for case in measured))
    absent = sorted(set(description.label_ids) - seen) if len(measured) == len(cases) > 0 else []
    if findings and not problems and seen <= {0, description.ignore_label}:
        problems.append("labelsTr: no training case has any foreground, so there is nothing to learn; check the labels")
        absent = []
    if problems and cache is not None and processes is None:
        cache.remove_if_new()  # a refused dataset leaves nothing in a folder created for it
    is_sound = digests is not None and bool(cases) and not problems
    fingerprint = pooled_fingerprint(description, digests.whole, measured) if digests and is_sound else None
    warnings = [
        *(warning for finding in findings for warning in finding.warnings),
        *_spacing_warnings([name for finding in findings for name in finding.without_spacing]),
        *listing.problems["Ts"],  # training does not read the test cases
        *(text for finding in test_findings for text in (*finding.problems, *finding.warnings)),
        *([f"no training case contains the label ids {absent}"] if absent else []),
        *shared_labels(cases),
        *different_palettes({case.case_id: found.colours for case, found in zip(cases, findings, strict=True)}),
        *sides_among_labels(list(description.labels)),
        *inconsistencies(
            measured,
            _measured(test_findings),
            channel_names=description.channel_names,
            ignore_label=description.ignore_label,
        ),
    ]
    if not problems:  # otherwise a label may be missing because its case is
        ids_by_case = {case.case_id: frozenset(case.fingerprint.class_voxels) for case in measured}
        warnings += labels_absent_from_folds(folds, ids_by_case, names_by_id(description.labels))
    return CheckedDataset(
        listing=listing,
        report=DatasetReport(problems=tuple(problems), warnings=(*warnings, *patients_on_both_sides(folds))),
        folds=folds,
        digests=digests if is_sound else None,
        fingerprint=fingerprint,
    )


def _findings(
    case: NNUNetCase,
    content: str | None,
    *,
    description: DatasetDescription,
    cache: CaseCache | None,
    num_places: int,
    num_samples: int,
) -> CaseFindings:
    """Return the findings of a case: the stored ones if they suffice, otherwise by decoding it."""
    key = None if cache is None else cache.key(case, content)
    found = None if cache is None or key is None else cache.load(key)
    if found is None or not found.has_samples(num_samples):
        stamp = _stamp(case)
        found = _check_case(case, description, num_places).thinned(num_samples)
        if cache is not None and key is not None and _stamp(case) == stamp:
            cache.save(key, found)  # otherwise the case is being written to
    return found.thinned(num_samples)


def _measured(findings: Sequence[CaseFindings]) -> list[MeasuredCase]:
    return [finding.measured for finding in findings if finding.measured is not None]


def _stamp(case: NNUNetCase) -> str | None:
    try:
        return case_stamp(case)
    except OSError:
        return None


def _digests(description: DatasetDescription, cases: Sequence[NNUNetCase]) -> Digests | None:
    """Return the digests of the training cases; None if a file cannot be read, which its case's check reports."""
    try:
        return file_digests(description, cases)
    except OSError:
        return None


def _check_case(case: NNUNetCase, description: DatasetDescription, num_places: int) -> CaseFindings:
    """Decode a case once, and return its problems or its measurements."""
    problems: list[str] = []
    warnings: list[str] = []
    images = [(path, image) for path in case.images if (image := _loaded(path, problems, is_label=False)) is not None]
    for path, image in images:
        values = image.values.numpy()
        if not np.isfinite(values.sum()) and not np.isfinite(values).all():  # the sum alone almost always decides
            count = int((~np.isfinite(values)).sum())
            problems.append(f"{_short(path)}: {count} values are NaN or infinite; replace them")
    channels = sum(len(image.values) for _, image in images)
    if len(images) == len(case.images) and channels != description.num_channels:
        names = ", ".join(description.channel_names)
        problems.append(f"{_short(case.images[0])}: {channels} channels, expected {description.num_channels}: {names}")
    label = None if case.label is None else _loaded(case.label, problems, is_label=True)
    compared, colours = list(images), dict[int, str]()
    if case.label is not None and label is not None:
        compared.append((case.label, label))
        _check_ids(case.label, ids := ids_in(label.values), description, problems)
        colours = {label_id: colour for label_id, colour in palette_of(case.label).items() if label_id in ids}
    without_spacing = [path for path, scan in compared if _lacks_spacing(path, scan, is_label=path == case.label)]
    for path, scan in compared[1:]:
        first_path, first = compared[0]
        if first_path not in without_spacing and path not in without_spacing:
            _compare(first_path, first, path, scan, problems, warnings, is_label=path == case.label)
        elif scan.geometry.spatial_shape != first.geometry.spatial_shape:  # their geometry is unknown otherwise
            against = f"the image {first_path.name} has"
            problems.append(f"{_short(path)}: {misfit(scan.geometry, first.geometry, against=against)}")
    measured = None
    if images and not problems:
        try:
            image = joined([image for _, image in images])
            label = None if label is None else turned_label(label, image.geometry)
            measured = measure_case(case.case_id, image, label, description, num_places=num_places)
        except CandyError as error:
            problems.append(f"{case.case_id}: {error}")
    return CaseFindings(
        problems=tuple(problems),
        warnings=tuple(warnings),
        without_spacing=tuple(_short(path) for path in without_spacing),
        measured=measured,
        colours=colours,
    )


def _lacks_spacing(path: Path, image: Scan, *, is_label: bool) -> bool:
    """Return whether a file has no information about space, so that only the shape can be compared."""
    return image_suffix(path) in TIFFS and image.values.ndim == 4 and spacing_file(path, is_label=is_label) is None


def _spacing_warnings(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    return [
        f'{join_names(files)}: TIFF volumes without spacing, so 1 x 1 x 1 mm is assumed; write {{"spacing": [...]}} in '
        "the order of the axes to <case>.json beside them"
    ]


def _loaded(path: Path, problems: list[str], *, is_label: bool) -> Scan | None:
    try:
        return read_scan(path, is_label=is_label)
    except CandyError as error:
        problems.append(str(error))
        return None


def _compare(
    first_path: Path, first: Scan, path: Path, scan: Scan, problems: list[str], warnings: list[str], *, is_label: bool
) -> None:
    """Check that two files of a case are on one grid, up to swapping and flipping axes.

    For a channel on another grid this is a problem. For a label it is a warning, since nnU-Net uses only its voxels.
    """
    found, expected, against = scan.geometry, first.geometry, f"the image {first_path.name} has"
    moved = None
    unlike = misfit(found, expected, against=against)
    if unlike is None:
        moved = displacement(found, expected, against=against)
    if problem := mismatch(found, expected, against=against):
        if is_label and unlike is None:
            warnings.append(f"{_short(path)}: {moved}; {_TAKEN_ALIKE}")
        else:
            problems.append(f"{_short(path)}: {problem}")
    elif misalignment(found, expected, against=against):
        warnings.append(
            f"{_short(path)}: {unlike or moved}; its axes are swapped and flipped to match the image: correct the "
            "header if that is wrong"
        )
    elif moved:
        warnings.append(f"{_short(path)}: {moved}; {_TAKEN_ALIKE}")


def _check_ids(path: Path, ids: Sequence[int], description: DatasetDescription, problems: list[str]) -> None:
    ignored = () if description.ignore_label is None else (description.ignore_label,)
    expected = sorted({*description.label_ids, *ignored})
    unknown = sorted(set(ids) - set(expected))
    if unknown:
        remap = ""
        if ids[0] < 0:
            remap = "; set negative ids to 0, the background, or to the id of an ignore label"
        elif len(ids) == len(expected):
            pairs = zip(ids, expected, strict=True)
            remap = "; remap a copy: " + ", ".join(f"{old} -> {new}" for old, new in pairs if old != new)
        problems.append(
            f"{_short(path)}: unknown label ids {join_reprs(unknown)}; found {join_reprs(ids)}, "
            f"expected {join_reprs(expected)} (dataset.json){remap}"
        )


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
