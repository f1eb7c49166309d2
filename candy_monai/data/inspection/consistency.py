"""Compare the cases of a dataset with each other to find unusual ones, which may be intended."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.datasets.folds import Fold
from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.data.inspection.inspect import MeasuredCase
from candy_monai.data.values import ids_of_label, join_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_TO_COMPARE = 4
_FAR_SPACING = 3.0
_FAR_RANGE = 4.0
_FAR_SHIFT = 0.35
"""As a share of the usual range: about the distance of a CT without the offset of 1024 from the others."""
_DEVIATIONS = 6.0
_MAD_TO_DEVIATION = 1.4826
_SIDES = ((r"(?<![a-z])left(?![a-z])", "right"), (r"(?<![a-z])l(?![a-z])", "r"))
_PATIENT_AXES = {code: axis for axis, codes in enumerate(("LR", "PA", "IS")) for code in codes}


def inconsistencies(
    training: Sequence[MeasuredCase],
    test: Sequence[MeasuredCase],
    *,
    channel_names: Sequence[str],
    ignore_label: int | None = None,
) -> list[str]:
    """Return a warning for each property in which some cases of a dataset differ from the others."""
    return [
        *_duplicates(training, test),
        *_without_foreground(training, ignore_label),
        *_mirrored(training),
        *_outlying_spacings(training),
        *_outlying_intensities(training, channel_names),
    ]


def labels_absent_from_folds(
    folds: Sequence[Fold], ids_by_case: Mapping[str, frozenset[int]], names: Mapping[int, str], *, first: int = 0
) -> list[str]:
    """Return a warning for each fold whose training cases all lack a label of other cases, which cannot be learned.

    ``first`` is the number of the first of these folds.
    """
    everywhere = frozenset[int]().union(*ids_by_case.values())
    texts = []
    for number, fold in enumerate(folds, start=first):
        known = frozenset[int]().union(*(ids_by_case.get(case_id, frozenset()) for case_id in fold.train))
        absent = [
            f"{names[label_id]!r} (id {label_id})" for label_id in sorted(everywhere - known) if label_id in names
        ]
        if absent and fold.validation:
            texts.append(
                f"fold {number}: no training case has the label {', '.join(absent)}, which is then never learned; "
                "choose other folds, for example with --groups or --splits"
            )
    return texts


def different_palettes(colours: Mapping[str, Mapping[int, str]]) -> list[str]:
    """Return a warning if an id has another colour in the label map of one case than in that of another.

    Args:
        colours: By case, the colour of each id in its label map; empty without a palette.
    """
    first: dict[int, tuple[str, str]] = {}
    for case_id, by_id in colours.items():
        for label_id, colour in by_id.items():
            known, where = first.setdefault(label_id, (colour, case_id))
            if known != colour:
                return [
                    f"labelsTr: the palettes of the label maps differ, for example id {label_id} is {known} in {where} "
                    f"and {colour} in {case_id}; the ids are read, not the colours: check that each id is the same "
                    "class in all of them"
                ]
    return []


def sides_among_labels(names: Sequence[str]) -> list[str]:
    """Return a warning if pairs of labels are a left and a right side, which mirroring of patches would swap."""
    known = {name.casefold(): name for name in names}
    pairs = [
        f"{name} and {known[other]}"
        for name in names
        for left, right in _SIDES
        if (other := re.sub(left, right, name.casefold())) != name.casefold() and other in known
    ]
    if not pairs:
        return []
    return [
        f"dataset.json: labels of a left and a right side ({join_names(pairs, limit=2)}), which mirroring would swap: "
        "remove the left-right axis from the plan's mirror_axes, for example --set mirror_axes=1,2"
    ]


def names_by_id(labels: Mapping[str, int | tuple[int, ...]]) -> dict[int, str]:
    """Return the name of each foreground id; an id of several regions has all their names."""
    names: dict[int, str] = {}
    for name, ids in labels.items():
        for label_id in ids_of_label(ids):
            names[label_id] = f"{names[label_id]}, {name}" if label_id in names else name
    return {label_id: name for label_id, name in names.items() if label_id}


def shared_labels(cases: Sequence[NNUNetCase]) -> list[str]:
    """Return a warning for every label file that is listed for several cases, as after copying an entry."""
    by_label = defaultdict[Path, list[str]](list)
    for case in cases:
        if case.label is not None:
            by_label[case.label].append(case.case_id)
    return [
        f"{label}: is listed as the label of {join_names(names)}; check whether each of them has its own"
        for label, names in by_label.items()
        if len(names) > 1
    ]


def _duplicates(training: Sequence[MeasuredCase], test: Sequence[MeasuredCase]) -> list[str]:
    by_content: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for index, cases in enumerate((training, test)):
        for case in cases:
            if any(low < high for low, high in case.ranges):  # blank images are all equal
                by_content[case.content][index].append(case.case_id)
    texts = []
    for learned, tested in by_content.values():
        if len(learned) > 1:
            texts.append(
                f"imagesTr: {', '.join(learned)} hold the same image; remove all but one, or keep them on one side of "
                "a fold (--groups)"
            )
        if learned and tested:
            texts.append(
                f"the training case {learned[0]} and the test case {tested[0]} hold the same image, so test scores "
                "would be too high; remove one of them"
            )
    return texts


def _without_foreground(cases: Sequence[MeasuredCase], ignore_label: int | None) -> list[str]:
    blank = [case.case_id for case in cases if not case.fingerprint.class_voxels.keys() - {0, ignore_label}]
    return [f"labelsTr: no foreground in {len(blank)} of {len(cases)} cases: {join_names(blank)}"] if blank else []


def _mirrored(cases: Sequence[MeasuredCase]) -> list[str]:
    known = [case for case in cases if case.is_mirrored is not None]
    mirrored = [case.case_id for case in known if case.is_mirrored]
    upright = [case.case_id for case in known if not case.is_mirrored]
    if not mirrored or not upright:
        return []
    few, kind, usual = (
        (mirrored, "left-handed", "right-handed")
        if len(mirrored) <= len(upright)
        else (upright, "right-handed", "left-handed")
    )
    return [
        f"imagesTr: {join_names(few)}: the affine is mirrored ({kind} axes, {usual} in the other cases); if a header "
        "lost a flip, left and right are swapped: compare these with the others"
    ]


def _outlying_spacings(cases: Sequence[MeasuredCase]) -> list[str]:
    known = [(case.case_id, _patient_spacing(case)) for case in cases if not case.is_picture]
    if len(known) < _FEWEST_TO_COMPARE or len({len(spacing) for _, spacing in known}) > 1:
        return []
    usual = np.median([spacing for _, spacing in known], axis=0)
    texts = []
    for case_id, spacing in known:
        ratio = np.array(spacing) / usual
        if ratio.max() > _FAR_SPACING or ratio.min() < 1 / _FAR_SPACING:
            texts.append(f"{case_id} {_numbers(spacing)}")
    if not texts:
        return []
    return [
        f"imagesTr: spacing differs by a factor of more than {_FAR_SPACING:g} from the median, {_numbers(usual)} mm "
        f"(left-right, anterior-posterior, inferior-superior): {join_names(texts)}; check the headers"
    ]


def _patient_spacing(case: MeasuredCase) -> tuple[float, ...]:
    """Return the spacing along the patient's axes, left-right first."""
    spacing, codes = case.fingerprint.spacing_mm, case.fingerprint.orientation
    if codes is None:
        return spacing
    return tuple(spacing[axis] for axis in sorted(range(3), key=lambda axis: _PATIENT_AXES[codes[axis]]))


