"""Recognise patients by their case ids, and find folds that divide a patient."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from candy_monai.data.datasets.folds import Fold

_OCCASIONS = "visit|session|ses|timepoint|tp|followup|follow-up|fu"
_PARTS = "frame|slice|slc|sl|scan|time|phase|day|week|month|year|run|acq|echo|stack"
_VAGUE_PARTS = "view|image|img|im|part|patch|tile|crop|t|f|s|z"
"""Words before the number of a part of a patient's data: a time, an image of a series, or anything."""

_SIDES = "ED|ES|pre|post|baseline|followup|left|right|L|R|OD|OS|sag|cor|ax|axial|coronal|sagittal"
"""Words for one of a few acquisitions of a patient, without a number."""

_FEWEST_PATIENTS = 5
_LARGEST_SHARE = 1 / 3
"""Without such a word, a number before another one is a patient's if there are many, each with few cases."""

_BEGIN = r"(?:.*[-_ .])?"
_NUMBERED_PATIENT = re.compile(_BEGIN + r"(?:(?:patient|pat|subject|subj|sub|case|vol|p|s)[-_ ]?)?\d+", re.IGNORECASE)
_NO_PATIENT = re.compile(
    _BEGIN + r"(?:(?:site|batch|cent(?:er|re)|data(?:set)?|hospital|group|fold|scanner|class)[-_ ]?\d+|(?:19|20)\d\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class PatientNames:
    """The patients that the ids of a dataset appear to name."""

    patient_of: Mapping[str, str]  # for each case id, the common part of its patient's ids
    groups: str  # the regular expression for --groups that finds it


@dataclass(frozen=True, kw_only=True)
class _Pattern:
    """A pattern of ids: an expression whose first group is the patient, and the conditions for its use."""

    expression: str
    needs_numbered_patient: bool = False
    needs_many_patients: bool = False


def patients_by_name(case_ids: Sequence[str]) -> PatientNames | None:
    """Return the patients named in ids such as ``patient001_frame12``; ``None`` if none has several cases.

    A patient is what precedes the number of a frame, a slice, a visit and so on (``SC-01-IM-0048``), one of two phases
    or sides (``p07_ED``, ``07L``), or, in larger datasets, a second number (``10001_7``).
    """
    for pattern in _patterns(case_ids):
        found = {case_id: match[1] for case_id in case_ids if (match := re.search(pattern.expression, case_id))}
        sizes = Counter(found.values())
        shared = [patient for patient, count in sizes.items() if count > 1]
        if len(found) < len(case_ids) or len(sizes) < 2 or not shared:
            continue
        if any(_NO_PATIENT.fullmatch(patient) for patient in shared):
            continue
        if pattern.needs_numbered_patient and not all(_NUMBERED_PATIENT.fullmatch(patient) for patient in shared):
            continue
        is_many = len(sizes) >= _FEWEST_PATIENTS and max(sizes.values()) <= _LARGEST_SHARE * len(case_ids)
        if is_many or not pattern.needs_many_patients:
            return PatientNames(patient_of=found, groups=pattern.expression)
    return None


def patients_on_both_sides(folds: Sequence[Fold], *, first: int = 0) -> list[str]:
    """Return a warning about patients whose cases are in different folds, with the groups that prevent this.

    ``first`` is the number of the first of these folds.
    """
    everything = sorted({case_id for fold in folds for case_id in (*fold.train, *fold.validation)})
    names = patients_by_name(everything)
    if names is None:
        return []
    patient_of, divided, per_fold = names.patient_of, set[str](), []
    for number, fold in enumerate(folds, start=first):
        if set(fold.train) == set(fold.validation):  # the fold 'all' validates on its training cases on purpose
            continue
        validated = {patient_of[case_id] for case_id in fold.validation}
        both = validated & {patient_of[case_id] for case_id in fold.train}
        divided |= both
        if both:
            per_fold.append(f"{len(both)} of {len(validated)} validated in fold {number}")
    if not divided:
        return []
    patient = min(divided)
    examples = [case_id for case_id in everything if patient_of[case_id] == patient][:2]
    return [
        f"{len(divided)} of {len(set(patient_of.values()))} patients are both in training and in validation "
        f"({', '.join(per_fold)}), if {' and '.join(examples)} are of one patient, as their names suggest; validation "
        f"scores are then too high. To keep each patient on one side of a fold, train with --groups '{names.groups}'"
    ]


def _patterns(case_ids: Sequence[str]) -> Iterator[_Pattern]:
    yield from _before_parts(case_ids, f"{_OCCASIONS}|{_PARTS}", r".*?\d.*?")
    yield from _before_parts(case_ids, _VAGUE_PARTS, r".*?\d.*?", needs_numbered_patient=True)
    yield from _before_parts(case_ids, _OCCASIONS, r".+?")
    sides = sorted({match[1] for case_id in case_ids if (match := re.search(rf"\d[-_ ]?({_SIDES})$", case_id))})
    if len(sides) > 1:
        yield _Pattern(expression=rf"^(.*\d)[-_ ]?({'|'.join(sides)})$")
    yield _Pattern(expression=r"^(.+)[-_]\d+$", needs_numbered_patient=True, needs_many_patients=True)


def _before_parts(
    case_ids: Sequence[str], words: str, patient: str, *, needs_numbered_patient: bool = False
) -> Iterator[_Pattern]:
    """Yield the pattern for the part before a word and a number: the simplest expression with the same matches."""
    part = re.compile(rf"^({patient})([-_ .]?)(?<![a-z])({words})[-_ ]?\d+(?![a-z])", re.IGNORECASE)
    found = {case_id: match for case_id in case_ids if (match := part.match(case_id))}
    if not found:
        return
    separators = {match[2] for match in found.values()}
    separator = separators.pop() if len(separators) == 1 else "[-_ .]?"
    separator = "[.]" if separator == "." else separator
    kinds = sorted({match[3] for match in found.values()})
    kind = kinds[0] if len(kinds) == 1 else f"(?:{'|'.join(kinds)})"
    patients = {case_id: found[case_id][1] if case_id in found else case_id for case_id in case_ids}
    for expression in (
        f"^(.+?){separator}{kind}",
        f"^({patient}){separator}{kind}[-_ ]?\\d",
        f"^(.+?)(?:{separator}{kind}[-_ ]?\\d.*)?$",  # without such a word, the whole id is the patient
        f"^({patient}|.+)(?:{separator}{kind}[-_ ]?\\d.*)?$",
    ):
        matches = {case_id: re.search(expression, case_id) for case_id in case_ids}
        if all((match := matches[case_id]) is not None and match[1] == patients[case_id] for case_id in case_ids):
            yield _Pattern(expression=expression, needs_numbered_patient=needs_numbered_patient)
            return