def _outlying_intensities(cases: Sequence[MeasuredCase], channel_names: Sequence[str]) -> list[str]:
    texts = []
    owners = [case.case_id for case in cases]
    for channel, name in enumerate(channel_names if cases else ()):
        ranges = np.array([case.ranges[channel] for case in cases])
        widths = ranges[:, 1] - ranges[:, 0]
        constant = [owners[i] for i in np.flatnonzero(widths == 0)]
        if constant:
            texts.append(f"imagesTr: channel {name!r} is almost constant in {join_names(constant)}")
        varied = np.flatnonzero(widths > 0)
        if len(varied) < _FEWEST_TO_COMPARE:
            continue
        logs, lows = np.log(widths[varied]), ranges[varied, 0]
        usual = math.exp(float(np.median(logs)))
        far = _is_far(logs, math.log(_FAR_RANGE)) | _is_far(lows, _FAR_SHIFT * usual)
        odd = [f"{owners[i]} ({_bounds(ranges[i])})" for i in varied[far]]
        if odd:
            typical = np.median(ranges[varied], axis=0)
            texts.append(
                f"imagesTr: channel {name!r} has intensities far from the usual {_bounds(typical)} in {len(odd)} of "
                f"{len(owners)} cases: {join_names(odd, limit=8)}; check units and scale"
            )
    return texts


def _is_far(values: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Return which values are outliers: further from the median than ``least`` and than the spread allows."""
    distance = np.abs(values - np.median(values))
    spread = _MAD_TO_DEVIATION * float(np.median(distance))
    far: NDArray[np.bool_] = distance > max(least, _DEVIATIONS * spread)
    return far


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _bounds(values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"{values[0]:.4g} to {values[1]:.4g}"
